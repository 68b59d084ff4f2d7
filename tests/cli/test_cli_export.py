"""``m3vit export``: three sources, provenance, bad input, full disks, kills."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome, environment, finish, start

from accel.bundle import open_bundle
from accel.config import HARDWARE
from accel.errors import BundleError

Run = Callable[..., Outcome]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def export_random(m3vit: Run, tiny_json: Path, target: Path, seed: int = 0) -> dict:
    outcome = m3vit("export", "--random", tiny_json, target, "--seed", seed, "--hardware", "ci", "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json()


def test_random_is_deterministic_by_seed(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    facts = export_random(m3vit, tiny_json, tmp_path / "a")
    bundle = open_bundle(tmp_path / "a")
    bundle.verify()
    assert facts["blobs"] == len(bundle.blob_names)
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "a" / "blobs").iterdir())
    assert facts["config_hash"] == bundle.config.hash
    assert bundle.manifest["provenance"]["source"] == "random" and bundle.manifest["provenance"]["seed"] == 0
    export_random(m3vit, tiny_json, tmp_path / "b")
    export_random(m3vit, tiny_json, tmp_path / "c", seed=1)
    a, b, c = (tree(tmp_path / name / "blobs") for name in "abc")
    assert a == b
    assert a.keys() == c.keys() and all(a[name] != c[name] for name in a)


def test_same_date_same_bytes(m3vit: Run, tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in "ab":
        export_random(m3vit, tiny_json, tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert open_bundle(tmp_path / "a").manifest["provenance"]["created"] == "2023-11-14T22:13:20+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    error = m3vit("export", "--random", tiny_json, tmp_path / "a").error()
    assert error == "environment: SOURCE_DATE_EPOCH: expected seconds since 1970, found 'yesterday'"


def test_packed_again_for_other_hardware(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    export_random(m3vit, tiny_json, tmp_path / "a")
    outcome = m3vit("export", "--from-bundle", tmp_path / "a", tmp_path / "b", "--hardware", "zcu104", "--json")
    assert outcome.code == 0, outcome.err
    old, new = open_bundle(tmp_path / "a"), open_bundle(tmp_path / "b")
    assert new.config.hardware == HARDWARE["zcu104"] and new.config.network == old.config.network
    assert new.manifest["provenance"]["origin"] == old.manifest["provenance"]
    for (*place, unit), (*other_place, other) in zip(old.encoder.units(), new.encoder.units(), strict=True):
        assert place == other_place
        for a, b in ((unit.first, other.first), (unit.second, other.second)):
            assert np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)
            assert np.array_equal(a.shift, b.shift)
    # And back: the same bytes as the first time.
    assert m3vit("export", "--from-bundle", tmp_path / "b", tmp_path / "c", "--hardware", "ci").code == 0
    assert tree(tmp_path / "a" / "blobs") == tree(tmp_path / "c" / "blobs")


def test_checkpoint(m3vit: Run, checkpoint: Path, tmp_path: Path) -> None:
    import hashlib

    from quant.checkpoint import load_qat
    from quant.export import export_encoder

    outcome = m3vit("export", checkpoint, tmp_path / "b", "--hardware", "ci")
    assert outcome.code == 0, outcome.err
    assert "tiny@ci" in outcome.out and "exported in" in outcome.err
    bundle = open_bundle(tmp_path / "b")
    facts = bundle.manifest["provenance"]["checkpoint"]
    assert facts["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (facts["file"], facts["step"], facts["seed"]) == ("qat.safetensors", 7, 1)
    assert str(checkpoint.parent) not in json.dumps(bundle.manifest)
    expected = export_encoder(load_qat(checkpoint))
    assert np.array_equal(bundle.encoder.position, expected.position)
    for (*_, unit), (*_, other) in zip(bundle.encoder.units(), expected.units(), strict=True):
        assert np.array_equal(unit.first.weight, other.first.weight)


def test_onnx_files(m3vit: Run, checkpoint: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    outcome = m3vit("export", checkpoint, tmp_path / "b", "--onnx", "--json")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "b.onnx"
    assert outcome.json()["onnx"] == [str(folder / "semseg.onnx"), str(folder / "depth.onnx")]
    for path in folder.iterdir():
        onnx.checker.check_model(onnx.load(path))
    open_bundle(tmp_path / "b").verify()
    assert m3vit("export", checkpoint, tmp_path / "b", "--onnx", "--onnx-dir", tmp_path / "o").code == 0
    assert tree(tmp_path / "o") == tree(folder)


def test_qcdq_file(m3vit: Run, checkpoint: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    outcome = m3vit("export", checkpoint, tmp_path / "b", "--qcdq", "--json")
    assert outcome.code == 0, outcome.err
    (path,) = outcome.json()["onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert any(node.op_type == "DequantizeLinear" for node in model.graph.node)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected CHECKPOINT BUNDLE, found 0 paths"),
        (["a"], "expected CHECKPOINT BUNDLE, found 1 path"),
        (["a", "b", "--random", "m3vit-demo"], "expected BUNDLE, found 2 paths"),
        (["--random", "m3vit-demo", "--from-bundle", "a", "b"], "exclude each other"),
        (["a", "b", "--seed", "1"], "--seed only goes with --random"),
        (["--from-bundle", "a", "b", "--weight-bits", "4"], "--weight-bits only goes with --random"),
        (["--random", "m3vit-demo", "b", "--qcdq"], "--qcdq only goes with a CHECKPOINT"),
        (["--random", "m3vit-demo", "."], "expected a path that ends in a name"),
    ],
)
def test_options_that_would_have_no_effect(m3vit: Run, arguments: list[str], message: str) -> None:
    outcome = m3vit("export", *arguments)
    assert outcome.code == 2 and message in outcome.err


def test_bad_checkpoints(m3vit: Run, checkpoint: Path, tmp_path: Path) -> None:
    import torch

    target, bad = tmp_path / "b", tmp_path / "bad.safetensors"

    def error(path: Path = bad) -> str:
        message = m3vit("export", path, target).error()
        assert str(path) in message
        assert not target.exists()
        return message

    assert "no such checkpoint" in error()
    bad.write_bytes(b"not a checkpoint at all")
    assert "not a checkpoint" in error()
    bad.write_bytes(b"")
    assert "not a checkpoint" in error()
    whole = checkpoint.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    assert "checkpoint" in error()
    assert "found a directory" in error(tmp_path)
    torch.save({"weights": torch.zeros(1)}, bad)
    assert "pickle" in error()


class _Exploding:
    def __reduce__(self) -> tuple:
        return os._exit, (99,)


def test_pickled_code_is_not_run(m3vit: Run, tmp_path: Path) -> None:
    import pickle

    import torch

    for name, write in (
        ("zip.pt", lambda path: torch.save({"x": _Exploding()}, path)),
        ("raw.pkl", lambda path: path.write_bytes(pickle.dumps(_Exploding()))),
        ("old.pkl", lambda path: path.write_bytes(pickle.dumps(_Exploding(), protocol=0))),
    ):
        write(tmp_path / name)
        assert name in m3vit("export", tmp_path / name, tmp_path / "b").error()


def test_float_checkpoint_is_refused(m3vit: Run, tmp_path: Path) -> None:
    from command_line import TINY

    from accel.config import network_from_dict, to_dict
    from model.checkpoint import Checkpoint, save_checkpoint
    from model.vit import MultiTaskViT

    network = network_from_dict(TINY)
    path = tmp_path / "float.safetensors"
    save_checkpoint(path, Checkpoint(dict(MultiTaskViT(network).state_dict()), "float", 1, to_dict(network)))
    assert "stage: expected 'qat', found 'float'" in m3vit("export", path, tmp_path / "b").error()


def test_other_errors(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        return m3vit("export", *arguments).error()

    assert "network 'no-such': expected a .json file" in error("--random", "no-such", tmp_path / "b")
    assert "hardware 'u250'" in error("--random", "m3vit-demo", tmp_path / "b", "--hardware", "u250")
    assert "tokens = 1025: expected at most max_tokens = 256" in error(
        "--random", "m3vit-small-pascal", tmp_path / "b", "--hardware", "ci"
    )
    assert "weight_bits = 9" in error("--random", tiny_json, tmp_path / "b", "--weight-bits", "9")
    assert "expected a bundle directory, found nothing" in error("--from-bundle", tmp_path / "x", tmp_path / "b")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"1")
    assert "not overwritten" in error("--random", tiny_json, tmp_path / "photos")
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"1"
    assert "expected a directory, found a file" in error("--random", tiny_json, tmp_path / "photos" / "holiday.jpg")
    assert "cannot write" in error("--random", tiny_json, tmp_path / "photos" / "holiday.jpg" / "b")


def test_damaged_bundle_is_not_packed_again(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    export_random(m3vit, tiny_json, tmp_path / "a")
    blob = next((tmp_path / "a" / "blobs").glob("*expert*"))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 4
    blob.write_bytes(data)
    assert blob.name in m3vit("export", "--from-bundle", tmp_path / "a", tmp_path / "b").error()
    assert not (tmp_path / "b").exists()


def _siblings(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


@pytest.mark.parametrize("failing", [0, 5, 20])
def test_full_disk_leaves_the_old_bundle(
    m3vit: Run, tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    target = tmp_path / "b"
    export_random(m3vit, tiny_json, target)
    before, siblings = tree(target), _siblings(target)
    write, count = Path.write_bytes, 0

    def full(path: Path, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    error = m3vit("export", "--random", tiny_json, target, "--seed", "1").error()
    assert error == f"{target}: cannot write: No space left on device"
    assert count == failing + 1
    assert tree(target) == before and _siblings(target) == siblings


def test_file_size_limit_leaves_the_old_bundle(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    """The same from the operating system itself: every file of more than 1,024 bytes fails to be written."""
    target = tmp_path / "b"
    export_random(m3vit, tiny_json, target)
    before, siblings = tree(target), _siblings(target)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    outcome = finish(start("export", "--random", tiny_json, target, "--seed", 1, preexec_fn=limit))
    assert outcome.error() == f"{target}: cannot write: File too large"
    assert tree(target) == before and _siblings(target) == siblings


EXPORT_FOREVER = """
import sys
from cli.main import main

def export(target, seed):
    assert main(["export", "--random", sys.argv[1], target, "--seed", str(seed), "--hardware", "ci", "-q"]) == 0

export(sys.argv[2] + "-warm", 0)
print("ready", file=sys.stderr, flush=True)
for seed in range(1, 1000):
    export(sys.argv[2], seed)
"""


@pytest.mark.parametrize("old", [True, False])
def test_killed_at_random_moments(m3vit: Run, tiny_json: Path, tmp_path: Path, old: bool) -> None:
    rng = random.Random(20)
    kills = new = 0
    target = tmp_path / "b"
    reference = tmp_path / "reference"
    export_random(m3vit, tiny_json, reference)
    for _ in range(7):
        shutil.rmtree(target, ignore_errors=True)
        if old:
            shutil.copytree(reference, target)
        process = subprocess.Popen(
            [sys.executable, "-c", EXPORT_FOREVER, str(tiny_json), str(target)],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None and process.stderr.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        rest = process.stderr.read()
        process.stderr.close()
        assert process.wait() == -signal.SIGKILL and rest == ""
        kills += 1
        if not old and not target.exists():
            with pytest.raises(BundleError, match="found nothing"):
                open_bundle(target)
            continue
        bundle = open_bundle(target)
        bundle.verify()
        assert len(bundle.encoder.blocks) == 4
        new += bundle.manifest["provenance"]["seed"] > 0
        # Whatever the kill left does not stop the next export.
        export_random(m3vit, tiny_json, target, seed=3)
        assert tree(target / "blobs") != tree(reference / "blobs")
    assert kills == 7 and new > 0
