"""Whole frames through the driver on every engine: the network of the demo, all its tasks, every layer that the engine
computes, against the golden model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_backends import PARAMETERS, engine

from accel.bundle import Bundle, write_bundle
from accel.compiler import RecordedFrame
from accel.config import hardware, network
from accel.golden import FrameResult, GoldenEngine, run_frame
from accel.random_params import random_encoder
from accel.routing import Schedule
from host.driver import Driver
from host.runner import EncoderRunner

CI = hardware("ci")
DEMO = network("m3vit-demo")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "demo", random_encoder(DEMO, seed=1), CI)


@pytest.fixture(scope="module")
def image() -> Any:
    return np.random.default_rng(3).integers(0, 256, (DEMO.image_height, DEMO.image_width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def golden(bundle: Bundle, image: Any) -> list[FrameResult]:
    engine = GoldenEngine(bundle.encoder)
    return [run_frame(bundle.encoder, image, task, engine, record=True) for task in DEMO.task_names]


@pytest.fixture(scope="module", params=PARAMETERS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with engine(request.param, "ci")() as device, Driver(device) as opened:
        yield opened


@pytest.mark.parametrize("schedule", Schedule)
def test_live_frames_of_every_task(driver, bundle, image, golden, schedule: Schedule) -> None:
    """Layer by layer, at every boundary of the encoder."""
    with driver.load(bundle) as loaded:
        runner = EncoderRunner(loaded, schedule=schedule, routing=True)
        tasks = DEMO.task_names if schedule is Schedule.INDEX else DEMO.task_names[:1]
        compared = 0
        for expected, found in zip(golden, runner.run(image, tasks, record=True), strict=False):
            assert set(found.trace) == set(expected.trace)
            for name, values in expected.trace.items():
                assert (found.trace[name] == values).all(), (found.task, name)
                compared += values.size
    assert compared > 100_000 * len(tasks)


def test_replayed_frames_of_every_task(driver, bundle, image, golden) -> None:
    """All layers of all tasks as one program, a job per task."""
    with driver.load(bundle) as loaded:
        frames = [RecordedFrame(item.task, image, item.trace) for item in golden]
        result = EncoderRunner(loaded).replay(frames)
    assert result.mismatches == 0 and result.compared > 100_000 * len(frames)
    assert [job["macs"] for job in result.record.jobs] == [result.record.counters["macs"] // len(frames)] * len(frames)
