"""Metrics on cases worked out by hand, the trivial predictor and evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accel.config import Network
from model.data import Dataset
from model.evaluate import evaluate, evaluate_swapped, expert_load
from model.metrics import (
    DepthMeter,
    EdgeMeter,
    NormalsMeter,
    SegmentationMeter,
    against_float,
    against_trivial,
    make_meter,
    trivial_metrics,
)
from model.vit import MultiTaskViT


def test_miou() -> None:
    meter = SegmentationMeter(4)
    meter.add(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]))
    meter.add(np.array([2]), np.array([2]))
    # class 0: 1/2, class 1: 1/2, class 2: 1/1, class 3 never occurs
    assert meter.result()["miou"] == pytest.approx(200 / 3)
    assert np.isnan(meter.per_class()[3])


def test_depth() -> None:
    output, target = np.log([[[[1.0, 4.0, 8.0]]]]), np.array([[[2.0, 2.0, 0.0]]])
    meter = DepthMeter(log=True)
    meter.update(output, target)
    assert meter.result() == pytest.approx({"rmse": math.sqrt(2.5), "absrel": 75.0})
    plain = DepthMeter(log=False)
    plain.update(np.exp(output), target)
    assert plain.result() == pytest.approx(meter.result())


def test_normals() -> None:
    meter = NormalsMeter()
    output = np.array([[0.0, 0, -9], [5, 0, -5], [0, 0, 0], [1, 1, 1]]).T.reshape(1, 3, 1, 4)
    target = np.array([[[[0.0, 0, -1], [0, 0, -1], [0, 1, 0], [0, 0, 0]]]])
    meter.update(output, target)
    assert meter.result()["mean_angle"] == pytest.approx((0 + 45 + 90) / 3)


def test_edge_f_is_the_best_over_thresholds() -> None:
    output = np.array([3.0, 2.0, 1.0, -1.0]).reshape(1, 1, 1, 4)
    meter = EdgeMeter()
    meter.update(output, np.array([[[1, 1, 0, 0]]]))
    assert meter.result()["edge_f"] == pytest.approx(100)
    worse = EdgeMeter()
    worse.update(output, np.array([[[1, 0, 1, 0]]]))
    # thresholds give F = 2/3 (top one), 1/2, 4/5 (top three), 2/3 (all)
    assert worse.result()["edge_f"] == pytest.approx(80)
    halves = EdgeMeter()
    for part in (slice(0, 2), slice(2, 4)):
        halves.update(output[..., part], np.array([[[1, 0, 1, 0]]])[..., part])
    assert halves.result() == worse.result()


def test_trivial_predictor(tiny: Network) -> None:
    images = np.zeros((3, 1, 2, 3), np.uint8)
    train = Dataset(
        images,
        {
            "semseg": np.array([[[1, 2]], [[1, 3]], [[0, 3]]], np.uint8),
            "depth": np.array([[[1, 2]], [[1, 2]], [[4, 2]]], np.float32),
            "normals": np.tile(np.float16([0, 0, -1]), (3, 1, 2, 1)),
            "edge": np.array([[[0, 1]], [[0, 0]], [[0, 0]]], np.uint8),
        },
    )
    val = Dataset(
        images[:1],
        {
            "semseg": np.array([[[1, 3]]], np.uint8),
            "depth": np.array([[[2, 2]]], np.float32),
            "normals": np.array([[[[0, 0, -1], [0, 1, 0]]]], np.float32),
            "edge": np.array([[[1, 0]]], np.uint8),
        },
    )
    metrics = trivial_metrics(tiny, train, val)
    assert metrics["semseg"] == {"miou": 100.0}
    assert metrics["depth"] == pytest.approx(
        {"rmse": 0, "absrel": 25}
    )  # mean (2, 2), median (1, 2)
    assert metrics["normals"]["mean_angle"] == pytest.approx(45)
    assert metrics["edge"]["edge_f"] == pytest.approx(200 / 3)


def test_comparisons() -> None:
    trivial = {"semseg": {"miou": 10.0}, "depth": {"rmse": 1.0, "absrel": 30.0}}
    value = {"semseg": {"miou": 18.5}, "depth": {"rmse": 0.79, "absrel": 24.5}}
    assert [row.ok for row in against_trivial(value, trivial)] == [True, True, False]
    quantized = {"semseg": {"miou": 18.0}, "depth": {"rmse": 0.8, "absrel": 24.6}}
    rows = against_float(quantized, value)
    assert [row.ok for row in rows] == [True, False, True]
    assert rows[0].bound == pytest.approx(18.0) and rows[1].bound == pytest.approx(0.7979)


def test_evaluate_is_independent_of_the_batch_size(tiny: Network, scenes_train: Dataset) -> None:
    model = MultiTaskViT(tiny).train()
    small, large = (evaluate(model, scenes_train.subset(10), batch) for batch in (3, 10))
    assert model.training
    for task in tiny.tasks:
        assert small[task.name] == pytest.approx(large[task.name], rel=1e-5)
        assert set(small[task.name]) == set(make_meter(task).result())
    assert set(evaluate(model, scenes_train.subset(4), tasks=["edge"])) == {"edge"}


def test_swapped_gates_and_load(tiny: Network, scenes_train: Dataset) -> None:
    model, data = MultiTaskViT(tiny), scenes_train.subset(6)
    swapped = evaluate_swapped(model, data, "depth", "edge")
    assert set(swapped) == {"depth", "edge"}
    assert swapped["depth"] != evaluate(model, data)["depth"]
    load = expert_load(model, data)
    assert {sum(counts) for by_block in load.values() for counts in by_block.values()} == {
        6 * 7 * 2
    }
