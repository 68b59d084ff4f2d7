"""Benchmark metrics against values computed independently from their definitions, and odsF on hand-made edges."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, sparse, special
from scipy.sparse.csgraph import maximum_bipartite_matching

from accel.config import Task
from accel.errors import ConfigError
from model.delta import delta_m, read_results
from model.edges import OdsMeter, matched, suppress, thin
from model.metrics import HIGHER_IS_BETTER, UNITS, SegmentationMeter
from model.metrics_tasks import (
    AngleMeter,
    HumanPartsMeter,
    MetricDepthMeter,
    SaliencyMeter,
    benchmark_meter,
)
from model.predictions import prediction

CLOSE = {"rel": 1e-6, "abs": 1e-6}
KINDS = [
    Task("semseg", 5, "labels"), Task("human_parts", 7, "labels"), Task("sal", 1, "binary"),
    Task("normals", 3, "normals"), Task("depth", 1, "depth"), Task("edge", 1, "binary"),
]  # fmt: skip


def feed(meter, output: np.ndarray, target: np.ndarray):
    """The same data in two batches."""
    meter.update(output[:2], target[:2])
    meter.update(output[2:], target[2:])
    return meter.result()


def mean_iou(prediction: np.ndarray, target: np.ndarray, classes: int) -> float:
    """Over all pixels at once, class by class."""
    known, values = target != 255, []
    for c in range(classes):
        both = ((prediction == c) & (target == c) & known).sum()
        either = (((prediction == c) | (target == c)) & known).sum()
        if either:
            values.append(both / either)
    return 100 * float(np.mean(values))


def labels_case(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (5, 8, 9)).astype(np.uint8)
    target[rng.random(target.shape) < 0.1] = 255
    return rng.normal(size=(5, classes, 8, 9)).astype(np.float32), target


def test_semseg() -> None:
    output, target = labels_case(5)
    assert feed(SegmentationMeter(5), output, target)["miou"] == pytest.approx(
        mean_iou(output.argmax(1), target, 5), **CLOSE
    )


def test_human_parts_skip_images_without_parts() -> None:
    output, target = labels_case(7)
    target[1] = np.where(target[1] == 255, 255, 0)  # background only
    target[3] = 255
    shown = [0, 2, 4]
    value = feed(HumanPartsMeter(7), output, target)["miou"]
    assert value == pytest.approx(mean_iou(output[shown].argmax(1), target[shown], 7), **CLOSE)
    assert value != pytest.approx(mean_iou(output.argmax(1), target, 7), **CLOSE)


def test_saliency() -> None:
    rng = np.random.default_rng(2)
    target = rng.choice(np.array([0, 1, 255], dtype=np.uint8), size=(5, 8, 9), p=[0.5, 0.4, 0.1])
    target[4] = 255  # unknown everywhere: says nothing
    target[3] = 0  # nothing is salient
    output = rng.normal(0, 2, size=(5, 1, 8, 9)).astype(np.float32)
    chances = special.expit(output[:, 0].astype(np.float64))
    ious, precisions, recalls = [], [], []
    for threshold in (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9):
        rows = []
        for p, t in zip(chances[:4], target[:4], strict=True):
            known = t != 255
            guess, truth = (p > threshold)[known], t[known] == 1
            hits, either = (guess & truth).sum(), (guess | truth).sum()
            if not either:
                rows.append((1.0, 1.0, 1.0))
                continue
            rows.append(
                (hits / either, hits / guess.sum() if guess.any() else 0, hits / truth.sum() if truth.any() else 0)
            )
        iou, precision, recall = np.mean(rows, axis=0)
        ious.append(iou), precisions.append(precision), recalls.append(recall)
    f = [2 * p * r / (p + r) for p, r in zip(precisions, recalls, strict=True)]
    result = feed(SaliencyMeter(), output, target)
    assert result["miou"] == pytest.approx(100 * max(ious), **CLOSE)
    assert result["maxf"] == pytest.approx(100 * max(f), **CLOSE)


def test_saliency_threshold_is_exclusive() -> None:
    meter = SaliencyMeter()
    meter.add(np.array([[[0.5, 0.3]]]), np.array([[[1, 0]]], dtype=np.uint8))
    assert meter.result() == {"miou": 100.0, "maxf": 100.0}
    meter = SaliencyMeter(np.array([0.5]))
    meter.add(np.array([[[0.5, 0.3]]]), np.array([[[1, 0]]], dtype=np.uint8))
    assert meter.result() == {"miou": 0.0, "maxf": 0.0}


def normals_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, target, and the angles between them in degrees by the numerically safe two-argument form."""
    rng = np.random.default_rng(3)
    target = rng.normal(size=(5, 8, 9, 3))
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    output = target + rng.normal(0, 0.4, size=target.shape)
    target[0, :3] = 0
    angles = []
    for place in np.ndindex(5, 8, 9):
        a, b = output[place], target[place]
        if b.any():
            angles.append(math.degrees(math.atan2(np.linalg.norm(np.cross(a, b)), a @ b)))
    return np.moveaxis(output, -1, 1), target, np.array(angles)


def test_normals() -> None:
    output, target, angles = normals_case()
    result = feed(AngleMeter(), output, target)
    assert result == {
        "mean_angle": pytest.approx(angles.mean(), **CLOSE),
        "median_angle": pytest.approx(np.median(angles), **CLOSE),
        "rmse_angle": pytest.approx(np.sqrt((angles**2).mean()), **CLOSE),
        "within_11_25": pytest.approx(100 * (angles < 11.25).mean(), **CLOSE),
        "within_22_5": pytest.approx(100 * (angles < 22.5).mean(), **CLOSE),
        "within_30": pytest.approx(100 * (angles < 30).mean(), **CLOSE),
    }
    assert result["rmse_angle"] > result["mean_angle"] > result["median_angle"]


def test_median_of_very_many_pixels_is_counted_in_bins() -> None:
    output, target, angles = normals_case()
    assert feed(AngleMeter(exact=100), output, target)["median_angle"] == pytest.approx(np.median(angles), abs=4.5e-5)


@pytest.mark.parametrize("log", [False, True])
def test_depth(log: bool) -> None:
    rng = np.random.default_rng(4)
    target = rng.uniform(0.5, 9, (5, 8, 9)).astype(np.float32)
    target[rng.random(target.shape) < 0.2] = 0
    metres = rng.uniform(0.5, 9, (5, 8, 9))
    output = (np.log(metres) if log else metres)[:, None]
    known = target > 0
    error, ratio = (metres - target)[known], (np.log(metres) - np.log(np.where(known, target, 1)))[known]
    result = feed(MetricDepthMeter(log), output, target)
    assert result["rmse"] == pytest.approx(math.sqrt((error.astype(np.float64) ** 2).mean()), **CLOSE)
    assert result["log_rmse"] == pytest.approx(math.sqrt((ratio**2).mean()), **CLOSE)


def test_depth_that_is_not_positive_has_the_smallest_logarithm() -> None:
    meter = MetricDepthMeter(log=False)
    meter.update(np.array([[[[-1.0]]]]), np.array([[[1.0]]]))
    assert meter.result()["log_rmse"] == pytest.approx(math.log(1e9))


@pytest.mark.parametrize("task", KINDS, ids=lambda task: task.name)
def test_nothing_valid_gives_finite_metrics_with_direction_and_unit(task: Task) -> None:
    meter = benchmark_meter(task)
    shape = (1, 16, 16, 3) if task.kind == "normals" else (1, 16, 16)
    target = np.zeros(shape, np.float32) if task.kind in ("normals", "depth") else np.full(shape, 255, np.uint8)
    meter.update(np.ones((1, task.channels, 16, 16), np.float32), target)
    for name, value in meter.result().items():
        assert math.isfinite(value)
        assert name in UNITS and name in HIGHER_IS_BETTER


# Edges


def lines(size: int = 64, **rows: float) -> np.ndarray:
    """Horizontal lines across a map: r20=0.9 is a line of 0.9 in row 20."""
    image = np.zeros((size, size))
    for name, value in rows.items():
        image[int(name[1:])] = value
    return image


def ods(*pairs: tuple[np.ndarray, np.ndarray], tolerance: float = 0.0075, workers: int = 1) -> float:
    meter = OdsMeter(tolerance=tolerance, workers=workers)
    for chances, truth in pairs:
        meter.add(chances[None], truth[None].astype(np.uint8))
    return meter.result()["ods_f"]


def test_edges_exact_and_within_tolerance() -> None:
    truth = lines(r20=1, r40=1)
    assert ods((lines(r20=0.9, r40=0.3), truth)) == 100
    # 0.03 of the diagonal of 64 × 64 is 2.7 pixels: 2 are near enough, 3 are not.
    assert ods((lines(r22=0.9, r42=0.9), truth), tolerance=0.03) == 100
    assert ods((lines(r23=0.9, r43=0.9), truth), tolerance=0.03) == 0
    assert ods((lines(r21=0.9), truth), tolerance=0.03) == pytest.approx(100 * 2 * 64 / (64 + 128))


def test_edges_take_the_best_threshold() -> None:
    truth = lines(r20=1)
    assert ods((lines(r20=0.9, r50=0.5), truth)) == 100  # a threshold above 0.5 removes the false line
    assert ods((lines(r20=0.5, r50=0.9), truth)) == pytest.approx(100 * 2 / 3)  # none can


def test_edges_share_one_threshold_over_the_data_set() -> None:
    """Each image is perfect at a threshold of its own; together they are not."""
    first, second = (lines(r20=0.9, r50=0.6), lines(r20=1)), (lines(r20=0.4), lines(r20=1))
    assert ods(first) == ods(second) == 100
    # Above 0.6: 64 of 64 predicted right, 128 true: 2/3. At 0.4: 128 of 192 right, 128 true: 4/5.
    assert ods(first, second) == pytest.approx(80)


def test_edge_pixels_pair_with_one_pixel_only() -> None:
    """Two lines on both sides of one true line: only one of them can be right."""
    assert ods((lines(r18=0.9, r22=0.9), lines(r20=1)), tolerance=0.03) == pytest.approx(100 * 2 / 3)


def test_unknown_pixels_do_not_count() -> None:
    truth = lines(r20=1)
    truth[45:55] = 255
    assert ods((lines(r20=0.9, r50=0.95), truth)) == 100


def test_blurred_edges_are_thinned() -> None:
    blurred = ndimage.gaussian_filter(lines(r20=1.0, r40=1.0), 1.5)
    blurred /= blurred.max()
    assert ods((blurred, lines(r20=1, r40=1)), tolerance=1e-4) == 100
    ridge = suppress(blurred)
    assert set(np.nonzero(ridge > 0.1)[0]) == {20, 40}


def test_no_edges_at_all() -> None:
    nothing = lines()
    assert ods((nothing, nothing)) == 0
    assert ods((lines(r20=0.9), nothing)) == 0
    assert ods((nothing, lines(r20=1))) == 0


def test_curve_by_hand() -> None:
    meter = OdsMeter(thresholds=np.array([0.25, 0.75]))
    meter.add(lines(r20=0.9, r50=0.5)[None], lines(r20=1, r35=1)[None].astype(np.uint8))
    curve = meter.curve()
    np.testing.assert_allclose(curve["precision"], [1 / 2, 1])
    np.testing.assert_allclose(curve["recall"], [1 / 2, 1 / 2])
    np.testing.assert_allclose(curve["f"], [1 / 2, 2 / 3])


def test_other_processes_count_the_same() -> None:
    pairs = [(lines(r20=0.9, r50=0.6), lines(r20=1)), (lines(r20=0.4), lines(r20=1))]
    assert ods(*pairs, workers=2) == ods(*pairs)


def test_matching_is_maximum_for_every_prefix() -> None:
    rng = np.random.default_rng(6)
    for density in (0.02, 0.05, 0.1, 0.3):
        graph = rng.random((40, 30)) < density
        found = matched([np.flatnonzero(row).tolist() for row in graph], 30)
        for k in range(1, 41):
            best = (maximum_bipartite_matching(sparse.csr_matrix(graph[:k]), perm_type="column") >= 0).sum()
            assert found[:k].sum() == best


def test_thinning_keeps_parts_and_holes_and_leaves_no_thick_spot() -> None:
    rng = np.random.default_rng(7)
    blobs = ndimage.gaussian_filter(rng.normal(size=(80, 90)), 3) > 0.02
    strength = np.where(blobs, rng.uniform(0.1, 1, blobs.shape), 0)
    lines_ = thin(strength)
    assert not (lines_ & ~blobs).any()
    eight, four = np.ones((3, 3)), ndimage.generate_binary_structure(2, 1)
    assert ndimage.label(lines_, eight)[1] == ndimage.label(blobs, eight)[1]
    background = [ndimage.label(np.pad(~mask, 1, constant_values=True), four)[1] for mask in (lines_, blobs)]
    assert background[0] == background[1]
    assert not ndimage.binary_erosion(lines_, np.ones((3, 3))).any()
    assert lines_.sum() < blobs.sum() / 3
    assert np.array_equal(thin(lines_), lines_)


# Δm and predictions


def test_delta_m_by_hand() -> None:
    multi = {"semseg": {"miou": 55.0}, "normals": {"mean_angle": 18.0, "median_angle": 9.0}, "depth": {"rmse": 0.66}}
    single = {"semseg": {"miou": 50.0}, "normals": {"mean_angle": 20.0}, "depth": {"rmse": 0.6}, "edge": {"ods_f": 70}}
    total, parts = delta_m(multi, single)
    assert [part.percent for part in parts] == [pytest.approx(10), pytest.approx(10), pytest.approx(-10)]
    assert total == pytest.approx(10 / 3)


def test_results_come_from_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps({"recipe": "x", "metrics": {"semseg": {"miou": 50}}}))
    two.write_text(json.dumps({"depth": {"rmse": 0.5}}))
    assert read_results([one, two]) == {"semseg": {"miou": 50.0}, "depth": {"rmse": 0.5}}
    with pytest.raises(ConfigError, match=f"two.json: depth: given twice: {two} has it, too"):
        read_results([two, two])
    with pytest.raises(ConfigError, match="results: semseg: missing: found only depth"):
        delta_m({"semseg": {"miou": 1.0}}, {"depth": {"rmse": 1.0}}, "results")
    with pytest.raises(ConfigError, match="semseg.miou: expected a value other than 0"):
        delta_m({"semseg": {"miou": 1.0}}, {"semseg": {"miou": 0.0}})
    with pytest.raises(ConfigError, match="semseg.miou: missing: found only maxf"):
        delta_m({"semseg": {"miou": 1.0}}, {"semseg": {"maxf": 1.0}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read results"),
        ("[]", "expected an object of tasks"),
        ('{"semseg": 3}', "semseg: expected an object of metrics, found int"),
        ('{"semseg": {"miou": "x"}}', "semseg.miou: expected a finite number, found 'x'"),
        ('{"semseg": {"miou": NaN}}', "semseg.miou: expected a finite number, found 'nan'"),
        ('{"semseg": {"miou": -Infinity}}', "semseg.miou: expected a finite number, found '-inf'"),
        ('{"semseg": {"miou": 1' + "0" * 400 + "}}", "semseg.miou: expected a finite number"),
        ('{"semseg": {"miou": 1, "miou": 2}}', "field 'miou' is given twice"),
    ],
)
def test_bad_results(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"results.json: .*{message}|results.json: {message}"):
        read_results([path])


def test_results_of_another_data_set_or_split(tmp_path: Path) -> None:
    path = tmp_path / "depth.json"
    path.write_text(json.dumps({"dataset": "nyud", "split": "val", "metrics": {"depth": {"rmse": 0.5}}}))
    assert read_results([path], dataset="nyud", split="val") == read_results([path]) == {"depth": {"rmse": 0.5}}
    with pytest.raises(ConfigError, match="depth.json: dataset: expected 'cityscapes' as evaluated, found 'nyud'"):
        read_results([path], dataset="cityscapes", split="val")
    with pytest.raises(ConfigError, match="depth.json: split: expected 'train' as evaluated, found 'val'"):
        read_results([path], dataset="nyud", split="train")
    path.write_text(json.dumps({"depth": {"rmse": 0.5}}))  # says nothing of them
    assert read_results([path], dataset="nyud", split="val") == {"depth": {"rmse": 0.5}}


@pytest.mark.parametrize(("own", "reference"), [(math.nan, 0.5), (math.inf, 0.5), (0.5, math.nan), (0.5, -math.inf)])
def test_delta_of_values_that_are_not_finite(own: float, reference: float) -> None:
    with pytest.raises(ConfigError, match="depth.rmse: expected a finite number"):
        delta_m({"depth": {"rmse": own}}, {"depth": {"rmse": reference}})


def test_edge_tolerance_belongs_to_the_data_set() -> None:
    """A prediction 0.01 of the diagonal beside the truth is right at NYUD-v2's tolerance only."""
    from model.datasets import DATASETS

    truth = np.zeros((1, 60, 80), np.uint8)
    logits = np.full((1, 1, 60, 80), -20.0)
    truth[0, 30, 10:70] = 1
    logits[0, 0, 31, 10:70] = 20  # one pixel lower; the diagonal is 100
    found = {}
    for name in ("pascal", "nyud"):
        meter = benchmark_meter(Task("edge", 1, "binary"), edge_tolerance=DATASETS[name].edge_tolerance)
        meter.update(logits, truth)
        found[name] = meter.result()["ods_f"]
    assert found == {"pascal": 0.0, "nyud": pytest.approx(100)}
    assert {name: spec.edge_tolerance for name, spec in DATASETS.items() if "edge" in spec.task_names} == {
        "pascal": 0.0075, "nyud": 0.011,
    }  # fmt: skip


def test_255_metres_are_a_depth_and_what_is_not_finite_is_unknown() -> None:
    target = np.array([[[255.0, 0.0, np.nan, np.inf]]], np.float32)
    meter = benchmark_meter(Task("depth", 1, "depth"))
    meter.update(np.full((1, 1, 1, 4), 254.0), target)
    assert meter.result()["rmse"] == pytest.approx(1)
    normals = np.zeros((1, 1, 3, 3), np.float32)
    normals[0, 0, 0] = (0, 0, 1)
    normals[0, 0, 1] = np.nan
    angles = benchmark_meter(Task("normals", 3, "normals"))
    angles.update(np.moveaxis(np.full((1, 1, 3, 3), (1.0, 0.0, 0.0)), -1, 1), normals)
    assert angles.result()["mean_angle"] == pytest.approx(90) and angles.count == 1


def test_results_file_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.json: cannot read results: No such file"):
        read_results([tmp_path / "none.json"])


def test_predictions_by_hand() -> None:
    labels = prediction(Task("semseg", 3, "labels"), np.array([[[0.0, 2]], [[1, 0]], [[0, 1]]]))
    assert labels.dtype == np.uint8 and labels.tolist() == [[1, 0]]
    chances = prediction(Task("edge", 1, "binary"), np.array([[[0.0, math.log(3), -50]]]))
    assert chances.dtype == np.uint8 and chances.tolist() == [[128, 191, 0]]
    normals = prediction(Task("normals", 3, "normals"), np.array([[[2.0]], [[3.0]], [[-6.0]]]))
    assert normals.dtype == np.uint8 and normals.tolist() == [[[164, 182, 18]]]
    metres = prediction(Task("depth", 1, "log_depth"), np.array([[[math.log(2.5)]]]))
    assert metres.dtype == np.float32 and metres.tolist() == [[2.5]]
