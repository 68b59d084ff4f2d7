"""The table of memory parameters: what it refuses, its hash, and the recorded pattern of stalls."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from accel.errors import ConfigError
from accel.memory_model import CHANNELS, IDEAL, MAX_PORTS, MemoryModel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency": 0}, "latency = 0: expected an integer from 1 to 1048576"),
        ({"latency": 1.5}, "latency = 1.5: expected an integer"),
        ({"latency": True}, "latency = True: expected an integer"),
        ({"bytes_per_cycle": 5000}, "bytes_per_cycle = 5000: expected an integer from 1 to 4096"),
        ({"bucket_bytes": 47}, "bucket_bytes = 47: expected at least bytes_per_cycle = 48"),
        ({"bucket_bytes": 8, "bytes_per_cycle": 8}, "bucket_bytes = 8: expected an integer from 16"),
        ({"refresh_cycles": 2340}, "refresh_cycles = 2340: expected less than refresh_period = 2340"),
        ({"refresh_cycles": -1}, "refresh_cycles = -1: expected an integer from 0"),
        ({"turnaround": -1}, "turnaround = -1: expected an integer from 0"),
        ({"write_batch": 0}, "write_batch = 0"),
        ({"write_wait": 0}, "write_wait = 0"),
        ({"write_latency": 0}, "write_latency = 0"),
        ({"outstanding": 65}, "outstanding = 65: expected an integer from 1 to 64"),
        ({"burst_beats": 257}, "burst_beats = 257: expected an integer from 1 to 256"),
        ({"stall_percent": 96}, "stall_percent = 96: expected an integer from 0 to 95"),
        ({"stall_run": 0}, "stall_run = 0"),
        ({"stall_period": 0}, "stall_period = 0"),
        ({"stall_seed": -1}, "stall_seed = -1: expected an integer from 0"),
        ({"read_errors": ((5, 5),)}, "read_errors = ((5, 5),): expected pairs of addresses (first, past the last)"),
        ({"read_errors": [(0, 1)]}, "read_errors = [(0, 1)]"),
        ({"write_errors": ((-1, 5),)}, "write_errors = ((-1, 5),)"),
        ({"write_errors": ((0, 1, 2),)}, "write_errors = ((0, 1, 2),)"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MemoryModel(**changes)
    assert str(error.value).startswith("memory model: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_defaults_are_those_of_the_board() -> None:
    """At 300 MHz: 14.4 GB/s, a refresh of 260 ns every 7.8 us, bursts of 16 beats, 8 outstanding."""
    model = MemoryModel()
    clock = 300e6
    assert model.bytes_per_cycle * clock == 14.4e9
    assert (model.refresh_period / clock, model.refresh_cycles / clock) == (7.8e-6, 260e-9)
    assert (model.latency, model.burst_beats, model.outstanding, model.turnaround) == (100, 16, 8, 16)
    assert model.stall_percent == 0 and not model.read_errors and not model.write_errors


def test_every_field_is_in_dictionary_and_hash() -> None:
    model = MemoryModel()
    fields = {item.name for item in dataclasses.fields(model)}
    assert set(json.loads(json.dumps(model.to_dict()))) == fields
    changed = {"read_errors": ((0, 16),), "write_errors": ((16, 32),)}
    hashes = {model.hash}
    for name in fields:
        value = changed.get(name, getattr(model, name))
        hashes.add(dataclasses.replace(model, **{name: value if name in changed else value + 1}).hash)
    assert len(hashes) == len(fields) + 1
    assert len(model.hash) == 16 and MemoryModel().hash == model.hash


def test_no_stalls() -> None:
    assert not MemoryModel().stalls().any() and not IDEAL.stalls().any()


@pytest.mark.parametrize(("percent", "run"), [(5, 1), (50, 1), (95, 1), (30, 4), (30, 7)])
def test_stalls_have_the_share_and_the_length_asked_for(percent: int, run: int) -> None:
    model = MemoryModel(stall_percent=percent, stall_run=run, stall_seed=9, stall_period=20_000)
    pattern = model.stalls()
    assert pattern.shape == (20_000,) and pattern.dtype == np.uint32
    assert not (pattern >> np.uint32(MAX_PORTS * len(CHANNELS))).any()
    columns = [(pattern >> np.uint32(bit) & 1).astype(bool) for bit in range(MAX_PORTS * len(CHANNELS))]
    for column in columns:
        assert abs(column.mean() - percent / 100) < 0.01 * run + 0.02
        changes = np.flatnonzero(np.diff(column.astype(np.int8))) + 1
        assert not (changes % run).any()
    assert len({column.tobytes() for column in columns}) == len(columns), "every channel of every port has its own"


def test_the_pattern_is_recorded_not_drawn() -> None:
    model = MemoryModel(stall_percent=25, stall_seed=1, stall_period=256)
    assert (model.stalls() == model.stalls()).all()
    assert (model.stalls() != dataclasses.replace(model, stall_seed=2).stalls()).any()
    assert [int(word) for word in model.stalls()[:4]] == PINNED, "benchmarks recorded with it would change"


PINNED = [147481, 541250, 265528, 181249]
