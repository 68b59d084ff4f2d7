"""The notebooks run from top to bottom, draw what they promise, and are committed without outputs."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from accel.errors import DeviceError

nbformat = pytest.importorskip("nbformat", reason='needs the extra "notebook"')
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "host" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PICTURES = {
    "01_first_run": (1, 1), "02_switching_tasks": (2, 1), "03_latency_energy": (3, 1), "04_inside_the_engine": (3, 0),
}  # fmt: skip
"""Pictures that each draws with a clock and without."""
SAYS = {
    "01_first_run": "multiply-accumulates per cycle",
    "02_switching_tasks": "tasks take turns",
    "03_latency_energy": "holds: live: time that no phase explains",
    "04_inside_the_engine": "token-expert pairs",
}
SAYS_WITH_CLOCK = {
    "02_switching_tasks": "idle at switch [0, 0, 0, 0, 0, 0, 0]",
    "03_latency_energy": "mac: 2 to 8 pJ per 8-bit multiply-accumulate (assumed)",
    "04_inside_the_engine": "array idle at the switch: 0 cycles",
}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo network with random weights on the small engine."""
    from cli.main import main

    path = tmp_path_factory.mktemp("notebooks") / "demo"
    assert main(["export", "--random", "m3vit-demo", str(path), "--hardware", "ci", "--seed", "1", "-q"]) == 0
    return path


def execute(path: Path, backend: str, bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook with its outputs, run in a kernel of its own."""
    variables = {
        "M3VIT_BACKEND": backend, "M3VIT_BUNDLE": str(bundle), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "IPYTHONDIR": str(folder / "ipython"),
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(folder / "matplotlib")),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
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


def check(path: Path, backend: str, bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    text, pictures = outputs(execute(path, backend, bundle, folder, monkeypatch))
    for index, image in enumerate(pictures):
        image.save(folder / f"{path.stem}-{index}.png")
        assert image.width > 300 and image.height > 100
        # Not blank: something is drawn in more than one colour.
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20
    assert len(pictures) == PICTURES[path.stem][backend == "golden"], path.name
    assert SAYS[path.stem] in text and "FAILS" not in text
    return text


def test_all_are_known() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES) == set(SAYS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 16
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert code.count("BACKEND = ") == 1, "one variable chooses the back end"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_golden(path: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(path, "golden", demo, tmp_path, monkeypatch)


@pytest.mark.verilator
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rtl(path: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.config import Formats, hardware
    from host.backends.rtl_build import build
    from host.backends.toolchain import find_toolchain

    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    build(hardware("ci"), Formats())
    text = check(path, "rtl", demo, tmp_path, monkeypatch)
    assert SAYS_WITH_CLOCK.get(path.stem, "") in text
