"""``m3vit run``, ``inspect`` and ``verify`` as a user meets them: output, exit codes, one-line errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from host_networks import TINY
from PIL import Image

from accel.bundle import write_bundle
from accel.config import hardware
from accel.layers import engine_layers
from accel.random_params import random_encoder
from cli.main import main
from host.backends import BACKENDS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def m3vit(capsys):
    """Run a command: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def fails(m3vit):
    """Run a command that must fail with one line; returns the line."""

    def run(*arguments: object) -> str:
        code, out, err = m3vit(*arguments)
        assert code == 1 and out == ""
        assert err.count("\n") == 1 and err.startswith("m3vit: error: ") and "Traceback" not in err
        return err

    return run


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle to damage."""
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def test_run_writes_pictures(m3vit, bundle, photograph, tmp_path):
    code, out, err = m3vit("run", bundle.path, "--image", photograph, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert list(report["tasks"]) == list(TINY.task_names)
    assert report["config_hash"] == bundle.config.hash
    for name, entry in report["tasks"].items():
        assert Image.open(entry["picture"]).size == (TINY.image_width, TINY.image_height)
        assert entry["counters"]["macs"] > 0
        assert set(entry["experts_used"]) == {"1", "3"}
        assert all(1 <= used <= TINY.experts for used in entry["experts_used"].values())
        assert all(sum(load) == TINY.tokens * TINY.top_k for load in entry["tokens_per_expert"].values())
        assert name in Path(entry["picture"]).name
    width, height = Image.open(report["side_by_side"]).size
    assert width > 5 * TINY.image_width and height > TINY.image_height
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_run_some_tasks_as_text(m3vit, bundle, photograph, tmp_path):
    out_dir = tmp_path / "out"
    code, out, _ = m3vit(
        "run", bundle.path, "--image", photograph, "--task", "edge", "--task", "depth", "--out", out_dir
    )
    assert code == 0 and "edge" in out and "depth" in out and "semseg" not in out
    assert {item.name for item in out_dir.iterdir()} == {"street.edge.png", "street.depth.png", "street.all.png"}


def test_run_imports_neither_torch_nor_onnx(bundle, photograph, tmp_path):
    script = (
        "import sys; from cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'brevitas'} & set(sys.modules);"
        "print(sorted(heavy)); sys.exit(code)"
    )
    arguments = ["run", bundle.path, "--image", photograph, "--task", "depth", "--out", tmp_path, "-q"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "street.depth.png").is_file()


def test_run_bad_input(fails, m3vit, bundle, photograph, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no image")
    assert "notes.png: expected a PNG or JPEG" in fails("run", bundle.path, "--image", text)
    assert "'taste': expected one of" in fails("run", bundle.path, "--image", photograph, "--task", "taste")
    line = fails("run", bundle.path, "--image", photograph, "--backend", "abacus")
    assert "'abacus': expected one of golden" in line
    (tmp_path / "empty").mkdir()
    assert "manifest.json" in fails("run", tmp_path / "empty", "--image", photograph)
    assert "found nothing" in fails("run", tmp_path / "none", "--image", photograph)
    assert "found a file" in fails("run", text, "--image", photograph)
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot write" in fails("run", bundle.path, "--image", photograph, "--out", blocked)
    code, _, err = m3vit("run", bundle.path)
    assert code == 2 and "--image" in err


def truncate(path: Path) -> str:
    victim = path / "blobs" / "blocks.1.mlp.expert.002.bin"
    victim.write_bytes(victim.read_bytes()[:-1])
    return "blocks.1.mlp.expert.002.bin: expected"


def flip(path: Path) -> str:
    victim = path / "blobs" / "blocks.0.qkv.bin"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    return "blocks.0.qkv.bin: SHA-256"


def foreign_blob(path: Path) -> str:
    other = random_encoder(dataclasses.replace(TINY, name="foreign"), seed=9)
    foreign = write_bundle(path.parent / "foreign", other, hardware("ci"))
    shutil.copy(foreign.path / "blobs" / "patch.bin", path / "blobs" / "patch.bin")
    return "patch.bin: SHA-256"


def missing_blob(path: Path) -> str:
    (path / "blobs" / "blocks.3.mlp.gate.edge.bin").unlink()
    return "blocks.3.mlp.gate.edge.bin: cannot read"


def edit_manifest(path: Path, edit) -> None:
    source = path / "manifest.json"
    manifest = json.loads(source.read_text())
    edit(manifest)
    source.write_text(json.dumps(manifest))


def unknown_field(path: Path) -> str:
    edit_manifest(path, lambda manifest: manifest.update(colour="blue"))
    return "unknown field 'colour'"


def missing_field(path: Path) -> str:
    edit_manifest(path, lambda manifest: manifest.pop("residual_exponent"))
    return "missing field 'residual_exponent'"


def missing_expert(path: Path) -> str:
    edit_manifest(path, lambda manifest: manifest["blobs"].pop("blocks.1.mlp.expert.000"))
    return "missing entry 'blocks.1.mlp.expert.000'"


def duplicate_field(path: Path) -> str:
    source = path / "manifest.json"
    source.write_text(source.read_text().replace("{", '{"version": 1,', 1))
    return "'version' is given twice"


def other_configuration(path: Path) -> str:
    edit_manifest(path, lambda manifest: manifest["config"]["network"].update(top_k=3))
    return "config_hash: expected"


def no_json(path: Path) -> str:
    (path / "manifest.json").write_text("{")
    return "not valid JSON"


DAMAGES = (
    truncate, flip, foreign_blob, missing_blob, unknown_field, missing_field, missing_expert, duplicate_field,
    other_configuration, no_json,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_damaged_bundles(fails, copy, photograph, tmp_path, damage):
    pattern = damage(copy)
    out = tmp_path / "out"
    assert pattern in fails("run", copy, "--image", photograph, "--out", out)
    assert not out.exists()
    assert pattern in fails("verify", copy, "--frames", 1, "--json")


def test_verify_golden(m3vit, bundle):
    code, out, err = m3vit("verify", bundle.path, "--backends", "golden", "--frames", 3, "--seed", 7, "--json")
    assert code == 0, err
    report = json.loads(out)
    net, tasks = TINY, len(TINY.tasks)
    assert report["backends"] == ["golden"] and report["mismatches"] == 0 and report["first_mismatch"] is None
    assert (report["frames"], report["seed"], report["config_hash"]) == (3, 7, bundle.config.hash)
    # Counted anew from the dimensions: nothing may be left out silently.
    tokens, width = net.tokens, net.embed_dim
    block = tokens * width * 5  # qkv (3), attn_residual, residual
    live = tasks * (tokens * width + net.depth * block + len(net.moe_blocks))
    replay = tasks * sum(layer.tokens * layer.outputs for layer in engine_layers(bundle.config))
    assert report["compared"] == 3 * (live + replay)
    # The host's share is checked, but does not count: norm1, attention, norm2 and the heads.
    head = sum((tokens - 1) * (width + net.head_hidden + 64 * task.channels) for task in net.tasks)
    assert report["host_compared"] == 3 * (tasks * net.depth * tokens * width * 3 + head)
    assert not {"norm1", "attention", "norm2", "head.output"} & set(report["per_boundary"])
    assert report["per_backend"]["golden"]["compared"] == report["compared"]
    assert sum(kind["compared"] for kind in report["per_boundary"].values()) == report["compared"]
    assert sum(task["compared"] for task in report["per_task"].values()) == report["compared"]
    assert list(report["per_task"]) == list(net.task_names)
    assert report["per_boundary"]["queues"]["compared"] == 3 * tasks * len(net.moe_blocks)


def test_verify_on_images_and_some_tasks(m3vit, bundle, photograph):
    code, out, _ = m3vit(
        "verify", bundle.path, "--images", photograph.parent, "--tasks", "depth,edge", "--frames", 9, "--json"
    )
    report = json.loads(out)
    assert code == 0 and report["frames"] == 1 and report["tasks"] == ["depth", "edge"]


def test_verify_as_text(m3vit, bundle):
    code, out, _ = m3vit("verify", bundle.path, "--frames", 1, "--tasks", "edge")
    assert code == 0 and "replay.qkv" in out and "all equal" in out


def test_verify_onnx(m3vit, bundle):
    pytest.importorskip("onnxruntime")
    code, out, err = m3vit("verify", bundle.path, "--backends", "golden,onnx", "--frames", 2, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["per_backend"]["onnx"]["mismatches"] == 0
    assert report["per_boundary"]["topk"]["compared"] == 2 * 4 * 2 * TINY.tokens * TINY.top_k


@pytest.mark.parametrize("routing", ["multi_gate", "task_conditioned"])
def test_verify_torch(m3vit, fails, bundle, tmp_path, routing):
    torch = pytest.importorskip("torch")
    pytest.importorskip("brevitas")
    from model.vit import MultiTaskViT
    from quant.checkpoint import save_qat
    from quant.export import export_encoder
    from quant.qat import QuantMultiTaskViT

    embed = 8 if routing == "task_conditioned" else 0
    net = dataclasses.replace(TINY, depth=2, tasks=TINY.tasks[:2], routing=routing, task_embed_dim=embed)
    torch.manual_seed(0)
    quantized = QuantMultiTaskViT.from_float(MultiTaskViT(net))
    quantized.calibrate(torch.randint(0, 256, (4, 16, 24, 3), dtype=torch.uint8))
    checkpoint = tmp_path / "qat.safetensors"
    save_qat(checkpoint, quantized.eval())
    exported = write_bundle(tmp_path / "exported", export_encoder(quantized), hardware("ci"))
    arguments = ("--backends", "golden,torch", "--frames", 2, "--json", "--checkpoint", checkpoint)
    code, out, err = m3vit("verify", exported.path, *arguments)
    assert code == 0, out + err
    report = json.loads(out)
    assert report["per_backend"]["torch"]["mismatches"] == 0
    assert report["per_boundary"]["weights"]["compared"] == 2 * 2 * TINY.tokens * TINY.top_k
    # Weights of another model: found, and located.
    foreign = write_bundle(tmp_path / "foreign", random_encoder(net, seed=5), hardware("ci"))
    code, out, _ = m3vit("verify", foreign.path, *arguments)
    report = json.loads(out)
    assert code == 1 and report["mismatches"] > 0
    assert report["first_mismatch"]["backend"] == "torch" and report["first_mismatch"]["boundary"] == "embed"
    assert report["per_backend"]["golden"]["mismatches"] == 0
    other = write_bundle(tmp_path / "o", random_encoder(dataclasses.replace(net, top_k=1)), hardware("ci"))
    assert "network: expected the one of" in fails("verify", other.path, *arguments)


def test_verify_bad_input(fails, bundle, tmp_path):
    line = fails("verify", bundle.path, "--backends", "golden,abacus")
    assert f"'abacus': expected one of {', '.join(BACKENDS)}, onnx, torch" in line
    assert "expected at least one of" in fails("verify", bundle.path, "--backends", ",")
    assert "'taste': expected one of" in fails("verify", bundle.path, "--tasks", "edge,taste")
    assert "--checkpoint" in fails("verify", bundle.path, "--backends", "torch")
    (tmp_path / "none").mkdir()
    assert "expected images" in fails("verify", bundle.path, "--images", tmp_path / "none")


def test_inspect_bundle(m3vit, bundle):
    code, out, _ = m3vit("inspect", bundle.path, "--json")
    report = json.loads(out)
    assert code == 0 and report["config_hash"] == bundle.config.hash
    assert [layer["name"] for layer in report["layers"]] == [layer.name for layer in engine_layers(bundle.config)]
    moe = report["layers"][6]
    assert (moe["kind"], moe["experts"], moe["units_per_expert"]) == ("moe", 4, 2)
    files = list((bundle.path / "blobs").iterdir())
    assert report["blobs"] == len(files) and report["bytes"] == sum(file.stat().st_size for file in files)
    assert len(report["gates"]) == 8
    code, text, _ = m3vit("inspect", bundle.path / "manifest.json")
    assert code == 0 and bundle.config.hash in text and "blocks.3.mlp" in text


def test_inspect_layer_and_program(m3vit, fails, bundle):
    _, out, _ = m3vit("inspect", bundle.path, "--layer", "blocks.1.mlp", "--json")
    layer = json.loads(out)["layers"][0]
    assert len(layer["blobs"]) == 4 + 4 and all(len(blob["sha256"]) == 64 for blob in layer["blobs"].values())
    assert "blocks.1.mlp.expert.003" in m3vit("inspect", bundle.path, "--layer", "blocks.1.mlp")[1]
    programs = {}
    for task in ("depth", "edge"):
        _, out, _ = m3vit("inspect", bundle.path, "--program", task, "--json")
        programs[task] = json.loads(out)["program"]
    opcodes = [entry["opcode"] for entry in programs["depth"][:5]]
    assert opcodes == ["ACCUMULATE", "LINEAR", "ACCUMULATE", "MLP", "LINEAR"]
    different = [
        (first["name"], {key for key in first if first[key] != second[key]})
        for first, second in zip(*programs.values(), strict=True)
        if first != second
    ]
    assert different == [(f"blocks.{block}.mlp", {"gate"}) for block in (1, 3)], "a task is only its gates"
    assert "MOE" in m3vit("inspect", bundle.path, "--program", "edge")[1]
    assert "expected one of patch" in fails("inspect", bundle.path, "--layer", "blocks.9.mlp")
    assert "'taste'" in fails("inspect", bundle.path, "--program", "taste")


def write_safetensors(path: Path, metadata: dict[str, str] | None, **tensors: np.ndarray) -> Path:
    """The file format, written by hand: length, JSON header, data."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in tensors.items():
        raw = array.astype("<f4").tobytes()
        header[name.replace("__", "/")] = {
            "dtype": "F32", "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_inspect_checkpoint(m3vit, fails, tmp_path):
    network = {"name": "tiny", "depth": 4, "tasks": [{"name": "depth"}]}
    fields = {"stage": "qat", "step": 12, "network": network, "options": {"lr": 0.1}, "metrics": {}, "extra": {}}
    metadata = {"format": "m3vit-checkpoint", "version": "1", "header": json.dumps(fields)}
    good = write_safetensors(
        tmp_path / "good.safetensors", metadata, weight=np.zeros((3, 5)), optimizer__exp_avg=np.zeros(7)
    )
    report = json.loads(m3vit("inspect", good, "--json")[1])
    assert report["type"] == "checkpoint" and report["stage"] == "qat" and report["step"] == 12
    assert (report["tensors"], report["parameters"], report["optimizer_tensors"]) == (1, 15, 1)
    assert "qat, step 12" in m3vit("inspect", good)[1]
    foreign = write_safetensors(tmp_path / "foreign.safetensors", {"format": "pt"}, weight=np.zeros(2))
    assert "format: expected 'm3vit-checkpoint', found 'pt'" in fails("inspect", foreign)
    plain = write_safetensors(tmp_path / "plain.safetensors", None, weight=np.zeros(2))
    assert "damaged or foreign header" in fails("inspect", plain)
    lacking = {**metadata, "header": json.dumps({**fields, "step": "twelve"})}
    assert "header: step: expected int" in fails("inspect", write_safetensors(tmp_path / "l.safetensors", lacking))
    short = tmp_path / "short.safetensors"
    short.write_bytes(good.read_bytes()[:60])
    assert "header: expected" in fails("inspect", short)
    pickled = tmp_path / "pickled.pt"
    pickled.write_bytes(b"PK\x03\x04 and so on, for a while")
    assert "pickle" in fails("inspect", pickled)
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "found another file" in fails("inspect", tmp_path / "empty.pt")
    assert "found a file" in fails("inspect", good, "--layer", "patch")
    assert "found nothing" in fails("inspect", tmp_path / "none")


def test_inspect_reads_no_weights(m3vit, copy):
    shutil.rmtree(copy / "blobs")
    assert m3vit("inspect", copy)[0] == 0
