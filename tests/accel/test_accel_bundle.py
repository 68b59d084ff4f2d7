"""Bundles: what is written is read back, and every kind of damage is one line that names file and field."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accel_cases import CONDITIONED, NETWORK, changed, leaves, one_line, with_pup_heads

from accel.bundle import Bundle, open_bundle, write_bundle
from accel.config import Formats, hardware
from accel.errors import BundleError, ConfigError, ExportError, M3vitError
from accel.params import Encoder
from accel.random_params import random_encoder

CI = hardware("ci")


def files(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}


def same(found: Encoder, expected: Encoder) -> int:
    """Compare every array and number; returns how many integers and floats were equal."""
    values = 0
    ours, theirs = list(leaves(found)), list(leaves(expected))
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        assert type(a) is type(b), name
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b), name
            values += b.size
        else:
            assert a == b, name
            values += 1
    return values


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk where nothing is learnt from it."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# ---- round trip -----------------------------------------------------------------------


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("formats", [Formats(), Formats(weight_bits=4, activation_bits=4)], ids=["8-bit", "4-bit"])
@pytest.mark.parametrize("engine", ["ci", "zcu104"])
@pytest.mark.parametrize("heads", ["light", "pup"])
@pytest.mark.parametrize("network", [NETWORK, CONDITIONED], ids=lambda network: network.name)
def test_round_trip(tmp_path: Path, network: Any, heads: str, engine: str, formats: Formats) -> None:
    encoder = random_encoder(network, formats, seed=3)
    if heads == "pup":
        encoder = with_pup_heads(encoder)
    written = write_bundle(tmp_path / "b", encoder, hardware(engine), {"seed": 3})
    opened = open_bundle(str(tmp_path / "b"))
    opened.verify()
    dense = 16 * 192 + 4 * 4 * 16 * 16 + 2 * 2 * 2 * 16 * 16  # patch, qkv and proj, dense MLPs
    assert same(opened.encoder, encoder) > dense + 2 * 5 * 2 * 2 * 16 * 16
    assert same(written.encoder, encoder) > 0
    assert opened.config.hardware == hardware(engine)
    assert opened.manifest["provenance"] == {"seed": 3}
    assert opened.manifest["config_hash"] == opened.config.hash
    assert {f"blobs/{name}.bin" for name in opened.blob_names} | {"manifest.json"} == set(files(tmp_path / "b"))
    assert sum(".expert." in name for name in opened.blob_names) == 2 * network.experts
    assert sum(".gate." in name for name in opened.blob_names) == 2 * len(network.tasks)


@pytest.mark.usefixtures("unsynced")
def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    names = []
    for name in ("a", "b"):
        write_bundle(tmp_path / name, random_encoder(NETWORK, seed=1), CI, {"x": [1, 2]},
                     progress=lambda *step: names.append(step))  # fmt: skip
    first = files(tmp_path / "a")
    assert first == files(tmp_path / "b")
    bundle = open_bundle(tmp_path / "a")
    count = len(bundle.blob_names)
    assert names == [(name, index, count) for index, name in enumerate(bundle.blob_names)] * 2
    write_bundle(tmp_path / "b", random_encoder(NETWORK, seed=2), CI, {"x": [1, 2]})
    assert first != files(tmp_path / "b")


# ---- damaged blobs --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "b"
    write_bundle(path, random_encoder(NETWORK, seed=5), CI)
    return path


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


KINDS = (
    "patch", "blocks.0.qkv", "blocks.2.proj", "blocks.0.mlp", "blocks.3.mlp.expert.004", "blocks.1.mlp.gate.depth",
    "heads.edge.fc1", "heads.semseg.fc2", "host",
)  # fmt: skip


def blob(path: Path, name: str) -> Path:
    return path / "blobs" / f"{name}.bin"


def refused(path: Path) -> str:
    """The same line from reading everything and from building the encoder."""
    messages = []
    for use in (lambda bundle: bundle.verify(), lambda bundle: bundle.encoder):
        with pytest.raises(BundleError) as error:
            use(open_bundle(path))
        messages.append(one_line(error.value))
    assert messages[1].endswith(messages[0])
    return messages[0]


@pytest.mark.parametrize("name", KINDS)
def test_damage_of_each_kind_of_blob_is_noticed(copy: Path, name: str) -> None:
    file = blob(copy, name)
    data = file.read_bytes()
    size = len(data)
    for place in (0, size // 2, size - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert refused(copy).startswith(f"{file}: SHA-256 expected ")
    file.write_bytes(data[:-1])
    assert refused(copy) == f"{file}: expected {size} bytes, found {size - 1}"
    file.write_bytes(data + b"\0")
    assert refused(copy) == f"{file}: expected {size} bytes, found {size + 1}"
    file.write_bytes(b"")
    assert refused(copy) == f"{file}: expected {size} bytes, found 0"
    file.unlink()
    assert refused(copy) == f"{file}: cannot read blob: No such file or directory"
    file.mkdir()
    assert refused(copy) == f"{file}: cannot read blob: Is a directory"
    file.rmdir()
    file.write_bytes(data)
    open_bundle(copy).verify()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("blocks.1.mlp.expert.000", "blocks.1.mlp.expert.003"),
        ("blocks.1.mlp.expert.001", "blocks.3.mlp.expert.001"),
        ("blocks.1.mlp.gate.depth", "blocks.1.mlp.gate.edge"),
        ("blocks.0.qkv", "blocks.2.qkv"),
    ],
)
def test_swapped_blobs_are_noticed(copy: Path, first: str, second: str) -> None:
    a, b = blob(copy, first), blob(copy, second)
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    assert refused(copy).startswith(f"{a}: SHA-256")


@pytest.mark.usefixtures("unsynced")
def test_blob_of_another_bundle_is_noticed(copy: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", random_encoder(NETWORK, seed=6), CI)
    for name in ("blocks.1.mlp.expert.002", "host"):
        data = blob(copy, name).read_bytes()
        shutil.copy(blob(tmp_path / "other", name), blob(copy, name))
        assert "damaged, or a blob of another bundle" in refused(copy)
        blob(copy, name).write_bytes(data)


def test_unknown_blob_is_refused(pristine: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest.json: blobs: expected an entry 'blocks.9.qkv', found none"):
        open_bundle(pristine).blob("blocks.9.qkv")


def rewrite(path: Path, name: str, edit: Callable[[bytearray], None]) -> None:
    """Change a blob and its entry in the manifest, as a careless tool would."""
    data = bytearray(blob(path, name).read_bytes())
    edit(data)
    blob(path, name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(path, lambda manifest: manifest["blobs"].update({name: entry}))


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        # Logical byte 128 (after 16 biases and 16 shifts, padded to lines) is the first weight: line 2 of port 0.
        ("blocks.0.proj", lambda data: data.__setitem__(32, 0x80), "blocks.0.proj.weight: expected a value from -127"),
        # Shifts follow the 64 bytes of biases: line 1 of port 0.
        ("blocks.0.proj", lambda data: data.__setitem__(16, 40), "blocks.0.proj.shift: expected a value from -8 to 31"),
        ("blocks.0.proj", lambda data: data.__setitem__(slice(4), b"\xff\xff\xff\x7f"), "blocks.0.proj: accumulator"),
        ("blocks.0.proj", lambda data: data.extend(bytes(1024)), "blocks.0.proj: expected 1024 bytes, found 2048"),
        ("blocks.1.mlp.expert.001", lambda data: data.extend(bytes(1024)), "blocks.1.mlp.expert.001: expected 2048"),
        ("blocks.1.mlp.gate.edge", lambda data: data.extend(bytes(1024)), "expected a gate table of 1024 bytes"),
        # The gate has 5 experts: the bias of lane 5 is padding, byte 20 of line 0, which is byte 4 of port 1.
        ("blocks.1.mlp.gate.edge", lambda data: data.__setitem__(256 + 4, 1), "expected zero padding lanes"),
    ],
)
def test_contents_are_checked_even_where_hashes_fit(
    copy: Path, name: str, edit: Callable[[bytearray], None], message: str
) -> None:
    rewrite(copy, name, edit)
    bundle = open_bundle(copy)
    bundle.verify()
    with pytest.raises(BundleError) as error:
        _ = bundle.encoder
    assert one_line(error.value).startswith(f"{copy}: ") and message in str(error.value)


# ---- damaged manifests ----------------------------------------------------------------


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    source = path / "manifest.json"
    manifest = json.loads(source.read_text())
    edit(manifest)
    source.write_text(json.dumps(manifest))


def put(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = to

    return edit


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return edit


EXPERT = "blocks.3.mlp.expert.001"
MANIFESTS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (put("colour", to=1), ": unknown field 'colour': expected only format, version, "),
    (put("blobs", "host", "mode", to=1), ".blobs.host: unknown field 'mode': expected only bytes, sha256"),
    (put("norms", "blocks.0.norm1", "mean", to=1), ".norms.blocks.0.norm1: unknown field 'mean'"),
    (put("config", "network", "colour", to=1), ": config.network: unknown field 'colour'"),
    (put("config", "colour", to=1), ": config: unknown field 'colour'"),
    (drop("residual_exponent"), ": missing field 'residual_exponent'"),
    (drop("blobs", EXPERT, "sha256"), f".blobs.{EXPERT}: missing field 'sha256'"),
    (drop("arrays", "position", "offset"), ".arrays.position: missing field 'offset'"),
    (drop("gates", "blocks.1.mlp.gate.edge", "shift"), ".gates.blocks.1.mlp.gate.edge: missing field 'shift'"),
    (drop("config", "network"), ": config: missing field 'network'"),
    (drop("config", "network", "depth"), ": config.network: missing field 'depth'"),
    (put("residual_exponent", to="-10"), ".residual_exponent: expected int, found str '-10'"),
    (put("residual_exponent", to=-10.0), ".residual_exponent: expected int, found float -10.0"),
    (put("residual_exponent", to=None), ".residual_exponent: expected int, found NoneType"),
    (put("engine_hash", to=True), ".engine_hash: expected int, found bool True"),
    (put("norms", to=[]), ".norms: expected a table of fields, found list"),
    (put("arrays", "position", "shape", to=7), ".arrays.position.shape: expected a list, found int"),
    (put("arrays", "position", "shape", to=[7, "16"]), ".arrays.position.shape[1]: expected int, found str"),
    (put("blobs", "host", "bytes", to="12"), ".blobs.host.bytes: expected int, found str"),
    (put("config", "network", "depth", to="4"), ": config.network: depth = '4': expected int, found str"),
    (put("config", to=[]), ": config: expected a table of fields, found list"),
    (put("version", to=2), ": version: expected 1, found 2"),
    (put("version", to=True), ".version: expected int, found bool True"),
    (drop("version"), ": version: expected 1, found None"),
    (put("format", to="zip"), ": format: expected 'm3vit-bundle', found 'zip'"),
    (drop("format"), ": format: expected 'm3vit-bundle', found None"),
    (put("config_hash", to="0" * 16), ": config_hash: expected "),
    (put("config", "network", "top_k", to=3), ": config_hash: expected "),
    (put("config", "network", "name", to="renamed"), ": config_hash: expected "),
    (put("engine_hash", to=1), ": engine_hash: expected "),
    (put("tables", "EXP2", to="0" * 64), ": tables: expected the hashes of this contract, found "),
    (drop("tables", "RSQRT"), ": tables: expected the hashes"),
    (drop("blobs", EXPERT), f": blobs: missing entry '{EXPERT}'"),
    (drop("blobs", "blocks.1.mlp.gate.edge"), ": blobs: missing entry 'blocks.1.mlp.gate.edge'"),
    (drop("blobs", "heads.edge.fc2"), ": blobs: missing entry 'heads.edge.fc2'"),
    (drop("blobs", "host"), ": blobs: missing entry 'host'"),
    (put("blobs", "blocks.3.mlp.expert.005", to={"bytes": 1, "sha256": ""}), ": blobs: unknown entry 'blocks.3.mlp"),
    (put("blobs", "../../etc/passwd", to={"bytes": 1, "sha256": ""}), ": blobs: unknown entry '../../etc/passwd'"),
    (drop("gates", "blocks.1.mlp.gate.edge"), ": gates: missing entry 'blocks.1.mlp.gate.edge'"),
    (put("gates", "blocks.0.mlp.gate.edge", to={"shift": 1}), ": gates: unknown entry 'blocks.0.mlp.gate.edge'"),
    (drop("norms", "heads.depth.norm"), ": norms: missing entry 'heads.depth.norm'"),
    (drop("attention", "blocks.2"), ": attention: missing entry 'blocks.2'"),
    (put("attention", "blocks.4", to={"score_shift": 1, "output_shift": 1}), ": attention: unknown entry 'blocks.4'"),
    (drop("arrays", "blocks.3.norm2.beta"), ": arrays: missing entry 'blocks.3.norm2.beta'"),
    (put("arrays", "more", to={"dtype": "int8", "shape": [1], "offset": 0}), ": arrays: unknown entry 'more'"),
    (put("heads", "semseg", "kind", to="deep"), ": heads.semseg.kind: expected 'light' or 'pup', found 'deep'"),
    (drop("heads", "semseg"), ": "),
    (put("heads", "flow", to={"kind": "pup", "exponent": 0}), ": heads: unknown entry 'flow'"),
]


@pytest.mark.parametrize(("edit", "message"), MANIFESTS, ids=[f"{i}-{m[1][:40]}" for i, m in enumerate(MANIFESTS)])
def test_bad_manifests_are_refused_when_opened(
    copy: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_manifest(copy, edit)
    with pytest.raises((BundleError, ConfigError)) as error:
        open_bundle(copy)
    assert one_line(error.value).startswith(f"{copy / 'manifest.json'}{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON: Expecting value"),
        ("{", "not valid JSON"),
        ('{"format": "m3vit-bundle",', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        ("[]", "format: expected 'm3vit-bundle', found 'list'"),
        ("null", "format: expected 'm3vit-bundle', found 'NoneType'"),
        ('"m3vit-bundle"', "format: expected 'm3vit-bundle', found 'str'"),
        ('{"version": 1, "version": 1}', "field 'version' is given twice"),
        (b"\xff\xfe{}", "cannot read manifest: 'utf-8'"),
    ],
)
def test_texts_that_are_no_manifest(copy: Path, text: str | bytes, message: str) -> None:
    source = copy / "manifest.json"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((BundleError, ConfigError)) as error:
        open_bundle(copy)
    assert one_line(error.value).startswith(f"{source}: {message}")


def test_nested_field_given_twice(copy: Path) -> None:
    source = copy / "manifest.json"
    source.write_text(source.read_text().replace('"depth": 4', '"depth": 4, "depth": 2', 1))
    with pytest.raises(ConfigError, match="field 'depth' is given twice"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("arrays", "position", "offset", to=-64), "arrays.position: expected to end within "),
        (put("arrays", "position", "offset", to=1 << 70), "arrays.position: expected to end within "),
        (put("arrays", "position", "shape", to=[7, 2000]), "arrays.position: expected to end within "),
        (put("arrays", "position", "shape", to=[7, -16]), "arrays.position.shape: expected at most 4 sizes from 0"),
        (put("arrays", "position", "shape", to=[-7, -16]), "arrays.position.shape: expected at most 4 sizes"),
        (put("arrays", "position", "shape", to=[1 << 32, 1 << 32]), "arrays.position.shape: expected at most"),
        (put("arrays", "position", "shape", to=[0, 1 << 70]), "arrays.position.shape: expected at most"),
        (put("arrays", "position", "shape", to=[1] * 100), "arrays.position.shape: expected at most 4 sizes"),
        (put("arrays", "position", "shape", to=[16, 7]), "position: expected shape (7, 16), found (16, 7)"),
        (put("arrays", "position", "dtype", to="int64"), "arrays.position.dtype: expected one of int16, int32, int8"),
        (put("arrays", "position", "dtype", to="int8"), "position: expected int16, found int8"),
        (put("arrays", "heads.edge.gelu", "shape", to=[]), "heads.edge.gelu: expected shape (256,), found ()"),
        (put("residual_exponent", to=16), "residual_exponent: expected a value from -31 to 15, found 16"),
        (put("norms", "blocks.1.norm2", "eps", to=-1), "blocks.1.norm2.eps: expected a value from 0"),
        (put("attention", "blocks.2", "score_shift", to=99), "blocks.2.attention.score_shift: expected a value"),
        (put("gates", "blocks.1.mlp.gate.depth", "shift", to=99), "blocks.1.gates.depth.shift: expected a value"),
        (put("heads", "depth", "exponent", to=99), "heads.depth.exponent: expected a value from -31 to 15, found 99"),
    ],
)
def test_values_out_of_range_are_refused_when_used(
    copy: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_manifest(copy, edit)
    with pytest.raises(BundleError) as error:
        _ = open_bundle(copy).encoder
    assert one_line(error.value).startswith(f"{copy}: {message}")


# ---- places ---------------------------------------------------------------------------


def test_places_that_hold_no_bundle(tmp_path: Path) -> None:
    def refusal(path: Path | str) -> str:
        with pytest.raises(BundleError) as error:
            open_bundle(path)
        return one_line(error.value)

    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    missing = tmp_path / "missing"
    assert refusal(missing) == f"{missing}: expected a bundle directory, found nothing"
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'}: expected a bundle directory, found a file"
    assert refusal(tmp_path / "empty") == f"{tmp_path / 'empty'}: expected a bundle with manifest.json, found none"
    assert "found nothing" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "empty" / "manifest.json").mkdir()
    assert "found none" in refusal(tmp_path / "empty")
    assert not missing.exists()


@pytest.mark.usefixtures("unsynced")
def test_relative_and_linked_places(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    monkeypatch.chdir(copy / "blobs")
    for path in ("..", tmp_path / "link"):
        open_bundle(path).verify()
    monkeypatch.chdir(copy)
    open_bundle(".").verify()
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "link", random_encoder(NETWORK, seed=9), CI, {"seed": 9})
    assert (tmp_path / "link").is_symlink(), "what the link points to is replaced, not the link"
    assert open_bundle(copy).manifest["provenance"] == {"seed": 9}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["copy", "link"]


@pytest.mark.parametrize(
    "content",
    [
        {"holiday.jpg": "x"},
        {"manifest.json": '{"name": "web application"}'},
        {"manifest.json": '{"format": "m3vit-bundle"}', "notes.txt": "mine"},
        {"blobs/host.bin": "x"},
    ],
    ids=["files", "another-manifest", "bundle-and-more", "no-manifest"],
)
def test_directories_that_are_no_bundle_are_not_overwritten(tmp_path: Path, content: dict[str, str]) -> None:
    target = tmp_path / "d"
    for name, text in content.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    before = files(target)
    with pytest.raises(BundleError) as error:
        write_bundle(target, random_encoder(NETWORK, seed=1), CI)
    assert one_line(error.value).startswith(f"{target}: expected a bundle or an empty directory, found other files")
    assert files(target) == before and [item.name for item in tmp_path.iterdir()] == ["d"]


def test_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(M3vitError, match="f: expected a directory, found a file"):
        write_bundle(tmp_path / "f", random_encoder(NETWORK, seed=1), CI)
    assert (tmp_path / "f").read_text() == "mine"


@pytest.mark.usefixtures("unsynced")
def test_empty_directories_and_damaged_bundles_are_overwritten(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    blob(copy, "patch").unlink()
    for target in (tmp_path / "empty", copy):
        write_bundle(target, random_encoder(NETWORK, seed=1), CI).verify()


# ---- failures while writing -----------------------------------------------------------


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def stop(name: str, index: int, _: int) -> None:
    if index == 7:
        raise KeyboardInterrupt(name)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("failing", ["manifest", "fsync", "rename", "interrupt"])
def test_a_failed_write_leaves_the_old_bundle(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, old: bool
) -> None:
    target = tmp_path / "b"
    if old:
        shutil.copytree(pristine, target)
    before = files(tmp_path)
    encoder = random_encoder(NETWORK, seed=1)
    with monkeypatch.context() as patch:
        if failing == "manifest":
            patch.setattr(Path, "write_text", no_space)
        elif failing == "fsync":
            patch.setattr(os, "fsync", no_space)
        elif failing == "rename":
            patch.setattr(Path, "replace", no_space)
            patch.setattr("accel.atomic._swap", no_space)
        with pytest.raises(KeyboardInterrupt if failing == "interrupt" else M3vitError) as error:
            write_bundle(target, encoder, CI, progress=stop if failing == "interrupt" else None)
    if failing != "interrupt":
        assert str(error.value) == f"{target}: cannot write: No space left on device"
    assert files(tmp_path) == before
    assert [item.name for item in tmp_path.iterdir()] == (["b"] if old else [])


def test_parameters_and_fit_are_checked_before_anything_is_written(pristine: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(pristine, tmp_path / "b"))
    before = files(tmp_path)
    encoder = random_encoder(NETWORK, seed=1)
    wide = changed(encoder, ("residual_exponent",), 99)
    with pytest.raises(ExportError, match="residual_exponent"):
        write_bundle(target, wide, CI)
    with pytest.raises(ConfigError, match="max_tokens = 4"):
        write_bundle(target, encoder, dataclasses.replace(CI, max_tokens=4))
    assert files(tmp_path) == before


def test_blobs_are_read_once(copy: Path) -> None:
    bundle: Bundle = open_bundle(copy)
    bundle.verify()
    shutil.rmtree(copy)
    bundle.verify()
    assert len(bundle.encoder.blocks) == 4
