"""What the notebooks begin with: a back end that works here, and a bundle to run on it."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path

from accel.bundle import Bundle, open_bundle, write_bundle
from accel.config import hardware, network
from accel.errors import DeviceError
from accel.random_params import random_encoder
from host.backends import BACKENDS

BACKEND_VARIABLE, BUNDLE_VARIABLE = "M3VIT_BACKEND", "M3VIT_BUNDLE"
ROOT = Path(__file__).resolve().parents[1]
TRAINED, RANDOM = ROOT / "build" / "demo" / "bundle", ROOT / "build" / "notebooks" / "random"


def choose_backend() -> str:
    """``board`` on a board, ``rtl`` where the simulator can be built, else ``golden``.

    The environment variable ``M3VIT_BACKEND`` overrides the choice.
    """
    named = os.environ.get(BACKEND_VARIABLE)
    if named:
        if named not in BACKENDS:
            raise DeviceError(f"{BACKEND_VARIABLE}={named}: expected one of {', '.join(BACKENDS)}")
        return named
    if "board" in BACKENDS and platform.machine() == "aarch64" and importlib.util.find_spec("pynq") is not None:
        return "board"
    from host.backends.toolchain import find_toolchain

    try:
        find_toolchain()
    except DeviceError:
        return "golden"
    return "rtl"


def choose_bundle() -> Bundle:
    """The bundle that ``make demo`` has trained, else one with random weights for the small engine, made on first use.

    The environment variable ``M3VIT_BUNDLE`` names another one.
    """
    named = os.environ.get(BUNDLE_VARIABLE)
    if named:
        return open_bundle(named)
    if TRAINED.is_dir():
        return open_bundle(TRAINED)
    if not RANDOM.is_dir():
        return write_bundle(RANDOM, random_encoder(network("m3vit-demo"), seed=0), hardware("ci"), {"random": 0})
    return open_bundle(RANDOM)
