"""Expert usage: how many tokens of each task went to each expert, as schedules and simulators read it.

The file is JSON; ``docs/checkpoints.md`` has its schema. Needs nothing but NumPy.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accel.atomic import atomic_write
from accel.config import Network, parse_json
from accel.errors import ConfigError, DataError

if TYPE_CHECKING:
    from accel.params import Encoder

USAGE_FORMAT = "m3vit-expert-usage"
USAGE_VERSION = 1
_NUMBERS = ("images", "tokens_per_image", "top_k", "experts")


@dataclass(frozen=True)
class ExpertUsage:
    """How many tokens each expert got.

    Attributes:
        network: name of the network.
        images: images counted.
        tokens_per_image: tokens per image, cls included.
        top_k: experts per token, so that every row of ``tokens`` adds up to images · tokens_per_image · top_k.
        experts: experts per block.
        tokens: task → MoE block → tokens of each expert.
    """

    network: str
    images: int
    tokens_per_image: int
    top_k: int
    experts: int
    tokens: dict[str, dict[int, list[int]]]

    @property
    def blocks(self) -> tuple[int, ...]:
        """MoE blocks, ascending; the same for every task."""
        return tuple(next(iter(self.tokens.values())))

    def counts(self, task: str) -> NDArray[np.int64]:
        """Tokens of one task, int64 [MoE blocks, experts]; ConfigError for a task that was not counted."""
        if task not in self.tokens:
            raise ConfigError(f"expert usage: task {task!r}: expected one of {', '.join(self.tokens)}")
        return np.array([self.tokens[task][block] for block in self.blocks], np.int64)

    def used(self, task: str) -> dict[int, int]:
        """MoE block → experts that got at least one token of ``task``."""
        return {block: int(np.count_nonzero(row)) for block, row in zip(self.blocks, self.counts(task), strict=True)}

    def check_network(self, network: Network, where: str = "expert usage") -> None:
        """Raise DataError unless this was measured on a network of these dimensions and tasks."""
        wanted = {"tokens_per_image": network.tokens, "top_k": network.top_k, "experts": network.experts}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                found = getattr(self, name)
                raise DataError(f"{where}: {name}: expected {value} as in {network.name}, found {found}")
        for what, here, there in (
            ("tasks", set(self.tokens), set(network.task_names)),
            ("blocks", set(self.blocks), set(network.moe_blocks)),
        ):
            if here != there:
                expected = f"{_listed(there)} as in {network.name}"
                raise DataError(f"{where}: {what}: expected {expected}, found {_listed(here)}")


def _listed(names: set[Any]) -> str:
    return ", ".join(map(str, sorted(names)))


def save_usage(path: str | os.PathLike[str], usage: ExpertUsage) -> None:
    """Write ``usage`` as JSON, completely or not at all."""
    data = {"format": USAGE_FORMAT, "version": USAGE_VERSION, **dataclasses.asdict(usage)}
    with atomic_write(Path(path)) as temporary:
        Path(temporary).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load_usage(path: str | os.PathLike[str]) -> ExpertUsage:
    """Read and check what `save_usage` wrote. Nothing is coerced.

    Raises:
        DataError: unreadable, another format or version, a field that is missing, unknown or of another type, or counts
            that do not add up. One line that names file and field.
    """
    source = Path(path)
    try:
        data = parse_json(source.read_text(encoding="utf-8"), str(source))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot read: {getattr(error, 'strerror', None) or error}") from error
    except ConfigError as error:
        raise DataError(str(error)) from error
    for name, value in (("format", USAGE_FORMAT), ("version", USAGE_VERSION)):
        found = data.get(name) if isinstance(data, Mapping) else None
        if found != value or isinstance(found, bool):
            raise DataError(f"{source}: {name}: expected {value!r}, found {found!r}")
    known = ("format", "version", *(item.name for item in dataclasses.fields(ExpertUsage)))
    for name in known:
        if name not in data:
            raise DataError(f"{source}: {name}: missing")
    for name in data:
        if name not in known:
            raise DataError(f"{source}: {name}: unknown field: expected only {', '.join(known)}")
    if not isinstance(data["network"], str):
        raise DataError(f"{source}: damaged: network: expected text, found {data['network']!r}")
    numbers = {name: _number(source, name, data[name], 1) for name in _NUMBERS}
    if numbers["top_k"] > numbers["experts"]:
        raise DataError(f"{source}: top_k: expected at most {numbers['experts']} experts, found {numbers['top_k']}")
    table = _table(source, "tokens", data["tokens"])
    return ExpertUsage(data["network"], **numbers, tokens=_tokens(source, table, numbers))


def _number(source: Path, name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{source}: damaged: {name}: expected an integer of at least {least}, found {value!r}")
    return value


def _table(source: Path, name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise DataError(f"{source}: damaged: {name}: expected a table with at least one entry, found {value!r}")
    return value


def _tokens(source: Path, table: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, dict[int, list[int]]]:
    """Task → block → counts, checked against the numbers."""
    experts, each = numbers["experts"], numbers["images"] * numbers["tokens_per_image"]
    pairs = each * numbers["top_k"]
    tokens: dict[str, dict[int, list[int]]] = {}
    for task, rows in table.items():
        blocks: dict[int, list[int]] = {}
        for key, row in _table(source, f"tokens.{task}", rows).items():
            where = f"tokens.{task}.{key}"
            if not key.isascii() or not key.isdigit() or str(int(key)) != key:
                raise DataError(f"{source}: {where}: expected the number of a block, found {key!r}")
            if not isinstance(row, list):
                raise DataError(f"{source}: damaged: {where}: expected a list of {experts} counts, found {row!r}")
            counts = [_number(source, f"{where}[{i}]", count, 0) for i, count in enumerate(row)]
            if len(counts) != experts or sum(counts) != pairs:
                raise DataError(f"{source}: {where}: expected {experts} counts that add up to {pairs}, "
                                f"found {len(counts)} that add up to {sum(counts)}")  # fmt: skip
            if max(counts) > each:
                raise DataError(f"{source}: {where}: expected at most {each} tokens per expert, found {max(counts)}")
            blocks[int(key)] = counts
        tokens[task] = dict(sorted(blocks.items()))
    first, wanted = next((task, list(blocks)) for task, blocks in tokens.items())
    for task, blocks in tokens.items():
        if list(blocks) != wanted:
            raise DataError(f"{source}: tokens.{task}: expected blocks {wanted} as in {first}, found {list(blocks)}")
    return tokens


def golden_usage(
    encoder: Encoder, images: Iterable[NDArray[np.uint8]], progress: Callable[[int], object] = lambda images: None
) -> ExpertUsage:
    """Count tokens per expert with the golden integer model, for all tasks.

    Args:
        encoder: integer parameters.
        images: uint8 [H, W, 3] each.
        progress: called with 1 after every image.

    Raises:
        DataError: no image, or one of another type or size.
    """
    from accel.golden import GoldenEngine, run_frame  # readers of usage files need no engine

    net, engine = encoder.network, GoldenEngine(encoder)
    sums = {task: {block: np.zeros(net.experts, np.int64) for block in net.moe_blocks} for task in net.task_names}
    count = 0
    for image in images:
        for task, rows in sums.items():
            for block, routing in run_frame(encoder, image, task, engine).routing.items():
                rows[block] += routing.load(net.experts)
        count += 1
        progress(1)
    if not count:
        raise DataError("expert usage: expected at least one image, found none")
    tokens = {task: {block: row.tolist() for block, row in rows.items()} for task, rows in sums.items()}
    return ExpertUsage(net.name, count, net.tokens, net.top_k, net.experts, tokens)
