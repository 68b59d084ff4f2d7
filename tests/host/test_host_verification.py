"""The bookkeeping behind ``m3vit verify``: what is missing or misshapen is never counted as equal."""

from __future__ import annotations

import numpy as np
import pytest

from accel.golden import GoldenEngine, run_frame
from cli import verification
from cli.verification import Boundary, Frame, Report, held_out_scenes, kind_of, verify


def boundary(found, name="blocks.2.qkv"):
    return Boundary(name, np.arange(6).reshape(2, 3), found)


def test_kinds():
    kinds = [kind_of(n) for n in ("embed", "blocks.11.mlp", "replay.blocks.0.qkv", "replay.patch", "head.norm")]
    assert kinds == ["embed", "mlp", "replay.qkv", "replay.patch", "head.norm"]


def test_equal_and_different():
    report = Report()
    report.add("x", "f", "t", boundary(np.arange(6, dtype=np.int64).reshape(2, 3)))
    assert report.ok(["x"]) and report.first is None
    report.add("x", "f", "t", boundary(np.array([[0, 1, 2], [3, 0, 0]])))
    found = report.as_dict(["x"])
    assert (found["compared"], found["mismatches"], found["ok"]) == (12, 2, False)
    assert found["first_mismatch"] == {
        "backend": "x", "frame": "f", "task": "t", "boundary": "blocks.2.qkv", "position": [1, 1],
        "expected": 4, "found": 0,
    }  # fmt: skip
    assert found["per_boundary"] == {"qkv": {"compared": 12, "mismatches": 2}}
    report.add("x", "f", "u", boundary(np.arange(6).reshape(2, 3), "embed"))
    found = report.as_dict(["x"])
    assert found["per_task"]["t"] == {"compared": 12, "mismatches": 2}
    assert found["per_task"]["u"] == {"compared": 6, "mismatches": 0}
    assert report.kinds() == ["qkv", "embed"] and report.kinds("y") == []


def test_what_the_host_computes_is_checked_but_does_not_count():
    report = Report()
    report.add("x", "f", "t", boundary(np.arange(6).reshape(2, 3), "blocks.0.norm1")._replace(by_host=True))
    assert report.host_compared == 6 and not report.compared and not report.kinds() and not report.ok(["x"])
    report.add("x", "f", "t", boundary(np.arange(6).reshape(2, 3)))
    assert report.ok(["x"])
    report.add("x", "f", "t", boundary(np.zeros((2, 3)), "blocks.0.norm1")._replace(by_host=True))
    found = report.as_dict(["x"])
    assert (found["compared"], found["host_compared"], found["mismatches"], found["ok"]) == (6, 12, 5, False)
    assert found["first_mismatch"]["boundary"] == "blocks.0.norm1"


@pytest.mark.parametrize("found", [None, np.arange(6), np.zeros((2, 2))])
def test_missing_or_misshapen(found):
    report = Report()
    report.add("x", "f", "t", boundary(found))
    assert report.as_dict(["x"])["mismatches"] == 6 and not report.compared


def test_a_silent_back_end_fails():
    report = Report()
    report.add("x", "f", "t", boundary(np.arange(6).reshape(2, 3)))
    assert report.ok(["x"]) and not report.ok(["x", "y"]) and not Report().ok(["x"])


class Fake:
    """A back end that gives golden's own traces, after ``spoil``."""

    def __init__(self, spoil):
        self.spoil = spoil

    def compare(self, frames, golden):
        for task, results in golden.items():
            for index, result in enumerate(results):
                trace = {name: values.copy() for name, values in result.trace.items()}
                self.spoil(trace)
                for item in verification._aligned(result.trace, trace):
                    yield index, task, item


@pytest.mark.parametrize(
    ("spoil", "wrong", "where"),
    [
        (lambda trace: None, 0, None),
        (lambda trace: trace.pop("blocks.1.topk"), 2 * 7 * 2, "blocks.1.topk"),
        (lambda trace: trace.update(extra=np.zeros(5)), 10, "extra"),
        (lambda trace: trace["head.output"].__iadd__(1), 2 * 6 * 64, "head.output"),
    ],
    ids=["equal", "missing", "extra", "off by one"],
)
def test_verify_notices(bundle, image, monkeypatch, spoil, wrong, where):
    monkeypatch.setattr(verification, "open_comparer", lambda *_: Fake(spoil))
    frames = [Frame("a", image), Frame("b", image)]
    done = []
    report = verify(bundle, frames, ["edge"], ["golden"], batch=1, progress=done.append)
    found = report.as_dict(["golden"])
    assert found["mismatches"] == wrong and done == [1, 1]
    assert (found["first_mismatch"] or {}).get("boundary") == where


def test_engine_with_wrong_weights_is_caught(bundle, image, monkeypatch):
    """The golden back end computes from memory, the reference from parameters: change one, not the other."""
    from host import driver

    place = driver.LoadedBundle._place

    def damaged(self, progress):
        place(self, progress)
        offset = driver.place_weights(self.bundle.config)[0]["blocks.1.mlp.gate.edge"]
        # Port 0's beats of the table's first stripe: 0 and 1 biases and shifts, 2 the first eight weights of
        # experts 0 and 1.
        self.memory.array[offset + 32 : offset + 48] ^= 0x15

    monkeypatch.setattr(driver.LoadedBundle, "_place", damaged)
    found = verify(bundle, [Frame("a", image)], ["semseg", "edge"], ["golden"]).as_dict(["golden"])
    assert found["first_mismatch"]["task"] == "edge"
    assert found["per_boundary"]["queues"]["mismatches"] >= 1


def test_scenes_are_those_of_the_validation_split():
    data = pytest.importorskip("model.data")
    expected = data.scene_dataset("val", 2, 16, 24, seed=3, workers=1, quiet=True).images
    frames = list(held_out_scenes(2, 3, 16, 24))
    assert all((frame.image == image).all() for frame, image in zip(frames, expected, strict=True))


def test_golden_engine_is_the_reference(bundle, image):
    """What Fake returns above is what verify compares with."""
    trace = run_frame(bundle.encoder, image, "edge", GoldenEngine(bundle.encoder), record=True).trace
    assert trace["blocks.1.topk"].shape == (7, 2) and trace["head.output"].shape == (6, 64)
