"""Routing traces: which experts the tokens of recorded frames chose, in a NumPy archive (.npz).

Arrays: ``format`` and ``version``, ``network`` (name), ``network_hash`` (of all its dimensions), ``tasks``, ``blocks``
(MoE blocks) and ``chosen``, uint16 [frames, tasks, blocks, tokens, top_k], best expert first.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel.atomic import atomic_write
from accel.config import Network, digest
from accel.errors import DataError

if TYPE_CHECKING:
    from accel.params import Encoder

FORMAT, VERSION = "m3vit-routing-trace", 1
_ARRAYS = ("format", "version", "network", "network_hash", "tasks", "blocks", "chosen")


def network_hash(network: Network) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a network's dimensions."""
    return digest(dataclasses.asdict(network))[:16]


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Recorded routing; fields as in the module's docstring."""

    network: str
    network_hash: str
    tasks: tuple[str, ...]
    blocks: tuple[int, ...]
    chosen: NDArray[Any]

    @property
    def frames(self) -> int:
        return len(self.chosen)

    def chosen_of(self, frame: int, task: str, block: int) -> NDArray[Any]:
        """Experts per token [tokens, top_k] of one MoE layer."""
        if task not in self.tasks:
            raise DataError(f"trace: task {task!r}: expected one of {', '.join(self.tasks)}")
        return self.chosen[frame, self.tasks.index(task), self.blocks.index(block)]

    def check_network(self, network: Network, where: str = "trace") -> None:
        """Raise DataError unless this was recorded on ``network`` and every expert exists there."""
        wanted = network_hash(network)
        if self.network_hash != wanted:
            raise DataError(f"{where}: expected a trace of {network.name} ({wanted}), found one of {self.network} "
                            f"({self.network_hash})")  # fmt: skip
        lists = (("tasks", self.tasks, network.task_names), ("blocks", self.blocks, network.moe_blocks))
        for name, here, there in lists:
            if here != there:
                raise DataError(f"{where}: damaged: {name}: expected {', '.join(map(str, there))}, "
                                f"found {', '.join(map(str, here))}")  # fmt: skip
        shape = (self.frames, len(network.tasks), len(network.moe_blocks), network.tokens, network.top_k)
        if self.chosen.shape != shape or not self.frames:
            wanted = ", ".join(map(str, shape[1:]))
            raise DataError(f"{where}: damaged: chosen: expected shape (frames, {wanted}), found {self.chosen.shape}")
        if int(self.chosen.max()) >= network.experts:
            raise DataError(f"{where}: expert {int(self.chosen.max())}: expected 0 to {network.experts - 1}")
        ordered = np.sort(self.chosen, axis=-1)
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            raise DataError(f"{where}: expected different experts for a token, found one twice")


def record_trace(
    encoder: Encoder, images: Iterable[NDArray[np.uint8]], progress: Callable[[int], object] = lambda images: None
) -> RoutingTrace:
    """Run the golden model on ``images`` (uint8 [H, W, 3]) for every task and keep the routing."""
    from accel.golden import GoldenEngine, run_frame

    net, engine = encoder.network, GoldenEngine(encoder)
    frames = []
    for image in images:
        routing = [run_frame(encoder, image, task, engine).routing for task in net.task_names]
        frames.append([[blocks[block].chosen for block in net.moe_blocks] for blocks in routing])
        progress(1)
    if not frames:
        raise DataError("trace: expected at least one image, found none")
    chosen = np.asarray(frames, np.uint16)
    return RoutingTrace(net.name, network_hash(net), tuple(net.task_names), tuple(net.moe_blocks), chosen)


def save_trace(path: str | os.PathLike[str], trace: RoutingTrace) -> None:
    """Write ``trace``, completely or not at all."""
    with atomic_write(Path(path)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, format=FORMAT, version=VERSION, network=trace.network, network_hash=trace.network_hash,
            tasks=np.array(trace.tasks), blocks=np.array(trace.blocks), chosen=trace.chosen,
        )  # fmt: skip


def load_trace(path: str | os.PathLike[str]) -> RoutingTrace:
    """Read what :func:`save_trace` wrote; DataError, one line, for anything else."""
    source = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with np.load(source, allow_pickle=False) as file:
                found = {name: file[name] for name in _ARRAYS if name in file.files}
                unknown = set(file.files) - set(_ARRAYS)
    except Exception as error:  # a damaged archive: zipfile, zlib, NumPy and its parser of headers raise what they like
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{source}: cannot read as a routing trace: {reason}") from error
    for name in _ARRAYS:
        if name not in found:
            raise DataError(f"{source}: {name}: missing: expected a routing trace (m3vit trace)")
    if unknown:
        raise DataError(f"{source}: {sorted(unknown)[0]}: unknown array: expected only {', '.join(_ARRAYS)}")
    for name, value in (("format", FORMAT), ("version", VERSION)):
        if found[name].ndim or found[name].item() != value:
            raise DataError(f"{source}: {name}: expected {value!r}, found {found[name].tolist()!r}")
    chosen = found["chosen"]
    if chosen.dtype != np.uint16 or chosen.ndim != 5:
        raise DataError(f"{source}: chosen: expected uint16 of 5 dimensions, found {chosen.dtype} of {chosen.ndim}")
    forms = {"network": ("U", 0), "network_hash": ("U", 0), "tasks": ("U", 1), "blocks": ("iu", 1)}
    for name, (kinds, dimensions) in forms.items():
        if found[name].dtype.kind not in kinds or found[name].ndim != dimensions:
            raise DataError(f"{source}: {name}: expected {'text' if kinds == 'U' else 'integers'} of {dimensions} "
                            f"dimensions, found {found[name].dtype} of {found[name].ndim}")  # fmt: skip
    return RoutingTrace(
        str(found["network"]), str(found["network_hash"]), tuple(map(str, found["tasks"].reshape(-1))),
        tuple(int(block) for block in found["blocks"].reshape(-1)), chosen,
    )  # fmt: skip
