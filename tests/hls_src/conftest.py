"""What the tests of the HLS engine need: a compiler, the fast build, and the depths of its streams."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.config import Formats, hardware
from accel.errors import DeviceError
from host.backends.hls import HlsLibrary
from host.backends.hls_build import build, find_compiler


@pytest.fixture(scope="session")
def compiler() -> str:
    try:
        return find_compiler()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def library(compiler: str) -> Path:
    return build(hardware("ci"), Formats())


@pytest.fixture(scope="session")
def streams(library: Path) -> dict[str, tuple[int, int]]:
    """Depth and least depth of every stream."""
    return {item.name: (item.depth, item.least) for item in HlsLibrary(library).streams()}
