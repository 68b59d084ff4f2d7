"""``m3vit trace`` and ``m3vit simulate``: a chain from a bundle to cycles, and errors of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome

from accel.bundle import write_bundle
from accel.config import hardware, network_from_dict
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
        ("--compare fast", "policy 'fast': expected one of cache, index"),
        ("--compare index,index", "policy 'index' is given twice"),
        ("--policy cache", "policy 'cache': expected one of index"),
        ("--policy combined --barrier", "expected jobs that do not wait for each other"),
        ("--routing local:2", "routing 'local:2': expected local: and a number from 0 to 1"),
        ("--policy combined --usage absent.json", "absent.json: cannot read"),
    ],
)
def test_bad_policy(m3vit: Run, arguments: str, message: str) -> None:
    assert message in m3vit("simulate", "m3vit-demo", *arguments.split()).error()


def test_energy_is_an_estimate_with_its_constants(m3vit: Run, bundle: Path) -> None:
    data = m3vit("simulate", bundle, "--jobs", "semseg,depth", "--json").json()
    energy = data["energy_estimate"]
    assert energy["kind"] == "estimate" and energy["jobs"] == 2 and energy["clock_mhz"] == data["clock_mhz"]
    low, high = energy["joules"]
    assert 0 < low < high and energy["joules_per_frame"] == pytest.approx([low / 2, high / 2])
    assert energy["watts"] == pytest.approx([low / data["milliseconds"] * 1e3, high / data["milliseconds"] * 1e3])
    assert set(energy["parts"]) == set(energy["constants"]) >= {"mac", "ddr", "uram", "pl_static", "ps", "ddr_idle"}
    text = m3vit("simulate", bundle).out
    assert "energy, an estimate:" in text and "pl_static" in text and "not the board" in text


def test_scaling_study(m3vit: Run, bundle: Path, trace: Path, tmp_path: Path) -> None:
    data = m3vit("simulate", bundle, "--scaling", "--plots", tmp_path / "plots", "--json", "-q").json()
    frame = data["scaling"]["frame"]
    assert [row["experts"] for row in frame] == [4, 8, 16, 32, 64, 128, 256]
    assert len({row["ideal_experts"] for row in frame}) == 1
    assert [row["max_experts"] for row in data["scaling"]["max_experts"]] == [row["experts"] for row in frame]
    assert str(tmp_path / "plots" / "scaling.svg") in data["files"] and (tmp_path / "plots" / "scaling.svg").is_file()
    assert "built for at most so many experts" in m3vit("simulate", bundle, "--scaling").out
    refused = m3vit("simulate", bundle, "--scaling", "--routing", trace)
    assert refused.code == 1 and "scaling: routing: expected a pattern" in refused.err


def test_policies_side_by_side(m3vit: Run, bundle: Path, trace: Path, tmp_path: Path) -> None:
    arguments = ("simulate", bundle, "--routing", trace, "--jobs", "semseg,depth")
    data = m3vit(*arguments, "--compare", "--plots", tmp_path / "plots", "--json").json()
    rows = {row["name"]: row for row in data["compare"]}
    assert list(rows)[:2] == ["cache", "index"] and "combined" in rows
    assert rows["index"]["cycles"] == data["cycles"] and rows["index"]["ratio"] == 1
    assert rows["index"]["weight_bytes"] == data["counters"]["weight_bytes"]
    assert (tmp_path / "plots" / "policies.svg").exists()
    outcome = m3vit(*arguments, "--compare", "index,combined")
    for text in ("over its roofline", "combined", "no: load would have to guess"):
        assert text in outcome.out
    assert "interleaved" not in outcome.out


def test_one_policy(m3vit: Run, bundle: Path, trace: Path, tmp_path: Path) -> None:
    usage = tmp_path / "usage.json"
    assert m3vit("experts", "usage", bundle, "--out", usage, "--images", trace.parent).code == 0
    arguments = ("simulate", bundle, "--routing", trace, "--jobs", "semseg,depth", "--usage", usage, "--json")
    data = m3vit(*arguments, "--policy", "combined", "--timeline", tmp_path / "run.json").json()
    row = m3vit(*arguments, "--compare", "combined").json()["compare"][0]
    assert data["cycles"] == row["cycles"] and data["policy"] == "combined" and data["switch_extra_cycles"] is None
    assert data["loading"]["units_on_chip"] > 0 and (tmp_path / "run.json").exists()
