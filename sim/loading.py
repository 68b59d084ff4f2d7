"""Weights into slots: which slot, its claim, the stripes of a unit (load.sv)."""

from __future__ import annotations

from sim import latencies as c
from sim.bus import INFINITY
from sim.policies import MoeLayer, Policy
from sim.state import COMPUTER, LOAD, Entry, Timed, Unit
from sim.writing import Writing


class Loading(Writing):
    """And what is loaded. Slots in turn as they become free, unless a policy chooses."""

    policy: Policy | None = None
    reused_units = guesses = wrong_guesses = wasted_stripes = 0
    """Units that were on chip when they were wanted; experts guessed, those of them that got no token, and the stripes
    read for these."""

    def _load_unit(
        self, entry: Entry, expert: int, unit: int, offset: int, stripes: int, time: float,
        spots: tuple[int, int, int], resident: bool,
    ) -> Timed:  # fmt: skip
        """Acquire a slot and read a unit into it; returns when the loader may go on."""
        self.ready[LOAD] = INFINITY
        if resident:
            slot = next(s for s in self.slots if s.tag == offset)
            item = slot.held
            assert item is not None
            again = Unit(item.slot, unit, (entry.job << 20) | (expert & 0xFFFFF), time, spots)
            again.gelu, again.first, again.last = item.gelu, item.first, item.last
            slot.users += 1
            self.reused_units += 1
            entry.units.append(again)
            self.wake |= COMPUTER
            return time + 1
        if self.policy is not None and self.policy.reuse and self._find_unit(entry, offset):
            return time + 1
        while True:
            number, acquired = self._free_slot(time)
            if number >= 0:
                break
            yield
        item = self._fill_slot(entry, number, offset, expert, unit, acquired, spots)
        self.candidate = (number + 1) % len(self.slots)
        entry.units.append(item)
        self.wake |= COMPUTER
        self.weight_stripes += stripes
        entry.loaded += stripes
        begin = acquired + c.ACQUIRE_TO_REQUEST
        self.load_item = (item, 0)
        time = yield from self._read_stripes(stripes, begin)
        self.ready[LOAD] = INFINITY
        if self.timeline:
            self.loads.append((begin, time, entry.index, expert, unit))
        return time

    def _free_slot(self, time: float) -> tuple[int, float]:
        """Slot that the scan finds free first, and when; −1 if that depends on what is not known yet."""
        if self.policy is not None:
            return self._choose_slot(self.policy, time)
        best, best_time = -1, INFINITY
        size = len(self.slots)
        for distance in range(size):
            number = (self.candidate + distance) % size
            slot = self.slots[number]
            if slot.users:
                continue
            found = time + distance
            if slot.free > found:
                rounds = -(-(slot.free - found) // size)
                found += rounds * size
            if found < best_time:
                best, best_time = number, found
        return best, best_time

    def _fill_slot(
        self, entry: Entry, place: int, tag: int, expert: int, unit: int, acquired: float, spots: tuple[int, int, int]
    ) -> Unit:
        """Claim a free slot for a unit that will be read."""
        slot = self.slots[place]
        slot.tag = tag
        slot.users += 1
        slot.held = item = Unit(place, unit, (entry.job << 20) | (expert & 0xFFFFF), acquired, spots)
        return item

    def _read_stripes(self, count: int, time: float) -> Timed:
        """Read ``count`` more stripes of the unit at hand from ``time`` on; returns when the loader may go on."""
        self.load_left = count
        self.ready[LOAD] = time
        while self.load_left:
            self.taken_at = -1.0
            yield
            if self.taken_at >= 0:
                time = self.ready[LOAD] = self.taken_at + 1
        return time

    def _find_unit(self, entry: Entry, tag: int) -> bool:
        """Use a unit that is on chip, or on its way there, without a load; False if it is not."""
        slot = next((slot for slot in self.slots if slot.tag == tag), None)
        if slot is None:
            return False
        assert slot.held is not None
        slot.users += 1
        entry.units.append(slot.held)
        self.reused_units += 1
        self.wake |= COMPUTER
        return True

    def _choose_slot(
        self, policy: Policy, time: float, layer: MoeLayer | None = None, limit: float = INFINITY
    ) -> tuple[int, float]:
        """Slot that a policy gives up, and when; −1 if there is none, or that depends on what is not known yet.

        The first to be free; of several that are free, the one worth least, then the one that was used longest ago.

        Args:
            layer: that waits for its gate, and might need what is on chip.
            limit: only what is worth less is given up.
        """
        best, best_key = -1, (INFINITY, 0.0, 0.0)
        for number, slot in enumerate(self.slots):
            offset = slot.tag * self.stripe_bytes
            if slot.users or slot.tag >= 0 and policy.keeps(offset):
                continue
            worth = policy.worth(layer, offset) if slot.tag >= 0 else -1.0
            key = (max(time, slot.free), worth, slot.free)
            if worth < limit and key < best_key:
                best, best_key = number, key
        return best, best_key[0]
