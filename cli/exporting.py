"""From a quantized checkpoint to a bundle and integer ONNX files; what ``m3vit export`` and ``m3vit demo`` share."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import Hardware
from accel.errors import ExportError, M3vitError
from cli.console import DISTRIBUTION, progress, tool_version

if TYPE_CHECKING:
    from accel.bundle import Bundle
    from accel.params import Encoder


def read_checkpoint(path: Path) -> tuple[Encoder, dict[str, Any]]:
    """Integer parameters of a QAT checkpoint, and where they come from."""
    from model.checkpoint import load_checkpoint
    from quant.checkpoint import load_qat
    from quant.export import export_encoder

    model = load_qat(path)
    facts = load_checkpoint(path)
    try:
        encoder = export_encoder(model)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    checkpoint = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "step": facts.step,
        "seed": facts.options.get("seed"),
        "metrics": facts.metrics,
    }
    return encoder, {"source": "checkpoint", "checkpoint": checkpoint}


def _provenance(source: dict[str, Any]) -> dict[str, Any]:
    """Where the parameters come from. SOURCE_DATE_EPOCH, where set, makes two exports byte for byte alike."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", str(int(time.time())))
    if not epoch.isdecimal():
        raise M3vitError(f"environment: SOURCE_DATE_EPOCH: expected seconds since 1970, found {epoch!r}")
    created = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).isoformat()
    return {"tool": f"{DISTRIBUTION} {tool_version()}", "created": created, **source}


def write(target: Path, encoder: Encoder, hardware: Hardware, source: dict[str, Any], quiet: bool) -> Bundle:
    """Write a bundle; ``source`` goes into its provenance."""
    from accel.bundle import write_bundle

    with progress(0, "packing", "blob", quiet) as bar:

        def step(name: str, index: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(index + 1 - bar.n)

        return write_bundle(target, encoder, hardware, _provenance(source), step)


def save_integer_onnx_files(encoder: Encoder, folder: Path, quiet: bool) -> list[Path]:
    """One integer ONNX file per task."""
    from quant.onnx_integer import build_integer_onnx, save_integer_onnx

    files = []
    with progress(len(encoder.network.tasks), "integer ONNX", "task", quiet) as bar:
        for task in encoder.network.task_names:
            files.append(folder / f"{task}.onnx")
            save_integer_onnx(build_integer_onnx(encoder, task), files[-1])
            bar.update()
    return files
