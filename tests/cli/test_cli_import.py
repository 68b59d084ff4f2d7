"""``m3vit import`` and ``m3vit cost``: checkpoints of other code on the command line, costs without torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import TINY, Outcome, environment

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]


def original(directory: Path) -> Path:
    """A checkpoint of the M³ViT training code for the tiny network: encoder, a gate per task, PUP heads."""
    from accel.config import network_from_dict
    from model.vit import MultiTaskViT

    network = network_from_dict({**TINY, "head": "pup"})
    state = MultiTaskViT(network, seed=3).state_dict()
    path = directory / "best_model.pth.tar"
    torch.save({"epoch": 4, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def test_import_then_inspect(m3vit: Run, tmp_path: Path, tiny_json: Path) -> None:
    source, out = original(tmp_path), tmp_path / "out.safetensors"
    data = m3vit("import", source, out, "--network", tiny_json, "--json").json()
    assert data["kind"] == "m3vit" and data["head"] == "pup" and data["facts"] == {"epoch": 4}
    state = torch.load(source, weights_only=True)["state_dict"]
    assert {f"module.{key}" for key in data["used"].values()} == set(state)
    assert not (data["missing"] or data["unexpected"] or data["initialized"])
    header = m3vit("inspect", out, "--json").json()
    assert header["stage"] == "float" and header["extra"]["imported"]["used"] == data["used"]
    assert header["parameters"] == sum(math.prod(value.shape) for value in state.values())
    text = m3vit("import", source, out, "--network", tiny_json)
    assert text.code == 0 and "wrote" in text.out and "multi_gate, pup heads" in text.out


def test_import_for_some_tasks(m3vit: Run, tmp_path: Path, tiny_json: Path) -> None:
    source, out = original(tmp_path), tmp_path / "out.safetensors"
    message = m3vit("import", source, out, "--network", tiny_json, "--tasks", "depth").error()
    assert "unexpected keys" in message and "the network has no task 'semseg'" in message and not out.exists()
    options = ("--network", tiny_json, "--tasks", "depth", "--allow-unexpected", "--json")
    data = m3vit("import", source, out, *options).json()
    assert data["used"]["backbone.blocks.1.mlp.gate.0.w_gate"] == "backbone.blocks.1.mlp.gate.1.w_gate"
    assert "expected one of" in m3vit("import", source, out, "--network", tiny_json, "--tasks", "sky").error()


def test_import_refuses_in_one_line(m3vit: Run, tmp_path: Path, tiny_json: Path) -> None:
    source, out = original(tmp_path), tmp_path / "out.safetensors"
    assert "no such checkpoint" in m3vit("import", tmp_path / "x.pth", out, "--network", tiny_json).error()
    source.write_bytes(source.read_bytes()[:1000])
    assert "damaged" in m3vit("import", source, out, "--network", tiny_json).error()
    assert not out.exists()


def test_cost_of_the_presets(m3vit: Run) -> None:
    for name, encoder, total in (("m3vit-small-pascal", 31.8, 84), ("m3vit-small-nyud", 39.2, 100)):
        data = m3vit("cost", name, "--head", "pup", "--json").json()
        assert round(data["encoder"]["macs"] / 1e9, 1) == encoder
        assert round(data["tasks"]["semseg"]["macs"] / 1e9) == total
        assert data["engine"]["bytes"] > data["encoder"]["weight_bytes"] * 0.9
    text = m3vit("cost", "m3vit-small-pascal", "--head", "pup", "--tasks").out
    assert all(word in text for word in ("human_parts", "NDDR-CNN", "88.8%", "MTAN"))


def test_cost_with_the_experts_that_are_used(m3vit: Run, tmp_path: Path, tiny_json: Path) -> None:
    from accel.config import network_from_dict
    from accel.usage import ExpertUsage, save_usage

    net, path = network_from_dict(TINY), tmp_path / "usage.json"
    pairs = net.tokens * net.top_k
    half = [net.tokens, net.tokens, 0, 0]
    assert sum(half) == pairs
    even = [*[pairs // 4] * 3, pairs - 3 * (pairs // 4)]
    rows = {"depth": {1: half, 3: half}}
    tokens = {name: rows.get(name, {1: even, 3: even}) for name in net.task_names}
    save_usage(path, ExpertUsage(net.name, 1, net.tokens, net.top_k, net.experts, tokens))
    command = ("cost", tiny_json, "--hardware", "ci")
    whole, used = m3vit(*command, "--json").json(), m3vit(*command, "--usage", path, "--json").json()
    assert whole["usage"] is None and used["usage"]["used"]["depth"] == {"1": 2, "3": 2}
    assert used["tasks"]["semseg"] == whole["tasks"]["semseg"]
    saved = whole["tasks"]["depth"]["encoder_bytes"] - used["tasks"]["depth"]["encoder_bytes"]
    assert saved == 4 * whole["expert"]["weight_bytes"]
    engine = used["engine"]
    assert engine["tasks"]["semseg"] == engine["bytes"] == whole["engine"]["bytes"]
    assert engine["bytes"] - engine["tasks"]["depth"] >= saved
    text = m3vit(*command, "--usage", path).out
    assert "only experts that got a token of the image" in text and "depth 4 of 8" in text
    error = m3vit("cost", "m3vit-demo", "--usage", path).error()
    assert error == f"{path}: tokens_per_image: expected 65 as in m3vit-demo, found 7"
    assert "cannot read" in m3vit(*command, "--usage", tmp_path / "none.json").error()


def test_cost_of_a_network_that_fits_no_engine(m3vit: Run, tmp_path: Path) -> None:
    path = tmp_path / "wide.json"
    path.write_text(json.dumps({**TINY, "embed_dim": 768, "heads": 12}))
    data = m3vit("cost", path, "--json").json()
    assert data["engine"]["bytes"] is None and "embed_dim" in data["engine"]["reason"]
    assert "expected a .json file" in m3vit("cost", "huge").error()


def test_networks_of_recipes(m3vit: Run, tmp_path: Path) -> None:
    whole = m3vit("cost", "tiny-nyud-multi_gate", "--json").json()
    assert set(whole["tasks"]) == {"semseg", "depth", "normals", "edge"}
    assert set(m3vit("cost", "tiny-nyud2-multi_gate", "--json").json()["tasks"]) == {"semseg", "depth"}
    recipe = tmp_path / "mine.toml"
    recipe.write_text('recipe = "tiny-cityscapes-single_task-depth"\n')
    assert set(m3vit("cost", recipe, "--json").json()["tasks"]) == {"depth"}
    assert "expected SIZE-DATASET-MODE" in m3vit("cost", "huge-nyud-multi_gate").error()


RECIPE = """
recipe = "tiny-nyud2-multi_gate"
batch = 2
epochs = 1

[network]
image_height = 16
image_width = 24
patch = 8
embed_dim = 16
depth = 2
heads = 2
dense_hidden = 32
experts = 4
top_k = 2
expert_hidden = 16
unit_hidden = 16
head_hidden = 16

[quantization]
epochs = 0
"""


@pytest.fixture(scope="module")
def nyud(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recipe of two tasks, sample data, and an original checkpoint that fits."""
    from cli.main import main
    from cli.recipes import recipe_network
    from model.recipes.loader import load_recipe
    from model.vit import MultiTaskViT

    folder = tmp_path_factory.mktemp("nyud")
    recipe = folder / "mine.toml"
    recipe.write_text(RECIPE)
    assert main(["data", "make-sample", "nyud", str(folder / "data"), "--images", "4"]) == 0
    state = MultiTaskViT(recipe_network(load_recipe(recipe)), seed=3).state_dict()
    torch.save({"epoch": 4, "state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "best.pth.tar")
    return {"recipe": recipe, "data": folder / "data", "source": folder / "best.pth.tar"}


def tuned(m3vit: Run, nyud: dict[str, Path], init: Path, out: Path, *more: object) -> Outcome:
    arguments = ("--data-root", nyud["data"], "--no-tensorboard", "--out", out, "--json", *more)
    return m3vit("train", nyud["recipe"], "--init", init, *arguments)


def test_an_imported_checkpoint_reaches_the_golden_model(m3vit: Run, tmp_path: Path, nyud: dict[str, Path]) -> None:
    imported, run, bundle = tmp_path / "imported.safetensors", tmp_path / "run", tmp_path / "bundle"
    assert m3vit("import", nyud["source"], imported, "--network", nyud["recipe"]).code == 0
    # Four tasks' recipe, two tasks' checkpoint: those that both have are measured.
    wide = tmp_path / "wide.toml"
    wide.write_text(RECIPE.replace("nyud2", "nyud"))
    before = m3vit("eval", wide, imported, "--data-root", nyud["data"], "--json").json()
    assert set(before["metrics"]) == {"semseg", "depth"}
    assert "task 'edge': expected one of semseg, depth" in m3vit("eval", wide, imported, "--task", "edge").error()

    outcome = tuned(m3vit, nyud, imported, run, "--epochs", 0, "--qat-epochs", 0)
    assert outcome.code == 0, outcome.err
    printed = outcome.json()
    assert printed["metrics"]["float"] == before["metrics"] and not (run / "float.csv").exists()
    after = m3vit("eval", nyud["recipe"], run / "qat.safetensors", "--data-root", nyud["data"], "--json").json()
    assert after["stage"] == "qat" and after["metrics"] == printed["metrics"]["qat"]
    assert json.loads((run / "run.json").read_text())["init"]

    assert m3vit("export", run / "qat.safetensors", bundle, "-q").code == 0
    checks = ("--backends", "torch", "--checkpoint", run / "qat.safetensors", "--frames", 1, "--json")
    compared = m3vit("verify", bundle, *checks)
    assert compared.code == 0, compared.err


def test_training_goes_on_from_a_checkpoint(m3vit: Run, tmp_path: Path, nyud: dict[str, Path]) -> None:
    from model.checkpoint import load_checkpoint

    imported, run = tmp_path / "imported.safetensors", tmp_path / "run"
    assert m3vit("import", nyud["source"], imported, "--network", nyud["recipe"]).code == 0
    assert tuned(m3vit, nyud, imported, run, "--lr", 1e-7).code == 0
    start, end = load_checkpoint(imported).weights, load_checkpoint(run / "float.safetensors").weights
    key = "backbone.blocks.1.mlp.experts.htoh4.weight"
    assert not torch.equal(start[key], end[key]) and torch.allclose(start[key], end[key], atol=1e-4)

    other = tmp_path / "other.safetensors"
    options = ("--network", nyud["recipe"], "--normalization", "none")
    assert m3vit("import", nyud["source"], other, *options).code == 0
    assert "run.json: init: this run was made with" in tuned(m3vit, nyud, other, run, "--lr", 1e-7).error()
    anew = ("train", nyud["recipe"], "--data-root", nyud["data"], "--out", run, "--lr", 1e-7)
    assert "run.json: init: this run was made with" in m3vit(*anew).error()
    assert "epochs = 0: expected at least 1" in m3vit(*anew, "--epochs", 0).error()
    fewer = tuned(m3vit, nyud, imported, tmp_path / "fewer", "--task", "depth").error()
    assert "network.tasks: expected depth as in" in fewer and "found semseg, depth" in fewer
    usage = tuned(m3vit, nyud, imported, run, "--head", "light")
    assert usage.code == 2 and "--head does not apply with --init" in usage.err


def test_a_pruned_checkpoint_is_quantized(m3vit: Run, tmp_path: Path, nyud: dict[str, Path]) -> None:
    from accel.bundle import open_bundle
    from model.checkpoint import load_checkpoint

    imported, pruned = tmp_path / "imported.safetensors", tmp_path / "pruned.safetensors"
    assert m3vit("import", nyud["source"], imported, "--network", nyud["recipe"]).code == 0
    windows = tmp_path / "windows"
    assert tuned(m3vit, nyud, imported, windows, "--epochs", 0, "--expert-windows", 2).code == 0
    data = ("--recipe", nyud["recipe"], "--data-root", nyud["data"])
    keep = m3vit("experts", "prune", windows / "float.safetensors", pruned, "--keep", 2, *data, "--json")
    assert keep.code == 0, keep.err
    outcome = tuned(m3vit, nyud, pruned, tmp_path / "run", "--epochs", 0, "--qat-epochs", 1)
    assert outcome.code == 0, outcome.err
    saved = load_checkpoint(tmp_path / "run" / "qat.safetensors")
    assert saved.extra["expert_windows"] == load_checkpoint(pruned).extra["expert_windows"]
    assert m3vit("export", tmp_path / "run" / "qat.safetensors", tmp_path / "bundle", "-q").code == 0
    assert open_bundle(tmp_path / "bundle").config.network.experts == keep.json()["experts"]


def test_scenes_train_from_a_checkpoint(m3vit: Run, tmp_path: Path, tiny_json: Path) -> None:
    imported, source = tmp_path / "imported.safetensors", original(tmp_path)
    assert m3vit("import", source, imported, "--network", tiny_json).code == 0
    small = ("--scenes", 8, "--val-scenes", 2, "--batch", 4, "--no-tensorboard", "--out", tmp_path / "run")
    assert "steps = 0: expected at least 1" in m3vit("train", "--network", tiny_json, *small, "--steps", 0).error()
    outcome = m3vit("train", "--init", imported, *small, "--steps", 0, "--qat-steps", 1, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["resumed"] == {"float": 0, "qat": 0} and "as given, no training" in outcome.err
    assert "expected float weights" in m3vit("train", "--init", tmp_path / "run/qat.safetensors", *small).error()


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_unknown_devices(m3vit: Run, tmp_path: Path, nyud: dict[str, Path], tiny_json: Path, device: str) -> None:
    message = f"device {device!r}: expected "
    choice = ("--device", device, "--out", tmp_path / "run")
    assert message in m3vit("train", "--network", tiny_json, *choice).error()
    assert message in m3vit("train", nyud["recipe"], "--data-root", nyud["data"], *choice).error()
    assert message in m3vit("eval", nyud["recipe"], tmp_path / "none", "--device", device).error()
    assert not (tmp_path / "run").exists()


def test_cost_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None\nfrom cli.main import main\nsys.exit(main(['cost', sys.argv[1]]))"
    command = [sys.executable, "-c", script, "m3vit-demo"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0 and "GMAC" in result.stdout, result.stderr
