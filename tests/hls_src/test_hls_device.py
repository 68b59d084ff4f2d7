"""The driver on the HLS back end: same registers, bits and errors as on the golden one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_programs import START, EngineBench
from every_backend import TESTS
from host_networks import TINY

from accel.bundle import Bundle, write_bundle
from accel.config import Formats, hardware
from accel.errors import DeviceError
from accel.golden import GoldenEngine, run_frame
from accel.random_params import random_encoder
from accel.routing import Schedule
from host.backends import open_device
from host.backends.hls import HlsDevice
from host.backends.hls_build import build
from host.backends.plain_memory import BASE
from host.device import Reg
from host.driver import Driver
from host.runner import EncoderRunner
from rtl_tb.engine_cases import CASES

CI = hardware("ci")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", random_encoder(TINY, seed=1), CI)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "other", random_encoder(TINY, seed=2), CI)


@pytest.fixture
def image() -> np.ndarray:
    shape = (TINY.image_height, TINY.image_width, 3)
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def device(library: Path) -> Iterator[HlsDevice]:
    with HlsDevice(CI, Formats(), library=library, memory_bytes=64 << 20) as opened:
        yield opened


@pytest.fixture
def driver(device: HlsDevice) -> Iterator[Driver]:
    with Driver(device) as opened:
        yield opened


# Collected here once more, they run with the fixtures above.
globals().update(TESTS)


@pytest.mark.parametrize("schedule", Schedule)
def test_whole_frames(driver: Driver, bundle: Bundle, image: np.ndarray, schedule: Schedule) -> None:
    task = bundle.config.network.task_names[0]
    golden = run_frame(bundle.encoder, image, task, GoldenEngine(bundle.encoder), record=True)
    with driver.load(bundle) as loaded:
        runner = EncoderRunner(loaded, schedule=schedule, routing=True)
        (found,) = runner.run(image, [task], record=True)
    assert all((found.trace[name] == values).all() for name, values in golden.trace.items())


@pytest.mark.parametrize("sequential", [True, False])
def test_reset_in_mid_program(library: Path, sequential: bool) -> None:
    """A reset ends the processes wherever they are; the next program finds an engine as new."""
    bench = EngineBench(
        lambda: HlsDevice(CI, Formats(), library=library, memory_bytes=1 << 28, sequential=sequential), CI
    )
    program = CASES["largest_layers"](CI)
    for _ in range(5):
        buffer, offset = bench.place(program)
        with buffer:
            bench.start(program, buffer.device_address + offset)
            bench.device.reset()
            assert bench.device.read_register(Reg.AP_CTRL) == 4
    bench.run(program)
    bench.close()


def test_arenas_outside_memory_end_without_a_record(device: HlsDevice) -> None:
    buffer = device.allocate(8192)
    for port in range(CI.ports):
        device.write_register(Reg.ARENA0_LO + 16 * port, BASE - 4096)
    device.write_register(Reg.AP_CTRL, START)
    assert not device.wait_interrupt(0.2) and not buffer.array.any()
    assert device.read_register(Reg.AP_CTRL) & 2


def test_memory_is_limited_given_back_and_zeroed(library: Path) -> None:
    with HlsDevice(CI, Formats(), library=library, memory_bytes=16384) as device:
        first, second = device.allocate(8000), device.allocate(4096)
        assert (first.device_address, second.device_address) == (BASE, BASE + 8192)
        with pytest.raises(DeviceError, match="5000 bytes: expected 1 to 4096 bytes"):
            device.allocate(5000)
        first.array[:] = 7
        first.close()
        with device.allocate(100) as third:
            assert third.device_address == BASE and not third.array.any()
        view = second.array
    view[:] = 1  # memory that somebody still looks at outlives the device
    with pytest.raises(DeviceError, match="hls: expected an open device"):
        device.read_register(Reg.AP_CTRL)


def test_builds_are_kept_and_depend_on_the_sources(compiler: str, tmp_path: Path) -> None:
    sources = tmp_path / "hls_src"
    (sources / "engine").mkdir(parents=True)
    with pytest.raises(DeviceError, match="expected the folder hls_src"):
        build(CI, Formats(), sources=sources)
    for text, message in (("int x;", None), ("int x", "error")):
        (sources / "engine" / "engine.cpp").write_text(text)
        notes: list[str] = []
        for _ in range(2):
            if message:
                with pytest.raises(DeviceError, match=r"hls: compiler: exit 1: .*error"):
                    build(CI, Formats(), sources=sources, cache=tmp_path / "cache", note=notes.append)
            else:
                build(CI, Formats(), sources=sources, cache=tmp_path / "cache", note=notes.append)
        assert len(notes) == (2 if message else 1)


def test_open_by_name(library: Path) -> None:
    with open_device("hls", CI, library=library) as device, Driver(device) as driver:
        driver.identify()
