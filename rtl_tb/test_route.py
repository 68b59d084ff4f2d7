"""Route unit: top-k, combine weights, queues, order of experts and queue CRC against the golden model.

One coroutine plays everything around the unit: entry table, drain, both consumers of the order, the walks of dispatch
and the weight slots that RESIDENT_FIRST asks. Inputs change at the falling edge, outputs are read after that.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from accel.config import hardware
from accel.golden import route_tokens
from accel.numerics import OCTAVE_SHIFT_MAX, OCTAVE_SHIFT_MIN
from accel.routing import Routing, Schedule, schedule

TOPLEVEL = "route_bench"
SOURCES = ("route_bench.sv",)
PRESETS = ("ci", "zcu104")

HW = hardware(os.environ.get("M3VIT_HARDWARE", "ci"))
TILE, OUTPUTS, LANES = HW.tile_tokens, HW.tile_outputs, HW.topk_lanes
STRIPE = HW.stripe_bytes
TOKEN_BITS, EXPERT_BITS = HW.max_tokens.bit_length(), HW.max_experts.bit_length()
RANK_BITS = (HW.max_top_k - 1).bit_length()
NODE_BITS = TOKEN_BITS + RANK_BITS
LINEAR, MLP, MOE = 0, 2, 3
LOW, HIGH = -(1 << 31), (1 << 31) - 1


class Given:
    """A gate whose logits are its input."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        return x


@dataclass
class Layer:
    """A MOE layer: what the unit is given, and what it has to answer."""

    logits: np.ndarray
    top_k: int
    shift: int = 0
    policy: Schedule = Schedule.INDEX
    units: int = 1
    stripes: int = 3
    weights: int = 0x4000
    resident: set[int] = field(default_factory=set)  # experts all of whose units are in slots
    partly: set[int] = field(default_factory=set)  # experts that lack their last unit

    @property
    def tokens(self) -> int:
        return len(self.logits)

    @property
    def experts(self) -> int:
        return self.logits.shape[1]

    @property
    def routing(self) -> Routing:
        return route_tokens(Given(), self.logits.astype(np.int64), self.top_k, self.shift)

    @property
    def slots(self) -> set[int]:
        """Arena offsets of the units that are in slots."""
        units = {expert * self.units + unit for expert in self.resident for unit in range(self.units)}
        units |= {expert * self.units + unit for expert in self.partly for unit in range(self.units - 1)}
        return {(self.weights + unit * self.stripes * STRIPE) % 2**32 for unit in units}

    @property
    def period(self) -> int:
        """Cycles per token."""
        return max(-(-self.experts // LANES), self.top_k)


@dataclass
class Pace:
    """How often each neighbour is willing, 0 … 1."""

    rows: float = 1.0
    dispatch: float = 1.0
    load: float = 1.0
    walk: float = 1.0
    table: float = 1.0
    tile: int = 0  # cycles from one token tile's first row to the next one's, at least


def random_pace() -> Pace:
    return Pace(*(random.choice((0.03, 0.3, 0.7, 1.0, 1.0)) for _ in range(5)))


def layers_of(entries: list) -> list[Layer]:
    return [entry for entry in entries if isinstance(entry, Layer)]


class Bench:
    """Runs a list of entries, each a Layer, ``"end"`` (JOB_END) or the kind of a layer that is not routed."""

    def __init__(self, dut) -> None:
        self.dut = dut
        self.cycle = 0
        self.latency: list[int] = []  # from the last row of a layer to its first expert
        self.duration: list[int] = []  # from the first row of a layer to its first expert

    async def reset(self) -> None:
        dut = self.dut
        dut.layer_valid.value = dut.resident_hit.value = 0
        self._quiet()
        dut.rst.value = 1
        for _ in range(3):
            await FallingEdge(dut.clk)
        dut.rst.value = 0

    def _quiet(self) -> None:
        for name in ("gate_reserve", "gate_valid", "order_ready", "walk_start", "walk_ready"):
            getattr(self.dut, name).value = 0

    async def run(self, entries: list, pace: Pace, limit: int = 400_000, stop: int | None = None) -> None:
        """Play ``entries`` and check every answer. ``stop``: give up without checks after so many cycles."""
        dut, chance = self.dut, random.random
        golden = [(layer, layer.routing) for layer in layers_of(entries)]
        expected_crc, crc, routed = [], 0, iter(golden)
        for entry in entries:
            if isinstance(entry, Layer):
                crc = next(routed)[1].crc(crc)
            elif entry == "end":
                expected_crc.append(crc)
                crc = 0
        found_crc, found_experts, appended = [], [], [[] for _ in golden]
        orders: list[list[list[tuple]]] = [[[] for _ in golden] for _ in range(2)]  # consumer, layer
        layer_of = [0, 0]  # layer that each consumer is at
        first_entry = random.randrange(8)
        pointer, shown, advanced = 0, False, False
        walks: list[dict] = []
        rows = self._rows(golden, pace)
        gate_layer = 0  # layer whose gate runs; the next one's starts after this one's last walk
        produced = next(rows)
        walking: dict | None = None
        last_row = first_row = first_order = next_tile = 0
        append_layer = 0
        started = self.cycle
        while pointer < len(entries) or min(layer_of) < len(golden) or walking or walks:
            await FallingEdge(dut.clk)
            self.cycle += 1
            assert self.cycle - started < limit, "the unit hangs"
            if stop is not None and self.cycle - started > stop:
                return
            # ---- entry table
            if advanced:
                pointer, shown, advanced = pointer + 1, False, False
                dut.layer_valid.value = 0
            if not shown and pointer < len(entries) and chance() < pace.table:
                self._show(entries[pointer], (first_entry + pointer) % 8)
                shown = True
            # ---- drain: rows of an announced token tile
            reserve, row = False, None
            if produced is not None and gate_layer == produced["layer"]:
                if produced["reserve"]:
                    reserve = True  # taken below if there is room
                elif chance() < pace.rows and (not produced["begins"] or self.cycle >= next_tile):
                    row = produced
                    if produced["begins"]:
                        next_tile = self.cycle + pace.tile
            dut.gate_valid.value = row is not None
            if row is not None:
                dut.gate_token.value, dut.gate_tile.value = row["token"], row["tile"]
                dut.gate_last.value, dut.gate_logits.value = row["last"], row["data"]
                if row["token"] == 0 and row["tile"] == 0:
                    first_row = self.cycle
                last_row = self.cycle
            # gate_ready comes from a register, so it may be read here.
            reserve = reserve and bool(int(dut.gate_ready.value))
            dut.gate_reserve.value = reserve
            if reserve or row is not None:
                produced = next(rows, None)
            # ---- consumers of the order; dispatch walks every queue once per unit
            ready = (chance() < pace.dispatch and not walks and walking is None) | (chance() < pace.load) << 1
            dut.order_ready.value = ready
            dut.walk_start.value = 0
            if walks and walking is None and chance() < pace.dispatch:
                walking = walks.pop(0)
                walking["left"] = list(walking["entries"])
                dut.walk_start.value, dut.walk_head.value = 1, walking["head"]
                dut.walk_count.value = len(walking["entries"])
            dut.walk_ready.value = walking is not None and chance() < pace.walk
            # ---- weight slots, in the same cycle
            if min(layer_of) < len(golden):
                layer = golden[gate_layer if gate_layer < len(golden) else -1][0]
                dut.resident_hit.value = int(dut.resident_query.value) in layer.slots if layer.slots else 0

            await ReadOnly()
            advanced = bool(int(dut.layer_advance.value))
            assert not advanced or int(dut.layer_valid.value)
            if int(dut.append_valid.value):
                appended[append_layer].append(int(dut.append_token.value))
                if len(appended[append_layer]) == golden[append_layer][0].tokens:
                    append_layer += 1
            if int(dut.layer_experts_valid.value):
                found_experts.append((int(dut.layer_experts_entry.value), int(dut.layer_experts.value)))
            if int(dut.job_crc_valid.value):
                found_crc.append((int(dut.job_crc_entry.value), int(dut.job_crc.value)))
            valid = int(dut.order_valid.value)
            for consumer in (0, 1):
                if not valid >> consumer & 1:
                    continue
                item = self._order(consumer)
                at = layer_of[consumer]
                if at == gate_layer and not first_order and last_row:
                    first_order = self.cycle
                    self.latency.append(self.cycle - last_row)
                    self.duration.append(self.cycle - first_row)
                    assert not int(dut.routing.value)
                if not ready >> consumer & 1:
                    continue
                orders[consumer][at].append(item)
                if item["last"]:
                    layer_of[consumer] += 1
                if consumer == 0:
                    layer, routing = golden[at]
                    queue = next(queue for queue in routing.queues(layer.experts) if queue.expert == item["expert"])
                    assert item["count"] == len(queue)
                    pairs = list(zip(queue.tokens.tolist(), queue.weights.tolist(), strict=True))
                    walks += [{"head": item["head"], "entries": pairs, "last": False} for _ in range(layer.units)]
                    walks[-1]["last"] = item["last"]
            if int(dut.walk_valid.value) and int(dut.walk_ready.value):
                assert walking is not None
                pair = (int(dut.walk_token.value), int(dut.walk_weight.value))
                assert pair == walking["left"].pop(0), f"walk of {walking}: {pair}"
                if not walking["left"]:
                    if walking["last"]:
                        gate_layer += 1
                        first_order = last_row = 0
                    walking = None
        for _ in range(8):
            await FallingEdge(dut.clk)
            self._quiet()
            await ReadOnly()
            assert not int(dut.order_valid.value) and not int(dut.walk_valid.value) and not int(dut.append_valid.value)
            if int(dut.job_crc_valid.value):
                found_crc.append((int(dut.job_crc_entry.value), int(dut.job_crc.value)))
        await FallingEdge(dut.clk)
        # ---- answers
        position = [(first_entry + index) % 8 for index, entry in enumerate(entries) if isinstance(entry, Layer)]
        ends = [(first_entry + index) % 8 for index, entry in enumerate(entries) if entry == "end"]
        assert found_crc == list(zip(ends, expected_crc, strict=True))
        for index, (layer, routing) in enumerate(golden):
            queues = routing.queues(layer.experts)
            wanted = [queue.expert for queue in schedule(queues, layer.policy, sorted(layer.resident))]
            for consumer in (0, 1):
                items = orders[consumer][index]
                assert [item["expert"] for item in items] == wanted, f"layer {index}, consumer {consumer}"
                assert [item["last"] for item in items] == [False] * (len(wanted) - 1) + [True]
                resident = layer.resident if layer.policy is Schedule.RESIDENT_FIRST else ()
                assert [item["resident"] for item in items] == [expert in resident for expert in wanted]
            assert orders[0][index] == orders[1][index]
            assert appended[index] == list(range(layer.tokens))
            assert found_experts[index] == (position[index], len(wanted))

    def _order(self, consumer: int) -> dict:
        dut = self.dut

        def part(name: str, bits: int) -> int:
            return int(getattr(dut, name).value) >> consumer * bits & (1 << bits) - 1

        return {
            "last": bool(part("order_last", 1)), "resident": bool(part("order_resident", 1)),
            "expert": part("order_expert", EXPERT_BITS), "count": part("order_count", TOKEN_BITS),
            "head": part("order_head", NODE_BITS),
        }  # fmt: skip

    def _show(self, entry, index: int) -> None:
        dut = self.dut
        dut.layer_valid.value, dut.entry.value = 1, index
        dut.layer_job_end.value = entry == "end" if not isinstance(entry, Layer) else 0
        if isinstance(entry, Layer):
            dut.layer_kind.value, dut.layer_schedule.value, dut.layer_top_k.value = MOE, int(entry.policy), entry.top_k
            dut.layer_tokens.value, dut.layer_expert_count.value = entry.tokens, entry.experts
            dut.layer_gate_shift.value, dut.layer_units.value = entry.shift & 0xFF, entry.units
            dut.layer_unit_stripes.value, dut.layer_weights.value = entry.stripes, entry.weights
        else:
            dut.layer_kind.value = MOE if entry == "end" else entry

    def _rows(self, golden, pace: Pace):
        """What the drain sends: an announcement per token tile, then its rows, gate tile by gate tile.

        Announcements run ahead of rows as far as there is room, as issue runs ahead of the drain.
        """
        for index, (layer, _) in enumerate(golden):
            tiles = -(-layer.experts // OUTPUTS)
            padded = np.random.default_rng(random.getrandbits(32)).integers(LOW, HIGH, (layer.tokens, tiles * OUTPUTS))
            padded[:, : layer.experts] = layer.logits  # lanes past the experts hold anything
            words = padded.astype("<i4")
            ahead = []
            for first in range(0, layer.tokens, TILE):
                yield {"layer": index, "reserve": True}
                ahead.append(first)
                if len(ahead) < 2 and first + TILE < layer.tokens and random.random() < 0.5:
                    continue
                while ahead:
                    begin = ahead.pop(0)
                    for tile in range(tiles):
                        lanes = words[:, tile * OUTPUTS : (tile + 1) * OUTPUTS]
                        for token in range(begin, min(begin + TILE, layer.tokens)):
                            data = int.from_bytes(lanes[token].tobytes(), "little")
                            yield {"layer": index, "reserve": False, "token": token, "tile": tile, "data": data,
                                   "last": tile == tiles - 1, "begins": (token, tile) == (begin, 0)}  # fmt: skip


def random_logits(tokens: int, experts: int, spread: int) -> np.ndarray:
    return np.random.default_rng(random.getrandbits(32)).integers(-spread, spread, (tokens, experts), endpoint=True)


def random_layer(tokens: int = 0, **fixed) -> Layer:
    """A layer of random shape; small spreads give ties, large ones weights of 0 and 65535."""
    edges = (1, 2, 3, 5, LANES, LANES + 1, OUTPUTS - 1, OUTPUTS, OUTPUTS + 1, 16, 64, 100, 255, 256)
    experts = random.choice((*edges, random.randint(1, 256)))
    top_k = random.randint(1, min(8, experts))
    bits = random.randint(0, 31)
    shift = max(OCTAVE_SHIFT_MIN, min(OCTAVE_SHIFT_MAX, bits - random.choice((4, 8, 10, 11, 12, 20))))
    logits = random_logits(tokens or random.randint(1, 6 * TILE), experts, min(1 << bits, HIGH))
    if random.random() < 0.2:
        logits = logits // 3 + random.choice((LOW, HIGH)) // 2
    policy = random.choice(list(Schedule))
    if policy is Schedule.LONGEST_FIRST and experts > 64:
        logits = logits[: 2 * TILE]  # a scan per expert takes its time
    layer = Layer(np.clip(logits, LOW, HIGH), top_k, shift, policy, random.randint(1, 3), random.randint(1, 400),
                  random.randrange(1 << 22) * STRIPE)  # fmt: skip
    picked = set(random.sample(range(experts), random.randint(0, min(experts, 6))))
    if policy is Schedule.RESIDENT_FIRST:
        layer.resident = {expert for expert in picked if random.random() < 0.7}
        layer.partly = picked - layer.resident if layer.units > 1 else set()
    for name, value in fixed.items():
        setattr(layer, name, value)
    return layer


async def begin(dut) -> Bench:
    cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
    bench = Bench(dut)
    await bench.reset()
    return bench


@cocotb.test()
async def random_layers(dut):
    """Jobs of random layers with every neighbour at random paces."""
    bench = await begin(dut)
    for _ in range(14):
        entries = []
        for _ in range(random.randint(1, 4)):
            entries += [random.choice((LINEAR, MLP, 1))] * random.randint(0, 2) + [random_layer()]
            entries += ["end"] * random.choice((0, 0, 1, 2))
        await bench.run([*entries, "end"], random_pace())


@cocotb.test()
async def one_expert_takes_all(dut):
    """Every token to the same expert, k = 1: appends to one queue as fast as they can be."""
    bench = await begin(dut)
    for experts in (1, 2, LANES, 16):
        logits = random_logits(5 * TILE + 3, experts, 1000)
        logits[:, experts - 1] += 3000
        await bench.run([Layer(logits, 1, 2), "end"], Pace())
    logits[:] = 7
    await bench.run([Layer(logits, 2, 2, Schedule.LONGEST_FIRST), "end"], Pace())


@cocotb.test()
async def one_token(dut):
    """Layers of one token, one after the other."""
    bench = await begin(dut)
    await bench.run([random_layer(1) for _ in range(12)] + ["end"], Pace())


@cocotb.test()
async def ties(dut):
    """Equal logits go to the lower expert, whichever word or lane they come in."""
    bench = await begin(dut)
    for experts in (1, 8, 16, 40, 256):
        top_k = min(8, experts)
        logits = random_logits(2 * TILE, experts, 1)
        logits[0] = 0
        logits[1] = LOW
        logits[2] = HIGH
        await bench.run([Layer(logits, top_k, 31), Layer(logits[::-1], max(1, top_k - 3), -16), "end"], Pace())


@cocotb.test()
async def extremes(dut):
    """Largest distances and every gate_shift: powers of 0, weights of 0 and 65535, all experts equal at k = 1."""
    bench = await begin(dut)
    entries: list = []
    for shift in range(OCTAVE_SHIFT_MIN, OCTAVE_SHIFT_MAX + 1):
        experts = random.choice((2, 9, 20))
        logits = random_logits(TILE, experts, min(HIGH, 1 << max(1, min(31, shift + 11))))
        logits[0] = LOW
        logits[0, 1] = HIGH
        logits[1, ::2], logits[1, 1::2] = LOW, HIGH
        logits[2] = np.arange(experts) << max(0, min(shift + 8, 24))  # one octave apart
        entries.append(Layer(logits, min(8, experts), shift))
    await bench.run([*entries, "end"], Pace())
    for experts in (1, 3, 255, 256):  # sums of powers up to 2^23
        logits = np.full((TILE, experts), 5)
        logits[1:] -= random_logits(TILE - 1, experts, 3) ** 2
        await bench.run([Layer(logits, 1, 0), "end"], Pace())


@cocotb.test()
async def schedules(dut):
    """Each schedule with many experts, resident ones among them, and consumers at different paces."""
    bench = await begin(dut)
    for pace in (Pace(), Pace(load=0.05), Pace(dispatch=0.05), Pace(walk=0.1)):
        for policy in Schedule:
            logits = random_logits(3 * TILE, 60, 50)
            logits[:, 7] += 40
            layer = Layer(logits, 4, 0, policy, units=2)
            if policy is Schedule.RESIDENT_FIRST:
                layer.resident, layer.partly = {7, 20, 59}, {0, 33}
            await bench.run([layer, "end"], pace)
    everything = Layer(random_logits(2 * TILE, 12, 9), 5, 0, Schedule.RESIDENT_FIRST, resident=set(range(12)))
    await bench.run([everything, "end"], Pace())


@cocotb.test()
async def largest(dut):
    """As many tokens as the engine holds."""
    bench = await begin(dut)
    logits = random_logits(HW.max_tokens, 16, 1 << 14)
    await bench.run([Layer(logits, 8, 6), "end"], Pace())


@cocotb.test()
async def latency_and_rate(dut):
    """A token per max(words, top_k) cycles, and the first expert soon after the last row."""
    bench = await begin(dut)
    for experts, top_k in ((16, 4), (16, 1), (LANES, 1), (16, 8), (64, 2)):
        layer = Layer(random_logits(16 * TILE, experts, 1 << 14), top_k, 6)
        # Rows every cycle, in front of two token tiles that wait; the tail is one pass through the unit.
        await bench.run([layer, "end"], Pace())
        rows = layer.tokens * -(-experts // OUTPUTS)
        assert bench.duration[-1] <= max(rows + 2 * TILE * layer.period, layer.tokens * (layer.period + 1)) + 80
        # Rows as the array computes them from 384 inputs: only the last token tile is left in the end.
        spacing = 384 // HW.tile_inputs * -(-experts // OUTPUTS)
        await bench.run([layer, "end"], Pace(tile=spacing))
        dut._log.info(f"{experts} experts, top {top_k}: first expert {bench.latency[-1]} cycles after the last row")
        waiting = TILE * layer.period if TILE * layer.period > spacing else 0  # the array waits for this unit
        assert bench.latency[-1] <= waiting + TILE * (layer.period - 1) + 22
        assert experts != 16 or top_k > 4 or bench.latency[-1] <= 60


@cocotb.test()
async def reset_in_the_middle(dut):
    """A reset at any time leaves nothing behind."""
    bench = await begin(dut)
    for stop in (20, 60, 90, 130, 170, 260, 400):
        await bench.run([random_layer(), random_layer(), "end"], Pace(), stop=stop)
        await bench.reset()
        await bench.run([random_layer(2 * TILE), "end"], Pace())
