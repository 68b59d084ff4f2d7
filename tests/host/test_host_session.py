"""What the notebooks begin with: the back end and the bundle that fit the machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from accel.bundle import Bundle
from accel.errors import BundleError, DeviceError
from host import session


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (session.BACKEND_VARIABLE, session.BUNDLE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("host.backends.toolchain.find_toolchain", lambda: None)
    assert session.choose_backend() == "rtl"

    def none() -> None:
        raise DeviceError("no Verilator")

    monkeypatch.setattr("host.backends.toolchain.find_toolchain", none)
    assert session.choose_backend() == "golden"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert session.choose_backend() == "golden", "PYNQ's library alone makes no board"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert session.choose_backend() == "board"
    monkeypatch.setenv(session.BACKEND_VARIABLE, "rtl")
    assert session.choose_backend() == "rtl"
    monkeypatch.setenv(session.BACKEND_VARIABLE, "abacus")
    with pytest.raises(DeviceError, match="M3VIT_BACKEND=abacus: expected one of golden"):
        session.choose_backend()


def test_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "TRAINED", tmp_path / "trained")
    monkeypatch.setattr(session, "RANDOM", tmp_path / "folder" / "random")
    made = session.choose_bundle()
    assert made.path == tmp_path / "folder" / "random" and made.config.name == "m3vit-demo@ci"
    assert session.choose_bundle().config.hash == made.config.hash, "made once, then opened"
    (tmp_path / "trained").symlink_to(bundle.path)
    assert session.choose_bundle().config.hash == bundle.config.hash
    monkeypatch.setenv(session.BUNDLE_VARIABLE, str(made.path))
    assert session.choose_bundle().config.hash == made.config.hash
    monkeypatch.setenv(session.BUNDLE_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(BundleError):
        session.choose_bundle()
