"""``m3vit trace`` and ``m3vit simulate``: a chain from a bundle to cycles, and errors of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome

from accel.bundle import write_bundle
from accel.config import NETWORKS, hardware, network_from_dict, to_dict
from accel.random_params import random_encoder
from accel.record import COUNTERS

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_json: Path) -> Path:
    net = network_from_dict(json.loads(tiny_json.read_text()))
    path = tmp_path_factory.mktemp("bundles") / "b"
    write_bundle(path, random_encoder(net, seed=1), hardware("ci"))
    return path


@pytest.fixture(scope="module")
def trace(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    from cli.main import main

    folder = tmp_path_factory.mktemp("photos")
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    assert main(["trace", str(bundle), "--out", str(folder / "t.npz"), "--images", str(folder), "-q"]) == 0
    return folder / "t.npz"


def test_trace_tells_what_it_recorded(m3vit: Run, bundle: Path, trace: Path, tmp_path: Path) -> None:
    outcome = m3vit("trace", bundle, "--out", tmp_path / "t.npz", "--images", trace.parent, "--frames", 1, "--json")
    data = outcome.json()
    assert data["images"] == 1 and data["network"] == "tiny" and data["blocks"] == [1, 3]
    assert set(data["experts_used"]) == {"semseg", "depth"}
    assert "wrote" in m3vit("trace", bundle, "--out", tmp_path / "u.npz", "--images", trace.parent).err


def test_simulate_a_bundle_on_its_own_trace(m3vit: Run, bundle: Path, trace: Path) -> None:
    data = m3vit("simulate", bundle, "--jobs", "semseg,depth,semseg", "--routing", trace, "--json").json()
    assert data["jobs_run"] == ["semseg", "depth", "semseg"] and len(data["jobs"]) == 3
    assert set(data["counters"]) == {slot.name for slot in COUNTERS}
    assert data["cycles"] == data["counters"]["cycles"] == sum(data["breakdown"].values())
    assert data["milliseconds"] == pytest.approx(data["cycles"] / data["clock_mhz"] / 1000)
    assert data["switch_extra_cycles"] == 0 and len(data["per_layer"]) == 3 * 13
    assert data["config"] == "tiny@ci"


def test_simulate_a_network_with_everything(m3vit: Run, tmp_path: Path) -> None:
    outcome = m3vit(
        "simulate", "m3vit-demo", "--routing", "zipf", "--schedule", "longest_first", "--switching", 2, "--layers",
        "--timeline", tmp_path / "run.json", "--plots", tmp_path / "plots", "--memory", "latency=60",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for text in ("m3vit-demo@zcu104: 4 jobs", "ideal", "alternating", "blocks.1.mlp"):
        assert text in outcome.out
    assert json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"roofline.svg", "layers.svg", "experts.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--jobs fly", "task 'fly': expected one of semseg"),
        ("--routing nowhere", "routing 'nowhere': expected one of uniform, zipf, one"),
        ("--routing absent.npz", "absent.npz: cannot read as a routing trace"),
        ("--memory bytes_per_cycle=0", "bytes_per_cycle = 0: expected an integer from 1"),
        ("--memory latency=-1", "latency = -1: expected an integer from 1"),
        ("--memory speed=1", "memory 'speed=1': expected NAME=NUMBER"),
        ("--memory latency=fast", "latency = 'fast': expected an integer"),
        ("--hardware fpga", "hardware 'fpga': expected a .json file or one of"),
    ],
)
def test_bad_input(m3vit: Run, arguments: str, message: str) -> None:
    assert message in m3vit("simulate", "m3vit-demo", *arguments.split()).error()


def test_trace_of_another_network(m3vit: Run, trace: Path) -> None:
    assert "expected a trace of m3vit-demo" in m3vit("simulate", "m3vit-demo", "--routing", trace).error()


def test_expert_out_of_range(m3vit: Run, bundle: Path, trace: Path, tmp_path: Path) -> None:
    with np.load(trace) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["chosen"][0, 0, 0, 0, 0] = 9
    np.savez(tmp_path / "t.npz", **arrays)
    assert "expert 9: expected 0 to 3" in m3vit("simulate", bundle, "--routing", tmp_path / "t.npz").error()


def test_buffer_smaller_than_a_tile(m3vit: Run, tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps({**to_dict(hardware("zcu104")), "slot_rows": 4}))
    assert "slot_rows = 4" in m3vit("simulate", NETWORKS["m3vit-demo"].name, "--hardware", file).error()
