"""The notebooks as on a board: PYNQ's library in the kernel, the verilated engine where the chip would be."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pynq", reason="pynq is not installed; see `make test-pynq`")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

from notebook_runs import NOTEBOOKS, check, demo_bundle  # noqa: E402

BOARD = """
import atexit, os
from accel.config import Formats, hardware
from host.backends import board, sim_board
from host.backends.rtl import RtlDevice
from pathlib import Path

folder = Path({folder!r})
board.lock_file = lambda: folder / "lock"
engine = RtlDevice(hardware("ci"), Formats(), library={library!r})
simulated = sim_board.SimulatedBoard(hardware("ci"), Formats(), folder, backend=engine)
os.environ["M3VIT_OVERLAY"] = str(simulated.bit)
atexit.register(simulated.close)
"""


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("notebooks") / "demo").path


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.xdist_group(f"board {path.stem}"), id=path.stem) for path in NOTEBOOKS],
)
def test_on_the_simulated_board(path, demo, verilated_library, tmp_path, monkeypatch):
    first = BOARD.format(folder=str(tmp_path / "overlay"), library=str(verilated_library))
    (tmp_path / "overlay").mkdir()
    check(path, "board", demo, tmp_path, monkeypatch, first)
