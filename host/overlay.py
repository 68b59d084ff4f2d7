"""The overlay: what the board's software and ``bitstreams/`` must agree on, and the manifest beside it.

Names, addresses and identities of the block design are here once; the Vivado scripts get them through
``bitstreams/generate.py``, the simulated board through :mod:`host.handoff`, the back end ``board`` reads them itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.atomic import atomic_write
from accel.config import (
    Formats,
    Hardware,
    build_hash,
    engine_hash,
    formats_from_dict,
    hardware_from_dict,
    parse_json,
    to_dict,
)
from accel.errors import ConfigError, DeviceError
from accel.generate import folder_name
from accel.registers import SPAN

NAME = "m3vit"
"""Stem of the overlay's files."""
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
VARIABLE = "M3VIT_OVERLAY"
"""Environment variable with the path of the ``.bit`` file to use."""

ENGINE_VLNV = {
    "rtl": "xilinx.com:module_ref:m3vit_engine_axi:1.0",
    "hls": "m3vit:engine:m3vit_engine:1.0",
}
"""Implementation → vendor, library, name and version that the engine has in a block design."""


@dataclass(frozen=True)
class Slave:
    """Something with registers in the block design: name of its cell, interface, address and bytes."""

    cell: str
    interface: str
    address: int
    size: int


PS = "zynq_ultra_ps_e_0"
ENGINE = Slave("engine", "s_axi_control", 0xA000_0000, SPAN)
RESET = Slave("engine_reset_gpio", "S_AXI", 0xA001_0000, 0x1000)
INTERRUPTS = Slave("axi_intc_0", "s_axi", 0xA002_0000, 0x1000)
SLAVES = (ENGINE, RESET, INTERRUPTS)
"""In the order of the interconnect's ports."""
INTERRUPT_PIN = "interrupt"
"""Of the engine, in both implementations."""
RESET_VLNV = "xilinx.com:ip:axi_gpio:2.0"
GPIO_DATA = 0x0
"""Register of the reset GPIO: bit 0 is the engine's active-low reset, 1 after configuration."""


def memory_port(port: int) -> str:
    """Name of an AXI4 master of the engine in the block design; both implementations use it."""
    return f"m_axi_port{port}"


@dataclass(frozen=True)
class Manifest:
    """What an overlay was built from and with.

    Attributes:
        engine: ``rtl`` or ``hls``.
        hardware, formats: of the engine.
        tool: program and version that built it.
        files: name → SHA-256, of everything beside the manifest that belongs to the overlay.
        reports: timing and utilization as reported, and whatever else is worth keeping.
    """

    engine: str
    hardware: Hardware
    formats: Formats
    tool: str
    files: Mapping[str, str]
    reports: Mapping[str, Any]

    @property
    def engine_hash(self) -> int:
        return engine_hash(self.formats, self.hardware)

    @property
    def build_hash(self) -> int:
        return build_hash(self.formats, self.hardware)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; the hashes are there for people and are checked when it is read."""
        return {
            "format": MANIFEST_FORMAT,
            "engine": self.engine,
            "engine_hash": f"{self.engine_hash:#010x}",
            "build_hash": f"{self.build_hash:#010x}",
            "hardware": to_dict(self.hardware),
            "formats": to_dict(self.formats),
            "tool": self.tool,
            "files": dict(self.files),
            "reports": dict(self.reports),
        }


def sha256(path: Path) -> str:
    """Of a file, hexadecimal."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise DeviceError(f"overlay: {path}: cannot read: {error.strerror}") from error
    return digest.hexdigest()


def write_manifest(
    folder: str | os.PathLike[str],
    engine: str,
    hardware: Hardware,
    formats: Formats,
    tool: str,
    reports: Mapping[str, Any] | None = None,
) -> Path:
    """Write the manifest of the overlay's ``.bit`` and ``.hwh`` in ``folder``, completely or not at all."""
    directory = Path(folder)
    files = {name: sha256(directory / name) for name in (f"{NAME}.bit", f"{NAME}.hwh")}
    manifest = Manifest(engine, hardware, formats, tool, files, reports or {})
    path = directory / MANIFEST
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(manifest.to_dict(), indent=2) + "\n", encoding="utf-8")
    return path


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest; raises DeviceError if it is missing, damaged, or contradicts itself."""
    source = Path(path)
    where = f"overlay: {source}"
    try:
        data = parse_json(source.read_text(encoding="utf-8"), str(source))
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"{where}: cannot read the manifest: {error}") from error
    except ConfigError as error:
        raise DeviceError(f"overlay: {error}") from error
    if not isinstance(data, dict) or data.get("format") != MANIFEST_FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise DeviceError(f"{where}: format = {found!r}: expected {MANIFEST_FORMAT}")
    kinds = {"engine": str, "hardware": dict, "formats": dict, "tool": str, "files": dict, "reports": dict}
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind):
            raise DeviceError(f"{where}: {name} = {data.get(name)!r}: expected {kind.__name__}")
    if data["engine"] not in ENGINE_VLNV:
        raise DeviceError(f"{where}: engine = {data['engine']!r}: expected one of {', '.join(ENGINE_VLNV)}")
    try:
        hardware, formats = hardware_from_dict(data["hardware"]), formats_from_dict(data["formats"])
    except ConfigError as error:
        raise DeviceError(f"{where}: {error}") from error
    manifest = Manifest(data["engine"], hardware, formats, data["tool"], data["files"], data["reports"])
    own = manifest.to_dict()
    for name in ("engine_hash", "build_hash"):
        if data.get(name) != own[name]:
            raise DeviceError(
                f"{where}: {name} = {data.get(name)}: expected {own[name]} for its own hardware and formats under this "
                "version's rules; build the overlay anew"
            )
    return manifest


def check_overlay(bit: str | os.PathLike[str], hardware: Hardware, formats: Formats) -> Manifest:
    """The manifest of an overlay, if its files are whole and its engine runs bundles for this hardware.

    Raises:
        DeviceError: a file is missing or damaged, or the overlay is for another configuration.
    """
    path = Path(bit)
    manifest = read_manifest(path.parent / MANIFEST)
    needed = {path.name, path.with_suffix(".hwh").name}
    missing = sorted(needed - set(manifest.files))
    if missing:
        raise DeviceError(f"overlay: {path.parent / MANIFEST}: files: expected {missing[0]} among them")
    for name in sorted(needed):
        found, expected = sha256(path.parent / name), manifest.files[name]
        if found != expected:
            raise DeviceError(f"overlay: {path.parent / name}: SHA-256: expected {expected}, found {found}")
    wanted = engine_hash(formats, hardware)
    if manifest.engine_hash != wanted:
        raise DeviceError(
            f"overlay: {path}: engine_hash: expected {wanted:#010x} (hardware {hardware.name!r}), found "
            f"{manifest.engine_hash:#010x} (hardware {manifest.hardware.name!r}); use the overlay that the bundle "
            "was exported for, or export the bundle for this overlay"
        )
    return manifest


def overlay_folder(engine: str, formats: Formats, hardware: Hardware) -> Path:
    """Where ``make overlay`` puts an overlay, below the repository."""
    return Path("build") / "overlay" / f"{folder_name(formats, hardware)}-{engine}"


def find_overlay(formats: Formats, hardware: Hardware) -> Path:
    """The ``.bit`` file to use: ``$M3VIT_OVERLAY``, else what ``make overlay`` built here, RTL before HLS.

    Raises:
        DeviceError: there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    root = Path(__file__).resolve().parents[1]
    folders = [root / overlay_folder(engine, formats, hardware) for engine in ENGINE_VLNV]
    for folder in folders:
        if (folder / f"{NAME}.bit").is_file():
            return folder / f"{NAME}.bit"
    raise DeviceError(
        f"board: overlay: expected the path of a .bit file in ${VARIABLE}, or {NAME}.bit in {folders[0]}, "
        "found neither; see docs/board.md"
    )
