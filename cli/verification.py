"""Comparing back ends with the golden model at every layer boundary.

What is compared with itself proves nothing: behind the driver, the host computes LayerNorm, attention and heads with
the golden model's own code, so only what the engine computes counts there. The referees compute everything themselves.

Every back end gets the same frames and tasks as the golden NumPy model and yields boundaries by name. One that
yields too few, or arrays of another shape, has failed: what was not compared never counts as equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from accel.bundle import Bundle
from accel.compiler import RecordedFrame
from accel.errors import CheckpointError, DeviceError
from accel.golden import FrameResult, GoldenEngine, Trace, run_frame
from host.backends import BACKENDS, open_device
from host.driver import Driver
from host.runner import EncoderRunner, first_difference

Array = NDArray[Any]

REFEREES = ("onnx", "torch")
"""Back ends that run the whole encoder themselves; all others are engines behind the driver."""

ENGINE_OUTPUTS = frozenset({"embed", "qkv", "attn_residual", "residual"})
"""Kinds of boundaries of a live frame that the engine computes; the others are the host's."""
QUEUES = "queues"
"""Boundary name, after the block's: checksum of the token queues that the engine built."""


def known_backends() -> tuple[str, ...]:
    return (*BACKENDS, *REFEREES)


class Frame(NamedTuple):
    """One image to compare on, uint8 [H, W, 3], with a name for messages."""

    name: str
    image: NDArray[np.uint8]


class Boundary(NamedTuple):
    """One comparison: what the golden model has, and what the back end gave (None: nothing).

    ``by_host``: both sides come from the same code on the host, so that equality shows no more than equal inputs.
    """

    name: str
    expected: Array
    found: Array | None
    by_host: bool = False


def kind_of(boundary: str) -> str:
    """``blocks.3.qkv`` → ``qkv``, ``replay.blocks.3.qkv`` → ``replay.qkv``; others stay as they are."""
    return ".".join(part for part in boundary.split(".") if part != "blocks" and not part.isdigit())


Key = tuple[str, str, str]
"""Back end, task, kind of boundary."""


@dataclass
class Report:
    """What was compared, in integers; see :meth:`as_dict`. ``host_compared`` is no part of ``compared``."""

    compared: Counter[Key] = field(default_factory=Counter)
    mismatches: Counter[Key] = field(default_factory=Counter)
    host_compared: int = 0
    first: dict[str, Any] | None = None

    def add(self, backend: str, frame: str, task: str, boundary: Boundary) -> None:
        """Compare one boundary; a missing or misshapen one counts every integer as a mismatch."""
        name, expected, found, by_host = boundary
        key = (backend, task, kind_of(name))
        where = {"backend": backend, "frame": frame, "task": task, "boundary": name}
        if found is None or found.shape != expected.shape:
            self.mismatches[key] += expected.size
            shape = None if found is None else list(found.shape)
            self._note(where, {"expected_shape": list(expected.shape), "found_shape": shape})
            return
        if by_host:
            self.host_compared += expected.size
        else:
            self.compared[key] += expected.size
        # Values, not types: a referee may keep int8 values in int32.
        wrong = int(np.count_nonzero(expected != found))
        if wrong:
            self.mismatches[key] += wrong
            position, want, got = first_difference(expected, found)
            self._note(where, {"position": list(position), "expected": want, "found": got})

    def _note(self, where: dict[str, Any], what: dict[str, Any]) -> None:
        if self.first is None:
            self.first = where | what

    def total(self, **parts: str) -> tuple[int, int]:
        """Compared integers and mismatches of one ``backend``, ``task`` or ``kind``, or of any combination."""
        where = [(("backend", "task", "kind").index(part), name) for part, name in parts.items()]
        tables = (self.compared, self.mismatches)
        compared, mismatches = (
            sum(count for key, count in table.items() if all(key[i] == name for i, name in where)) for table in tables
        )
        return compared, mismatches

    def kinds(self, backend: str | None = None) -> list[str]:
        """Kinds of boundaries in the order in which they came."""
        keys = (*self.compared, *self.mismatches)
        return list(dict.fromkeys(key[2] for key in keys if backend in (None, key[0])))

    def ok(self, backends: Sequence[str]) -> bool:
        """Whether every back end compared something and nothing differed."""
        return all(self.total(backend=name)[0] for name in backends) and not sum(self.mismatches.values())

    def as_dict(self, backends: Sequence[str]) -> dict[str, Any]:
        """Totals, per back end, task and kind of boundary, and the first mismatch; ready for JSON."""

        def counts(**parts: str) -> dict[str, int]:
            compared, mismatches = self.total(**parts)
            return {"compared": compared, "mismatches": mismatches}

        tasks = dict.fromkeys(key[1] for key in (*self.compared, *self.mismatches))
        return {
            **counts(),
            "host_compared": self.host_compared,
            "ok": self.ok(backends),
            "backends": list(backends),
            "per_backend": {name: counts(backend=name) for name in backends},
            "per_task": {name: counts(task=name) for name in tasks},
            "per_boundary": {name: counts(kind=name) for name in self.kinds()},
            "first_mismatch": self.first,
        }


Golden = Mapping[str, Sequence[FrameResult]]
"""Task → one recorded result per frame."""
Found = Iterator[tuple[int, str, Boundary]]
"""Index of the frame, task, boundary."""


class Comparer(Protocol):
    """One back end under comparison."""

    def compare(self, frames: Sequence[Frame], golden: Golden) -> Found:
        """Run the frames for every task of ``golden`` and yield every boundary."""
        ...


def _aligned(expected: Trace, found: Mapping[str, Array]) -> Iterator[Boundary]:
    """Pair two traces by name. A name that only the back end knows is a mismatch of its own size."""
    for name, values in expected.items():
        yield Boundary(name, values, found.get(name))
    for name in found:
        if name not in expected:
            yield Boundary(name, np.asarray(found[name]), None)


class EngineComparer:
    """An engine behind the driver: every frame live, layer by layer, then all its tasks as one replay program."""

    def __init__(self, name: str, bundle: Bundle, timeout: float, stack: ExitStack) -> None:
        config = bundle.config
        device = stack.enter_context(open_device(name, config.hardware, config.formats))
        driver = stack.enter_context(Driver(device))
        self._runner = EncoderRunner(stack.enter_context(driver.load(bundle)), timeout=timeout)

    def compare(self, frames: Sequence[Frame], golden: Golden) -> Found:
        for index, frame in enumerate(frames):
            for task, results in golden.items():
                for boundary in self._live(frame, results[index]):
                    yield index, task, boundary
            yield from self._replay(index, frame, golden)

    def _live(self, frame: Frame, golden: FrameResult) -> Iterator[Boundary]:
        """The engine does not return routing, but a checksum of its queues, which fixes all of it."""
        live = self._runner.run(frame.image, [golden.task], record=True)[0]
        routed = {f"blocks.{block}.{part}" for block in golden.routing for part in ("topk", "weights")}
        expected = {name: values for name, values in golden.trace.items() if name not in routed}
        for boundary in _aligned(expected, live.trace):
            yield boundary._replace(by_host=kind_of(boundary.name) not in ENGINE_OUTPUTS)
        for block, routing in golden.routing.items():
            crc = self._runner.queue_crcs[golden.task, block]
            yield Boundary(f"blocks.{block}.{QUEUES}", np.array([routing.crc()]), np.array([crc]))

    def _replay(self, index: int, frame: Frame, golden: Golden) -> Found:
        jobs = [RecordedFrame(task, frame.image, results[index].trace) for task, results in golden.items()]
        result = self._runner.replay(jobs)
        for item, found in zip(result.program.expected, result.outputs, strict=True):
            yield index, jobs[item.job].task, Boundary(f"replay.{item.layer}", item.values, found)


class OnnxComparer:
    """The integer ONNX of the encoder in onnxruntime."""

    def __init__(self, bundle: Bundle, tasks: Sequence[str]) -> None:
        from quant.onnx_integer import OnnxReferee

        self._referee = OnnxReferee(bundle.encoder, tasks)

    def compare(self, frames: Sequence[Frame], golden: Golden) -> Found:
        images = np.stack([frame.image for frame in frames])
        for task, results in golden.items():
            outputs = self._referee.run(images, task)
            for index, result in enumerate(results):
                found = {name: values[index] for name, values in outputs.items()}
                for boundary in _aligned(result.trace, found):
                    yield index, task, boundary


class TorchComparer:
    """Integer mode of the quantized torch model in a checkpoint."""

    def __init__(self, bundle: Bundle, checkpoint: str) -> None:
        from quant.checkpoint import load_qat

        model = load_qat(checkpoint)
        if model.network != bundle.config.network:
            raise CheckpointError(
                f"{checkpoint}: network: expected the one of {bundle.path} ({bundle.config.network.name}), "
                f"found another ({model.network.name})"
            )
        self._model = model.integer_mode()

    def compare(self, frames: Sequence[Frame], golden: Golden) -> Found:
        import torch

        images = torch.from_numpy(np.stack([frame.image for frame in frames]))
        traces = self._model.trace(images, list(golden))
        for task, results in golden.items():
            for index, result in enumerate(results):
                found = {name: values[index] for name, values in traces[task].items()}
                for boundary in _aligned(result.trace, found):
                    yield index, task, boundary


def open_comparer(
    name: str, bundle: Bundle, tasks: Sequence[str], checkpoint: str | None, timeout: float, stack: ExitStack
) -> Comparer:
    """Back end ``name``, ready to compare; what it opens is closed with ``stack``."""
    if name == "onnx":
        return OnnxComparer(bundle, tasks)
    if name == "torch":
        if checkpoint is None:
            raise CheckpointError("back end 'torch': expected --checkpoint with the quantized model, found none")
        return TorchComparer(bundle, checkpoint)
    return EngineComparer(name, bundle, timeout, stack)


def check_backends(names: Sequence[str]) -> None:
    """Raise DeviceError unless every name is known and there is at least one."""
    known = ", ".join(known_backends())
    if not names:
        raise DeviceError(f"back ends: expected at least one of {known}, found none")
    for name in names:
        if name not in known_backends():
            raise DeviceError(f"back end {name!r}: expected one of {known}")


def verify(
    bundle: Bundle,
    frames: Sequence[Frame],
    tasks: Sequence[str],
    backends: Sequence[str],
    *,
    checkpoint: str | None = None,
    timeout: float = 60.0,
    batch: int = 8,
    progress: Callable[[int], None] = lambda frames: None,
) -> Report:
    """Compare ``backends`` with the golden model on every frame and task.

    Args:
        bundle: its blobs are all checked first.
        checkpoint: QAT checkpoint that the bundle was exported from, for ``torch``.
        timeout: seconds per engine program.
        batch: frames at once; their traces are held in memory.
        progress: called with the number of frames done.
    """
    check_backends(backends)
    bundle.verify()
    engine, report = GoldenEngine(bundle.encoder), Report()
    with ExitStack() as stack:
        comparers = {name: open_comparer(name, bundle, tasks, checkpoint, timeout, stack) for name in backends}
        for start in range(0, len(frames), batch):
            part = frames[start : start + batch]
            golden = {
                task: [run_frame(bundle.encoder, frame.image, task, engine, record=True) for frame in part]
                for task in tasks
            }
            for name, comparer in comparers.items():
                for index, task, boundary in comparer.compare(part, golden):
                    report.add(name, part[index].name, task, boundary)
            progress(len(part))
    return report


def held_out_scenes(count: int, seed: int, height: int, width: int) -> Iterator[Frame]:
    """Rendered scenes of the validation split."""
    from model.scenes import render_scene, split_seed

    for index in range(count):
        yield Frame(f"scene {index}", render_scene(split_seed(seed, "val"), index, height, width).image)
