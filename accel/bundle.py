"""The bundle: a directory with a manifest and one blob per expert, dense layer and gate table.

::

    manifest.json             configuration, exponents and shifts, size and SHA-256 of every file, provenance
    blobs/patch.bin           engine weights, in the byte order that the load unit reads (accel.pack)
    blobs/blocks.0.qkv.bin …  one per dense layer
    blobs/blocks.1.mlp.expert.000.bin …  one per expert
    blobs/blocks.1.mlp.gate.semseg.bin …  one per task and MoE block
    blobs/heads.semseg.fc1.bin …  light heads, computed by the host
    blobs/host.bin            small arrays the host needs: positions, LayerNorm parameters, float heads

A bundle is written atomically, checked completely when it is opened, and never executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import pack, tables
from accel.atomic import atomic_directory, recover
from accel.config import Config, Hardware, config_from_dict, parse_json, to_dict
from accel.errors import BundleError, M3vitError
from accel.layers import Kind, Layer, engine_layers, head_layers, round_up
from accel.params import Attention, Block, Encoder, Gate, LayerNorm, LightHead, Linear, PupHead, Unit
from accel.schema import ANY, ListOf, Map, check

Array = NDArray[Any]

FORMAT = "m3vit-bundle"
VERSION = 1
HOST_BLOB = "host"
_ALIGN = 64

SCHEMA = {
    "format": str,
    "version": int,
    "config": ANY,
    "config_hash": str,
    "engine_hash": int,
    "residual_exponent": int,
    "tables": Map(str),
    "norms": Map({"eps": int, "exponent": int}),
    "attention": Map({"score_shift": int, "output_shift": int}),
    "gates": Map({"shift": int}),
    "heads": Map({"kind": str, "exponent": int}),
    "blobs": Map({"bytes": int, "sha256": str}),
    "arrays": Map({"dtype": str, "shape": ListOf(int), "offset": int}),
    "provenance": Map(ANY),
}
"""Fields of the manifest. ``arrays`` describes the contents of blobs/host.bin."""

_DTYPES = {"int16": np.int16, "int32": np.int32, "int8": np.int8, "float32": np.float32}

Progress = Callable[[str, int, int], None]
"""Called with a blob's name, its index and the number of blobs."""


def _norms(encoder: Encoder) -> Iterator[tuple[str, LayerNorm]]:
    for index, block in enumerate(encoder.blocks):
        yield f"blocks.{index}.norm1", block.norm1
        yield f"blocks.{index}.norm2", block.norm2
    for task, head in encoder.heads.items():
        if isinstance(head, LightHead):
            yield f"heads.{task}.norm", head.norm


def _host_arrays(encoder: Encoder) -> dict[str, Array]:
    arrays: dict[str, Array] = {"position": encoder.position}
    for name, norm in _norms(encoder):
        arrays[f"{name}.gamma"], arrays[f"{name}.beta"] = norm.gamma, norm.beta
    for task, head in encoder.heads.items():
        if isinstance(head, LightHead):
            arrays[f"heads.{task}.gelu"] = head.gelu
        else:
            arrays |= {f"heads.{task}.{name}": array for name, array in head.tensors.items()}
    return arrays


def _plain_layer(encoder: Encoder, layer: Layer) -> Linear:
    if layer.name == "patch":
        return encoder.patch
    _, index, part = layer.name.split(".")
    return getattr(encoder.blocks[int(index)], part)


def _blob_writers(encoder: Encoder, config: Config) -> dict[str, Callable[[], Array]]:
    """Blob name → function that packs it."""
    writers: dict[str, Callable[[], Array]] = {}
    for layer in engine_layers(config):
        if layer.kind in (Kind.LINEAR, Kind.ACCUMULATE):
            writers[layer.name] = partial(pack.pack_plain, _plain_layer(encoder, layer), layer)
            continue
        block = encoder.blocks[int(layer.name.split(".")[1])]
        for name, units in zip(layer.weight_blobs(), block.experts, strict=True):
            writers[name] = partial(_pack_units, units, layer)
        for task, gate in block.gates.items():
            writers[layer.gate_blob(task)] = partial(pack.pack_gate, gate, layer)
    for task, head in encoder.heads.items():
        if isinstance(head, LightHead):
            fc1, fc2 = head_layers(config, task)
            writers[fc1.name] = partial(pack.pack_plain, head.fc1, fc1)
            writers[fc2.name] = partial(pack.pack_plain, head.fc2, fc2)
    return writers


def _pack_units(units: tuple[Unit, ...], layer: Layer) -> Array:
    return np.concatenate([pack.pack_unit(unit, layer) for unit in units])


def _blob_path(directory: Path, name: str) -> Path:
    return directory / "blobs" / f"{name}.bin"


def _replaceable(target: Path) -> bool:
    """Whether nothing but a bundle, whole or damaged, would be lost with ``target``."""
    if not target.is_dir():
        return True  # nothing, or a file, which atomic_directory refuses
    try:
        names = {item.name for item in target.iterdir()}
        return not names or (
            names <= {"manifest.json", "blobs"}
            and f'"{FORMAT}"' in (target / "manifest.json").read_text(encoding="utf-8", errors="replace")
        )
    except OSError:
        return False


def write_bundle(
    path: str | os.PathLike[str],
    encoder: Encoder,
    hardware: Hardware,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Validate, pack and write ``encoder`` for ``hardware``; a bundle already at ``path`` is replaced whole.

    Args:
        provenance: JSON-ready facts on where the weights come from; kept verbatim.
        progress: called before each blob.

    Raises:
        ExportError: the parameters break the contract.
        ConfigError: the network does not fit the hardware.
        M3vitError: the file system refused, or ``path`` holds something that is no bundle.
    """
    encoder.check()
    config = Config(encoder.network, encoder.formats, hardware)
    target = recover(path)
    if not _replaceable(target):
        raise BundleError(f"{target}: expected a bundle or an empty directory, found other files; not overwritten")
    writers = _blob_writers(encoder, config)
    arrays: dict[str, dict[str, Any]] = {}
    host = bytearray()
    for name, array in _host_arrays(encoder).items():
        arrays[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "offset": len(host)}
        host += np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
        host += bytes(round_up(len(host), _ALIGN) - len(host))
    writers[HOST_BLOB] = lambda: np.frombuffer(bytes(host), np.uint8)
    with atomic_directory(target) as directory:
        (directory / "blobs").mkdir()
        blobs = {}
        for index, (name, packed) in enumerate(writers.items()):
            if progress is not None:
                progress(name, index, len(writers))
            data = packed().tobytes()
            _blob_path(directory, name).write_bytes(data)
            blobs[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "config": to_dict(config),
            "config_hash": config.hash,
            "engine_hash": config.engine_hash,
            "residual_exponent": encoder.residual_exponent,
            "tables": dict(tables.SHA256),
            "norms": {name: {"eps": n.eps, "exponent": n.exponent} for name, n in _norms(encoder)},
            "attention": {
                f"blocks.{i}": {"score_shift": b.attention.score_shift, "output_shift": b.attention.output_shift}
                for i, b in enumerate(encoder.blocks)
            },
            "gates": {
                f"blocks.{i}.mlp.gate.{task}": {"shift": gate.shift}
                for i, block in enumerate(encoder.blocks)
                for task, gate in block.gates.items()
            },
            "heads": {
                task: {
                    "kind": "light" if isinstance(head, LightHead) else "pup",
                    "exponent": head.exponent if isinstance(head, LightHead) else 0,
                }
                for task, head in encoder.heads.items()
            },
            "blobs": blobs,
            "arrays": arrays,
            "provenance": dict(provenance or {}),
        }
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return open_bundle(target)


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle: checked manifest, configuration, and blobs that are checked as they are read."""

    path: Path
    config: Config
    manifest: Mapping[str, Any]
    _cache: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def blob_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["blobs"])

    def blob(self, name: str) -> bytes:
        """Memory bytes of a blob; raises BundleError if it is missing, truncated or damaged."""
        if name not in self._cache:
            entry = self.manifest["blobs"].get(name)
            file = _blob_path(self.path, name)
            if entry is None:
                raise BundleError(f"{self.path / 'manifest.json'}: blobs: expected an entry {name!r}, found none")
            try:
                data = file.read_bytes()
            except OSError as error:
                raise BundleError(f"{file}: cannot read blob: {error.strerror or error}") from error
            if len(data) != entry["bytes"]:
                raise BundleError(f"{file}: expected {entry['bytes']} bytes, found {len(data)}")
            digest = hashlib.sha256(data).hexdigest()
            if digest != entry["sha256"]:
                raise BundleError(
                    f"{file}: SHA-256 expected {entry['sha256'][:16]}…, found {digest[:16]}…: "
                    "damaged, or a blob of another bundle"
                )
            self._cache[name] = data
        return self._cache[name]

    def verify(self) -> None:
        """Read and check every blob."""
        for name in self.blob_names:
            self.blob(name)

    @cached_property
    def encoder(self) -> Encoder:
        """All parameters, unpacked and checked against the contract."""
        try:
            encoder = _read_encoder(self)
            encoder.check()
        except M3vitError as error:
            raise BundleError(f"{self.path}: {error}") from error
        return encoder


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and check its manifest; blobs are checked as they are read (:meth:`Bundle.verify` reads all).

    Raises:
        BundleError: one line naming the file, the field, what was expected and what was found.
    """
    directory = recover(path)
    source = directory / "manifest.json"
    # os.path answers False where pathlib would raise: a name too long, a directory that may not be entered.
    if not os.path.isdir(directory):
        found = "a file" if os.path.exists(directory) else "nothing"
        raise BundleError(f"{directory}: expected a bundle directory, found {found}")
    if not os.path.isfile(source):
        raise BundleError(f"{directory}: expected a bundle with manifest.json, found none")
    try:
        manifest = parse_json(source.read_text(encoding="utf-8"), str(source))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            kind = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
            raise BundleError(f"{source}: format: expected {FORMAT!r}, found {kind!r}")
        if manifest.get("version") != VERSION:
            raise BundleError(f"{source}: version: expected {VERSION}, found {manifest.get('version')!r}")
        check(manifest, SCHEMA, str(source))
        config = config_from_dict(manifest["config"], f"{source}: config")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{source}: cannot read manifest: {error}") from error
    for name, expected in (("config_hash", config.hash), ("engine_hash", config.engine_hash)):
        if manifest[name] != expected:
            raise BundleError(
                f"{source}: {name}: expected {expected!r} for this configuration, found {manifest[name]!r}"
            )
    if manifest["tables"] != tables.SHA256:
        raise BundleError(f"{source}: tables: expected the hashes of this contract, found {manifest['tables']}")
    bundle = Bundle(directory, config, manifest)
    _check_names(bundle, source)
    return bundle


def _check_names(bundle: Bundle, source: Path) -> None:
    """Every expert, layer, gate and array the network needs has an entry, and nothing else has."""
    config, manifest = bundle.config, bundle.manifest
    net = config.network
    blobs = {HOST_BLOB}
    gates = set()
    for layer in engine_layers(config):
        blobs |= set(layer.weight_blobs())
        if layer.kind is Kind.MOE:
            gates |= {layer.gate_blob(task) for task in net.task_names}
    norms = {f"blocks.{i}.norm{j}" for i in range(net.depth) for j in (1, 2)}
    arrays = {"position"}
    for task, head in manifest["heads"].items():
        if task in net.task_names and head["kind"] == "light":
            blobs |= {layer.name for layer in head_layers(config, task)}
            norms.add(f"heads.{task}.norm")
            arrays.add(f"heads.{task}.gelu")
        elif head["kind"] == "pup":
            arrays |= {name for name in manifest["arrays"] if name.startswith(f"heads.{task}.")}
        elif head["kind"] != "light":
            raise BundleError(f"{source}: heads.{task}.kind: expected 'light' or 'pup', found {head['kind']!r}")
    arrays |= {f"{name}.{part}" for name in norms for part in ("gamma", "beta")}
    expectations = {
        "blobs": blobs | gates,
        "gates": gates,
        "norms": norms,
        "attention": {f"blocks.{i}" for i in range(net.depth)},
        "heads": set(net.task_names),
        "arrays": arrays,
    }
    for section, expected in expectations.items():
        found = set(manifest[section])
        if found != expected:
            missing, extra = sorted(expected - found), sorted(found - expected)
            what = f"missing entry {missing[0]!r}" if missing else f"unknown entry {extra[0]!r}"
            raise BundleError(f"{source}: {section}: {what}")


def _read_encoder(bundle: Bundle) -> Encoder:
    config, manifest = bundle.config, bundle.manifest
    net = config.network
    layers = {layer.name: layer for layer in engine_layers(config)}
    host = bundle.blob(HOST_BLOB)

    def array(name: str) -> Array:
        entry = manifest["arrays"][name]
        if entry["dtype"] not in _DTYPES:
            raise BundleError(f"arrays.{name}.dtype: expected one of {', '.join(_DTYPES)}, found {entry['dtype']!r}")
        dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
        if len(entry["shape"]) > 4 or any(not 0 <= size <= len(host) for size in entry["shape"]):
            raise BundleError(
                f"arrays.{name}.shape: expected at most 4 sizes from 0 to {len(host)}, found {entry['shape']!s:.60}"
            )
        count = math.prod(entry["shape"])
        end = entry["offset"] + count * dtype.itemsize
        if entry["offset"] < 0 or end > len(host):
            raise BundleError(f"arrays.{name}: expected to end within {len(host)} bytes, found {end}")
        flat = np.frombuffer(host, dtype, count, entry["offset"])
        return flat.reshape(entry["shape"]).astype(dtype.newbyteorder("="))

    def norm(name: str) -> LayerNorm:
        entry = manifest["norms"][name]
        return LayerNorm(array(f"{name}.gamma"), array(f"{name}.beta"), entry["eps"], entry["exponent"])

    def plain(layer: Layer) -> Linear:
        return pack.unpack_plain(bundle.blob(layer.name), layer)

    def expert(layer: Layer, name: str) -> tuple[Unit, ...]:
        data, size = bundle.blob(name), layer.unit_bytes
        if len(data) != layer.expert_bytes:
            raise BundleError(f"{name}: expected {layer.expert_bytes} bytes, found {len(data)}")
        return tuple(pack.unpack_unit(data[u * size : (u + 1) * size], layer) for u in range(layer.units))

    def gate(layer: Layer, task: str) -> Gate:
        name = layer.gate_blob(task)
        return pack.unpack_gate(bundle.blob(name), layer, manifest["gates"][name]["shift"])

    def block(index: int) -> Block:
        name = f"blocks.{index}"
        mlp = layers[f"{name}.mlp"]
        shifts = manifest["attention"][name]
        return Block(
            norm1=norm(f"{name}.norm1"),
            qkv=plain(layers[f"{name}.qkv"]),
            attention=Attention(shifts["score_shift"], shifts["output_shift"]),
            proj=plain(layers[f"{name}.proj"]),
            norm2=norm(f"{name}.norm2"),
            experts=tuple(expert(mlp, blob) for blob in mlp.weight_blobs()),
            gates={task: gate(mlp, task) for task in net.task_names} if mlp.kind is Kind.MOE else {},
        )

    def head(task: str) -> LightHead | PupHead:
        entry, prefix = manifest["heads"][task], f"heads.{task}."
        if entry["kind"] == "pup":
            names = [name for name in manifest["arrays"] if name.startswith(prefix)]
            return PupHead({name.removeprefix(prefix): array(name) for name in names})
        fc1, fc2 = head_layers(config, task)
        return LightHead(norm(f"{prefix}norm"), plain(fc1), array(f"{prefix}gelu"), plain(fc2), entry["exponent"])

    return Encoder(
        network=net,
        formats=config.formats,
        residual_exponent=manifest["residual_exponent"],
        patch=plain(layers["patch"]),
        position=array("position"),
        blocks=tuple(block(index) for index in range(net.depth)),
        heads={task: head(task) for task in net.task_names},
    )
