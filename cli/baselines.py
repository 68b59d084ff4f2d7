"""The same model on ordinary processors, timed beside the engine: PyTorch on CPU and CUDA, onnxruntime on the CPU.

A baseline takes one job at a time, image in, output on the host, like the engine. Its figures are this machine's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.bundle import Bundle
from accel.compiler import Job
from accel.config import Network
from accel.errors import CheckpointError, DataError
from accel.golden import FrameResult
from accel.params import LightHead
from host.bench import distribution

Array = NDArray[Any]
Forward = Callable[[Array, str], Array]
"""Image [H, W, 3] and task → output on the host."""

QCDQ = "qcdq"


def _timed(forward: Forward, images: Sequence[Array], jobs: Sequence[Job], repeat: int) -> dict[str, Any]:
    """Latency of every job, ``repeat`` times, after one of each task that nobody counts."""
    for job in {job.task: job for job in jobs}.values():
        forward(images[job.frame], job.task)
    seconds = []
    for _ in range(repeat):
        for job in jobs:
            began = time.perf_counter()
            forward(images[job.frame], job.task)
            seconds.append(time.perf_counter() - began)
    return {"total": distribution(seconds), "jobs_per_second": len(seconds) / sum(seconds)}


def torch_baselines(
    checkpoint: Path, bundle: Bundle, images: Sequence[Array], jobs: Sequence[Job], repeat: int
) -> dict[str, dict[str, Any]]:
    """Float inference of a checkpoint's network on the CPU and, where there is one, on a CUDA device.

    Raises:
        CheckpointError: the checkpoint is damaged or of another network.
    """
    import torch

    from model.checkpoint import load_checkpoint
    from quant.checkpoint import STAGE, load_float, load_qat
    from quant.qat import QuantMultiTaskViT

    quantized = load_checkpoint(checkpoint).stage == STAGE
    model: Any = load_qat(checkpoint) if quantized else load_float(checkpoint)
    if model.network != bundle.config.network:
        raise CheckpointError(
            f"{checkpoint}: network: expected the one of {bundle.path} ({bundle.config.network.name}), "
            f"found another ({model.network.name})"
        )
    made_from = bundle.manifest["provenance"].get("checkpoint", {})
    digest = made_from.get("sha256") if isinstance(made_from, Mapping) else None
    found = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        moved = model.to(device).eval()

        def forward(image: Array, task: str, moved: Any = moved, device: str = device) -> Array:
            batch = torch.from_numpy(np.ascontiguousarray(image[None])).to(device)
            return moved(batch, [task]).outputs[task].float().cpu().numpy()

        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if isinstance(moved, QuantMultiTaskViT):
                stack.enter_context(moved.float_mode())
            timing = _timed(forward, images, jobs, repeat)
        found[f"torch {device}"] = {
            "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
            "version": torch.__version__,
            "threads": torch.get_num_threads() if device == "cpu" else None,
            "precision": "float32",
            "same_weights": digest == hashlib.sha256(checkpoint.read_bytes()).hexdigest() if digest else None,
            "note": "float network of the checkpoint, nothing quantized",
            **timing,
        }
    return found


def onnx_baselines(
    folder: Path, bundle: Bundle, images: Sequence[Array], jobs: Sequence[Job], repeat: int,
    golden: Mapping[Job, FrameResult],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """onnxruntime on the CPU, of what ``m3vit export --onnx --qcdq`` leaves in ``folder``.

    The integer files (TASK.onnx) are compared with golden on the way.

    Raises:
        DataError: no such folder, no file for a task, or one that cannot be loaded or is of another network.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with ONNX files, found none")
    tasks = list(dict.fromkeys(job.task for job in jobs))
    integer = {task: folder / f"{task}.onnx" for task in tasks}
    qcdq = folder / f"{QCDQ}.onnx"
    missing = [path for path in integer.values() if not path.is_file()]
    if missing and not qcdq.is_file():
        raise DataError(f"{missing[0]}: no such file: expected one per task, or {qcdq.name}")
    found: dict[str, dict[str, Any]] = {}
    if not missing:
        found["onnxruntime integer"] = _integer(integer, bundle, images, jobs, repeat, golden)
    if qcdq.is_file():
        found["onnxruntime qcdq"] = _qcdq(qcdq, tasks, bundle, images, jobs, repeat)
    return found


def _session(path: Path, network: Network, outputs: Sequence[str]) -> Any:
    """A session on the CPU, its input and outputs checked."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base
        raise DataError(f"{path}: onnxruntime cannot load it: {error}") from error
    shapes = {item.name: list(item.shape[1:]) for item in session.get_inputs()}
    expected = {"image": [network.image_height, network.image_width, 3]}
    if shapes != expected:
        raise DataError(f"{path}: inputs: expected {expected} for {network.name}, found {shapes}")
    known = [item.name for item in session.get_outputs()]
    for name in outputs:
        if name not in known:
            raise DataError(f"{path}: outputs: expected {name!r}, found {', '.join(known)}")
    return session


def _facts(session: Any) -> dict[str, Any]:
    import onnxruntime

    threads = session.get_session_options().intra_op_num_threads
    return {"device": "CPU", "version": onnxruntime.__version__, "threads": threads or "onnxruntime's choice"}


def _integer(
    files: Mapping[str, Path], bundle: Bundle, images: Sequence[Array], jobs: Sequence[Job], repeat: int,
    golden: Mapping[Job, FrameResult],
) -> dict[str, Any]:  # fmt: skip
    network = bundle.config.network
    light = {task: isinstance(bundle.encoder.heads[task], LightHead) for task in files}
    last = f"blocks.{network.depth - 1}.residual"
    names = {task: "head.output" if light[task] else last for task in files}
    sessions = {task: _session(path, network, [names[task]]) for task, path in files.items()}

    def forward(image: Array, task: str) -> Array:
        return sessions[task].run([names[task]], {"image": image[None]})[0][0]

    mismatches = 0
    for job in jobs:
        result = golden[job]
        expected = result.head if light[job.task] else result.residual
        output = forward(images[job.frame], job.task)
        if expected is None or output.shape != expected.shape:
            raise DataError(f"{files[job.task]}: output {names[job.task]!r}: found shape {list(output.shape)}, "
                            f"expected that of {bundle.path}")  # fmt: skip
        mismatches += int(np.count_nonzero(output != expected))
    return {
        **_facts(next(iter(sessions.values()))),
        "precision": "the contract's integers, in float64",
        "mismatches": mismatches,
        "same_weights": mismatches == 0,
        "note": "a referee, not made for speed: every expert computes every token",
        **_timed(forward, images, jobs, repeat),
    }


def _qcdq(
    path: Path, tasks: Sequence[str], bundle: Bundle, images: Sequence[Array], jobs: Sequence[Job], repeat: int
) -> dict[str, Any]:
    session = _session(path, bundle.config.network, tasks)

    def forward(image: Array, task: str) -> Array:
        return session.run([task], {"image": image[None].astype(np.float32)})[0]

    return {
        **_facts(session),
        "precision": "float32 with fake quantization",
        "same_weights": None,
        "note": "one graph for all tasks, every expert computes every token",
        **_timed(forward, images, jobs, repeat),
    }
