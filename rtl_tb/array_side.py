"""What surrounds dispatch, gather, issue and operand in test_dispatch.py: load, route, memory, drain and finish; and
the golden list of tiles and beats that every layer has to become.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from accel.commands import Command, Flag
from accel.layers import Kind, Layer
from rtl_tb import structs
from rtl_tb.command_cases import HARDWARE as HW
from rtl_tb.command_cases import entry_fields
from rtl_tb.pins import Pins

E = structs.load()
T, O = HW.tile_tokens, HW.tile_outputs  # noqa: E741
ONE = E.COMBINE_ONE
DRAIN_LATENCY = 8  # cycles from the last beat's operands to the first hidden row, at least
STALLS = ("weights", "input", "route", "drain", "store")


@dataclass(eq=False)
class Work:
    """A layer, or a JOB_END (``layer`` None). ``queues``: per expert, in order of schedule, (token, weight) pairs."""

    layer: Layer | None
    command: Command | None = None
    queues: list[list[tuple[int, int]]] = field(default_factory=list)
    job_tag: int = 0

    def __post_init__(self) -> None:
        self.fields = {"job_end": 1}
        self.items: list[Item] = []
        self.rows_end = 0  # accumulator rows up to the end of this layer
        if self.layer is None:
            return
        self.fields = entry_fields(self.command, self.layer) | {"job_tag": self.job_tag}
        size = self.fields["input_lines"] * HW.line_bytes
        self.x = [random.randbytes(size) for _ in range(self.layer.tokens)]
        everyone = [(token, ONE) for token in range(self.layer.tokens)]
        if self.layer.kind is Kind.MOE:
            self.items.append(Item(self, 0, everyone, gate=True))
            self.heads = random.sample(range(1 << E.NODE_BITS), len(self.queues))
            queues = self.queues
        else:
            queues = [everyone]
        self.items += [Item(self, unit, queue) for queue in queues for unit in range(self.layer.units)]

    @property
    def moe(self) -> bool:
        return self.layer is not None and self.layer.kind is Kind.MOE

    @property
    def wide(self) -> bool:
        return self.layer is not None and self.layer.kind is not Kind.LINEAR


@dataclass(eq=False)
class Item:
    """A unit over a queue."""

    work: Work
    unit: int
    queue: list[tuple[int, int]]
    gate: bool = False
    slot: int | None = None
    rows: int = 0  # weight rows there
    done: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Hidden tiles and output tiles."""
        fields = self.work.fields
        if self.gate:
            return 0, fields["gate_tiles"]
        last = self.unit == self.work.layer.units - 1
        return fields["hidden_tiles"], fields["last_tiles" if last else "unit_tiles"]

    @property
    def total_rows(self) -> int:
        hidden, tiles = self.shape
        fields = self.work.fields
        if hidden:
            return hidden * fields["input_beats"] + tiles * fields["hidden_beats"]
        return tiles * fields["input_beats"]


@dataclass(eq=False)
class Tile:
    """Up to T tokens of an item, and everything that the engine has to know of them."""

    item: Item
    pairs: list[tuple[int, int]]
    fields: dict[str, Any]
    first_row: int  # accumulator rows it may write, counted from the first layer on
    end_row: int
    hidden: list[list[bytes]] = field(default_factory=list)  # per block and lane

    def beats(self) -> Iterator[tuple[int, bool, bool, list[bytes] | None, int]]:
        """Row, first, last, input bytes of every lane (None: of the hidden tile, at this beat)."""
        work, (hidden, tiles) = self.item.work, self.item.shape
        rows = [work.x[token] for token, _ in self.pairs]
        step, row = HW.tile_inputs, 0
        passes = [(hidden, work.fields["input_beats"], False)] if hidden else []
        passes.append((tiles, work.fields["hidden_beats" if hidden else "input_beats"], hidden > 0))
        for count, beats, second in passes:
            for _ in range(count):
                for k in range(beats):
                    data = None if second else [x[k * step : (k + 1) * step] for x in rows]
                    yield row, k == 0, k == beats - 1, data, k
                    row += 1


@dataclass
class Pace:
    """Chance per cycle that each part does something."""

    layer: float = 0.6
    slot: float = 0.4
    rows: float = 0.8
    lines: float = 0.8
    append: float = 0.6
    order: float = 0.5
    walk: float = 0.6
    drain: float = 0.8
    gate: float = 0.8
    linear: float = 0.8
    hidden: float = 0.8
    wide: float = 0.8
    done: float = 0.5

    def roll(self, name: str) -> bool:
        chance: float = getattr(self, name)
        return chance >= 1 or random.random() < chance


class Golden:
    """Tiles of the layers in order, with the places of their lines and accumulator rows."""

    def __init__(self) -> None:
        self.input_base = self.wide_base = 0

    def tiles(self, work: Work, entry: int) -> Iterator[Tile]:
        layer, fields = work.layer, work.fields
        last_unit, output_tiles = layer.units - 1, fields["output_tiles"]
        visited: set[int] = set()
        for item in work.items:
            hidden, tiles = item.shape
            first_tile = 0 if item.gate or hidden else item.unit * fields["unit_tiles"]
            final_item = item is work.items[-1]
            sink = E.SINK_GATE if item.gate else E.SINK_COMBINE if work.wide else E.SINK_LINEAR
            for start in range(0, len(item.queue), T):
                pairs = item.queue[start : start + T]
                last = start + T >= len(item.queue)
                in_layer = last and final_item
                completes = 0
                if work.moe:
                    completes = fields["wide_rows"] if in_layer else 0
                elif work.wide and item.unit == last_unit:
                    completes = len(pairs) * output_tiles
                fresh = []
                for token, _ in pairs:
                    fresh.append(
                        layer.kind is Kind.ACCUMULATE or (item.unit == 0 and not (work.moe and token in visited))
                    )
                    if work.moe and not item.gate and item.unit == 0:
                        visited.add(token)
                wanted = {
                    "sink": sink, "narrow": fields["narrow"], "entry": entry, "job_tag": work.job_tag,
                    "slot": item.slot, "input_beats": fields["input_beats"], "hidden_tiles": hidden, "tiles": tiles,
                    "first_tile": first_tile, "count": len(pairs), "completes": completes,
                    "first_in_layer": item is work.items[0] and start == 0, "last_in_unit": last,
                    "last_in_layer": in_layer, "token": [token for token, _ in pairs],
                }  # fmt: skip
                if hidden:
                    wanted["hidden_beats"] = fields["hidden_beats"]
                if sink == E.SINK_COMBINE:
                    wanted["weight"] = [weight for _, weight in pairs]
                    wanted["fresh"] = [int(bit) for bit in fresh]
                    wanted["wide_row"] = [
                        (self.wide_base + token * output_tiles + first_tile) % E.WIDE_ROWS for token, _ in pairs
                    ]
                reach = range(layer.tokens) if work.moe else [token for token, _ in pairs]
                yield Tile(item, pairs, wanted, self.wide_base + min(reach) * output_tiles,
                           self.wide_base + (max(reach) + 1) * output_tiles)  # fmt: skip
        self.input_base += layer.tokens * fields["input_lines"]
        self.wide_base += fields["wide_rows"]


LANES = {"token": E.TOKEN_BITS, "weight": E.WEIGHT17, "fresh": 1, "wide_row": E.WIDE_ADDRESS_BITS}


class Bench:
    """The units with everything around them; :meth:`step` is a cycle."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.pins = dut, Pins(dut)
        self.counts: Counter[str] = Counter()
        self.stalls: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        self.pace = Pace()
        self.held: set[str] = set()  # what is withheld
        self.golden = Golden()
        self.works: list[Work] = []
        self.at = 0  # layer that dispatch sees
        self.showing = False
        self.retired = 0
        # load
        self.to_load: deque[Item] = deque()
        self.loading = 0  # layer whose units are in to_load
        self.gate_loaded = False
        self.slots: list[Item | None] = [None] * E.WEIGHT_SLOTS
        self.gelu = [False] * E.WEIGHT_SLOTS
        self.offered: deque[Item] = deque()
        # route
        self.routed: Work | None = None
        self.gated = self.appended = self.ordered = 0
        self.order_shown = False
        self.walks: deque[tuple[int, list[tuple[int, int]]]] = deque()
        self.walking: deque[tuple[int, int]] = deque()
        # input lines
        self.line_at = (0, 0)  # layer, line
        self.lines_held = 0
        # tiles
        self.to_fire: deque[Tile] = deque()
        self.to_begin: deque[Tile] = deque()
        self.at_issue: deque[Tile] = deque()
        self.beats: deque[tuple[Tile, int, bool, bool, Any, int, bool]] = deque()
        self.sent: deque[tuple[Tile, bool, bool]] = deque()  # beats as issue sends them: first, last of the layer
        self.results: deque[tuple[int, Tile, int]] = deque()  # cycle, tile, hidden block or -1 at the tile's end
        self.hidden_rows: deque[tuple[int, int, bytes, bool]] = deque()
        self.done_at: deque[tuple[int, Tile]] = deque()
        self.rows_free = self.rows_freed = 0
        self.computed_seen = False
        self.cycle = self.idle = 0

    async def start(self) -> None:
        self.pins.drive(rst=0)
        cocotb.start_soon(Clock(self.dut.clk, 10, "ns").start(start_high=False))
        await self.reset_unit()

    async def reset_unit(self) -> None:
        self.reset()
        self.pins.drive(
            rst=1, layer_valid=0, load_entry=0, slot_valid=0, order_valid=0, walk_valid=0, append_valid=0, line_write=0,
            wide_freed=0, drain_ready=0, gate_ready=0, linear_ready=0, hidden_write=0, hidden_done=0, rows_filled=0,
            gelu_filled=0, entry=0,
        )  # fmt: skip
        for _ in range(3):
            await RisingEdge(self.dut.clk)
        self.pins.drive(rst=0)

    def add(self, *works: Work) -> None:
        for work in works:
            before = self.works[-1].rows_end if self.works else 0
            work.rows_end = before + work.fields.get("wide_rows", 0)
            self.works.append(work)

    def done(self) -> bool:
        return self.retired == len(self.works)

    async def run(self, until: Callable[[], bool] | None = None, limit: int = 60000) -> None:
        """Until everything that was added is computed and nothing is expected any more."""
        start = self.cycle
        while not (until or self.done)():
            assert self.cycle - start < limit, f"not finished: layer {self.at} of {len(self.works)}, {self.counts}"
            await self.step()
        if until is None:
            for _ in range(4):
                await self.step()
            for name in ("to_fire", "to_begin", "at_issue", "beats", "sent", "results", "walking", "walks", "offered"):
                assert not getattr(self, name), f"{name}: {len(getattr(self, name))} did not come"
            assert not self.lines_held and not self.rows_free
            assert self.rows_freed == self.golden.wide_base, "accumulator rows did not all come back"

    # ---- one cycle ----

    async def step(self) -> None:
        self._layers()
        self._load()
        self._route()
        self._lines()
        self._behind()
        await ReadOnly()
        self._observe()
        await RisingEdge(self.dut.clk)
        self.cycle += 1

    def _free(self, name: str) -> bool:
        return name not in self.held and self.pace.roll(name)

    def _layers(self) -> None:
        if not self.showing and self.at < min(len(self.works), self.retired + E.ENTRIES) and self._free("layer"):
            work = self.works[self.at]
            self.showing = True
            self.pins.drive(layer=E.pack("layer_t", **work.fields))
            if work.layer is not None:
                self.tiles = self.golden.tiles(work, self.at % E.ENTRIES)
        self.pins.drive(layer_valid=self.showing, entry=self.at % E.ENTRIES)
        while self.retired < self.at:
            oldest = self.works[self.retired]
            if self.rows_freed < oldest.rows_end or not all(item.done for item in oldest.items):
                break
            self.retired += 1

    def _load(self) -> None:
        """Slots in turn for the units of this layer and those behind it, rows one by one."""
        pins = self.pins
        while not self.to_load and self.loading < min(len(self.works), self.retired + E.ENTRIES):
            work = self.works[self.loading]
            if work.moe and not self.gate_loaded:
                if not self._may_load(work):
                    break
                self.to_load.append(work.items[0])
                self.gate_loaded = True
            elif work.moe and not (self.routed is work and self.appended == work.layer.tokens):
                break
            elif not work.moe and not self._may_load(work):
                break
            else:
                self.to_load.extend(work.items[1:] if work.moe else work.items)
                self.loading, self.gate_loaded, self.computed_seen = self.loading + 1, False, False
        pins.drive(load_entry=self.loading % E.ENTRIES)
        free = [slot for slot, item in enumerate(self.slots) if item is None or item.done]
        if self.to_load and free and self._free("slot"):
            item, slot = self.to_load.popleft(), random.choice(free)
            item.slot, self.slots[slot], self.gelu[slot] = slot, item, False
            self.offered.append(item)
        for slot, item in enumerate(self.slots):
            if item is not None and item.rows < item.total_rows and self._free("rows"):
                item.rows += random.choice((1, 1, item.total_rows - item.rows))
            if item is not None and item.shape[0] and not self.gelu[slot]:
                self.gelu[slot] = "gelu" not in self.held and random.random() < 0.1
        pins.drive(
            slot_valid=bool(self.offered), slot=self.offered[0].slot if self.offered else 0,
            rows_filled=sum((item.rows if item else 0) << E.SLOT_ROW_BITS * s for s, item in enumerate(self.slots)),
            gelu_filled=sum(there << s for s, there in enumerate(self.gelu)),
        )  # fmt: skip

    def _may_load(self, work: Work) -> bool:
        return work.layer is None or not work.command.flags & Flag.NO_PREFETCH or self.computed_seen

    def _route(self) -> None:
        """Tokens are appended behind their gate's logits, then experts and their queues are offered."""
        pins, work = self.pins, self.routed
        appending = work is not None and self.appended < self.gated and self._free("append")
        pins.drive(append_valid=appending)
        if appending:
            pins.drive(append_token=self.appended)
            self.appended += 1
        elif work is not None and not self.order_shown and self.appended == work.layer.tokens:
            self.order_shown = self.ordered < len(work.queues) and self._free("order")
        if self.order_shown:
            index = self.ordered
            pins.drive(order=E.pack(
                "order_t", last=index == len(work.queues) - 1, expert=random.getrandbits(E.EXPERT_BITS),
                count=len(work.queues[index]), head=work.heads[index],
            ))  # fmt: skip
        pins.drive(order_valid=self.order_shown)
        self.walk_valid = bool(self.walking) and self._free("walk")
        pins.drive(walk_valid=self.walk_valid)
        if self.walk_valid:
            pins.drive(walk_token=self.walking[0][0], walk_weight=self.walking[0][1])

    def _lines(self) -> None:
        """Input rows, layer behind layer, as far as the ring has room."""
        layer, line = self.line_at
        while layer < len(self.works) and (self.works[layer].layer is None or line == self._lines_of(layer)):
            layer, line = layer + 1, 0
        self.line_at = (layer, line)
        write = (
            layer < min(len(self.works), self.retired + E.ENTRIES)
            and self.lines_held < E.STORE_LINES
            and self._free("lines")
        )
        self.pins.drive(line_write=write)
        if write:
            work = self.works[layer]
            token, part = divmod(line, work.fields["input_lines"])
            data = work.x[token][part * HW.line_bytes : (part + 1) * HW.line_bytes]
            self.pins.drive(line_data=int.from_bytes(data, "little"))
            self.line_at = (layer, line + 1)
            self.lines_held += 1

    def _lines_of(self, index: int) -> int:
        work = self.works[index]
        return work.layer.tokens * work.fields["input_lines"]

    def _behind(self) -> None:
        """Drain and finish: hidden rows in order, units done, accumulator rows freed one by one."""
        pins = self.pins
        self.ready = {name: self._free(name) for name in ("drain", "gate", "linear")}
        pins.drive(drain_ready=self.ready["drain"], gate_ready=self.ready["gate"], linear_ready=self.ready["linear"])
        while self.results and self.results[0][0] <= self.cycle:
            _, tile, block = self.results.popleft()
            if block >= 0:
                rows = tile.hidden[block]
                self.hidden_rows.extend((lane, block, row, lane == len(rows) - 1) for lane, row in enumerate(rows))
            else:
                self.done_at.append((self.cycle + DRAIN_LATENCY + T, tile))
        write = bool(self.hidden_rows) and self._free("hidden")
        pins.drive(hidden_write=write, hidden_done=write and self.hidden_rows[0][3])
        if write:
            lane, block, row, _ = self.hidden_rows.popleft()
            pins.drive(hidden_lane=lane, hidden_block=block, hidden_data=int.from_bytes(row, "little"))
        if self.done_at and self.done_at[0][0] <= self.cycle and self._free("done"):
            _, tile = self.done_at.popleft()
            self.rows_free += tile.fields["completes"]
            tile.item.done |= tile.fields["last_in_unit"]
            if tile.item.gate:
                self.routed = tile.item.work
                self.gated += len(tile.pairs)
        freed = self.rows_free > 0 and self._free("wide")
        pins.drive(wide_freed=freed)
        self.rows_free -= freed
        self.rows_freed += freed

    # ---- monitors ----

    def _observe(self) -> None:
        pins = self.pins
        advanced = bool(pins["layer_advance"])
        assert not advanced or self.showing
        if pins["computed"] and self.loading < min(len(self.works), self.retired + E.ENTRIES):
            assert self.at == self.loading and not self.at_issue and not self.to_begin, "not everything is computed"
            self.computed_seen = True
        if self.offered and pins["slot_ready"]:
            self.offered.popleft()
            self.counts["units"] += 1
        if self.order_shown and pins["order_ready"]:
            work = self.routed
            self.walks.extend((work.heads[self.ordered], work.queues[self.ordered]) for _ in range(work.layer.units))
            self.ordered, self.order_shown = self.ordered + 1, False
        if self.walk_valid and pins["walk_ready"]:
            self.walking.popleft()
        if pins["walk_start"]:
            assert not self.walking, "a walk before the former has ended"
            head, pairs = self.walks.popleft()
            assert (pins["walk_head"], pins["walk_count"]) == (head, len(pairs))
            self.walking.extend(pairs)
        self._tiles()
        self._beats()
        freed = pins["lines_freed"]
        self.lines_held -= freed
        assert self.lines_held >= 0, "lines given back that were never written"
        if advanced:
            work = self.works[self.at]
            self.at, self.showing = self.at + 1, False
            if work.layer is not None:
                assert next(self.tiles, None) is None, "a layer ended before its last tile"
            if self.routed is work:
                assert self.ordered == len(work.queues)
                self.routed, self.gated, self.appended, self.ordered = None, 0, 0, 0

    def _tiles(self) -> None:
        pins = self.pins
        if pins["tile_fire"]:
            assert self.showing
            tile = next(self.tiles)
            found = E.unpack("tile_t", pins["tile"])
            for name, wanted in tile.fields.items():
                value: Any = found[name]
                if name in LANES:
                    value = [value >> LANES[name] * lane & (1 << LANES[name]) - 1 for lane in range(len(wanted))]
                assert value == wanted, f"tile of layer {self.at}: {name} = {value}, expected {wanted}"
            if tile.fields["sink"] == E.SINK_COMBINE:
                assert tile.end_row <= self.rows_freed + E.WIDE_ROWS, "accumulator rows that are in use"
            self.counts["tiles"] += 1
            self.counts["odd tiles"] += len(tile.pairs) < T
            self.to_begin.append(tile)
        if pins["drain_valid"]:
            tile = self.to_begin.popleft()
            sink = tile.fields["sink"]
            assert self.ready["drain"]
            assert pins["gate_reserve"] == (sink == E.SINK_GATE) and (self.ready["gate"] or sink != E.SINK_GATE)
            assert pins["linear_reserve"] == (sink == E.SINK_LINEAR) and (self.ready["linear"] or sink != E.SINK_LINEAR)
            self.at_issue.append(tile)
            blocks = tile.fields["hidden_tiles"]
            tile.hidden = [[random.randbytes(O) for _ in tile.pairs] for _ in range(blocks)]
            expected = list(tile.beats())
            for index, (row, first, last, data, k) in enumerate(expected):
                self.beats.append((tile, row, first, last, data, k, index == len(expected) - 1))
                layer_first = tile.fields["first_in_layer"] and index == 0
                self.sent.append((tile, layer_first, tile.fields["last_in_layer"] and index == len(expected) - 1))
        else:
            assert not pins["gate_reserve"] and not pins["linear_reserve"]
        if pins["tile_done"]:
            assert len(self.at_issue) == 1
            self.at_issue.popleft()

    def _beats(self) -> None:
        pins = self.pins
        stall = pins["stall"]
        assert stall & stall - 1 == 0
        self.stall = STALLS[stall.bit_length() - 1] if stall else ""
        if pins["beat"]:
            self.idle = 0
            assert not stall
            tile, first, last = self.sent.popleft()
            assert pins["beat_job_tag"] == tile.item.work.job_tag
            assert pins["beat_gate"] == tile.item.gate
            assert (pins["layer_first_beat"], pins["layer_last_beat"]) == (first, last)
        else:
            self.idle += 1
            self.stalls[self.stall] += 1
            assert not pins["layer_first_beat"] and not pins["layer_last_beat"]
        if not pins["array_beat"]:
            return
        tile, row, first, last, data, k, final = self.beats.popleft()
        item = tile.item
        assert (pins["array_first"], pins["array_last"]) == (first, last)
        assert pins["array_row"] == item.slot * E.SLOT_ROWS + row and row < item.rows, f"row {row} of {item.rows}"
        assert not item.shape[0] or self.gelu[item.slot]
        if data is None:
            block, within = divmod(k, O // HW.tile_inputs)
            part = slice(within * HW.tile_inputs, (within + 1) * HW.tile_inputs)
            data = [lane[part] for lane in tile.hidden[block]]
        wanted = b"".join(data)
        assert pins["operand"] & (1 << 8 * len(wanted)) - 1 == int.from_bytes(wanted, "little"), f"beat {row} of {item}"
        self.counts["beats"] += 1
        self.counts["operand bytes"] += len(wanted)
        hidden = tile.fields["hidden_tiles"]
        if last and row < hidden * item.work.fields["input_beats"]:
            self.results.append((self.cycle + DRAIN_LATENCY, tile, row // item.work.fields["input_beats"]))
        if final:
            self.results.append((self.cycle + DRAIN_LATENCY, tile, -1))
