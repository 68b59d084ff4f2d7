"""Foreign checkpoint files as plain tensors; nothing stored in them is ever executed.

Three containers: one file (``torch.save`` or safetensors), a directory of per-rank shards ``0.pth``, ``1.pth``, … whose
experts are concatenated, and a directory of raw float32 files. What the tensors mean is `model.import_layout`'s part.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from accel.errors import CheckpointError
from model.checkpoint import FORMAT

STATE_FIELDS = ("state_dict", "model")
"""Fields under which training scripts store the weights; a file may also be the state dict itself."""
RAW_SUFFIXES = (".float32.bin", ".f32.bin", ".bin", ".f32", ".raw")
MANIFEST = "manifest.json"
_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass
class Source:
    """Tensors of a foreign checkpoint under its own keys.

    Attributes:
        path: file or directory.
        tensors: key, without ``module.``, → tensor.
        files: names of the files read.
        facts: other fields of the file that are plain values (``epoch``, ``backbone``, …).
    """

    path: Path
    tensors: dict[str, Tensor]
    files: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


class _NumpyValue:
    """Stands for a NumPy scalar or array beside the weights (``best_result`` holds metrics): accepted, never used.

    The unpickler calls this instead of NumPy's constructors, so none of them runs.
    """

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_HARMLESS = [
    (_NumpyValue, f"numpy.{name}")
    for name in ("dtype", "ndarray", *(f"{core}.multiarray.{f}" for core in ("core", "_core")
                                       for f in ("scalar", "_reconstruct")))
]  # fmt: skip


def _no_encoding(text: str, *arguments: Any) -> str:
    """Stands for ``_codecs.encode``, with which old pickles spell the bytes of a NumPy value."""
    return text


def is_raw_directory(path: Path) -> bool:
    """Whether ``path`` is a directory of per-tensor float dumps."""
    if not path.is_dir():
        return False
    return (path / MANIFEST).exists() or any(item.name.endswith(RAW_SUFFIXES) for item in path.iterdir())


def read_source(path: str | os.PathLike[str], experts: int) -> Source:
    """Read a single file or a directory of shards.

    Args:
        experts: experts per block that the network has, to know how many shards there must be.

    Raises:
        CheckpointError: missing, truncated, with pickled code, with a shard missing, or without tensors.
    """
    source = Path(path)
    if source.is_dir():
        return _read_shards(source, experts)
    tensors, facts = _read_file(source)
    return Source(source, tensors, [source.name], facts)


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and other plain fields of one file."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror or error}") from error
    if start[8:] == b"{":
        return _read_safetensors(path), {}
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    name = next((key for key in STATE_FIELDS if isinstance(content.get(key), Mapping)), None)
    state = content[name] if name else content
    facts = {str(k): v for k, v in content.items() if isinstance(v, str | int | float)} if name else {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            where = f"{name}[{key!r}]" if name else repr(key)
            raise CheckpointError(f"{path}: {where}: expected a tensor, found {type(value).__name__}")
    if not state:
        raise CheckpointError(f"{path}: {name or 'file'}: expected tensors, found none")
    tensors = {}
    for key, value in state.items():
        plain = key
        while plain.startswith("module."):
            plain = plain.removeprefix("module.")
        if plain in tensors:
            raise CheckpointError(f"{path}: {plain}: found twice, with and without 'module.'")
        tensors[plain] = value.detach()
    return tensors, facts


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                raise CheckpointError(f"{path}: already a {FORMAT}: there is nothing to import")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file: {' '.join(str(error).split())}") from error


def _looks_pickled(path: Path) -> bool:
    """Whether a file starts as torch.save writes it: a zip archive, or a pickle of protocol 2 and later."""
    with path.open("rb") as file:
        return file.read(4)[:2] in (b"PK", *(bytes((0x80, protocol)) for protocol in range(2, 6)))


def load_pickle(path: Path) -> Any:
    """``torch.load`` limited to tensors and plain values, on the CPU.

    Raises:
        CheckpointError: the file would run code, or is truncated or damaged.
    """
    # Command-line options are data, too: many training scripts save them beside the weights.
    allowed: list[Any] = [*_HARMLESS, (_no_encoding, "_codecs.encode"), argparse.Namespace]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = _GLOBAL.search(str(error))
        if code:
            raise CheckpointError(
                f"{path}: expected tensors and plain values only, found the pickled object {code[1]}: "
                "refused, because loading it would run code stored in the file"
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one: it cannot be unpickled safely") from error
    except Exception as error:  # a cut or altered pickle can raise anything
        if not _looks_pickled(path):
            found = "another or a damaged one"
            raise CheckpointError(f"{path}: expected a torch or safetensors file, found {found}") from error
        reason = " ".join(str(error).split()).partition(". ")[0][:120] or type(error).__name__
        raise CheckpointError(f"{path}: truncated or damaged checkpoint: {reason}") from error


def is_expert_key(key: str) -> bool:
    """Whether a key belongs to the stacked experts, which ranks share out."""
    return ".mlp.experts." in key


def _read_shards(directory: Path, experts: int) -> Source:
    """``{rank}.pth`` of all ranks: everything from rank 0, experts concatenated along the first axis."""
    found = {int(item.stem): item for item in directory.glob("*.pth") if item.stem.isdigit()}
    if not found:
        raise CheckpointError(f"{directory}: expected the shards 0.pth, 1.pth, … of a sharded checkpoint, found none")
    if 0 not in found:
        raise CheckpointError(f"{directory / '0.pth'}: shard missing: found only {', '.join(map(str, sorted(found)))}")
    tensors, facts = _read_file(found[0])
    local = {key: value for key, value in tensors.items() if is_expert_key(key) and value.ndim}
    count = max(found) + 1
    if local:
        held = next(iter(local.values())).shape[0]
        count = max(count, math.ceil(experts / max(1, held)))
    missing = next((rank for rank in range(count) if rank not in found), None)
    if missing is not None:
        raise CheckpointError(
            f"{directory / f'{missing}.pth'}: shard missing: expected {count} shards for {experts} experts, "
            f"found {', '.join(map(str, sorted(found)))}"
        )
    parts = {key: [value] for key, value in local.items()}
    for rank in range(1, count):
        shard, _ = _read_file(found[rank])
        for key, value in shard.items():
            if key not in tensors:
                raise CheckpointError(f"{found[rank]}: {key}: not in shard 0.pth")
            if key in parts:
                if value.shape[1:] != parts[key][0].shape[1:]:
                    expected, has = tuple(parts[key][0].shape[1:]), tuple(value.shape[1:])
                    raise CheckpointError(f"{found[rank]}: {key}: expected experts of shape {expected}, found {has}")
                parts[key].append(value)
            elif not torch.equal(value, tensors[key]):
                raise CheckpointError(f"{found[rank]}: {key}: differs from shard 0.pth, but ranks share it")
        absent = sorted(set(parts) - set(shard))
        if absent:
            raise CheckpointError(f"{found[rank]}: {absent[0]}: missing: every shard holds its part of the experts")
    tensors.update({key: torch.cat(values) for key, values in parts.items()})
    return Source(directory, tensors, [found[rank].name for rank in range(count)], facts)


def read_raw(path: Path, shape: tuple[int, ...], key: str) -> Tensor:
    """One raw little-endian float32 file of ``shape``.

    Raises:
        CheckpointError: missing, or not exactly as long as the shape needs.
    """
    expected = 4 * math.prod(shape)
    try:
        size = path.stat().st_size
        if size != expected:
            raise CheckpointError(
                f"{path}: {key}: expected {expected} bytes (float32 of shape {shape}), found {size}"
            )
        values = np.fromfile(path, "<f4")
    except OSError as error:
        raise CheckpointError(f"{path}: {key}: cannot read: {error.strerror or error}") from error
    return torch.from_numpy(values.astype(np.float32, copy=False).reshape(shape))
