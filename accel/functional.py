"""Functional model of the engine: executes a program on a memory image, command by command, without a clock.

It sees only what the hardware sees: bytes in memory, a few register values, and the parameters built into it. It is
the golden back end behind the driver, and the reference for HLS and RTL at the level of programs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import numerics, pack
from accel.commands import COMMAND_BYTES, RESERVED, Command, Flag, Opcode
from accel.config import Formats, Hardware, build_hash, engine_hash
from accel.errors import ProgramError
from accel.golden import PreparedGate, accumulate, combine_queues, everyone, route_tokens
from accel.kernels import PreparedLinear, PreparedUnit, one_blas_thread
from accel.layers import Kind, Layer
from accel.limits import KINDS, EngineError, Limits
from accel.record import COUNTERS, ErrorCode, Record
from accel.routing import Queue, Schedule, schedule

Array = NDArray[Any]


class _Prepared:
    """Weights ready to compute, remembered by content, so that a rewritten memory is never read stale."""

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self._entries: OrderedDict[bytes, tuple[int, Any]] = OrderedDict()
        self._limit, self._used = limit_bytes, 0

    def get(self, data: Array, key: str, build: Callable[[], Any]) -> Any:
        digest = hashlib.blake2b(data.data, digest_size=16, key=key.encode()[:64]).digest()
        if digest in self._entries:
            self._entries.move_to_end(digest)
            return self._entries[digest][1]
        value = build()
        # A float32 copy of int8 weights is the largest part of what is kept.
        size = 5 * len(data)
        self._entries[digest] = (size, value)
        self._used += size
        while self._used > self._limit and len(self._entries) > 1:
            self._used -= self._entries.popitem(last=False)[1][0]
        return value


class FunctionalEngine:
    """The engine without a clock.

    Args:
        hardware, formats: what is built into it.
    """

    def __init__(self, hardware: Hardware, formats: Formats | None = None) -> None:
        self.hardware = hardware
        self.formats = formats or Formats()
        self._limits = Limits(hardware)
        self._prepared = _Prepared()

    def execute(self, memory: Array, program: int, commands: int, record: int) -> Record:
        """Run a program and write its record.

        Args:
            memory: uint8, the arena; modified in place.
            program: offset of the first command.
            commands: number of commands.
            record: offset of the record.

        Returns:
            The record that was written. Errors stop the program and are reported in it, as in hardware.
        """
        with one_blas_thread():
            return self._execute(memory, program, commands, record)

    def _execute(self, memory: Array, program: int, commands: int, record: int) -> Record:
        identity = {
            "engine_hash": engine_hash(self.formats, self.hardware),
            "build_hash": build_hash(self.formats, self.hardware),
        }
        result = Record(identity, dict.fromkeys(_FUNCTIONAL, 0))
        job = dict.fromkeys(_JOB_FUNCTIONAL, 0)
        index = 0
        try:
            if program % COMMAND_BYTES and commands:
                raise EngineError(ErrorCode.ADDRESS)
            while True:
                if index >= commands:
                    raise EngineError(ErrorCode.PROGRAM)
                command = self._fetch(memory, program + index * COMMAND_BYTES)
                result.counters["bytes_read"] += COMMAND_BYTES
                if command.opcode is Opcode.JOB_END:
                    result.jobs.append({**job, "job": command.job})
                    job = dict.fromkeys(_JOB_FUNCTIONAL, 0)
                elif command.opcode in KINDS:
                    self._run(memory, command, result.counters, job)
                index += 1
                if command.opcode is Opcode.END:
                    break
        except EngineError as error:
            result.header |= {"error": error.code, "error_command": index, "error_detail": error.detail}
        result.header["commands"] = index
        data = np.frombuffer(result.encode(), np.uint8)
        if record % 64 == 0 and record + len(data) <= len(memory):
            memory[record : record + len(data)] = data
        return result

    def _fetch(self, memory: Array, offset: int) -> Command:
        if offset + COMMAND_BYTES > len(memory):
            raise EngineError(ErrorCode.READ)
        try:
            command = Command.decode(memory[offset : offset + COMMAND_BYTES].tobytes())
        except ProgramError as error:
            raise EngineError(ErrorCode.OPCODE) from error
        if command.opcode in RESERVED:
            raise EngineError(ErrorCode.OPCODE)
        return command

    def _run(self, memory: Array, command: Command, counters: dict[str, int], job: dict[str, int]) -> None:
        layer = self._limits.check(command, len(memory))
        hw, bits = self.hardware, self.formats.activation_bits

        def read(offset: int, width: int, dtype: type) -> Array:
            size = pack.token_bytes(layer.tokens, width, np.dtype(dtype).itemsize, hw)
            counters["bytes_read"] += size
            return pack.unpack_tokens(memory[offset : offset + size], layer.tokens, width, dtype, hw)

        x = read(command.input, layer.inputs, np.int8)
        if layer.kind is Kind.LINEAR:
            linear = self._plain(memory, command, layer, counters)
            narrow = bool(command.flags & Flag.NARROW)
            output = linear(x, bits, narrow).astype(np.int8)
            self._count(counters, job, layer, layer.tokens, 1)
        elif layer.kind is Kind.ACCUMULATE:
            linear = self._plain(memory, command, layer, counters)
            residual = read(command.residual, layer.outputs, np.int16)
            output = accumulate(residual, linear(x, numerics.RESIDUAL_BITS))
            self._count(counters, job, layer, layer.tokens, 1)
        else:
            residual = read(command.residual, layer.outputs, np.int16)
            queues = self._queues(memory, command, layer, x, counters, job)

            def units(queue: Queue) -> Iterator[PreparedUnit]:
                self._count(counters, job, layer, len(queue), 1)
                for unit in range(layer.units):
                    yield self._unit(memory, command, layer, queue.expert, unit, counters)

            output = combine_queues(residual, x, queues, units, bits)
        data = pack.pack_tokens(output, hw)
        memory[command.output : command.output + len(data)] = data
        counters["bytes_written"] += len(data)

    def _count(self, counters: dict[str, int], job: dict[str, int], layer: Layer, pairs: int, experts: int) -> None:
        counters["units"] += layer.units * experts
        for table in (counters, job):
            table["pairs"] += pairs
            table["experts"] += experts
            table["macs"] += pairs * layer.macs_per_pair

    def _weights(self, memory: Array, offset: int, size: int, counters: dict[str, int]) -> Array:
        counters["bytes_read"] += size
        counters["weight_bytes"] += size
        return memory[offset : offset + size]

    def _plain(self, memory: Array, command: Command, layer: Layer, counters: dict[str, int]) -> PreparedLinear:
        data = self._weights(memory, command.weights, layer.expert_bytes, counters)
        return self._build(data, layer, lambda: PreparedLinear(pack.unpack_plain(data, layer, strict=False)))

    def _unit(
        self, memory: Array, command: Command, layer: Layer, expert: int, unit: int, counters: dict[str, int]
    ) -> PreparedUnit:
        offset = command.weights + (expert * layer.units + unit) * layer.unit_bytes
        data = self._weights(memory, offset, layer.unit_bytes, counters)
        return self._build(data, layer, lambda: PreparedUnit(pack.unpack_unit(data, layer, strict=False)))

    def _build(self, data: Array, layer: Layer, build: Callable[[], Any]) -> Any:
        shape = f"{layer.kind.value} {layer.inputs} {layer.outputs} {layer.hidden} {layer.units}"
        return self._prepared.get(data, shape, build)

    def _queues(
        self, memory: Array, command: Command, layer: Layer, x: Array, counters: dict[str, int], job: dict[str, int]
    ) -> list[Queue]:
        if layer.kind is Kind.MLP:
            return [everyone(layer.tokens)]
        data = self._weights(memory, command.gate, layer.gate_bytes, counters)

        def build() -> PreparedGate:
            gate = pack.unpack_gate(data, layer, command.gate_shift, strict=False)
            return PreparedGate(gate.weight, gate.bias)

        # The table does not depend on the shape of the experts behind it.
        gate = self._build(data, replace(layer, hidden=0, units=layer.experts), build)
        routing = route_tokens(gate, x, layer.top_k, command.gate_shift)
        job["queue_crc"] = routing.crc(job["queue_crc"])
        macs = layer.tokens * layer.inputs * layer.experts
        counters["macs"] += macs
        job["macs"] += macs
        return schedule(routing.queues(layer.experts), Schedule(command.schedule))


_FUNCTIONAL = tuple(slot.name for slot in COUNTERS if not slot.name.endswith("cycles"))
_JOB_FUNCTIONAL = ("pairs", "experts", "macs", "queue_crc")
