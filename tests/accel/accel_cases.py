"""Networks, frames and memory images that the tests of bundle, compiler and functional engine share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from accel.bundle import Bundle
from accel.compiler import Program, place_weights
from accel.config import Network, Task
from accel.errors import M3vitError
from accel.params import Encoder, PupHead

TASKS = (Task("semseg", 3, "labels"), Task("depth", 1, "depth"), Task("edge", 1, "binary"))
NETWORK = Network(
    "cases", 16, 24, patch=8, embed_dim=16, depth=4, heads=2, dense_hidden=32, experts=5, top_k=2, expert_hidden=32,
    unit_hidden=16, tasks=TASKS, head_hidden=24,
)  # fmt: skip
CONDITIONED = dataclasses.replace(NETWORK, name="conditioned", routing="task_conditioned", task_embed_dim=4)


def image_of(network: Network, seed: int) -> np.ndarray:
    shape = (network.image_height, network.image_width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def with_pup_heads(encoder: Encoder, seed: int = 0) -> Encoder:
    """The encoder with float heads; their shapes are those of SETR-PUP."""
    rng = np.random.default_rng(seed)
    width = encoder.network.embed_dim

    def head(channels: int) -> PupHead:
        shapes: dict[str, tuple[int, ...]] = {"norm.weight": (width,), "norm.bias": (width,)}
        for index, inputs in enumerate((width, 256, 256, 256)):
            shapes |= {f"conv_{index}.weight": (256, inputs, 3, 3), f"conv_{index}.bias": (256,)}
        shapes |= {"conv_4.weight": (channels, 256, 1, 1), "conv_4.bias": (channels,)}
        return PupHead({name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})

    network = dataclasses.replace(encoder.network, head="pup")
    heads = {task.name: head(task.channels) for task in network.tasks}
    return dataclasses.replace(encoder, network=network, heads=heads)


def leaves(part: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every array and number below a dataclass, tuple or mapping, with its path."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        for item in dataclasses.fields(part):
            yield from leaves(getattr(part, item.name), f"{where}.{item.name}")
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from leaves(value, f"{where}[{key!r}]")
    elif isinstance(part, tuple):
        for index, value in enumerate(part):
            yield from leaves(value, f"{where}[{index}]")
    else:
        yield where, part


def changed(part: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of nested dataclasses, tuples and mappings with one place replaced."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(part, tuple):
        return tuple(changed(item, rest, value) if i == head else item for i, item in enumerate(part))
    if isinstance(part, Mapping):
        return {**part, head: changed(part.get(head), rest, value)}
    return dataclasses.replace(part, **{str(head): changed(getattr(part, str(head)), rest, value)})


def one_line(error: M3vitError) -> str:
    """The message, which must be a single line."""
    message = str(error)
    assert message and "\n" not in message
    return message


def memory_of(bundle: Bundle, program: Program) -> np.ndarray:
    """Arena with weights, placements and commands of a program in place."""
    memory = np.zeros(program.arena.bytes, np.uint8)
    offsets, _ = place_weights(bundle.config)
    for name, offset in offsets.items():
        data = np.frombuffer(bundle.blob(name), np.uint8)
        memory[offset : offset + len(data)] = data
    for offset, data in program.placements:
        memory[offset : offset + len(data)] = data
    start = program.arena.offsets["program"]
    memory[start : start + len(program.image)] = np.frombuffer(program.image, np.uint8)
    return memory
