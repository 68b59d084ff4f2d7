"""Overlays and the board's back end where there is no board and no pynq: one clear line each."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from accel.config import Formats, hardware
from accel.errors import DeviceError
from accel.registers import REGISTERS
from host.backends import open_device
from host.handoff import handoff
from host.overlay import ENGINE, MANIFEST, SLAVES, check_overlay, find_overlay, read_manifest, write_manifest

CI = hardware("ci")


@pytest.fixture
def bit(tmp_path):
    """An overlay of empty files with a manifest that fits them."""
    path = tmp_path / "m3vit.bit"
    path.write_bytes(b"")
    path.with_suffix(".hwh").write_text(handoff(CI))
    write_manifest(tmp_path, "rtl", CI, Formats(), "test", {"slack": 0.1})
    return path


def test_without_pynq(bit, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", None)
    with pytest.raises(DeviceError, match=r"board: pynq: cannot import: .*docs/board.md"):
        open_device("board", CI, overlay=bit)


def test_overlay_is_looked_at_first(bit, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", None)
    with pytest.raises(DeviceError, match="engine_hash: expected"):
        open_device("board", hardware("zcu104"), overlay=bit)


def test_manifest_round_trip(bit):
    found = check_overlay(bit, CI, Formats())
    assert found == read_manifest(bit.parent / MANIFEST)
    assert (found.engine, found.hardware, found.tool, found.reports) == ("rtl", CI, "test", {"slack": 0.1})
    assert set(found.files) == {"m3vit.bit", "m3vit.hwh"}


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ('"engine": "rtl"', '"engine": "fpga"', "engine = 'fpga': expected one of rtl, hls"),
        ('"tool": "test"', '"tool": 1', "tool = 1: expected str"),
        ('"ports": 4', '"ports": 3', "a power of two"),
        ('"ports": 4', '"ports": 2', "engine_hash = .*for its own hardware and formats"),
        ('"clock_mhz": 300', '"clock_mhz": 200', "build_hash = .*for its own hardware and formats"),
        ('"format": 1', '"format": 2', "format = 2: expected 1"),
        ('"m3vit.hwh"', '"other.hwh"', "files: expected m3vit.hwh among them"),
        ("{", "[", "not valid JSON"),
    ],
)
def test_damaged_manifest(bit, old, new, pattern):
    path = bit.parent / MANIFEST
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DeviceError, match=pattern):
        check_overlay(bit, CI, Formats())


def test_which_overlay(bit, monkeypatch):
    monkeypatch.setenv("M3VIT_OVERLAY", str(bit))
    assert find_overlay(Formats(), CI) == bit
    monkeypatch.delenv("M3VIT_OVERLAY")
    with pytest.raises(DeviceError, match="expected the path of a .bit file"):
        find_overlay(Formats(weight_bits=3), CI)


def test_handoff_holds_the_registers():
    root = ElementTree.fromstring(handoff(CI, interrupts=False))
    engine = next(item for item in root.iter("MODULE") if item.get("INSTANCE") == ENGINE.cell)
    assert [item.get("NAME") for item in engine.iter("REGISTER")] == [item.name for item in REGISTERS]
    pin = next(item for item in engine.iter("PORT") if item.get("NAME") == "interrupt")
    assert not list(pin.iter("CONNECTION"))
    ends = sorted((item.address, item.address + item.size) for item in SLAVES)
    assert all(end <= start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))
