"""``m3vit experts``, and windows from a recipe to the bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, TINY, environment
from PIL import Image

from accel.bundle import open_bundle
from accel.config import network_from_dict, to_dict
from accel.usage import load_usage
from cli.checkpoint_header import read_header

HEAVY = ("torch", "brevitas", "onnx", "onnxruntime", "safetensors")
PAIRS = 7 * 2  # tokens and top-k of the tiny network
RECIPE = """
recipe = "demo-scenes-multi_gate"
tasks = ["semseg", "depth"]
epochs = 1
batch = 8
expert_windows = 3
[network]
image_height = 16
image_width = 24
embed_dim = 16
depth = 2
dense_hidden = 32
experts = 5
expert_hidden = 16
unit_hidden = 16
head_hidden = 16
[quantization]
epochs = 1
[scenes]
train = 8
val = 4
"""


@pytest.fixture(scope="module")
def float_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model.checkpoint import Checkpoint, save_checkpoint
    from model.vit import MultiTaskViT

    network = network_from_dict(TINY)
    path = tmp_path_factory.mktemp("float") / "float.safetensors"
    weights = dict(MultiTaskViT(network, seed=1).state_dict())
    save_checkpoint(path, Checkpoint(weights, "float", 3, to_dict(network)))
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from accel.bundle import write_bundle
    from accel.config import HARDWARE
    from quant.checkpoint import load_qat
    from quant.export import export_encoder

    path = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(path, export_encoder(load_qat(checkpoint)), HARDWARE["ci"], {})
    return path


def test_usage_of_checkpoint_and_bundle_agree(m3vit, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    """The bundle was exported from the checkpoint: the same tokens go to the same experts."""
    results = {}
    for name, source in (("checkpoint", checkpoint), ("bundle", bundle), ("manifest", bundle / "manifest.json")):
        outcome = m3vit("experts", "usage", source, "--scenes", 6, "--seed", 3, "--out", tmp_path / name, "--json")
        assert outcome.code == 0, outcome.err
        results[name], usage = outcome.json(), load_usage(tmp_path / name)
        assert usage.images == 6 and usage.tokens["depth"] == {
            int(block): row for block, row in results[name]["tokens"]["depth"].items()
        }
        usage.check_network(open_bundle(bundle).config.network)
        assert all(sum(row) == 6 * PAIRS for rows in usage.tokens.values() for row in rows.values())
    exact, floats = (np.array(list(results[name]["tokens"]["semseg"].values())) for name in ("bundle", "checkpoint"))
    # Float32 sums may tip a tie between two experts, no more.
    assert np.abs(exact - floats).sum() <= 4
    assert results["manifest"]["tokens"] == results["bundle"]["tokens"]


def test_usage_of_a_bundle_needs_no_torch(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "usage.json"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        f"from cli.main import main\n"
        f"raise SystemExit(main(['experts', 'usage', {str(bundle)!r}, '--scenes', '2', '--out', {str(out)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "experts used" in done.stdout and f"2 images: {out}" in done.stderr
    assert load_usage(out).images == 2


def test_usage_of_a_folder_of_images(m3vit, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    out = tmp_path / "usage.json"
    assert m3vit("experts", "usage", bundle, "--images", folder, "--limit", 2, "--out", out).code == 0
    assert load_usage(out).images == 2
    missing = m3vit("experts", "usage", bundle, "--images", tmp_path / "none", "--out", out)
    assert "none: expected a directory with images" in missing.error()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", 2), "--limit needs --images or --recipe"),
        (("--images", "x", "--scenes", 3), "--scenes does not go with --images"),
        (("--recipe", "demo-scenes-multi_gate", "--seed", 3), "--seed does not go with --recipe"),
        (("--split", "train"), "--split needs --recipe"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(m3vit, bundle: Path, tmp_path: Path, options, message) -> None:
    outcome = m3vit("experts", "usage", bundle, "--out", tmp_path / "u", *options)
    assert outcome.code == 2 and message in outcome.err and not (tmp_path / "u").exists()


def test_prune_prints_and_keeps_the_index_map(m3vit, float_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned.safetensors"
    outcome = m3vit("experts", "prune", float_checkpoint, out, "--keep", 2, "--scenes", 6, "--json")
    assert outcome.code == 0, outcome.err
    report, header = outcome.json(), read_header(out)
    assert report["experts_before"] == 4 and 2 <= report["experts"] == header["network"]["experts"]
    for block, mapping in report["index_map"].items():
        kept = [int(old) for old in mapping]
        assert kept == sorted(kept) and list(mapping.values()) == list(range(report["experts"]))
        assert header["extra"]["pruned"]["experts"][block] == kept
    assert header["stage"] == "float" and header["extra"]["pruned"]["keep"] == 2
    text = m3vit("experts", "prune", float_checkpoint, out, "--keep", 4, "--scenes", 2)
    assert "0→0 1→1 2→2 3→3" in text.out and "100.0%" in text.out and "4 of 4 experts" in text.out
    used = m3vit("experts", "usage", out, "--scenes", 2, "--out", tmp_path / "usage.json")
    assert used.code == 0 and load_usage(tmp_path / "usage.json").experts == 4


def test_prune_errors(m3vit, float_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned.safetensors"
    cases = [
        ((checkpoint, out, "--keep", 2), "qat.safetensors: stage: expected float weights, found 'qat'"),
        ((float_checkpoint, out, "--keep", 5), "keep = 5: expected 1 to 4 experts per gate"),
        ((float_checkpoint, float_checkpoint, "--keep", 2), "expected another file than the checkpoint"),
        ((tmp_path / "none", out, "--keep", 2), "none: no such checkpoint"),
    ]
    for arguments, message in cases:
        assert message in m3vit("experts", "prune", *arguments, "--scenes", 2).error()
    assert not out.exists()


def test_prune_wants_the_data_that_the_network_was_made_for(m3vit, float_checkpoint: Path, tmp_path: Path) -> None:
    """A network of other tasks, and one trained on another data set, is not judged on rendered scenes."""
    from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from model.vit import MultiTaskViT

    photos, out = tmp_path / "photos", tmp_path / "pruned.safetensors"
    photos.mkdir()
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(photos / "0.png")
    other = network_from_dict({**TINY, "tasks": [{"name": "semseg", "channels": 40, "kind": "labels"}]})
    parts = tmp_path / "parts.safetensors"
    save_checkpoint(parts, Checkpoint(dict(MultiTaskViT(other).state_dict()), "float", 0, to_dict(other)))
    loaded = load_checkpoint(float_checkpoint)
    trained = tmp_path / "trained.safetensors"
    save_checkpoint(trained, Checkpoint(loaded.weights, "float", 0, loaded.network, {"dataset": "nyud"}))
    for checkpoint, why in ((parts, "its task 'semseg' is not theirs"), (trained, "it was trained on nyud")):
        error = m3vit("experts", "prune", checkpoint, out, "--keep", 2).error()
        assert error.endswith(f"(--recipe or --images), found rendered scenes: {why}") and not out.exists()
        assert m3vit("experts", "prune", checkpoint, out, "--keep", 2, "--images", photos).code == 0
        out.unlink()


def test_recipes_need_images_only_and_prune_takes_the_training_split(m3vit, tmp_path: Path) -> None:
    import shutil

    pytest.importorskip("scipy")
    from model.checkpoint import Checkpoint, save_checkpoint
    from model.vit import MultiTaskViT

    root, recipe, source = tmp_path / "NYUD_MT", tmp_path / "mine.toml", tmp_path / "float.safetensors"
    assert m3vit("data", "make-sample", "nyud", root, "--images", 3).code == 0
    for folder in ("segmentation", "depth", "normals", "edge"):
        shutil.rmtree(root / folder)
    (root / "gt_sets" / "val.txt").write_text("0004\n")
    recipe.write_text('recipe = "tiny-nyud-multi_gate"\n')
    network = network_from_dict({**TINY, "tasks": [{"name": "depth", "channels": 1, "kind": "depth"}]})
    save_checkpoint(source, Checkpoint(dict(MultiTaskViT(network).state_dict()), "float", 0, to_dict(network)))
    data = ("--recipe", recipe, "--data-root", tmp_path)
    used = m3vit("experts", "usage", source, *data, "--out", tmp_path / "usage.json", "--json")
    assert used.code == 0 and used.json()["images"] == 1, used.err
    pruned = m3vit("experts", "prune", source, tmp_path / "p.safetensors", "--keep", 2, *data, "--json")
    assert pruned.code == 0 and pruned.json()["images"] == 3, pruned.err
    wrong = m3vit("experts", "usage", source, "--recipe", "tiny-pascal-multi_gate", "--out", tmp_path / "u").error()
    assert "tasks: expected one of semseg, human_parts" in wrong


def test_help_has_examples(m3vit) -> None:
    for words in ((), ("usage",), ("prune",)):
        outcome = m3vit("experts", *words, "--help")
        assert outcome.code == 0 and "m3vit experts" in outcome.out.partition("Example")[2]


def test_windows_of_a_recipe_reach_the_bundle(m3vit, tmp_path: Path) -> None:
    """Training, evaluation and the bundle use the windows of the recipe: the golden model never leaves them."""
    recipe, run = tmp_path / "mine.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    command = ("train", recipe, "--out", run, "--quiet", "--no-tensorboard")
    assert m3vit(*command).code == 0
    windows = {"1": {"semseg": [0, 1, 2], "depth": [2, 3, 4]}}
    for stage in ("float", "qat"):
        assert read_header(run / f"{stage}.safetensors")["extra"]["expert_windows"] == windows
    assert m3vit("export", run / "qat.safetensors", tmp_path / "b", "--hardware", "ci").code == 0
    for source in (tmp_path / "b", run / "float.safetensors"):
        out = tmp_path / "usage.json"
        outcome = m3vit("experts", "usage", source, "--recipe", recipe, "--limit", 3, "--out", out)
        assert outcome.code == 0, outcome.err
        usage = load_usage(out)
        assert usage.images == 3
        assert usage.counts("semseg")[:, 3:].sum() == 0 == usage.counts("depth")[:, :2].sum()
    evaluated = m3vit("eval", recipe, run / "qat.safetensors", "--json", "--quiet")
    assert evaluated.json()["metrics"] == json.loads((run / "metrics.json").read_text())["metrics"]["qat"]
    verified = m3vit("verify", tmp_path / "b", "--backends", "golden,torch", "--frames", 1,
                     "--checkpoint", run / "qat.safetensors", "--json")  # fmt: skip
    assert verified.json()["mismatches"] == 0 and verified.json()["compared"] > 1000
    assert "this run was made with 3, asked for 4" in m3vit(*command, "--expert-windows", 4).error()
    without = m3vit(*command, "--expert-windows", 0).error()
    assert "expert_windows: " in without and "made with" in without
    bad = m3vit("train", recipe, "--out", tmp_path / "other", "--quiet", "--expert-windows", 6)
    assert bad.error() == f"{recipe}: expert_windows = 6: expert windows: per_task = 6: expected 1 to 5 experts"
