"""The chain at the demo's size, both routings: train briefly, export, compare every integer on held-out scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.bundle import Bundle, write_bundle
from accel.config import hardware
from accel.config import network as preset
from cli.arguments import with_routing
from cli.training import TrainPlan, checkpoint_file, train
from cli.verification import Frame, held_out_scenes, verify

ROUTINGS = ("multi_gate", "task_conditioned")
FRAMES = {"torch": 64, "golden": 8, "onnx": 8}


@pytest.fixture(scope="module", params=ROUTINGS)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """Bundle and quantized checkpoint of a network that has seen a few hundred scenes."""
    from quant.checkpoint import load_qat
    from quant.export import export_encoder

    folder = tmp_path_factory.mktemp(request.param)
    network = with_routing(preset("m3vit-demo"), request.param)
    train(TrainPlan(network, folder, steps=12, qat_steps=4, scenes=192, val_scenes=8), tensorboard=False, quiet=True)
    checkpoint = checkpoint_file(folder, "qat")
    return write_bundle(folder / "bundle", export_encoder(load_qat(checkpoint)), hardware("zcu104")), checkpoint


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    net = preset("m3vit-demo")
    return list(held_out_scenes(max(FRAMES.values()), 0, net.image_height, net.image_width))


@pytest.mark.parametrize("backend", FRAMES)
def test_every_integer_at_every_boundary_of_every_task(
    chain: tuple[Bundle, Path], frames: list[Frame], backend: str
) -> None:
    bundle, checkpoint = chain
    net = bundle.config.network
    some = frames[: FRAMES[backend]]
    report = verify(bundle, some, net.task_names, [backend], checkpoint=str(checkpoint)).as_dict([backend])
    # Six boundaries of D channels and qkv in every block, at least.
    assert report["compared"] > len(some) * len(net.tasks) * net.depth * net.tokens * net.embed_dim * 8
    assert set(report["per_task"]) == set(net.task_names)
    assert report["mismatches"] == 0, report["first_mismatch"]
