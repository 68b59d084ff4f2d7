"""What surrounds the load unit in test_load.py: entry table, route and its queries, memory behind the reader, dispatch
and drain. Passive monitors follow slots and decoded weights against accel.pack; nothing here looks inside the unit.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from accel import pack
from accel.commands import Command, Flag
from accel.layers import GELU_BYTES, Kind, Layer
from accel.routing import Schedule
from rtl_tb import structs
from rtl_tb.command_cases import HARDWARE, entry_fields
from rtl_tb.pins import Pins

E = structs.load()
IN_FLIGHT = 16  # stripes that the reader takes


@cache
def stripe(offset: int) -> bytes:
    """Memory: anything, but the same whenever it is read."""
    return random.Random(offset).randbytes(HARDWARE.stripe_bytes)


@dataclass(eq=False)
class Work:
    """A layer on its way through the unit, or a JOB_END (``layer`` None).

    ``order`` lists the experts to compute; for RESIDENT_FIRST those found on chip move to the front.
    """

    layer: Layer | None
    command: Command | None = None
    order: list[int] = field(default_factory=list)
    fields: dict[str, int] = field(default_factory=dict)
    resident: list[int] = field(default_factory=list)
    known: bool = False  # the order is
    index: int = 0
    begun: bool = False

    def __post_init__(self) -> None:
        self.fields = {"job_end": 1}
        if self.layer is not None:
            self.fields = entry_fields(self.command, self.layer)
        self.packed = E.pack("layer_t", **self.fields)

    @property
    def moe(self) -> bool:
        return self.layer is not None and self.layer.kind is Kind.MOE

    def key(self, offset: int, gate: bool) -> tuple[int, ...]:
        """What makes a unit the same unit."""
        shape = (self.fields[name] for name in ("unit_stripes", "input_beats", "hidden_beats", "unit_tiles"))
        return offset, int(gate), *shape

    def unit_offset(self, expert: int, unit: int) -> int:
        return self.fields["weights"] + (expert * self.fields["units"] + unit) * self.layer.unit_bytes


@dataclass(eq=False)
class Unit:
    """A unit of weights in the order of use. ``slot`` is learned from what the unit under test does with it."""

    work: Work
    offset: int
    gate: bool = False
    last: bool = False  # of its expert
    resident: bool = False
    slot: int | None = None
    acquired: bool = False
    done: bool = False
    rows: int = 0
    rows_seen: int = 0
    gelu: bool = False

    @property
    def stripes(self) -> int:
        return self.work.fields["gate_stripes" if self.gate else "unit_stripes"]

    def decode(self) -> tuple[list[int], list[int], bytes]:
        """Rows, groups (biases, then shifts) and GELU table as accel.pack takes them apart."""
        hw, layer = HARDWARE, self.work.layer
        size = self.stripes * hw.stripe_bytes
        memory = b"".join(stripe(self.offset + at) for at in range(0, size, hw.stripe_bytes))
        data = pack.deinterleave(memory, hw)
        fields, lanes = self.work.fields, hw.tile_outputs
        table, parts = b"", []
        if self.gate:
            parts = [(fields["gate_tiles"], layer.inputs)]
        elif layer.hidden:
            table, data = data[:GELU_BYTES].tobytes(), data[GELU_BYTES:]
            parts = [(fields["hidden_tiles"], layer.inputs), (fields["unit_tiles"], layer.hidden)]
        else:
            parts = [(fields["last_tiles" if self.last else "unit_tiles"], layer.inputs)]
        rows, groups = [], []
        for tiles, inputs in parts:
            linear = pack.unpack_linear(data, tiles * lanes, inputs, hw, strict=False)
            steps = inputs // hw.tile_inputs
            data = data[tiles * (E.GROUP_BYTES + steps * hw.row_bytes) :]
            for tile in range(tiles):
                part = slice(tile * lanes, (tile + 1) * lanes)
                bias = int.from_bytes(linear.bias[part].astype("<i4").tobytes(), "little")
                shift = sum((int(s) & (1 << E.SHIFT_BITS) - 1) << E.SHIFT_BITS * i
                            for i, s in enumerate(linear.shift[part]))  # fmt: skip
                groups.append(bias | shift << E.BIAS_BITS * lanes)
                folded = linear.weight[part].reshape(lanes, steps, hw.tile_inputs).transpose(1, 0, 2)
                rows += [int.from_bytes(row.tobytes(), "little") for row in np.ascontiguousarray(folded)]
        return rows, groups, table


@dataclass
class Pace:
    """Chance per cycle that each part does something."""

    layer: float = 0.5
    request: float = 0.6
    line: float = 0.8
    pop: float = 0.5
    done: float = 0.2
    order: float = 0.3
    computed: float = 0.1

    def roll(self, name: str) -> bool:
        chance: float = getattr(self, name)
        return chance >= 1 or random.random() < chance


class Bench:
    """The load unit with everything around it; :meth:`step` is a cycle."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.pins = dut, Pins(dut)
        self.counts: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        self.pace = Pace()
        self.works: list[Work] = []
        self.at = 0  # layer that the unit sees
        self.units: list[Unit] = []  # expected, in order of use
        self.live: list[Unit] = []  # of these, those not done
        self.to_acquire: deque[Unit] = deque()
        self.to_request: deque[int] = deque()  # stripes of the unit that is being requested
        self.flight: deque[tuple[int, list[int]]] = deque()  # cycle of the first line, lines
        self.to_pop: deque[Unit] = deque()
        self.in_use: deque[Unit] = deque()
        self.rows: deque[tuple[Unit, int, int]] = deque()
        self.groups: deque[tuple[Unit, int, int]] = deque()
        self.tables: deque[tuple[Unit, int, int]] = deque()
        self.tags: dict[int, tuple[int, ...]] = {}
        self.slots: list[Unit | None] = [None] * E.WEIGHT_SLOTS  # whose rows are in it
        self.probing: deque[tuple[Work, int, int]] = deque()
        self.found: dict[int, bool] = {}
        self.cycle = 0
        self.hold_pop = self.hold_done = False
        self.showing = self.offering = self.line_valid = self.computed = False
        self.given = 0  # experts of the order that the unit has taken
        self.asked: tuple[int, ...] | None = None

    async def start(self) -> None:
        self.pins.drive(rst=0, forget=0, computed=0)
        cocotb.start_soon(Clock(self.dut.clk, 10, "ns").start(start_high=False))
        await self.reset_unit()

    async def reset_unit(self) -> None:
        self.reset()
        self.pins.drive(rst=1, layer_valid=0, order_valid=0, request_ready=0, line_valid=0, slot_ready=0, unit_done=0)
        for _ in range(3):
            await RisingEdge(self.dut.clk)
        self.pins.drive(rst=0)

    def add(self, *works: Work) -> None:
        for work in works:
            work.index = len(self.works)
            self.works.append(work)

    async def run(self, until: Callable[[], bool] | None = None, limit: int = 60000) -> None:
        """Until everything that was added is done and nothing is expected any more."""
        over = until or (lambda: self.at == len(self.works) and not self.live)
        start = self.cycle
        while not over():
            assert self.cycle - start < limit, f"not finished: layer {self.at} of {len(self.works)}"
            await self.step()
        if until is None:
            while self.flight:  # padding
                await self.step()
            for _ in range(3):
                await self.step()
            for name in ("to_acquire", "to_request", "to_pop", "in_use", "rows", "groups", "tables"):
                assert not getattr(self, name), f"{name}: {len(getattr(self, name))} did not come"

    async def forget(self) -> None:
        """Start of another program: nothing is known to be on chip."""
        self.pins.drive(forget=1)
        await RisingEdge(self.dut.clk)
        self.pins.drive(forget=0)
        self.tags.clear()

    # ---- one cycle ----

    async def step(self) -> None:
        self._layers()
        self._order()
        self._memory()
        self._slots()
        self._query()
        await ReadOnly()
        self._observe()
        await RisingEdge(self.dut.clk)
        self.cycle += 1

    def _layers(self) -> None:
        pins = self.pins
        shown = self.showing
        if not shown and self.at < len(self.works):
            oldest = self.live[0].work.index if self.live else self.at
            shown = self.at - oldest < E.ENTRIES and self.pace.roll("layer")
        if shown and not self.showing:
            work = self.works[self.at]
            pins.drive(layer=work.packed)
            if work.moe:
                self._expect(Unit(work, work.fields["gate"], gate=True))
            elif work.layer is not None:
                self._expect_expert(work, 0, False)
            self.computed = False
        self.showing = shown
        pins.drive(layer_valid=shown)
        if shown and not self.computed:
            earlier = self.live and self.live[0].work.index < self.at
            self.computed = not earlier and self.pace.roll("computed")
        pins.drive(computed=shown and self.computed)

    def _expect(self, unit: Unit) -> None:
        self.units.append(unit)
        self.live.append(unit)
        self.to_acquire.append(unit)

    def _expect_expert(self, work: Work, expert: int, resident: bool) -> None:
        for number in range(work.layer.units):
            last = number == work.layer.units - 1
            self._expect(Unit(work, work.unit_offset(expert, number), last=last, resident=resident))

    def _order(self) -> None:
        """Route: the order is known some time after the gate's table was used."""
        self.ordering = None
        work = self.works[self.at] if self.showing else None
        if work is not None and work.moe and not work.known and self.units[-1].done:  # its gate
            if work.command.schedule != Schedule.RESIDENT_FIRST:
                work.known = True
            elif not self.probing and not self.found:
                self.probing = deque((work, expert, unit) for expert in work.order for unit in range(work.layer.units))
                self.found = dict.fromkeys(work.order, True)
            elif not self.probing:
                work.resident = [expert for expert in work.order if self.found[expert]]
                work.order = work.resident + [expert for expert in work.order if not self.found[expert]]
                work.known, self.found = True, {}
        offer = work is not None and work.moe and work.known and self.given < len(work.order)
        self.offering = offer and (self.offering or self.pace.roll("order"))
        if self.offering:
            expert = work.order[self.given]
            self.ordering = expert
            order = E.pack(
                "order_t", expert=expert, last=self.given == len(work.order) - 1, resident=expert in work.resident,
                count=random.getrandbits(E.TOKEN_BITS), head=random.getrandbits(E.NODE_BITS),
            )  # fmt: skip
            self.pins.drive(order=order)
        self.pins.drive(order_valid=self.offering)

    def _memory(self) -> None:
        pins = self.pins
        self.granting = self.pace.roll("request") and len(self.flight) < IN_FLIGHT
        pins.drive(request_ready=self.granting)
        if not self.line_valid and self.flight and self.flight[0][0] <= self.cycle and self.pace.roll("line"):
            self.line_valid = True
            pins.drive(line_data=self.flight[0][1][0])
        pins.drive(line_valid=self.line_valid)

    def _slots(self) -> None:
        pins = self.pins
        self.popping = not self.hold_pop and self.pace.roll("pop")
        pins.drive(slot_ready=self.popping)
        self.freeing = None
        if self.in_use and not self.hold_done and self.pace.roll("done"):
            unit = self.in_use[0]
            if unit.rows_seen == unit.rows and unit.gelu:
                self.freeing = unit
                pins.drive(unit_slot=unit.slot)
        pins.drive(unit_done=self.freeing is not None)

    def _query(self) -> None:
        """Route's question, or any other."""
        pins = self.pins
        if self.probing:
            work, expert, number = self.probing[0]
        else:
            self.asked = None
            work = random.choice(self.works[max(0, self.at - 5) : self.at + 1] or [Work(None)])
            if work.layer is None or random.random() < 0.7:
                return
            expert, number = random.randrange(work.layer.experts), random.randrange(work.layer.units)
        offset = work.unit_offset(expert, number)
        pins.drive(resident_query=offset, resident_layer=work.packed)
        self.asked = work.key(offset, False)

    # ---- monitors ----

    def _observe(self) -> None:
        pins = self.pins
        advanced = bool(pins["layer_advance"])
        assert not advanced or self.showing
        if self.ordering is not None and pins["order_ready"]:
            work = self.works[self.at]
            self._expect_expert(work, self.ordering, self.ordering in work.resident)
            self.given, self.offering = self.given + 1, False
        self._requests()
        self._pops()
        self._writes()
        self._hits()
        self._filled()
        if self.freeing is not None:
            assert self.in_use.popleft() is self.freeing
            assert self.live.pop(0) is self.freeing
            self.freeing.done = True
        if self.line_valid:
            if pins["line_ready"]:
                self.line_valid = False
                self.flight[0][1].pop(0)
                if not self.flight[0][1]:
                    self.flight.popleft()
                self.counts["lines"] += 1
            else:
                self.counts["lines held"] += 1
        if advanced:
            self.at, self.showing, self.given = self.at + 1, False, 0

    def _requests(self) -> None:
        """A request in the first cycle of a unit tells that the unit has a slot."""
        pins = self.pins
        if not pins["request_valid"]:
            return
        if not self.to_request:
            while self.to_acquire[0].resident:  # taken without a request; its slot is seen later
                self._acquired(self.to_acquire.popleft())
            unit = self.to_acquire.popleft()
            work = unit.work
            if work.command.flags & Flag.NO_PREFETCH and not work.begun:
                assert self.computed, "a load ran ahead although it must not"
                self.counts["held back"] += 1
            elif work is not self.live[0].work:
                self.counts["ahead of a layer"] += 1
            work.begun = True
            self._acquired(unit)
            size = HARDWARE.stripe_bytes
            self.to_request.extend(range(unit.offset, unit.offset + unit.stripes * size, size))
            rows, groups, table = unit.decode()
            unit.rows, unit.gelu = len(rows), not table
            self.rows.extend((unit, *item) for item in enumerate(rows))
            self.groups.extend((unit, *item) for item in enumerate(groups))
            self.tables.extend((unit, *item) for item in enumerate(table))
        assert pins["request_offset"] == self.to_request[0]
        if self.granting:
            lines = pack.deinterleave(stripe(self.to_request.popleft()), HARDWARE).reshape(-1, HARDWARE.line_bytes)
            values = [int.from_bytes(line.tobytes(), "little") for line in lines]
            earliest = self.flight[-1][0] if self.flight else 0
            self.flight.append((max(earliest, self.cycle + random.choice((1, 3, 20))), values))
            self.counts["stripes"] += 1

    def _acquired(self, unit: Unit) -> None:
        unit.acquired = True
        self.to_pop.append(unit)
        self.counts["resident" if unit.resident else "gates" if unit.gate else "units"] += 1

    def _place(self, unit: Unit, slot: int) -> None:
        """The slot of a unit becomes known."""
        if unit.slot is not None:
            assert unit.slot == slot, "a unit in two slots"
            return
        unit.slot = slot
        key = unit.work.key(unit.offset, unit.gate)
        if unit.resident:
            assert self.tags.get(slot) == key, "not what is in this slot"
            former = self.slots[slot]
            unit.rows = unit.rows_seen = former.rows
            unit.gelu = True
        else:
            assert not any(user.slot == slot for user in self.live if user is not unit), "a slot that is in use"
            self.tags[slot], self.slots[slot] = key, unit

    def _pops(self) -> None:
        pins = self.pins
        if not pins["slot_valid"]:
            return
        while not self.to_pop:
            assert self.to_acquire and self.to_acquire[0].resident, "a slot for no unit"
            self._acquired(self.to_acquire.popleft())
        unit = self.to_pop[0]
        self._place(unit, pins["slot"])
        if self.popping:
            self.in_use.append(self.to_pop.popleft())

    def _writes(self) -> None:
        pins = self.pins
        self.row_written = None
        for name, queue, per_slot in (("row", self.rows, E.SLOT_ROWS), ("group", self.groups, E.SLOT_GROUPS)):
            if pins[f"{name}_write"]:
                assert queue, f"{name}: none expected"
                unit, index, data = queue.popleft()
                slot, at = divmod(pins[f"{name}_address"], per_slot)
                self._place(unit, slot)
                assert (at, pins[f"{name}_data"]) == (index, data), f"{name} {index} of {unit}"
                self.counts[f"{name}s"] += 1
                if name == "row":
                    self.row_written = unit
        self.table_written = None
        if pins["gelu_write"]:
            unit, index, value = self.tables.popleft()
            self._place(unit, pins["gelu_slot"])
            assert (pins["gelu_address"], pins["gelu_data"]) == (index, value)
            self.counts["table entries"] += 1
            if index == GELU_BYTES - 1:
                self.table_written = unit

    def _hits(self) -> None:
        """Whether a unit is on chip: certain where every slot that was given out is known, or cannot matter."""
        if self.asked is None:
            return
        hit = bool(self.pins["resident_hit"])
        unknown = [unit for unit in self.live if unit.acquired and not unit.resident and unit.slot is None]
        coming = any(unit.work.key(unit.offset, unit.gate) == self.asked for unit in unknown)
        held = [slot for slot, key in self.tags.items() if key == self.asked]
        in_use = {unit.slot for unit in self.live}
        if coming or any(slot in in_use for slot in held) or (held and not unknown):
            assert hit, "not found where it is"
            self.counts["hits"] += 1
        elif not held:
            assert not hit, "found where it is not"
            self.counts["misses"] += 1
        if self.probing:
            _, expert, _ = self.probing.popleft()
            self.found[expert] &= hit

    def _filled(self) -> None:
        """rows_filled and gelu_filled of every slot, one cycle after the writes that they count."""
        rows, tables = self.pins["rows_filled"], self.pins["gelu_filled"]
        unknown = any(unit.acquired and not unit.resident and unit.slot is None for unit in self.live)
        for slot, unit in enumerate(self.slots):
            found = rows >> slot * E.SLOT_ROW_BITS & (1 << E.SLOT_ROW_BITS) - 1
            there = bool(tables >> slot & 1)
            if unit is None:
                continue
            given_away = unknown and unit.done and not found and not there
            assert given_away or found == unit.rows_seen, f"slot {slot}: {found} rows, not {unit.rows_seen}"
            assert given_away or there == (unit.gelu and bool(unit.work.layer.hidden) and not unit.gate)
            self.counts["slot states"] += 1
        if self.row_written is not None:
            self.row_written.rows_seen += 1
        if self.table_written is not None:
            self.table_written.gelu = True
