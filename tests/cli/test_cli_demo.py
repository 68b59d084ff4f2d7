"""``m3vit demo`` with hardly any training: every step runs, every integer is equal, and what fails is said."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome


def test_every_step_runs_and_failed_checks_are_named(
    m3vit: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("brevitas")
    pytest.importorskip("onnxruntime")
    from cli import demo

    monkeypatch.setattr(demo, "TrainPlan", functools.partial(demo.TrainPlan, val_scenes=8))
    monkeypatch.setitem(demo.QUALITIES, "quick", demo.Quality(steps=4, qat_steps=2, scenes=64))
    monkeypatch.setattr(demo, "TRACED_FRAMES", 2)
    monkeypatch.setattr(demo, "ONNX_FRAMES", 1)
    outcome = m3vit("demo", "--out", tmp_path, "--json")
    assert outcome.code == 1, "four steps teach nothing"
    document = outcome.json()
    assert document["verification"]["mismatches"] == 0 and not document["ok"]
    assert {name for name, entry in document["verification"]["per_backend"].items() if entry["compared"]} == {
        "torch", "golden", "onnx",
    }  # fmt: skip
    checks = {check["check"]: check["ok"] for check in document["checks"]}
    assert checks["all integers equal"]
    gates = {"semseg with gates of edge", "depth with gates of normals", "normals with gates of depth"}
    assert gates <= set(checks)
    for check in document["checks"]:
        assert (f"check fails: {check['check']}: {check['metric']} = " in outcome.err) != check["ok"]
    for name in ("summary.json", "report.html", "scenes.png", "bundle/manifest.json", "onnx/depth.onnx"):
        assert (tmp_path / name).stat().st_size > 0
