"""Functional model of the engine: executes a program on a memory image, command by command, without a clock.

It sees only what the hardware sees: bytes in memory, a few register values, and the parameters built into it. It is
the golden back end behind the driver, and the reference for HLS and RTL at the level of programs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import numerics, pack
from accel.commands import COMMAND_BYTES, FIELDS, RESERVED, Command, Flag, Opcode
from accel.config import Formats, Hardware, engine_hash
from accel.errors import BundleError, ProgramError
from accel.golden import PreparedGate
from accel.kernels import PreparedLinear, PreparedUnit, one_blas_thread
from accel.layers import Kind, Layer
from accel.record import COUNTERS, ErrorCode, Record
from accel.routing import Queue, Routing, Schedule, schedule

Array = NDArray[Any]

_KINDS = {
    Opcode.LINEAR: Kind.LINEAR,
    Opcode.ACCUMULATE: Kind.ACCUMULATE,
    Opcode.MLP: Kind.MLP,
    Opcode.MOE: Kind.MOE,
}


class EngineError(Exception):
    """A command the engine refuses; becomes an error code in the record."""

    def __init__(self, code: ErrorCode, detail: int = 0) -> None:
        super().__init__(code.name)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Limits:
    """What the engine's stores hold, checked before a command runs."""

    hardware: Hardware

    def check(self, command: Command, memory_bytes: int) -> Layer:
        """Shape of the command's layer; raises EngineError if the engine cannot run it.

        ``error_detail`` is the position of the offending field in ``commands.FIELDS``; for READ and WRITE it is the
        memory port, of which this model has one.
        """
        hw = self.hardware
        kind = _KINDS[command.opcode]
        hidden = kind in (Kind.MLP, Kind.MOE)
        position = {item.name: index for index, item in enumerate(FIELDS)}

        def require(ok: bool, name: str, code: ErrorCode = ErrorCode.SHAPE) -> None:
            if not ok:
                raise EngineError(code, position[name])

        rows = hw.slot_rows
        require(1 <= command.tokens <= hw.max_tokens, "tokens")
        require(command.inputs >= 1 and command.inputs % hw.tile_inputs == 0, "inputs")
        require(command.outputs >= 1, "outputs")
        require(command.units >= 1, "units")
        require(bool(command.hidden) == hidden and command.hidden % hw.tile_inputs == 0, "hidden")
        if kind is not Kind.LINEAR:
            require(command.outputs <= hw.max_width, "outputs")
        limit = hw.max_experts if kind is Kind.MOE else 1
        require(1 <= command.experts <= limit, "experts")
        limit = min(hw.max_top_k, command.experts) if kind is Kind.MOE else 1
        require(1 <= command.top_k <= limit, "top_k")
        require(command.schedule in Schedule.__members__.values(), "schedule")
        layer = Layer(
            f"layer {command.layer}", kind, command.tokens, command.inputs, command.outputs, command.hidden,
            command.experts, command.units, command.top_k, hw,
        )  # fmt: skip
        require(command.tiles_per_unit == layer.tiles_per_unit, "tiles_per_unit")
        held = layer.second.rows + (layer.first.rows if layer.first else 0)
        require(held <= rows, "hidden" if hidden else "tiles_per_unit")
        require(layer.gate is None or layer.gate.rows <= rows, "experts")
        tiles = -(-layer.outputs // hw.tile_outputs)
        require(hidden or (layer.units - 1) * layer.tiles_per_unit < tiles, "units")  # no unit without a tile
        require(command.unit_bytes == layer.unit_bytes, "unit_bytes", ErrorCode.ADDRESS)
        spans = {
            "weights": layer.experts * layer.expert_bytes,
            "gate": layer.gate_bytes,
            "input": pack.token_bytes(layer.tokens, layer.inputs, 1, hw),
            "output": pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, hw),
            "residual": 0 if kind is Kind.LINEAR else pack.token_bytes(layer.tokens, layer.outputs, 2, hw),
        }
        for name, size in spans.items():
            offset = getattr(command, name)
            require(offset % hw.stripe_bytes == 0, name, ErrorCode.ADDRESS)
            if offset + size > memory_bytes:
                raise EngineError(ErrorCode.READ if name != "output" else ErrorCode.WRITE)
        return layer


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
        result = Record({"engine_hash": engine_hash(self.formats, self.hardware)}, dict.fromkeys(_FUNCTIONAL, 0))
        job = dict.fromkeys(_JOB_FUNCTIONAL, 0)
        index = 0
        try:
            while True:
                if index >= commands:
                    raise EngineError(ErrorCode.PROGRAM)
                command = self._fetch(memory, program + index * COMMAND_BYTES)
                result.counters["bytes_read"] += COMMAND_BYTES
                if command.opcode is Opcode.JOB_END:
                    result.jobs.append({**job, "job": command.job})
                    job = dict.fromkeys(_JOB_FUNCTIONAL, 0)
                elif command.opcode in _KINDS:
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
        else:
            accumulator = read(command.residual, layer.outputs, np.int16).astype(np.float64) * numerics.COMBINE_ONE
            if layer.kind is Kind.ACCUMULATE:
                linear = self._plain(memory, command, layer, counters)
                accumulator += linear(x, numerics.RESIDUAL_BITS).astype(np.float64) * numerics.COMBINE_ONE
                self._count(counters, job, layer, layer.tokens, 1)
            else:
                wide = x.astype(np.float32)
                for queue in self._queues(memory, command, layer, x, counters, job):
                    weights = queue.weights[:, None].astype(np.float64)
                    for unit in range(layer.units):
                        prepared = self._unit(memory, command, layer, queue.expert, unit, counters)
                        accumulator[queue.tokens] += prepared(wide[queue.tokens], bits) * weights
                    self._count(counters, job, layer, len(queue), 1)
            np.rint(np.multiply(accumulator, 2.0**-numerics.COMBINE_FRACTION, out=accumulator), out=accumulator)
            output = np.clip(accumulator, *numerics.bounds(numerics.RESIDUAL_BITS)).astype(np.int16)
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
        return self._build(data, layer, lambda: PreparedLinear(pack.unpack_plain(data, layer)))

    def _unit(
        self, memory: Array, command: Command, layer: Layer, expert: int, unit: int, counters: dict[str, int]
    ) -> PreparedUnit:
        offset = command.weights + (expert * layer.units + unit) * layer.unit_bytes
        data = self._weights(memory, offset, layer.unit_bytes, counters)
        return self._build(data, layer, lambda: PreparedUnit(pack.unpack_unit(data, layer)))

    def _build(self, data: Array, layer: Layer, build: Callable[[], Any]) -> Any:
        shape = f"{layer.kind.value} {layer.inputs} {layer.outputs} {layer.hidden} {layer.units}"
        try:
            return self._prepared.get(data, shape, build)
        except BundleError as error:  # padding lanes that are not zero: hardware would compute, we refuse
            weights = [item.name for item in FIELDS].index("weights")
            raise EngineError(ErrorCode.SHAPE, weights) from error

    def _queues(
        self, memory: Array, command: Command, layer: Layer, x: Array, counters: dict[str, int], job: dict[str, int]
    ) -> list[Queue]:
        if layer.kind is Kind.MLP:
            everyone = np.arange(layer.tokens)
            return [Queue(0, everyone, np.full(layer.tokens, numerics.COMBINE_ONE))]
        data = self._weights(memory, command.gate, layer.gate_bytes, counters)

        def build() -> PreparedGate:
            gate = pack.unpack_gate(data, layer, command.gate_shift)
            return PreparedGate(gate.weight, gate.bias)

        # The table does not depend on the shape of the experts behind it.
        logits = self._build(data, replace(layer, hidden=0, units=layer.experts), build).logits(x)
        chosen = numerics.top_k(logits, layer.top_k)
        routing = Routing(chosen, numerics.gate_weights(logits, chosen, command.gate_shift))
        job["queue_crc"] = routing.crc(job["queue_crc"])
        macs = layer.tokens * layer.inputs * layer.experts
        counters["macs"] += macs
        job["macs"] += macs
        return schedule(routing.queues(layer.experts), Schedule(command.schedule))


_FUNCTIONAL = tuple(slot.name for slot in COUNTERS if not slot.name.endswith("cycles"))
_JOB_FUNCTIONAL = ("pairs", "experts", "macs", "queue_crc")
