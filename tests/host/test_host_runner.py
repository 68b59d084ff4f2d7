"""Whole frames through program, memory and driver equal the golden model; so do replay programs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from accel.compiler import RecordedFrame
from accel.config import Formats, hardware
from accel.errors import ConfigError, DataError, DeviceError
from accel.golden import GoldenEngine, run_frame
from accel.layers import engine_layers
from accel.routing import Schedule
from host.backends.golden import GoldenDevice
from host.driver import Driver
from host.runner import EncoderRunner, first_difference

CI = hardware("ci")


@pytest.fixture
def driver():
    with GoldenDevice(CI, Formats()) as device, Driver(device) as opened:
        yield opened


def golden_results(bundle, image, tasks):
    engine = GoldenEngine(bundle.encoder)
    return [run_frame(bundle.encoder, image, task, engine, record=True) for task in tasks]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_every_boundary_of_every_task(driver, bundle, other_bundle, image, schedule):
    for which in (bundle, other_bundle):
        tasks = which.config.network.task_names
        with driver.load(which) as loaded:
            runner = EncoderRunner(loaded, schedule=schedule, routing=True)
            results = runner.run(image, tasks, record=True)
        for expected, found in zip(golden_results(which, image, tasks), results, strict=True):
            assert found.task == expected.task
            assert set(found.trace) == set(expected.trace)
            for name, values in expected.trace.items():
                assert found.trace[name].dtype == values.dtype, name
                assert (found.trace[name] == values).all(), name


def test_tasks_differ(driver, bundle, image):
    """The comparison above could not notice swapped tasks if all tasks were routed alike."""
    results = golden_results(bundle, image, ("semseg", "edge"))
    assert (results[0].residual != results[1].residual).any()


def test_counters_are_summed_by_name(driver, bundle, image):
    config = bundle.config
    with driver.load(bundle) as loaded:
        runner = EncoderRunner(loaded)
        runner.run(image, ["depth", "edge"])
    assert list(runner.counters) == ["depth", "edge"]
    for task in runner.counters:
        pairs = macs = 0
        for layer in engine_layers(config):
            pairs += layer.tokens * layer.top_k
            macs += layer.tokens * layer.top_k * layer.macs_per_pair
            macs += layer.tokens * layer.inputs * layer.experts if layer.gate else 0
        assert runner.counters[task]["pairs"] == pairs
        assert runner.counters[task]["macs"] == macs
        assert isinstance(runner.counters[task], Counter)


def test_queue_checksums(driver, bundle, image):
    golden = golden_results(bundle, image, ["normals"])[0]
    with driver.load(bundle) as loaded:
        runner = EncoderRunner(loaded)
        result = runner.run(image, ["normals"])[0]
        assert not result.routing and not result.trace, "only computed when asked for"
        expected = {("normals", block): routing.crc() for block, routing in golden.routing.items()}
        assert runner.queue_crcs == expected


def test_wrong_queues_are_noticed(driver, bundle, image, monkeypatch):
    with driver.load(bundle) as loaded:
        runner = EncoderRunner(loaded, routing=True)
        route = runner._route
        monkeypatch.setattr(runner, "_route", lambda block, x, task: route(block, x[::-1], task))
        with pytest.raises(DeviceError, match="'semseg', block 1: queue checksum"):
            runner.run(image, ["semseg"])


def test_bad_arguments(driver, bundle, image):
    with driver.load(bundle) as loaded:
        runner = EncoderRunner(loaded)
        with pytest.raises(ConfigError, match="'taste': expected one of semseg"):
            runner.run(image, ["depth", "taste"])
        with pytest.raises(DataError, match="expected shape"):
            runner.run(image[1:], ["depth"])


def replay_jobs(bundle, image, tasks):
    results = golden_results(bundle, image, tasks)
    return [RecordedFrame(result.task, image, result.trace) for result in results]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_replay_equals_golden(driver, bundle, image, schedule):
    jobs = replay_jobs(bundle, image, bundle.config.network.task_names)
    with driver.load(bundle) as loaded:
        result = EncoderRunner(loaded, schedule=schedule).replay(jobs)
    outputs = sum(layer.tokens * layer.outputs for layer in engine_layers(bundle.config))
    assert result.mismatches == 0
    assert result.compared == outputs * len(jobs)
    assert len(result.record.jobs) == len(jobs)
    assert [job["job"] for job in result.record.jobs] == list(range(len(jobs)))


def test_replay_counts_a_wrong_integer(driver, bundle, image):
    jobs = replay_jobs(bundle, image, ["depth"])
    jobs[0].trace["blocks.2.qkv"][1, 3] += 1
    with driver.load(bundle) as loaded:
        result = EncoderRunner(loaded).replay(jobs)
    assert result.mismatches == 1


def test_replay_notices_a_changed_weight(driver, bundle, image, monkeypatch):
    """Inputs come from golden: one flipped weight in memory shows in its layer and nowhere else."""
    from host import driver as module

    jobs = replay_jobs(bundle, image, ["depth"])
    place = module.LoadedBundle._place

    def damaged(self, progress):
        place(self, progress)
        offset = module.place_weights(self.bundle.config)[0]["blocks.0.qkv"]
        self.memory.array[offset + CI.stripe_bytes : offset + CI.stripe_bytes + 8] ^= 0x40

    monkeypatch.setattr(module.LoadedBundle, "_place", damaged)
    with driver.load(bundle) as loaded:
        result = EncoderRunner(loaded).replay(jobs)
    wrong = {
        item.layer
        for item, found in zip(result.program.expected, result.outputs, strict=True)
        if (item.values != found).any()
    }
    assert wrong == {"blocks.0.qkv"} and result.mismatches > 0


def test_first_difference():
    a = np.zeros((2, 3), np.int8)
    b = a.copy()
    b[1, 2], b[1, 1] = 5, -4
    assert first_difference(a, b) == ((1, 1), 0, -4)
