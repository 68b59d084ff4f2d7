"""Runs programs on an engine, compares all that they leave with the functional engine, and counts what it compares.

The device stays open over many programs, so that one build serves a module of tests; if a program breaks it, the next
one gets a new device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.commands import Command
from accel.config import Hardware
from accel.errors import DeviceError
from accel.functional import FunctionalEngine
from accel.layers import Layer
from accel.limits import KINDS, Limits
from accel.memory_map import ARENA_ALIGNMENT
from accel.memory_model import CHANNELS, IDEAL, MAX_PORTS, MemoryModel
from accel.record import COUNTERS, ErrorCode, Record
from accel.registers import mask
from accel.routing import Queue, Schedule
from accel.synthetic import SyntheticProgram
from host.backends.rtl import RtlDevice
from host.backends.rtl_library import EVENT, EVENT_KINDS
from host.device import Device, Reg

Array = NDArray[Any]
Ranges = Sequence[tuple[int, int]]

START, DONE, IDLE = (mask("AP_CTRL", name) for name in ("start", "done", "idle"))
BEATS = ("array_cycles", "gate_cycles")
"""Cycle counters that do not depend on time: what the array has to do."""
EXACT = (*(slot.name for slot in COUNTERS if not slot.name.endswith("cycles")), *BEATS)
EXACT_JOB = ("job", "pairs", "experts", "macs", "queue_crc", *BEATS)
WEIGHT_READS = ("bytes_read", "weight_bytes")
"""Counters that are smaller where weights on chip were used again."""
STALLS = tuple(slot.name for slot in COUNTERS if slot.name.startswith("stall_"))
BUS_EVENTS = EVENT_KINDS[: EVENT_KINDS.index("write_response") + 1]
QUIET_CYCLES = 600
"""How long after a program nothing may happen."""
SHARES = ("load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles")

MODELS = {
    "default": MemoryModel(),
    "ideal": IDEAL,
    "held": MemoryModel(stall_percent=30, stall_seed=5),
    "far": MemoryModel(latency=300, write_latency=500, outstanding=2, write_batch=1, turnaround=40),
    "choppy": MemoryModel(stall_percent=70, stall_run=4, latency=60, outstanding=2, stall_seed=9),
    "narrow": MemoryModel(bytes_per_cycle=8, bucket_bytes=64, refresh_period=300, refresh_cycles=60),
}
"""Memories that make different units wait."""


def held_back(channels: Iterable[str], ports: Iterable[int] = range(MAX_PORTS), **parameters: Any) -> MemoryModel:
    """A memory that holds back handshakes of some channels of some ports only."""
    bits = 0
    for channel in channels:
        for port in ports:
            bits |= 1 << (MAX_PORTS * CHANNELS.index(channel) + port)

    class HeldBack(MemoryModel):
        def stalls(self) -> NDArray[np.uint32]:
            return super().stalls() & np.uint32(bits)

    return HeldBack(**parameters)


def tile_count(tokens: int, engine: Hardware) -> int:
    return -(-tokens // engine.tile_tokens)


class CountingEngine(FunctionalEngine):
    """The functional engine, which also counts the beats that the array needs: they do not depend on time."""

    def _beats(self, tables: Iterable[dict[str, int]], beats: int, gate: bool) -> None:
        for table in tables:
            for name in BEATS if gate else BEATS[:1]:
                table[name] = table.get(name, 0) + beats

    def _count(self, counters: dict[str, int], job: dict[str, int], layer: Layer, pairs: int, experts: int) -> None:
        super()._count(counters, job, layer, pairs, experts)
        if layer.first is not None:
            rows = layer.units * (layer.first.rows + layer.second.rows)
        else:
            rows = -(-layer.outputs // self.hardware.tile_outputs) * layer.second.rows_per_tile
        self._beats((counters, job), tile_count(pairs, self.hardware) * rows, False)

    def _queues(
        self, memory: Array, command: Command, layer: Layer, x: Array, counters: dict[str, int], job: dict[str, int]
    ) -> list[Queue]:
        queues = super()._queues(memory, command, layer, x, counters, job)
        if layer.gate is not None:
            self._beats((counters, job), tile_count(layer.tokens, self.hardware) * layer.gate.rows, True)
        return queues


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a program left: its record, the arena, what lies around the arena and was zero before, and the log of the
    simulated memory."""

    record: Record
    memory: Array
    around: Array
    events: Array


def layer_of(command: Command, engine: Hardware) -> Layer:
    """Shape that a layer command names."""
    return Limits(engine).check(command, 1 << 40)


class EngineBench:
    """An open device, the functional engine beside it, and how many integers were compared.

    Args:
        open_device: opens the device; called again after a program has broken it.
        engine: what the device is built with.
    """

    def __init__(self, open_device: Callable[[], Device], engine: Hardware) -> None:
        self.hardware = engine
        self.functional = CountingEngine(engine)
        self.compared = 0
        self._open, self._device = open_device, open_device()

    @property
    def device(self) -> Device:
        return self._device

    def close(self) -> None:
        self._device.close()

    def replace_device(self) -> None:
        """Go on with a new device: this one has stopped for good."""
        self._device.close()
        self._device = self._open()

    @property
    def timed(self) -> bool:
        """Whether the engine has a clock, and its memory can make it wait."""
        return isinstance(self._device, RtlDevice)

    def use(self, model: MemoryModel) -> None:
        """Let the memory behave like this from now on (engines with a clock only)."""
        if isinstance(self._device, RtlDevice):
            self._device.memory.configure(model)

    def models(self, *names: str) -> list[MemoryModel]:
        """These of :data:`MODELS`; one of them where memory takes no time."""
        return [MODELS[name] for name in (names if self.timed else names[:1])]

    # ---- running

    def place(self, program: SyntheticProgram) -> tuple[Any, int]:
        """Buffer with the arena in it, as much space around it, and the arena's offset in the buffer."""
        buffer = self._device.allocate(program.arena.bytes + 2 * ARENA_ALIGNMENT)
        buffer.array[ARENA_ALIGNMENT:][: program.arena.bytes] = program.memory
        buffer.flush()
        return buffer, ARENA_ALIGNMENT

    def start(self, program: SyntheticProgram, address: int, control: int = START) -> None:
        """Write the registers and start. The driver would refuse some of these programs; here the engine must."""
        device = self._device
        device.read_register(Reg.AP_CTRL)  # clears a done left over
        for port in range(self.hardware.ports):
            device.write_register(Reg.ARENA0_LO + 16 * port, address & 0xFFFF_FFFF)
            device.write_register(Reg.ARENA0_HI + 16 * port, address >> 32)
        device.write_register(Reg.PROGRAM, program.program_offset)
        device.write_register(Reg.COMMANDS, len(program.commands))
        device.write_register(Reg.RECORD, program.record_offset)
        device.write_register(Reg.GIER, 1)
        device.write_register(Reg.IER, mask("IER", "done"))
        device.write_register(Reg.AP_CTRL, control)

    def finish(self) -> int:
        """Wait for the interrupt, clear it, and return what AP_CTRL held."""
        while not self._device.wait_interrupt(1.0):
            pass  # a simulated device counts cycles and gives up by itself
        pending = self._device.read_register(Reg.ISR)
        assert pending == mask("ISR", "done")
        self._device.write_register(Reg.ISR, pending)
        return self._device.read_register(Reg.AP_CTRL)

    def execute(
        self, program: SyntheticProgram, model: MemoryModel | None = None, reads: Ranges = (), writes: Ranges = ()
    ) -> Outcome:
        """Run a program. ``reads``, ``writes``: ranges of the arena that answer with an error."""
        if model is not None:
            self.use(model)
        try:
            buffer, offset = self.place(program)
            with buffer:
                base, size = buffer.device_address + offset, program.arena.bytes
                if isinstance(self._device, RtlDevice):
                    shifted = [[(base + low, base + high) for low, high in ranges] for ranges in (reads, writes)]
                    self._device.inject(*shifted)
                    self._device.memory.log()
                self.start(program, base)
                control = self.finish()
                assert control & (DONE | IDLE) == DONE | IDLE, f"AP_CTRL = {control:#x}"
                events = self._events()
                events["address"] -= np.where(events["kind"] < len(BUS_EVENTS), base, 0).astype(np.uint64)
                self.check_quiet()
                buffer.invalidate()
                whole = buffer.array.copy()
            memory = whole[offset : offset + size]
            record = Record.decode(memory[program.record_offset :].tobytes())
        except (DeviceError, AssertionError):
            self.replace_device()  # whatever state it is in must not fail the next program too
            raise
        return Outcome(record, memory, np.concatenate([whole[:offset], whole[offset + size :]]), events)

    def check_quiet(self) -> None:
        """Nothing moves on the memory ports once the engine has said that it is done, whatever made it stop."""
        if isinstance(self._device, RtlDevice):
            self._device.memory.log()
            self._device._library.board_idle(self._device._board, QUIET_CYCLES)
            events = self._events()
            moved = events[events["kind"] < len(BUS_EVENTS)]  # after a bus error the array works off what it has
            assert not len(moved), f"{len(moved)} bursts after done, first {moved[0]}"

    def _events(self) -> Array:
        """What the memory has logged; the log ends."""
        if not isinstance(self._device, RtlDevice):
            return np.zeros(0, EVENT)
        events = self._device.memory.events()
        self._device.memory.log(False)
        return events

    # ---- comparing

    def expect(self, program: SyntheticProgram) -> Outcome:
        """What the functional engine leaves."""
        return self.expect_until(program, len(program.commands))

    def expect_until(self, program: SyntheticProgram, command: int) -> Outcome:
        """The same if there were no commands from index ``command`` on."""
        memory = program.memory.copy()
        self.functional.execute(memory, program.program_offset, command, program.record_offset)
        record = Record.decode(memory[program.record_offset :].tobytes())
        return Outcome(record, memory, np.zeros(0, np.uint8), np.zeros(0, EVENT))

    def run(self, program: SyntheticProgram, model: MemoryModel | None = None) -> Record:
        """Run a program and require what the functional engine leaves, byte for byte and counter for counter."""
        return self.compare(program, self.execute(program, model))

    def compare(self, program: SyntheticProgram, found: Outcome) -> Record:
        """Require ``found`` to be what the functional engine leaves."""
        expected = self.expect(program)
        self.compare_memory(program, found, expected.memory)
        done = expected.record.header["commands"]
        compared = sum(
            layer_of(command, self.hardware).tokens * command.outputs
            for command in program.commands[:done]
            if command.opcode in KINDS
        )
        assert compared or not any(command.opcode in KINDS for command in program.commands[:done])
        self.compared += compared
        self.compare_records(program, found.record, expected.record)
        return found.record

    def compare_memory(self, program: SyntheticProgram, found: Outcome, expected: Array) -> None:
        """Every byte but the record's must be as expected; whatever surrounds the arena is untouched."""
        assert not found.around.any(), "bytes outside the arena were written"
        low = program.record_offset
        high = low + program.arena.sizes["record"]
        for start, stop in ((0, low), (high, len(expected))):
            if np.array_equal(found.memory[start:stop], expected[start:stop]):
                continue
            wrong = start + np.flatnonzero(found.memory[start:stop] != expected[start:stop])
            where = [index for index, (at, size) in enumerate(program.outputs) if at <= wrong[0] < at + size]
            raise AssertionError(
                f"{len(wrong)} bytes differ, first at {wrong[0]:#x} (output of layer {where or 'none'}): "
                f"expected {expected[wrong[0]]}, found {found.memory[wrong[0]]}"
            )

    def compare_records(self, program: SyntheticProgram, found: Record, expected: Record) -> None:
        """Every entry that does not depend on time is as expected, and cycles add up."""
        names = [name for name in expected.header if name != "error_detail"]
        assert {name: found.header[name] for name in names} == {name: expected.header[name] for name in names}
        counters = found.counters
        clock = counters["cycles"] > 0
        resident = any(command.schedule == Schedule.RESIDENT_FIRST for command in program.commands)
        unequal = (WEIGHT_READS if resident else ()) + (() if clock else BEATS)
        exact = [name for name in EXACT if name not in unequal]
        assert {name: counters[name] for name in exact} == {name: expected.counters[name] for name in exact}
        if resident:
            saved = {expected.counters[name] - counters[name] for name in WEIGHT_READS}
            assert len(saved) == 1 and min(saved) >= 0, f"weights not read again: {saved}"
        for entry, wanted in zip(found.jobs, expected.jobs, strict=True):
            exact = [name for name in EXACT_JOB if name not in unequal]
            assert {name: entry[name] for name in exact} == {name: wanted[name] for name in exact}
        if clock:
            check_cycles(found)


def check_cycles(record: Record) -> None:
    """What must hold between cycle counters, whatever the program."""
    counters, jobs = record.counters, record.jobs
    assert sum(counters[name] for name in SHARES) == counters["cycles"]
    assert counters["compute_only_cycles"] + counters["overlap_cycles"] == counters["array_cycles"]
    assert sum(counters[name] for name in STALLS) <= counters["cycles"] - counters["array_cycles"]
    assert sum(job["cycles"] for job in jobs) <= counters["cycles"]
    for job in jobs:
        assert job["array_cycles"] + job["layer_idle"] <= counters["cycles"]
        assert job["layer_idle_max"] <= job["layer_idle"]
    if jobs and record.error is ErrorCode.NONE:
        # Otherwise layers may follow that belong to no entry.
        assert jobs[-1]["boundary_idle"] == jobs[-1]["bytes_ahead"] == 0
