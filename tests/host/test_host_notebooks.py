"""The notebooks run from top to bottom, draw what they promise, and are committed without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason='needs the extra "notebook"')
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

from notebook_runs import NOTEBOOKS, PICTURES, SAYS, SAYS_WITH_CLOCK, check, demo_bundle  # noqa: E402

from accel.errors import DeviceError  # noqa: E402


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("notebooks") / "demo").path


def test_all_are_known() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES) == set(SAYS) == set(SAYS_WITH_CLOCK)


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
    assert path.stem != "04_inside_the_engine" or "array idle at the switch: 0 cycles" in text
