"""The quantization stage: float weights -> calibrated -> fine-tuned under the contract -> checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from accel.config import Formats
from accel.errors import ConfigError
from model import distributed
from model.checkpoint import load_checkpoint
from model.data import Dataset
from model.samples import FolderDataset
from model.train import FitResult, TrainOptions, checkpoint_path, fit
from model.vit import MultiTaskViT
from model.windows import windows_metadata
from quant.checkpoint import STAGE, formats_metadata, load_float, save_qat
from quant.qat import QuantMultiTaskViT

CALIBRATION_IMAGES = 128


def qat_options(steps: int, **changes: object) -> TrainOptions:
    """The recipe for fine-tuning: small learning rate, cosine to 0, no gate noise."""
    recipe: dict[str, object] = {
        "steps": steps,
        "lr": 3e-4,
        "final_lr": 0.0,
        "warmup": steps // 5,
        "gate_noise": 0.0,
    }
    return TrainOptions(**{**recipe, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class QatResult:
    """model: in evaluation mode; checkpoint: its file; fit: what training did, None for 0 steps."""

    model: QuantMultiTaskViT
    checkpoint: Path
    fit: FitResult | None


def finetune(
    source: MultiTaskViT | str | os.PathLike[str],
    train_set: Dataset | FolderDataset,
    run_dir: str | os.PathLike[str],
    options: TrainOptions | None,
    formats: Formats | None = None,
    *,
    calibration_images: int = CALIBRATION_IMAGES,
    device: torch.device | str | None = None,
    resume: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> QatResult:
    """Quantize a float network and fine-tune it; leaves ``checkpoint-qat.safetensors`` in ``run_dir``.

    Args:
        source: a float network or its checkpoint; its expert windows stay.
        train_set: to calibrate on (its first images) and to train on.
        options: training options, see :func:`qat_options`; None calibrates only (PTQ).
        formats: widths; 8 bits by default.
        calibration_images: how many images choose the activation exponents.
        resume: continue from, or return, a checkpoint of the same quantization found in ``run_dir``.

    Raises:
        ConfigError: nothing to calibrate on, or a checkpoint in ``run_dir`` was made differently.
        CheckpointError: ``source`` is not a float checkpoint.
    """
    model = source if isinstance(source, MultiTaskViT) else load_float(source)
    place = distributed.resolve_device(device)
    path = checkpoint_path(run_dir, STAGE)
    extra = {
        **formats_metadata(formats or Formats()),
        "calibration_images": calibration_images,
        "source": weights_digest(model),
        **windows_metadata(model),
    }
    if resume and options is not None and path.exists():
        _check_same(path, extra)
    quantized = QuantMultiTaskViT.from_float(model, formats).to(place)
    images = torch.from_numpy(train_set.first_images(calibration_images)).to(place)
    quantized.calibrate(images)
    result = None
    if options is None:
        if distributed.rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_qat(path, quantized, extra=extra)
    else:
        result = fit(
            quantized, train_set, options, run_dir, STAGE,
            device=place, resume=resume, extra=extra, on_step=on_step,
        )  # fmt: skip
    return QatResult(quantized.eval(), path, result)


def weights_digest(model: nn.Module) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_same(path: Path, extra: dict[str, object]) -> None:
    found = load_checkpoint(path).extra
    for name, value in extra.items():
        if found.get(name) != value:
            advice = "use another folder or start anew without resuming"
            raise ConfigError(
                f"{path}: {name}: made with {found.get(name)!r}, asked for {value!r}: {advice}"
            )
