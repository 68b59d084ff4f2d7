"""What is loaded into which slot, and in which order: the engine's own rules (load.sv, order.sv), or a policy's.

Without a policy everything is as in the RTL. With one, the load unit may look up weights on chip, guess experts while
the gate is being computed, and choose what to evict. A guess is read in pieces of :data:`PIECE` stripes: after each the
load unit looks whether the gate has decided, and drops what nobody needs. How experts are put in order by cost is not
designed: a pass over all of them and one cycle each is assumed.
"""

from __future__ import annotations

from collections.abc import Collection

from accel.commands import Flag
from accel.routing import Schedule
from sim import latencies as c
from sim.bus import INFINITY
from sim.loading import Loading
from sim.policies import MoeLayer, Policy
from sim.shapes import Shape
from sim.state import COMPUTER, LOAD, LOADER, Entry, Process, Slot, Timed, Unit

PIECE = 8
"""Stripes of a guess between two looks at the gate; fewer than what is worth streaming at once."""


class Scheduling(Loading):
    """And what is loaded next."""

    def _order(self, entry: Entry, starts: list[float], view: float) -> None:
        """The gate has decided: experts in the order of the schedule, and when each is known."""
        shape = entry.shape
        assert shape is not None
        loads = entry.loads
        last = starts[-1] + shape.words + c.START_TO_LAST_WORD + c.WORD_TO_CHOSEN + shape.top_k - 1
        scan = last + c.CHOSEN_TO_ORDER
        entry.route_end = scan + c.ORDER_TO_FIRST
        self.wake |= LOADER
        if self.policy is not None:
            return  # the load unit asks it when it gets there
        used = [expert for expert, load in enumerate(loads) if load]
        schedule = Schedule(entry.command.schedule)
        if schedule is Schedule.LONGEST_FIRST:
            used.sort(key=lambda expert: (-loads[expert], expert))
            period = shape.experts + 3
            for position, expert in enumerate(used):
                entry.orders.append((expert, loads[expert], scan + 2 + period * (position + 1), False))
        elif schedule is Schedule.RESIDENT_FIRST:
            base = entry.command.weights // self.stripe_bytes
            tags = {slot.tag for slot in self.slots}
            resident = {
                expert
                for expert in used
                if all(base + (expert * shape.units + u) * shape.unit_stripes in tags for u in range(shape.units))
            }
            asks = 0
            for expert in used:
                if expert in resident:
                    entry.orders.append((expert, loads[expert], scan + c.ORDER_TO_FIRST + expert + 2 * asks + 1, True))
                asks += 1
            second = scan + c.ORDER_TO_FIRST + shape.experts + 2 * asks + 2
            for expert in used:
                if expert not in resident:
                    entry.orders.append((expert, loads[expert], second + expert, False))
        else:
            for expert in used:
                entry.orders.append((expert, loads[expert], scan + c.ORDER_TO_FIRST + expert, False))
        entry.orders_known = True

    def _load(self) -> Process:
        index, advanced = 0, 0.0
        while True:
            while index >= len(self.entries):
                self.ready[LOAD] = INFINITY
                yield
            entry = self.entries[index]
            time = max(entry.pushed, advanced) + c.PUSH_TO_VIEW
            index += 1
            if entry.shape is None:
                advanced = time
                continue
            shape, command = entry.shape, entry.command
            self.source_entry[LOAD] = entry.index
            if command.flags & Flag.NO_PREFETCH and entry.index:
                self.ready[LOAD] = INFINITY
                while self._computed_before(entry.index) == INFINITY:
                    yield
                time = max(time, self._computed_before(entry.index) + 2)
            time += c.VIEW_TO_ACQUIRE
            stripe_bytes = self.stripe_bytes
            weights = command.weights // stripe_bytes
            if shape.gated:
                spots = (-1, shape.gate_first_line, shape.gate_last_line)
                time = yield from self._load_unit(
                    entry, -1, -1, command.gate // stripe_bytes, shape.gate_stripes, time, spots, False
                )
                if self.policy is not None:
                    advanced = (yield from self._load_policy(entry, self.policy, time)) - 1
                    continue
                position = 0
                while True:
                    self.ready[LOAD] = INFINITY
                    while not entry.orders_known:
                        yield
                    expert, _, known, resident = entry.orders[position]
                    time = max(time, known) + c.ORDER_TO_ACQUIRE
                    for unit in range(shape.units):
                        offset = weights + (expert * shape.units + unit) * shape.unit_stripes
                        spots = (shape.gelu_line, shape.first_line, shape.last_line[unit])
                        time = yield from self._load_unit(
                            entry, expert, unit, offset, shape.unit_stripes, time, spots, resident
                        )
                    position += 1
                    if position == len(entry.orders):
                        break
            else:
                for unit in range(shape.units):
                    gelu = shape.gelu_line if shape.gelu else -1
                    spots = (gelu, shape.first_line, shape.last_line[unit])
                    offset = weights + unit * shape.unit_stripes
                    time = yield from self._load_unit(entry, 0, unit, offset, shape.unit_stripes, time, spots, False)
            advanced = time - 1

    def _computed_before(self, index: int) -> float:
        """When everything before an entry has been computed."""
        for entry in reversed(self.entries[:index]):
            if entry.shape is not None:
                return entry.computed
        return 0.0

    def _load_policy(self, entry: Entry, policy: Policy, time: float) -> Timed:
        """Load the experts of an MoE layer, its gate table having been read: guesses first, then what is needed."""
        shape = entry.shape
        assert shape is not None
        base = entry.command.weights // self.stripe_bytes
        self.ready[LOAD] = INFINITY
        self.source_entry[LOAD] = entry.index + 1  # a guess must not hold back the layer's own rows
        guessed: dict[int, Unit] = {}
        layer = self._layer(entry, self._on_chip(shape, base))
        for expert in policy.guesses(layer) if shape.units == 1 else ():
            time = yield from self._guess(entry, policy, layer, expert, time, guessed)
            if entry.orders_known or expert not in guessed:
                break
        while not entry.orders_known:
            if entry.route_end >= 0:
                time = max(time, entry.route_end)
                self._decide(entry, policy, guessed, time)
                break
            yield
        self.source_entry[LOAD] = entry.index
        for expert, _, known, there in entry.orders:
            if there:
                continue
            time = max(time, known) + c.ORDER_TO_ACQUIRE
            for unit in range(shape.units):
                offset = base + (expert * shape.units + unit) * shape.unit_stripes
                spots = (shape.gelu_line, shape.first_line, shape.last_line[unit])
                time = yield from self._load_unit(entry, expert, unit, offset, shape.unit_stripes, time, spots, False)
        return time

    def _layer(self, entry: Entry, on_chip: Collection[int], decided: bool = False) -> MoeLayer:
        shape, command = entry.shape, entry.command
        assert shape is not None
        expert_bytes = shape.units * shape.unit_stripes * self.stripe_bytes
        loads = tuple(entry.loads) if decided else ()
        return MoeLayer(shape, command.gate, command.weights, expert_bytes, loads, frozenset(on_chip))

    def _slots_of(self, shape: Shape, base: int, expert: int) -> list[Slot]:
        """Slots with the units of an expert; none unless all of them are on chip."""
        found = []
        for unit in range(shape.units):
            tag = base + (expert * shape.units + unit) * shape.unit_stripes
            found += [slot for slot in self.slots if slot.tag == tag][:1]
        return found if len(found) == shape.units else []

    def _on_chip(self, shape: Shape, base: int) -> list[int]:
        return [expert for expert in range(shape.experts) if self._slots_of(shape, base, expert)]

    def _decide(
        self, entry: Entry, policy: Policy, guessed: dict[int, Unit], time: float, flying: int = -1
    ) -> None:
        """The load unit learns what the gate has decided: order of the experts, those on chip first.

        Args:
            guessed: experts loaded without being asked for, of one unit each, claimed.
            flying: of them, the one that is still being read.
        """
        shape = entry.shape
        assert shape is not None
        base = entry.command.weights // self.stripe_bytes
        there: dict[int, list[Unit]] = {}
        for expert, load in enumerate(entry.loads):
            if expert in guessed:
                if load:
                    there[expert] = [guessed[expert]]
                    continue
                self.wrong_guesses += 1
                if expert != flying:
                    self.wasted_stripes += shape.unit_stripes
                slot = self.slots[guessed[expert].slot]
                slot.users -= 1
                slot.free = max(slot.free, time)
            elif load and policy.reuse:
                for slot in self._slots_of(shape, base, expert):
                    slot.users += 1
                    self.reused_units += 1
                    assert slot.held is not None
                    there.setdefault(expert, []).append(slot.held)
        layer = self._layer(entry, there, True)
        # What is on chip can be computed before anything is loaded; what is still being read goes last of it.
        order = sorted(policy.order(layer), key=lambda expert: (expert not in there, expert == flying))
        known = entry.route_end + shape.experts
        for position, expert in enumerate(order):
            entry.orders.append((expert, entry.loads[expert], known + position, expert in there))
            entry.units += there.get(expert, [])
        entry.orders_known = True
        policy.observe(layer)
        self.wake |= COMPUTER | LOADER

    def _guess(
        self, entry: Entry, policy: Policy, layer: MoeLayer, expert: int, time: float, guessed: dict[int, Unit]
    ) -> Timed:
        """Load an expert that nobody has asked for. ``guessed`` gets it, unless there was no slot in time."""
        shape = entry.shape
        assert shape is not None
        tag = entry.command.weights // self.stripe_bytes + expert * shape.unit_stripes
        likely = policy.worth(layer, tag * self.stripe_bytes)
        while True:
            place, acquired = self._choose_slot(policy, time, layer, likely)
            if 0 <= entry.route_end <= (acquired if place >= 0 else INFINITY):
                return time  # the gate decides first
            if place >= 0:
                break
            yield
        spots = (shape.gelu_line, shape.first_line, shape.last_line[0])
        item = self._fill_slot(entry, place, tag, expert, 0, acquired, spots)
        guessed[expert] = item
        self.guesses += 1
        time = begin = acquired + c.ACQUIRE_TO_REQUEST
        self.load_item = (item, 0)
        left = shape.unit_stripes
        while left:
            piece = min(left, PIECE)
            time = yield from self._read_stripes(piece, time)
            left -= piece
            self.weight_stripes += piece
            entry.loaded += piece
            if 0 <= entry.route_end <= time and not entry.orders_known:
                self._decide(entry, policy, guessed, time, expert)
                if left and not entry.loads[expert]:
                    self.wasted_stripes += shape.unit_stripes - left
                    self.slots[place].tag = -1
                    break
        self.ready[LOAD] = INFINITY
        if self.timeline:
            self.loads.append((begin, time, entry.index, expert, 0))
        return time
