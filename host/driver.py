"""The driver: places bundles in memory, runs programs, waits with a time-out, decodes every error.

One driver serves every back end. It touches the engine only through :class:`host.device.Device`::

    with open_device("golden", hardware) as device, Driver(device) as driver:
        with driver.load(bundle) as loaded:
            record = loaded.run(program, timeout=1.0)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.bundle import Bundle
from accel.compiler import Program, identify_program, live_arena, place_weights
from accel.errors import BundleError, DeviceError, DeviceTimeout
from accel.limits import Limits
from accel.memory_map import ArenaMap
from accel.record import ErrorCode, Record, empty_record, record_bytes
from accel.registers import ARENAS, mask
from host.device import Buffer, Closing, Device, Reg
from host.faults import describe_error
from host.program_check import check_program

Array = NDArray[Any]
PlaceProgress = Callable[[str, int, int], None]
"""Called with a blob's name, its index and the number of blobs."""

DEFAULT_TIMEOUT = 60.0
"""Seconds that a program may take unless the caller says otherwise."""
POLL_SECONDS = 0.05
"""How long the driver trusts the interrupt before it looks at the registers itself."""

_START, _DONE, _IDLE = (mask("AP_CTRL", name) for name in ("start", "done", "idle"))
_DONE_INTERRUPT = mask("ISR", "done")


@dataclass(frozen=True)
class Identity:
    """What an engine says it is.

    Attributes:
        engine_hash: what bundles and programs must be made for.
        build_hash: everything that it was built with.
        record_version: layout of its records.
    """

    engine_hash: int
    build_hash: int
    record_version: int


@dataclass(frozen=True, eq=False)
class Placed:
    """A program that has been checked and lies in its memory, ready to start; from :meth:`Driver.place`."""

    program: Program
    memory: Buffer


class Run:
    """A program on its way. Its memory is held until the run has ended or the driver was reset."""

    def __init__(self, driver: Driver, program: Program, memory: Buffer) -> None:
        self._driver, self.program, self.memory = driver, program, memory
        self._record: Record | None = None
        self._ended = False

    def wait(self, timeout: float | None = DEFAULT_TIMEOUT) -> Record:
        """Wait for the end of the program and return its record.

        Raises:
            DeviceTimeout: not finished within ``timeout`` seconds (None waits for ever). Wait again, or
                reset the driver.
            DeviceError: the engine stopped with an error, wrote no record, or the driver was reset.
        """
        if self._record is None:
            self._driver._wait(self, timeout)
            self._record = self._read_record()
        if self._record.error is not ErrorCode.NONE:
            raise DeviceError(describe_error(self._record, self.program.commands))
        found, expected = len(self._record.jobs), len(self.program.jobs)
        if found != expected:
            raise DeviceError(f"record: jobs = {found}: expected {expected} for this program")
        return self._record

    def _read_record(self) -> Record:
        offset, size = self.program.arena.offsets["record"], record_bytes(len(self.program.jobs))
        self.memory.invalidate(offset, size)
        return Record.decode(self.memory.array[offset : offset + size].tobytes())


class Driver(Closing):
    """Runs programs on one device, one at a time. Leaves the device open; whoever opened it closes it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._running: Run | None = None
        self._resident: list[LoadedBundle] = []
        self._identity: Identity | None = None
        self._interrupts_enabled = False

    def close(self) -> None:
        """Release every bundle, after a reset if a program still runs. Closing twice is harmless."""
        for loaded in list(self._resident):
            loaded.close()

    def reset(self) -> None:
        """Stop whatever runs. Bundles stay resident; the next program starts from a clean engine."""
        self.device.reset()
        self._running = None
        self._identity = None
        self._interrupts_enabled = False

    def identify(self, timeout: float | None = DEFAULT_TIMEOUT) -> Identity:
        """Ask the engine what it is, by a program of one command. Asked once, then remembered.

        Raises:
            DeviceError: it is not the engine that the device vouches for.
        """
        if self._identity is None:
            program = identify_program()
            with self.device.allocate(program.arena.bytes) as memory:
                try:
                    header = self.start(program, memory).wait(timeout).header
                finally:
                    self._release(memory)
            identity = Identity(header["engine_hash"], header["build_hash"], header["version"])
            expected = self.device.build_hash
            if expected is not None and identity.build_hash != expected:
                raise DeviceError(
                    f"back end {self.device.name!r}: build_hash: expected {expected:#010x} of its manifest, found "
                    f"{identity.build_hash:#010x} in the engine; load the overlay that the manifest is for"
                )
            self._identity = identity
        return self._identity

    def load(
        self, bundle: Bundle, arena: ArenaMap | None = None, progress: PlaceProgress | None = None
    ) -> LoadedBundle:
        """Place a bundle's weights in memory; any number of bundles can be resident at once.

        Args:
            bundle: what to place; each blob is checked as it is read.
            arena: its memory map; by default that of live programs. Weights start at offset 0 of any.
            progress: called before each blob.

        Raises:
            DeviceError: the engine is built for another configuration, or is not the one that its manifest names;
                memory is exhausted.
            BundleError: a blob is missing, damaged or of the wrong size.
        """
        config, identity = bundle.config, self.identify()
        if identity.engine_hash != config.engine_hash:
            raise DeviceError(
                f"{bundle.path}: engine_hash: expected {identity.engine_hash:#010x} for the engine of back "
                f"end {self.device.name!r}, found {config.engine_hash:#010x} (hardware "
                f"{config.hardware.name!r}); export the bundle for this engine"
            )
        arena = arena or live_arena(config)
        memory = self.device.allocate(arena.bytes)
        try:
            loaded = LoadedBundle(self, bundle, arena, memory)
            loaded._place(progress)
        except BaseException:
            memory.close()
            raise
        self._resident.append(loaded)
        return loaded

    def start(self, program: Program, memory: Buffer) -> Run:
        """Start a program in ``memory``, whose weights and inputs are in place; returns at once.

        Raises:
            DeviceError: another program runs, sizes or alignments do not fit, or the engine would refuse a
                command; then no register has been written.
        """
        self._check_free()
        return self.launch(self.place(program, memory))

    def place(self, program: Program, memory: Buffer) -> Placed:
        """Everything of :meth:`start` that takes time: check a program and write it to its memory.

        Another program may run meanwhile, in other memory: then the engine waits for the host only as long as
        :meth:`launch` takes. Nothing else may be placed there before this one has ended.

        Raises:
            DeviceError: sizes or alignments do not fit, the engine would refuse a command, or a program runs in
                ``memory``.
        """
        if self._runs_in(memory):
            raise DeviceError("memory: expected memory in which no program runs, found that of the running one")
        check_program(program, memory, Limits(self.device.hardware))
        offsets = program.arena.offsets
        pieces = {
            "program": np.frombuffer(program.image, np.uint8),
            "record": empty_record(len(program.jobs)),
        }
        for name, data in pieces.items():
            memory.array[offsets[name] : offsets[name] + len(data)] = data
            memory.flush(offsets[name], len(data))
        return Placed(program, memory)

    def launch(self, placed: Placed) -> Run:
        """Start a placed program; returns at once. Raises DeviceError if another one runs."""
        self._check_free()
        device, program, memory = self.device, placed.program, placed.memory
        control = device.read_register(Reg.AP_CTRL)  # also clears a done left over from another run
        if not control & _IDLE:
            raise DeviceError(f"AP_CTRL = {control:#x}: expected an idle engine; reset it")
        self._enable_interrupts()
        for low, high in ARENAS:
            device.write_register(low, memory.device_address & 0xFFFF_FFFF)
            device.write_register(high, memory.device_address >> 32)
        device.write_register(Reg.PROGRAM, program.arena.offsets["program"])
        device.write_register(Reg.COMMANDS, len(program.commands))
        device.write_register(Reg.RECORD, program.arena.offsets["record"])
        # Noted first: a caller interrupted on the way back must not free the memory of a program that has started.
        run = self._running = Run(self, program, memory)
        try:
            device.write_register(Reg.AP_CTRL, _START)
        except DeviceError:
            self._running = None
            raise
        return run

    def _runs_in(self, memory: Buffer) -> bool:
        running = self._running  # read once: a queue's thread sets it to None when the program ends
        return running is not None and running.memory is memory

    def _check_free(self) -> None:
        if self._running is not None:
            raise DeviceError("engine busy: expected the running program to be waited for, or a reset")

    def _enable_interrupts(self) -> None:
        if not self._interrupts_enabled:
            self._clear_interrupt()  # of a process that ended without doing so
            self.device.write_register(Reg.GIER, 1)
            self.device.write_register(Reg.IER, _DONE_INTERRUPT)
            self._interrupts_enabled = True

    def _wait(self, run: Run, timeout: float | None) -> None:
        """Wait until ``run`` is done. The registers decide, so a lost interrupt costs time, not the run."""
        if run._ended:
            return
        if self._running is not run:
            raise DeviceError("the program was stopped by a reset before it ended")
        began = time.monotonic()
        while True:
            left = POLL_SECONDS
            if timeout is not None:
                left = min(left, began + timeout - time.monotonic())
            self.device.wait_interrupt(max(0.0, left))
            if self.device.read_register(Reg.AP_CTRL) & _DONE:
                break
            if timeout is not None and time.monotonic() - began >= timeout:
                raise DeviceTimeout(
                    f"engine: program of {len(run.program.commands)} commands: expected its end within "
                    f"{timeout:g} s, found it still running; wait longer, or reset"
                )
        self._clear_interrupt()
        run._ended = True
        self._running = None

    def _clear_interrupt(self) -> None:
        pending = self.device.read_register(Reg.ISR)
        if pending:
            self.device.write_register(Reg.ISR, pending)  # toggles: only bits that are set may be written

    def _release(self, memory: Buffer) -> None:
        """Make sure that no running program uses ``memory``."""
        if self._runs_in(memory):
            self.reset()


class LoadedBundle(Closing):
    """A bundle in the engine's memory. Use as a context manager; closing it gives the memory back."""

    def __init__(self, driver: Driver, bundle: Bundle, arena: ArenaMap, memory: Buffer) -> None:
        self.driver, self.bundle, self.arena, self.memory = driver, bundle, arena, memory
        self._closed = False

    def _place(self, progress: PlaceProgress | None) -> None:
        offsets, end = place_weights(self.bundle.config)
        room = self.arena.sizes["weights"]
        if end > room:
            raise DeviceError(f"{self.bundle.path}: weights: expected at most {room} bytes, found {end}")
        ends = [*list(offsets.values())[1:], end]
        for index, (name, offset) in enumerate(offsets.items()):
            if progress is not None:
                progress(name, index, len(offsets))
            data = self.bundle.blob(name)
            if len(data) != ends[index] - offset:
                expected = ends[index] - offset
                raise BundleError(
                    f"{self.bundle.path}: blob {name!r}: expected {expected} bytes, found {len(data)}"
                )
            self.memory.array[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self.memory.flush(0, end)

    def write(self, offset: int, data: Array) -> None:
        """Write memory bytes (uint8) at an arena offset."""
        self._check(offset, len(data))
        self.memory.array[offset : offset + len(data)] = data
        self.memory.flush(offset, len(data))

    def read(self, offset: int, size: int) -> Array:
        """Copy of ``size`` memory bytes at an arena offset."""
        self._check(offset, size)
        self.memory.invalidate(offset, size)
        return self.memory.array[offset : offset + size].copy()

    def place(self, program: Program) -> Placed:
        """Make a program that was compiled for this bundle and arena ready to start; see :meth:`Driver.place`."""
        self._check(0, 0)
        return self.driver.place(program, self.memory)

    def launch(self, placed: Placed) -> Run:
        """Start what :meth:`place` made ready; see :meth:`Driver.launch`."""
        self._check(0, 0)
        return self.driver.launch(placed)

    def start(self, program: Program) -> Run:
        """Start a program that was compiled for this bundle and arena; see :meth:`Driver.start`."""
        self._check(0, 0)
        return self.driver.start(program, self.memory)

    def run(self, program: Program, timeout: float | None = DEFAULT_TIMEOUT) -> Record:
        """Run a program to its end; see :meth:`Run.wait`."""
        return self.start(program).wait(timeout)

    def _check(self, offset: int, size: int) -> None:
        if self._closed:
            raise DeviceError(f"{self.bundle.path}: expected a loaded bundle, found a closed one")
        if offset < 0 or offset + size > self.memory.size:
            limit = self.memory.size
            raise DeviceError(f"arena: {size} bytes at {offset}: expected to end within {limit} bytes")

    def close(self) -> None:
        """Give the memory back, after a reset if a program still runs in it."""
        if not self._closed:
            self._closed = True
            self.driver._release(self.memory)
            self.driver._resident.remove(self)
            self.memory.close()
