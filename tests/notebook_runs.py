"""Runs a notebook in a kernel of its own and says what it printed and drew, for the tests of several back ends."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from accel.bundle import Bundle, write_bundle
from accel.config import hardware, network
from accel.random_params import random_encoder

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "host" / "notebooks").glob("*.ipynb"))
PICTURES = {
    "01_first_run": {"golden": 1, "board": 1, "rtl": 1},
    "02_switching_tasks": {"golden": 1, "board": 2, "rtl": 2},
    "03_latency_energy": {"golden": 1, "board": 3, "rtl": 3},
    "04_inside_the_engine": {"golden": 0, "board": 1, "rtl": 3},
}
"""Pictures that each draws, by back end: some need a clock, some a log of the memory."""
SAYS = {
    "01_first_run": "multiply-accumulates per cycle",
    "02_switching_tasks": "tasks take turns",
    "03_latency_energy": "holds: live: time that no phase explains",
    "04_inside_the_engine": "token-expert pairs",
}
SAYS_WITH_CLOCK = {
    "01_first_run": "",
    "02_switching_tasks": "idle at switch [0, 0, 0, 0, 0, 0, 0]",
    "03_latency_energy": "pJ per 8-bit multiply-accumulate (assumed)",
    "04_inside_the_engine": "of the array's peak useful",
}


def demo_bundle(folder: Path) -> Bundle:
    """The demo network with random weights on the small engine."""
    return write_bundle(folder, random_encoder(network("m3vit-demo"), seed=1), hardware("ci"), {"random": 1})


def execute(
    path: Path, backend: str, bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, first: str = ""
) -> Any:
    """The notebook with its outputs.

    Args:
        first: code that the kernel runs before the first cell.
    """
    variables = {
        "M3VIT_BACKEND": backend, "M3VIT_BUNDLE": str(bundle), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "IPYTHONDIR": str(folder / "ipython"),
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(folder / "matplotlib")),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-first.py").write_text(first)
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


def outputs(notebook: Any) -> tuple[str, list[Image.Image]]:
    """Everything printed, and every picture."""
    texts, pictures = [], []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            texts.append(output.get("text", ""))
            data = output.get("data", {}).get("image/png")
            if data:
                pictures.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    return "".join(texts), pictures


def check(
    path: Path, backend: str, bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, first: str = ""
) -> str:
    """Run the notebook, check and save its pictures; returns what it printed."""
    text, pictures = outputs(execute(path, backend, bundle, folder, monkeypatch, first))
    for index, image in enumerate(pictures):
        image.save(folder / f"{path.stem}-{index}.png")
        assert image.width > 300 and image.height > 100
        # Not blank: something is drawn in more than one colour.
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20
    assert len(pictures) == PICTURES[path.stem][backend], path.name
    assert f"back end {backend!r}" in text and SAYS[path.stem] in text and "FAILS" not in text
    assert backend == "golden" or SAYS_WITH_CLOCK[path.stem] in text
    return text
