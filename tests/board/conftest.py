"""Boards, bundles and frames for the tests against PYNQ itself. Without pynq every test here is skipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_programs import CI, FORMATS, NETWORK

from accel.bundle import Bundle, write_bundle
from accel.config import network
from accel.errors import DeviceError
from accel.random_params import random_encoder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "board", random_encoder(NETWORK, seed=1), CI)


@pytest.fixture(scope="session")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One whose frames take long to simulate."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "long", random_encoder(network("m3vit-demo"), seed=1), CI)


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    shape = (NETWORK.image_height, NETWORK.image_width, 3)
    return [np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8) for seed in range(4)]


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose tasks have gates of their own in memory, but equal ones, so that their queues are equal."""
    encoder = random_encoder(NETWORK, seed=5)
    blocks = [
        dataclasses.replace(block, gates=dict.fromkeys(block.gates, next(iter(block.gates.values()))))
        if block.gates
        else block
        for block in encoder.blocks
    ]
    encoder = dataclasses.replace(encoder, blocks=type(encoder.blocks)(blocks))
    return write_bundle(tmp_path_factory.mktemp("bundles") / "twins", encoder, CI)


@pytest.fixture(scope="session")
def verilated_library() -> Path:
    """The verilated engine; the one that the tests of the back end ``rtl`` build as well."""
    from host.backends.rtl_build import build
    from host.backends.toolchain import find_toolchain

    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    return build(CI, FORMATS, assertions=True)


@pytest.fixture
def verilated(verilated_library: Path) -> Callable[[], Any]:
    """Opens the verilated engine."""
    from host.backends.rtl import RtlDevice

    return lambda: RtlDevice(CI, FORMATS, library=verilated_library, memory_bytes=64 << 20)


@pytest.fixture
def make_board() -> Iterator[Callable[..., Any]]:
    """Opens simulated boards that close with the test; on the golden engine unless told otherwise."""
    from host.backends.golden import GoldenDevice
    from host.backends.sim_board import SimulatedBoard

    with ExitStack() as stack:

        def make(backend: Any = None, **options: Any) -> SimulatedBoard:
            engine = backend or GoldenDevice(CI, FORMATS)
            return stack.enter_context(SimulatedBoard(CI, FORMATS, backend=engine, **options))

        yield make


@pytest.fixture
def board(make_board: Callable[..., Any]) -> Any:
    return make_board()


@pytest.fixture
def rtl_board(make_board: Callable[..., Any], verilated: Callable[[], Any]) -> Any:
    return make_board(verilated())
