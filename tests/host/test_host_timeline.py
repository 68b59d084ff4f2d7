"""The timeline of a run on the simulated board accounts for every byte and every unit that the record counts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from accel.bundle import Bundle
from accel.commands import COMMAND_BYTES
from accel.compiler import RecordedFrame
from accel.config import Formats, hardware
from accel.errors import DeviceError
from accel.golden import GoldenEngine, run_frame
from accel.record import record_bytes
from host.backends import open_device
from host.driver import Driver
from host.runner import EncoderRunner
from host.timeline import COMPUTE, LOAD, READ, WRITE, record_timeline, timeline

TASKS = ("semseg", "edge", "semseg")


@pytest.fixture
def frames(bundle: Bundle, image: np.ndarray) -> list[RecordedFrame]:
    engine = GoldenEngine(bundle.encoder)
    return [RecordedFrame(t, image, run_frame(bundle.encoder, image, t, engine, record=True).trace) for t in TASKS]


@pytest.fixture
def runner(bundle: Bundle) -> Iterator[EncoderRunner]:
    from host.backends.rtl import RtlDevice
    from host.backends.toolchain import find_toolchain

    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    with (
        RtlDevice(hardware("ci"), Formats(), memory_bytes=64 << 20) as device,
        Driver(device) as driver,
        driver.load(bundle) as loaded,
    ):
        yield EncoderRunner(loaded, timeout=120)


@pytest.mark.verilator
def test_every_byte_and_unit_is_accounted_for(runner: EncoderRunner, frames: list[RecordedFrame]) -> None:
    result, spans = record_timeline(runner, frames)
    assert result.mismatches == 0
    counters = result.record.counters
    by_lane = {lane: [span for span in spans if span.lane == lane] for lane in (LOAD, COMPUTE, READ, WRITE)}
    moved = {lane: sum(span.bytes for span in found) for lane, found in by_lane.items()}
    assert moved[LOAD] == counters["weight_bytes"]
    assert moved[LOAD] + moved[READ] + len(result.program.commands) * COMMAND_BYTES == counters["bytes_read"]
    assert moved[WRITE] == counters["bytes_written"], f"without the record's {record_bytes(len(TASKS))} bytes"
    # The array does one thing at a time, and nothing before its weights have begun to arrive.
    computes, loads = by_lane[COMPUTE], by_lane[LOAD]
    assert all(first.end <= second.start for first, second in pairwise(computes))
    assert [(span.job, span.layer, span.label, span.slot) for span in loads] == [
        (span.job, span.layer, span.label, span.slot) for span in computes
    ]
    assert all(load.start < compute.start for load, compute in zip(loads, computes, strict=True))
    assert [span.start for span in spans] == sorted(span.start for span in spans) and spans[0].start >= 0
    assert max(span.end for span in spans) <= counters["cycles"] + 200
    gates = [span.label for span in computes if span.label.startswith("gate")]
    blocks = len(runner.encoder.network.moe_blocks)
    assert gates == [f"gate {task}" for task in TASKS for _ in range(blocks)]
    assert {span.slot for span in computes} == {0, 1}
    assert {span.job for span in spans} == {0, 1, 2}
    # Every layer of every job is there.
    assert len({(span.job, span.layer) for span in computes}) == len(TASKS) * len(runner._layers)


@pytest.mark.verilator
def test_the_log_is_off_afterwards(runner: EncoderRunner, frames: list[RecordedFrame]) -> None:
    record_timeline(runner, frames[:1])
    memory = runner.loaded.driver.device.memory  # type: ignore[attr-defined]
    before = len(memory.events())
    runner.run(frames[0].image, ["edge"])
    assert len(memory.events()) == before


def test_a_back_end_without_a_log(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    with open_device("golden", hardware("ci")) as device, Driver(device) as driver, driver.load(bundle) as loaded:
        with pytest.raises(DeviceError, match="'golden': expected one that logs"):
            record_timeline(EncoderRunner(loaded), frames)


def test_an_empty_log(bundle: Bundle, frames: list[RecordedFrame]) -> None:
    from accel.compiler import compile_replay
    from host.backends.rtl_library import EVENT

    assert timeline(np.zeros(0, EVENT), compile_replay(bundle, frames), bundle, 0) == []
