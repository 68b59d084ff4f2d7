"""Recipes from data to the engine: `m3vit train CONFIG`, `m3vit eval`, `m3vit recipes`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("brevitas")

from accel.bundle import open_bundle  # noqa: E402
from accel.config import network_from_dict  # noqa: E402
from cli.main import main  # noqa: E402
from cli.verification import Frame, verify  # noqa: E402
from model.checkpoint import load_checkpoint  # noqa: E402
from model.datasets import DATASETS, open_dataset  # noqa: E402
from model.vit import MultiTaskViT  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = """
recipe = "{recipe}"
epochs = 1
batch = 2

[network]
image_height = 32
image_width = 48
embed_dim = 16
depth = 2
heads = 2
dense_hidden = 32
experts = 4
top_k = 2
expert_hidden = 16
unit_hidden = 16
head_hidden = 16
head = "light"

[quantization]
epochs = 1
"""
METRICS = {
    "semseg": {"miou"},
    "human_parts": {"miou"},
    "sal": {"miou", "maxf"},
    "depth": {"rmse", "log_rmse", "absrel"},
    "normals": {"mean_angle", "median_angle", "rmse_angle", "within_11_25", "within_22_5", "within_30"},
    "edge": {"ods_f"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[[str], dict[str, Any]]:
    """Data set → its sample tree, a small recipe for it, and the folder of a trained run."""
    made: dict[str, dict[str, Any]] = {}

    def make(name: str) -> dict[str, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            config = folder / "mine.toml"
            config.write_text(SMALL.format(recipe=f"tiny-{name}-multi_gate"))
            assert main(["data", "make-sample", name, str(folder / "data"), "--images", "4"]) == 0
            arguments = ["--data-root", str(folder / "data"), "--out", str(folder / "run"), "--no-tensorboard", "-q"]
            assert main(["train", str(config), *arguments]) == 0
            made[name] = {"config": config, "data": folder / "data", "run": folder / "run", "arguments": arguments}
        return made[name]

    return make


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_task_trains_evaluates_exports_and_runs(name: str, trained: Any, m3vit: Any, tmp_path: Path) -> None:
    made, tasks = trained(name), DATASETS[name].task_names
    log = (made["run"] / "float.csv").read_text().splitlines()
    assert {f"loss_{task}" for task in tasks} <= set(log[0].split(","))
    saved = json.loads((made["run"] / "metrics.json").read_text())
    assert set(saved["metrics"]) == {"float", "qat"}
    for stage in ("float", "qat"):
        checkpoint = made["run"] / f"{stage}.safetensors"
        outcome = m3vit("eval", made["config"], checkpoint, "--data-root", made["data"], "--json")
        assert outcome.code == 0, outcome.err
        evaluated = outcome.json()
        assert (evaluated["stage"], evaluated["images"]) == (stage, 4)
        assert {task: set(values) for task, values in evaluated["metrics"].items()} == {t: METRICS[t] for t in tasks}
        assert evaluated["metrics"] == saved["metrics"][stage] == load_checkpoint(checkpoint).metrics

    assert_heads_learned(made["run"], tasks)
    assert_golden_equals_torch(m3vit, name, made, made["run"], tasks)


def assert_heads_learned(run: Path, tasks: Sequence[str]) -> None:
    """Every task's head, light or PUP, left its initial values behind in the float stage."""
    import torch

    saved = load_checkpoint(run / "float.safetensors")
    fresh = MultiTaskViT(network_from_dict(saved.network), saved.options["seed"]).state_dict()
    assert fresh.keys() == saved.weights.keys()
    for task in tasks:
        weights = [key for key in fresh if key.startswith(f"decoders.{task}.") and key.endswith("weight")]
        changed = [key for key in weights if not torch.equal(fresh[key], saved.weights[key])]
        assert weights and changed == weights


def assert_golden_equals_torch(m3vit: Any, name: str, made: dict[str, Any], run: Path, tasks: Sequence[str]) -> None:
    """Exported, the golden model computes what the quantized model does, on the first image to evaluate on."""
    bundle = run.parent / f"{run.name}-bundle"
    assert m3vit("export", run / "qat.safetensors", bundle, "-q").code == 0
    opened = open_bundle(bundle)
    network = opened.config.network
    assert network.task_names == tuple(tasks)
    image = open_dataset(name, "val", network, root=made["data"]).first_images(1)[0]
    report = verify(opened, [Frame("val 0", image)], tasks, ["torch"], checkpoint=str(run / "qat.safetensors"))
    for task in tasks:
        compared, mismatches = report.total(backend="torch", task=task)
        assert compared > network.tokens * network.embed_dim and mismatches == 0, (task, report.first)
        if network.head == "light":
            assert report.total(backend="torch", task=task, kind="head.output")[0] > 0


VARIANTS = [("multi_gate", "pup"), ("task_conditioned", "light"), ("task_conditioned", "pup")]  # the fourth is above


@pytest.mark.parametrize(("routing", "head"), VARIANTS)
def test_routings_and_heads_reach_the_golden_model(
    routing: str, head: str, trained: Any, m3vit: Any, tmp_path: Path
) -> None:
    made, tasks = trained("cityscapes"), DATASETS["cityscapes"].task_names
    run = tmp_path / "run"
    outcome = m3vit("train", made["config"], "--data-root", made["data"], "--out", run, "--no-tensorboard", "-q",
                    "--routing", routing, "--head", head)  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = load_checkpoint(run / "qat.safetensors").network
    assert (found["routing"], found["head"]) == (routing, head)
    assert_heads_learned(run, tasks)
    assert_golden_equals_torch(m3vit, "cityscapes", made, run, tasks)


def test_dumps_and_delta_m(trained: Any, m3vit: Any, tmp_path: Path) -> None:
    made = trained("nyud")
    common = (made["config"], made["run"] / "float.safetensors", "--data-root", made["data"])
    whole = m3vit("eval", *common, "--dump", tmp_path / "dump", "--json").json()
    assert whole["files"] == 4 * 4
    for task, kind, shape in [("semseg", "png", (32, 48)), ("edge", "png", (32, 48)), ("normals", "png", (32, 48, 3))]:
        files = sorted((tmp_path / "dump" / task).glob(f"*.{kind}"))
        pixels = np.asarray(Image.open(files[0]))
        assert len(files) == 4 and pixels.dtype == np.uint8 and pixels.shape == shape
    depths = [np.load(path) for path in sorted((tmp_path / "dump" / "depth").glob("*.npy"))]
    assert len(depths) == 4 and all(d.dtype == np.float32 and d.shape == (32, 48) for d in depths)

    files = []
    for task, metric, factor in [("semseg", "miou", 0.5), ("depth", "rmse", 0.5), ("normals", "mean_angle", 2),
                                 ("edge", "ods_f", 2)]:  # fmt: skip
        value = whole["metrics"][task][metric] * factor
        assert value > 0
        files += ["--single-task-results", tmp_path / f"{task}.json"]
        files[-1].write_text(json.dumps({"metrics": {task: {metric: value}}}))
    compared = m3vit("eval", *common, *files, "--json").json()
    assert compared["delta_m_tasks"] == pytest.approx({"semseg": 100, "depth": -100, "normals": 50, "edge": -50})
    assert compared["delta_m"] == pytest.approx(0)
    shown = m3vit("eval", *common, *files, "-q")
    assert shown.code == 0 and "Δm = " in shown.out and "mean_angle" in shown.out
    one = m3vit("eval", *common, "--task", "depth", *files[2:4], "--json").json()
    assert set(one["metrics"]) == {"depth"} and one["delta_m"] == pytest.approx(-100)
    missing = m3vit("eval", *common, *files[:4]).error()
    assert missing.endswith("normals: missing: found only semseg, depth")


def test_a_finished_run_returns_at_once_and_another_is_refused(trained: Any, m3vit: Any) -> None:
    made = trained("cityscapes")
    before = (made["run"] / "qat.safetensors").read_bytes()
    again = m3vit("train", made["config"], *made["arguments"], "--json").json()
    assert again["resumed"] == {"float": 2, "qat": 2}
    assert (made["run"] / "qat.safetensors").read_bytes() == before
    error = m3vit("train", made["config"], *made["arguments"], "--optimizer", "adamw").error()
    assert "run.json: optimizer: this run was made with 'sgd', asked for 'adamw'" in error


def test_single_task_with_pup_heads_and_other_routing(trained: Any, m3vit: Any, tmp_path: Path) -> None:
    made = trained("cityscapes")
    arguments = ["--data-root", made["data"], "--no-tensorboard", "-q", "--json", "--qat-epochs", 0, "--batch", 4]
    config = tmp_path / "single.toml"
    config.write_text(SMALL.format(recipe="tiny-cityscapes-single_task-depth"))
    one = m3vit("train", config, "--out", tmp_path / "one", *arguments, "--head", "pup", "--optimizer", "adamw").json()
    assert set(one["metrics"]["float"]) == set(one["metrics"]["qat"]) == {"depth"}
    saved = load_checkpoint(tmp_path / "one" / "float.safetensors")
    assert "decoders.depth.conv_4.weight" in saved.weights and saved.step == 1
    assert_heads_learned(tmp_path / "one", ["depth"])
    assert_golden_equals_torch(m3vit, "cityscapes", made, tmp_path / "one", ["depth"])
    other = m3vit("train", made["config"], "--out", tmp_path / "two", *arguments, "--routing", "task_conditioned",
                  "--task", "semseg", "--lr", 0.01)  # fmt: skip
    assert set(other.json()["metrics"]["float"]) == {"semseg"}
    found = load_checkpoint(tmp_path / "two" / "float.safetensors")
    assert found.network["routing"] == "task_conditioned" and found.options["settings"]["lr"] == 0.01


def test_rendered_scenes(m3vit: Any, tmp_path: Path) -> None:
    config = tmp_path / "scenes.toml"
    config.write_text(SMALL.format(recipe="demo-scenes-multi_gate") + "[scenes]\ntrain = 6\nval = 3\n")
    run = m3vit(
        "train", config, "--out", tmp_path / "run", "--no-tensorboard", "-q", "--qat-epochs", 0, "--json"
    ).json()
    assert set(run["metrics"]) == {"trivial", "float", "qat"}
    checkpoint = tmp_path / "run" / "float.safetensors"
    data = ("--data-dir", tmp_path / "run" / "data", "--dump", tmp_path / "dump", "--json")
    found = m3vit("eval", config, checkpoint, *data).json()
    assert found["metrics"] == run["metrics"]["float"]
    assert set(found["metrics"]["edge"]) == {"edge_f"} and found["files"] == 3 * 4
    assert (tmp_path / "dump" / "depth" / "00002.npy").exists()
    assert "expected no data root" in m3vit("eval", config, checkpoint, "--data-root", tmp_path).error()


def test_errors(trained: Any, m3vit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("M3VIT_DATA_ROOT", "M3VIT_NYUD_ROOT"):
        monkeypatch.delenv(name, raising=False)
    made = trained("nyud")
    checkpoint = made["run"] / "float.safetensors"
    assert "expected SIZE-DATASET-MODE" in m3vit("eval", "nothing", checkpoint).error()
    other = m3vit("eval", "tiny-nyud-multi_gate", checkpoint).error()
    assert "network.image_height: expected 480 as in recipe 'tiny-nyud-multi_gate', found 32" in other
    foreign = tmp_path / "foreign.toml"
    foreign.write_text(SMALL.format(recipe="tiny-cityscapes-multi_gate"))
    assert "task 'semseg': channels: expected 7" in m3vit("eval", foreign, checkpoint).error()
    foreign.write_text(SMALL.format(recipe="tiny-pascal-single_task-sal"))
    assert "network.tasks: expected one of sal as in" in m3vit("eval", foreign, checkpoint).error()
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(made["config"].read_text().replace("[quantization]", "[quantization]\nlr = 0"))
    error = m3vit("train", wrong, "--data-root", made["data"], "--out", tmp_path / "never").error()
    assert "wrong.toml: quantization.lr = 0: expected more than 0" in error and not (tmp_path / "never").exists()
    assert "root: expected a directory" in m3vit("eval", made["config"], checkpoint).error()
    assert "task 'sal'" in m3vit("eval", made["config"], checkpoint, "--task", "sal").error()
    assert "none.safetensors" in m3vit("eval", made["config"], tmp_path / "none.safetensors").error()
    results = m3vit("eval", made["config"], checkpoint, "--single-task-results", tmp_path / "none.json").error()
    assert "none.json: cannot read results" in results
    scenes = m3vit("train", made["config"], "--out", tmp_path, "--scenes", 5).error()
    assert "--scenes and --val-scenes need 'scenes'" in scenes
    usage = m3vit("train", made["config"], "--out", tmp_path, "--steps", 5)
    assert usage.code == 2 and "--steps does not apply to a recipe" in usage.err
    usage = m3vit("train", "--out", tmp_path, "--epochs", 5)
    assert usage.code == 2 and "--epochs needs a CONFIG" in usage.err


def test_recipes_are_listed_and_shown(m3vit: Any, tmp_path: Path) -> None:
    from model.recipes.loader import recipe_names

    assert m3vit("recipes", "--json").json()["recipes"] == recipe_names()
    assert "base-cityscapes-task_conditioned" in m3vit("recipes").out
    shown = m3vit("recipes", "small-pascal-multi_gate", "--json").json()
    assert shown["outputs"]["edge"] == {"channels": 1, "kind": "binary", "loss": "balanced", "weight": 50}
    assert shown["network"]["embed_dim"] == 384 and shown["settings"]["schedule"] == "poly"
    assert "outputs.edge" in m3vit("recipes", "small-pascal-multi_gate").out
    assert "cannot read recipe" in m3vit("recipes", tmp_path / "none.toml").error()
