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


def test_cost_of_a_network_that_fits_no_engine(m3vit: Run, tmp_path: Path) -> None:
    path = tmp_path / "wide.json"
    path.write_text(json.dumps({**TINY, "embed_dim": 768, "heads": 12}))
    data = m3vit("cost", path, "--json").json()
    assert data["engine"]["bytes"] is None and "embed_dim" in data["engine"]["reason"]
    assert "expected a .json file" in m3vit("cost", "huge").error()


def test_cost_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None\nfrom cli.main import main\nsys.exit(main(['cost', sys.argv[1]]))"
    command = [sys.executable, "-c", script, "m3vit-demo"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0 and "GMAC" in result.stdout, result.stderr
