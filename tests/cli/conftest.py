"""A network small enough to train and export in a blink, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import TINY, Outcome

from cli.main import main


@pytest.fixture
def m3vit(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command in this process."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and far slower beside other processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated QAT checkpoint of the tiny network, untrained."""
    torch = pytest.importorskip("torch")
    from accel.config import network_from_dict
    from model.vit import MultiTaskViT
    from quant.checkpoint import save_qat
    from quant.qat import QuantMultiTaskViT

    network = network_from_dict(TINY)
    model = QuantMultiTaskViT.from_float(MultiTaskViT(network, seed=1))
    generator = torch.Generator().manual_seed(0)
    model.calibrate(torch.randint(0, 256, (8, 16, 24, 3), dtype=torch.uint8, generator=generator))
    path = tmp_path_factory.mktemp("checkpoint") / "qat.safetensors"
    save_qat(path, model, step=7, options={"seed": 1})
    return path
