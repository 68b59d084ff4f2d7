"""Whole frames through the engine: the host computes what the engine does not, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import pack
from accel.compiler import Program, RecordedFrame, compile_replay, layer_bytes, live_program
from accel.errors import DeviceError
from accel.golden import FrameResult, PreparedGate, route_tokens, run_frame
from accel.layers import Kind, Layer, engine_layers
from accel.record import Record
from accel.routing import Routing, Schedule
from host.driver import DEFAULT_TIMEOUT, LoadedBundle
from host.phases import COPY, EXECUTE, PACK, UNPACK, PhaseClock

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """Outcome of a replay program.

    Attributes:
        program, record: what ran, and the engine's record of it.
        outputs: what the engine wrote, one array per item of ``program.expected``.
        compared, mismatches: integers, summed over all outputs.
        address: of the arena, as the engine saw it.
    """

    program: Program
    record: Record
    outputs: Sequence[Array]
    compared: int
    mismatches: int
    address: int


def first_difference(expected: Array, found: Array) -> tuple[tuple[int, ...], int, int]:
    """Position and both values of the first integer that differs; the arrays must differ."""
    position = tuple(int(i) for i in np.argwhere(expected != found)[0])
    return position, int(expected[position]), int(found[position])


class EncoderRunner:
    """The engine's share of an encoder, run live; a :class:`accel.golden.LinearEngine`.

    Args:
        loaded: bundle in an arena for live programs.
        schedule: order of the experts in MoE layers.
        timeout: seconds per program.
        routing: compute each layer's routing on the host too. The engine reports only a checksum of its
            queues; what is shown to people is computed here and checked against that.

    Attributes:
        counters: task → counter name → sum over the programs of the latest frame.
        queue_crcs: (task, block) → checksum of the queues that the engine built, latest frame.
        clock: seconds that packing, copying, executing and unpacking took.
    """

    def __init__(
        self,
        loaded: LoadedBundle,
        *,
        schedule: Schedule = Schedule.INDEX,
        timeout: float | None = DEFAULT_TIMEOUT,
        routing: bool = False,
    ) -> None:
        self.loaded, self.schedule, self.timeout, self.routing = loaded, schedule, timeout, routing
        self.bundle = loaded.bundle
        self.encoder = self.bundle.encoder
        self.counters: dict[str, Counter[str]] = {}
        self.queue_crcs: dict[tuple[str, int], int] = {}
        self.clock = PhaseClock()
        layers = engine_layers(self.bundle.config)
        self._layers = {layer.name: (index, layer) for index, layer in enumerate(layers)}
        self._programs: dict[tuple[str, str], tuple[Program, dict[str, int]]] = {}
        self._gates: dict[tuple[str, str], PreparedGate] = {}
        self._task = self.bundle.config.network.task_names[0]

    def run(self, image: Array, tasks: Iterable[str], *, record: bool = False) -> list[FrameResult]:
        """Run one frame, uint8 [H, W, 3], for each task; results in the order of ``tasks``.

        Args:
            record: keep every boundary in the results' traces.

        Raises:
            ConfigError: unknown task. DataError: wrong image. DeviceError: the engine failed, or its queues
                are not those that the host computed.
        """
        names = list(tasks)
        for name in names:
            self.bundle.config.network.task_index(name)
        self.counters = {name: Counter() for name in names}
        self.queue_crcs = {}
        results = []
        for name in names:
            self._task = name
            result = run_frame(self.encoder, image, name, self, record=record)
            for block, routing in result.routing.items():
                expected, found = routing.crc(), self.queue_crcs[name, block]
                if expected != found:
                    raise DeviceError(
                        f"task {name!r}, block {block}: queue checksum: expected {expected:#010x}, "
                        f"found {found:#010x}"
                    )
            results.append(result)
        return results

    def linear(self, layer: str, x: Array) -> Array:
        return self._execute(layer, np.int8, input=x)[0]

    def accumulate(self, layer: str, x: Array, residual: Array) -> Array:
        return self._execute(layer, np.int16, input=x, residual=residual)[0]

    def mixture(
        self, layer: str, x: Array, residual: Array, task: str
    ) -> tuple[Array, Routing | None]:
        output, record = self._execute(layer, np.int16, input=x, residual=residual)
        if self._layers[layer][1].kind is not Kind.MOE:
            return output, None
        block = int(layer.split(".")[1])
        self.queue_crcs[task, block] = record.jobs[0]["queue_crc"]
        return output, self._route(block, x, task) if self.routing else None

    def _route(self, block: int, x: Array, task: str) -> Routing:
        gate = self.encoder.blocks[block].gates[task]
        key = (task, str(block))
        if key not in self._gates:
            self._gates[key] = PreparedGate(gate.weight, gate.bias)
        return route_tokens(self._gates[key], x, self.encoder.network.top_k, gate.shift)

    def _program(self, index: int, layer: Layer) -> tuple[Program, dict[str, int]]:
        key = (layer.name, self._task)
        if key not in self._programs:
            self._programs[key] = live_program(
                self.bundle, layer, self._task, self.loaded.arena, schedule=self.schedule, index=index
            )
        return self._programs[key]

    def _execute(self, name: str, dtype: type, **operands: Array) -> tuple[Array, Record]:
        """Write the operands, run the layer's program, read its output."""
        index, layer = self._layers[name]
        hardware = layer.hardware
        program, offsets = self._program(index, layer)
        sizes = layer_bytes(layer)
        for operand, values in operands.items():
            with self.clock(PACK):
                data = pack.pack_tokens(values, hardware)
            if len(data) != sizes[operand]:
                raise DeviceError(
                    f"layer {name}: {operand}: expected {sizes[operand]} bytes, found {len(data)}"
                )
            with self.clock(COPY):
                self.loaded.write(offsets[operand], data)
        with self.clock(EXECUTE):
            record = self.loaded.run(program, self.timeout)
        self.counters.setdefault(self._task, Counter()).update(record.counters)
        with self.clock(COPY):
            data = self.loaded.read(offsets["output"], sizes["output"])
        with self.clock(UNPACK):
            output = pack.unpack_tokens(data, layer.tokens, layer.outputs, dtype, hardware)
        return output, record

    def replay(self, frames: Sequence[RecordedFrame]) -> ReplayResult:
        """Chain every engine layer of ``frames`` into one program, run it, compare every output.

        Loads the bundle a second time, into an arena that holds all inputs and outputs at once.
        """
        with self.clock(PACK):
            program = compile_replay(self.bundle, frames, schedule=self.schedule)
        hardware = self.bundle.config.hardware
        outputs = []
        with ExitStack() as stack:
            with self.clock(COPY):
                loaded = stack.enter_context(self.loaded.driver.load(self.bundle, program.arena))
                for offset, data in program.placements:
                    loaded.write(offset, data)
            with self.clock(EXECUTE):
                record = loaded.run(program, self.timeout)
            for item in program.expected:
                tokens, width = item.values.shape
                size = pack.token_bytes(tokens, width, item.values.dtype.itemsize, hardware)
                with self.clock(COPY):
                    data = loaded.read(item.offset, size)
                with self.clock(UNPACK):
                    outputs.append(pack.unpack_tokens(data, tokens, width, item.values.dtype.type, hardware))
        pairs = list(zip(program.expected, outputs, strict=True))
        mismatches = sum(int(np.count_nonzero(item.values != found)) for item, found in pairs)
        compared = sum(found.size for found in outputs)
        return ReplayResult(program, record, outputs, compared, mismatches, loaded.memory.device_address)
