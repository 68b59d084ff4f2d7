"""What the tests of the RTL need: Verilator, a compiler and cocotb."""

from __future__ import annotations

import pytest

from accel.errors import DeviceError
from host.backends.toolchain import Toolchain, find_toolchain


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    try:
        return find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
