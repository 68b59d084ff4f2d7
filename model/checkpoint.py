"""Checkpoints: one self-describing ``.safetensors`` file, written atomically, free of pickled code.

Tensors: the model's state dict under its own keys, optimizer state under
``optimizer/<slot>/<key>``. The file's metadata carries one JSON document (``header``) with
everything else; see `Checkpoint`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from accel.atomic import atomic_write
from accel.errors import CheckpointError

FORMAT = "m3vit-checkpoint"
VERSION = 1
_OPTIMIZER = "optimizer/"
_FIELDS = ("stage", "step", "network", "options", "metrics", "extra")


@dataclass
class Checkpoint:
    """Everything in a checkpoint file.

    weights: state-dict key -> tensor; stage: what was trained (``float``, ``qat``, ...); step:
    steps done; network: the fields of `accel.config.Network`; options: training options; metrics:
    task -> metric -> value; extra: anything else that is JSON; optimizer: slot (``exp_avg``, ...)
    -> parameter -> tensor.
    """

    weights: dict[str, Tensor]
    stage: str
    step: int
    network: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    path: Path | None = None


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``; the old file stays until the new one is complete and on
    disk.

    Raises:
        CheckpointError: a weight is not finite, or the file cannot be written (disk full, ...).
    """
    target = Path(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.weights.items()}
    _check_finite(target, tensors)
    for slot, values in checkpoint.optimizer.items():
        for key, value in values.items():
            tensors[f"{_OPTIMIZER}{slot}/{key}"] = value.detach().cpu().contiguous()
    header = {name: getattr(checkpoint, name) for name in _FIELDS}
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
    with atomic_write(target) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise CheckpointError(f"{target}: cannot write: {_one_line(error)}") from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and validate a checkpoint. Nothing in the file is ever executed.

    Raises:
        CheckpointError: missing, not a checkpoint, pickled (``torch.save``), truncated, of another
            version, or with a weight that is not finite.
    """
    source = Path(path)
    _check_is_safetensors(source)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = repr(metadata.get("format", "no format field"))
                raise CheckpointError(f"{source}: format: expected {FORMAT!r}, found {found}")
            if metadata.get("version") != str(VERSION):
                found = metadata.get("version", "none")
                raise CheckpointError(f"{source}: version: expected {VERSION}, found {found}")
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                tensors[key] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{source}: damaged checkpoint: {_one_line(error)}") from error
    header = _parse_header(source, metadata)
    optimizer: dict[str, dict[str, Tensor]] = {}
    for key in [key for key in tensors if key.startswith(_OPTIMIZER)]:
        slot, _, name = key.removeprefix(_OPTIMIZER).partition("/")
        optimizer.setdefault(slot, {})[name] = tensors.pop(key)
    _check_finite(source, tensors)
    return Checkpoint(weights=tensors, optimizer=optimizer, path=source, **header)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights into ``model``.

    Raises:
        CheckpointError: the first key that is missing, unexpected or of another shape.
    """
    where = checkpoint.path or "checkpoint"
    wanted: Mapping[str, Tensor] = model.state_dict()
    for key, value in wanted.items():
        if key not in checkpoint.weights:
            raise CheckpointError(f"{where}: {key}: missing: the model needs {tuple(value.shape)}")
        found = tuple(checkpoint.weights[key].shape)
        if found != tuple(value.shape):
            expected = tuple(value.shape)
            raise CheckpointError(f"{where}: {key}: expected shape {expected}, found {found}")
    unexpected = sorted(set(checkpoint.weights) - set(wanted))
    if unexpected:
        raise CheckpointError(f"{where}: {unexpected[0]}: unexpected: the model has no such weight")
    model.load_state_dict(checkpoint.weights)


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state as slot -> parameter name -> tensor."""
    slots: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            slots.setdefault(slot, {})[name] = torch.as_tensor(value)
    return slots


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint
) -> None:
    """Put back what `optimizer_tensors` took. The optimizer must be new and of the same kind.

    Raises:
        CheckpointError: optimizer state for a parameter that the model lacks, or of another shape.
    """
    where = checkpoint.path or "checkpoint"
    parameters = dict(model.named_parameters())
    for slot, values in checkpoint.optimizer.items():
        for name, value in values.items():
            key = f"{_OPTIMIZER}{slot}/{name}"
            if name not in parameters:
                raise CheckpointError(f"{where}: {key}: unexpected: the model has no such weight")
            parameter = parameters[name]
            if value.ndim and value.shape != parameter.shape:
                expected, found = tuple(parameter.shape), tuple(value.shape)
                raise CheckpointError(f"{where}: {key}: expected shape {expected}, found {found}")
            # torch keeps scalar counters on the CPU and everything else beside the parameter.
            device = parameter.device if value.ndim else value.device
            optimizer.state[parameter][slot] = value.to(device).clone()


def _check_is_safetensors(path: Path) -> None:
    """Refuse what is certainly something else, saying what it is."""
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint file, found a directory")
    try:
        with path.open("rb") as file:
            start = file.read(9)
            size = path.stat().st_size
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror or error}") from error
    # A safetensors header may be 0x80 bytes long modulo 256, which looks like a pickle's first byte.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
        raise CheckpointError(
            f"{path}: expected a {FORMAT} (.safetensors), found a pickle file (torch.save): "
            "refused, because loading it would run code stored in it"
        )
    if len(start) < 9 or start[8:] != b"{" or int.from_bytes(start[:8], "little") + 8 > size:
        raise CheckpointError(f"{path}: not a checkpoint: expected a {FORMAT} (.safetensors)")


def _parse_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(metadata.get("header", ""))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: header: not JSON: {error}") from error
    if not isinstance(header, dict) or set(header) != set(_FIELDS):
        found = sorted(header) if isinstance(header, dict) else type(header).__name__
        raise CheckpointError(f"{path}: header: expected fields {sorted(_FIELDS)}, found {found}")
    kinds = {"stage": str, "step": int}
    for name, value in header.items():
        kind = kinds.get(name, dict)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = type(value).__name__
            raise CheckpointError(f"{path}: {name}: expected {kind.__name__}, found {found}")
    return header


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = value[~torch.isfinite(value)].flatten()[0].item()
            raise CheckpointError(f"{path}: {key}: expected finite values, found {bad}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
