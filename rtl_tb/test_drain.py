"""Drain: every row of every kind of tile against accel.numerics, slots rewritten as they get free."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge, Timer

from accel import numerics
from rtl_tb import structs

PRESETS = ("ci", "zcu104")

E = structs.load()
TOKENS, OUTPUTS, SLOTS = E.T, E.O, E.WEIGHT_SLOTS
LIMIT = 1 << (E.PRODUCT_BITS - 1)


def lanes(values: Any, width: int) -> int:
    """Values side by side, the first lowest."""
    result = 0
    for value in reversed(list(values)):
        result = result << width | int(value) & ((1 << width) - 1)
    return result


def numbers(packed: int, width: int, count: int) -> list[int]:
    """Signed values of lanes."""
    raw = [packed >> (width * i) & ((1 << width) - 1) for i in range(count)]
    return [value - (value >> (width - 1) << width) for value in raw]


class Unit:
    """Parameters of one slot and the tiles that go through it."""

    def __init__(self, rng: np.random.Generator, kind: str) -> None:
        self.kind = kind
        first = int(rng.integers(1, 4)) if kind in ("mlp",) else 0
        self.hidden_tiles, self.tiles = first, int(rng.integers(1, 5))
        groups = self.hidden_tiles + self.tiles
        # Accumulators stay within 32 bits, as export sees to; small ones make ties and GELU inputs interesting.
        scale = np.where(rng.integers(4, size=(groups, OUTPUTS)), rng.integers(1, 32, (groups, OUTPUTS)), 31)
        self.bias = (rng.integers(-(1 << 31) + LIMIT, (1 << 31) - LIMIT, (groups, OUTPUTS)) >> (31 - scale)).astype(
            np.int64
        )
        self.shift = rng.integers(E.SHIFT_MIN, E.SHIFT_MAX + 1, (groups, OUTPUTS))
        self.gelu = rng.integers(-128, 128, 256)
        self.narrow = bool(rng.integers(2))
        self.repeat = int(rng.integers(1, 4))
        self.first_tile = int(rng.integers(0, 1 << (E.OUTPUT_TILE_BITS - 1)))


def products(rng: np.random.Generator, unit: Unit, group: int) -> Any:
    """Sums of products [tokens, outputs] whose accumulators are anything, extremes, or on and beside a rounding tie."""
    style = rng.integers(4)
    if style == 0:
        return rng.integers(-LIMIT, LIMIT, (TOKENS, OUTPUTS))
    if style == 1:
        return rng.choice([-LIMIT, LIMIT - 1, 0, -1, 1], (TOKENS, OUTPUTS))
    shift = np.clip(unit.shift[group], 0, None)
    if style == 2:  # (n + 1/2) << shift, and that with another bit below
        other = rng.integers(-1, 2, (TOKENS, OUTPUTS)) << rng.integers(0, np.maximum(shift - 1, 1), (TOKENS, OUTPUTS))
        wanted = ((2 * rng.integers(-140, 140, (TOKENS, OUTPUTS)) + 1) << shift >> 1) + other
    else:  # around the ends of the range
        edge = rng.choice([127, 128, -127, -128, -129, 32767, 32768, -32768, -32769], (TOKENS, OUTPUTS))
        wanted = (edge << shift) + rng.integers(-2, 3, (TOKENS, OUTPUTS)) * ((1 << shift) >> 1)
    return np.clip(wanted - unit.bias[group], -LIMIT, LIMIT - 1)


class Bench:
    def __init__(self, dut: Any, seed: int) -> None:
        self.dut, self.rng = dut, np.random.default_rng(seed)
        self.expected: dict[str, deque[Any]] = {k: deque() for k in ("gate", "hidden", "linear", "combine", "unit")}
        self.checked = dict.fromkeys(self.expected, 0)
        self.writes: deque[tuple[str, Any]] = deque()
        self.loaded: dict[int, int] = {}  # slot: writes still to come
        self.free = set(range(SLOTS))
        self.hidden_blocks = 0
        self.cycle = 0
        self.next_result = 0  # first cycle in which the array may have one

    async def tick(self, **inputs: int) -> None:
        """One cycle: inputs, background writes of parameters, outputs checked."""
        dut = self.dut
        for name in ("tile_valid", "done", "group_write", "gelu_write"):
            inputs.setdefault(name, 0)
        if self.writes and self.rng.integers(4):
            kind, values = self.writes.popleft()
            inputs |= values
            if kind == "last":
                self.loaded[values["slot_written"]] = 1
                del inputs["slot_written"]
        for name, value in inputs.items():
            getattr(dut, name).value = value
        await ReadOnly()
        self.tile_ready = bool(dut.tile_ready.value)
        self.observe()
        await RisingEdge(dut.clk)
        self.cycle += 1

    def expect(self, sink: str, *found: Any) -> None:
        assert self.expected[sink], f"{sink}: nothing expected, found {found}"
        wanted = self.expected[sink].popleft()
        assert found == wanted, f"{sink} at cycle {self.cycle}: found {found}, expected {wanted}"
        self.checked[sink] += 1

    def observe(self) -> None:
        dut = self.dut
        if int(dut.gate_valid.value):
            self.expect("gate", int(dut.gate_token.value), int(dut.gate_tile.value), int(dut.gate_last.value),
                        numbers(int(dut.gate_logits.value), 32, OUTPUTS))  # fmt: skip
        if int(dut.hidden_write.value):
            self.expect("hidden", int(dut.hidden_lane.value), int(dut.hidden_block.value), int(dut.hidden_done.value),
                        numbers(int(dut.hidden_data.value), 8, OUTPUTS))  # fmt: skip
        assert int(dut.hidden_write.value) or not int(dut.hidden_done.value)
        self.hidden_blocks += int(dut.hidden_done.value)
        if int(dut.linear_write.value):
            self.expect("linear", int(dut.linear_lane.value), int(dut.linear_tile.value), int(dut.linear_done.value),
                        int(dut.linear_info.value), numbers(int(dut.linear_data.value), 8, OUTPUTS))  # fmt: skip
        assert int(dut.linear_write.value) or not int(dut.linear_done.value)
        if int(dut.combine_valid.value):
            self.expect("combine", int(dut.combine_row.value), int(dut.combine_weight.value),
                        int(dut.combine_fresh.value), int(dut.combine_completes.value),
                        numbers(int(dut.combine_values.value), 16, OUTPUTS))  # fmt: skip
        if int(dut.unit_done.value):
            self.expect("unit", int(dut.unit_slot.value))
            self.free.add(int(dut.unit_slot.value))

    def load(self, unit: Unit, slot: int) -> None:
        """Queue the writes of a unit's parameters."""
        self.free.discard(slot)
        self.loaded[slot] = 0
        writes: list[dict[str, int]] = []
        for group, (bias, shift) in enumerate(zip(unit.bias, unit.shift, strict=True)):
            data = lanes(bias, 32) | lanes(shift, E.SHIFT_BITS) << (32 * OUTPUTS)
            writes.append({"group_write": 1, "group_address": slot * E.SLOT_GROUPS + group, "group_data": data})
        if unit.hidden_tiles:
            writes += [{"gelu_write": 1, "gelu_slot": slot, "gelu_address": x, "gelu_data": int(unit.gelu[x]) & 255}
                       for x in range(256)]  # fmt: skip
        self.writes += [("write", values) for values in writes[:-1]]
        self.writes.append(("last", writes[-1] | {"slot_written": slot}))

    async def run_tile(self, unit: Unit, slot: int, last: bool) -> None:
        """Send one tile_t and its results, and note what must come of it."""
        rng = self.rng
        sink = {"gate": E.SINK_GATE, "linear": E.SINK_LINEAR}.get(unit.kind, E.SINK_COMBINE)
        count = TOKENS if rng.integers(2) else int(rng.integers(1, TOKENS + 1))
        tokens = rng.integers(0, E.MAX_TOKENS, TOKENS)
        weight = np.where(rng.integers(2, size=TOKENS) > 0, 65536, rng.integers(0, 65536, TOKENS))
        fresh, rows = rng.integers(2, size=TOKENS), rng.integers(0, E.WIDE_ROWS, TOKENS)
        completes = int(rng.integers(0, E.WIDE_ROWS + 1))
        if rng.integers(2):
            rows = E.WIDE_ROWS - 1 - rng.integers(0, 3, TOKENS)  # the ring wraps within the tile
        tile = E.pack(
            "tile_t", sink=sink, narrow=unit.narrow, entry=int(rng.integers(E.ENTRIES)), slot=slot,
            hidden_tiles=unit.hidden_tiles, tiles=unit.tiles, first_tile=unit.first_tile, count=count,
            token=lanes(tokens, E.TOKEN_BITS), weight=lanes(weight, E.WEIGHT17), fresh=lanes(fresh, 1),
            wide_row=lanes(rows, E.WIDE_ADDRESS_BITS), completes=completes, last_in_unit=last,
            input_beats=int(rng.integers(1, E.MAX_BEATS)), job_tag=int(rng.integers(8)),
        )  # fmt: skip
        await self.tick(tile_valid=1, tile=tile)
        while not self.tile_ready:
            await self.tick(tile_valid=1, tile=tile)
        await self.tick()  # the array takes longer to have a result
        await self.tick()
        self.hidden_blocks = 0
        for group in range(unit.hidden_tiles + unit.tiles):
            hidden, index = group < unit.hidden_tiles, group - (group >= unit.hidden_tiles) * unit.hidden_tiles
            while not hidden and unit.hidden_tiles and self.hidden_blocks < unit.hidden_tiles:
                await self.tick()
            result = products(rng, unit, group)
            accumulator = result + unit.bias[group]
            bits = E.ACTIVATION_BITS if hidden or unit.kind == "linear" else numerics.RESIDUAL_BITS
            narrow = unit.narrow and unit.kind == "linear" and not hidden
            value = numerics.requantize(accumulator, unit.shift[group], bits, narrow)
            end = not hidden and index == unit.tiles - 1
            for lane in range(count):
                final = lane == count - 1
                if hidden:
                    row = numerics.gelu(value[lane], unit.gelu).tolist()
                    self.expected["hidden"].append((lane, index, int(final), row))
                elif unit.kind == "gate":
                    self.expected["gate"].append((int(tokens[lane]), index, int(end), accumulator[lane].tolist()))
                elif unit.kind == "linear":
                    self.expected["linear"].append((lane, index, int(end and final), tile, value[lane].tolist()))
                else:
                    self.expected["combine"].append((
                        int(rows[lane] + index) % E.WIDE_ROWS, int(weight[lane]), int(fresh[lane]),
                        completes if end and final else 0, value[lane].tolist(),
                    ))  # fmt: skip
            if end and last:
                self.expected["unit"].append((slot,))
            slack = int(rng.integers(3) * rng.integers(5))
            while self.cycle < self.next_result + slack:
                await self.tick()
            await self.tick(done=1, result=lanes(result.reshape(-1), E.PRODUCT_BITS))
            self.next_result = self.cycle - 1 + TOKENS


async def start(dut: Any) -> Bench:
    bench = Bench(dut, random.getrandbits(32))
    dut.rst.value = 1
    dut.tile_valid.value, dut.done.value, dut.group_write.value, dut.gelu_write.value = 0, 0, 0, 0
    await Timer(1, "ns")
    cocotb.start_soon(Clock(dut.clk, 10, "ns").start(start_high=False))
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    return bench


@cocotb.test()
async def every_kind_of_tile(dut):
    bench = await start(dut)
    kinds = ["gate", "linear", "mlp", "plain"]
    units = [Unit(bench.rng, kinds[i % 4] if i < 8 else str(bench.rng.choice(kinds))) for i in range(24)]
    ahead: deque[tuple[Unit, int]] = deque()
    while units or ahead:
        while units and bench.free:
            slot = min(bench.free)
            bench.load(units[0], slot)
            ahead.append((units.pop(0), slot))
        if not ahead or not bench.loaded[ahead[0][1]]:
            await bench.tick()
            continue
        unit, slot = ahead.popleft()
        for repeat in range(unit.repeat):
            await bench.run_tile(unit, slot, last=repeat == unit.repeat - 1)
    for _ in range(2 * TOKENS + 10):
        await bench.tick()
    for sink, left in bench.expected.items():
        assert not left, f"{sink}: {len(left)} rows did not come"
        assert bench.checked[sink], f"{sink} was not tested"
    dut._log.info("rows checked: %s", bench.checked)


@cocotb.test()
async def every_shift(dut):
    """All shifts times extremes and ties, LINEAR and contributions, in one unit each."""
    bench = await start(dut)
    for kind in ("linear", "plain", "linear"):
        for base in range(E.SHIFT_MIN, E.SHIFT_MAX + 1, OUTPUTS):
            unit = Unit(bench.rng, kind)
            unit.repeat, unit.tiles = 1, 1
            unit.narrow = not unit.narrow if kind == "linear" else False
            unit.shift = np.minimum(base + np.arange(OUTPUTS), E.SHIFT_MAX)[None]
            unit.bias = np.zeros((1, OUTPUTS), np.int64)
            slot = min(bench.free)
            bench.load(unit, slot)
            while not bench.loaded[slot]:
                await bench.tick()
            for repeat in range(40):
                await bench.run_tile(unit, slot, last=repeat == 39)
            for _ in range(2 * TOKENS + 10):
                await bench.tick()
    assert not any(bench.expected.values())
    dut._log.info("rows checked: %s", bench.checked)


@cocotb.test()
async def latency_of_hidden_rows(dut):
    """Hidden rows must be there soon: small units wait for them."""
    bench = await start(dut)
    unit = Unit(bench.rng, "mlp")
    unit.repeat = 1
    bench.load(unit, 0)
    while not bench.loaded[0]:
        await bench.tick()
    began = cocotb.start_soon(first_time(dut, "done"))
    ended = cocotb.start_soon(first_time(dut, "hidden_write"))
    await bench.run_tile(unit, 0, last=True)
    for _ in range(2 * TOKENS + 10):
        await bench.tick()
    assert await ended - await began <= 9


async def first_time(dut: Any, name: str) -> int:
    """Cycle number, from now, in which a signal is 1 first."""
    for cycle in range(1000):
        await ReadOnly()
        if int(getattr(dut, name).value):
            return cycle
        await RisingEdge(dut.clk)
    raise AssertionError(f"{name} stays 0")
