"""QAT checkpoints: ``model.checkpoint`` files whose exponents are tensors and whose formats are metadata."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from accel.config import Formats, formats_from_dict, network_from_dict, to_dict
from accel.errors import CheckpointError, ConfigError
from model.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from model.vit import MultiTaskViT
from model.windows import restore_windows, windows_metadata
from quant.qat import QuantMultiTaskViT

STAGE = "qat"


def formats_metadata(formats: Formats) -> dict[str, Any]:
    """What a QAT checkpoint keeps in ``extra`` about its formats."""
    return {"formats": to_dict(formats)}


def save_qat(
    path: str | os.PathLike[str],
    model: QuantMultiTaskViT,
    *,
    step: int = 0,
    options: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` to a checkpoint of stage ``qat``, atomically."""
    checkpoint = Checkpoint(
        weights=dict(model.state_dict()),
        stage=STAGE,
        step=step,
        network=dataclasses.asdict(model.network),
        options=dict(options or {}),
        extra={**(extra or {}), **windows_metadata(model), **formats_metadata(model.formats)},
    )
    save_checkpoint(path, checkpoint)


def qat_formats(checkpoint: Checkpoint) -> Formats:
    """Formats of a QAT checkpoint; raises CheckpointError if it is of another stage or damaged."""
    where = str(checkpoint.path or "checkpoint")
    if checkpoint.stage != STAGE:
        raise CheckpointError(f"{where}: stage: expected {STAGE!r}, found {checkpoint.stage!r}")
    try:
        return formats_from_dict(checkpoint.extra.get("formats"), f"{where}: formats")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def load_qat(path: str | os.PathLike[str]) -> QuantMultiTaskViT:
    """The quantized network in a QAT checkpoint, calibrated, with its expert windows and in evaluation mode.

    Raises:
        CheckpointError: not a QAT checkpoint, damaged, or its weights or windows do not fit its network.
    """
    checkpoint = load_checkpoint(path)
    formats = qat_formats(checkpoint)
    try:
        network = network_from_dict(checkpoint.network, f"{path}: network")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    model = QuantMultiTaskViT(network, formats)
    load_weights(model, checkpoint)
    restore_windows(model, checkpoint)
    return model.eval()


def load_float(path: str | os.PathLike[str]) -> MultiTaskViT:
    """The float network in a checkpoint of any stage but ``qat``, with its expert windows and in evaluation mode.

    Raises:
        CheckpointError: a QAT checkpoint, damaged, or its weights or windows do not fit its network.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.stage == STAGE:
        raise CheckpointError(f"{path}: stage: expected float weights, found {STAGE!r}")
    try:
        network = network_from_dict(checkpoint.network, f"{path}: network")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    model = MultiTaskViT(network)
    load_weights(model, checkpoint)
    restore_windows(model, checkpoint)
    return model.eval()
