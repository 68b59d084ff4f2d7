"""The QCDQ interchange file: complete, standard operators only, and as close as it can be."""

from __future__ import annotations

import warnings

import pytest
import torch
from quant_cases import random_images, random_model, small_network

from accel.config import Formats
from accel.errors import ConfigError
from quant.qat import QuantMultiTaskViT
from quant.qcdq import agreement, export_qcdq

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxoptimizer")
pytest.importorskip("onnxruntime")


def tiny(routing: str = "multi_gate", **changes: object):
    return small_network(routing, depth=2, experts=3, dense_hidden=24, **changes)


@pytest.mark.parametrize(("routing", "head"), [("multi_gate", "pup"), ("task_conditioned", "light")])
def test_file_is_standard_onnx_that_agrees(make_quantized, routing, head, tmp_path):
    network = tiny(routing, head=head)
    model = make_quantized(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        path = export_qcdq(model, tmp_path / "model.onnx")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    graph = onnx.load(str(path)).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert [output.name for output in graph.output] == list(network.task_names)
    assert [value.name for value in graph.input] == ["image"]
    weights = sum(
        1 for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims
    )
    assert weights >= network.experts * (1 + network.expert_units)
    report = agreement(path, model, random_images(network, 2).numpy())
    assert set(report) == set(network.task_names)
    for task in report.values():
        assert task.compared >= 2 * network.tokens * network.embed_dim
        assert task.relative_error < 0.1


def test_the_quantizers_are_in_the_file(tmp_path):
    """At 4 bits the float network is far from the integers; the file must be much nearer."""
    network = tiny()
    source = random_model(network)
    model = QuantMultiTaskViT.from_float(source, Formats(4, 8)).eval()
    images = random_images(network, 4)
    model.calibrate(images)
    report = agreement(export_qcdq(model, tmp_path / "model.onnx"), model, images.numpy())
    with torch.no_grad():
        exact, real = model.integer_mode()(images).outputs, source(images).outputs
    for name, task in report.items():
        float_error = float((real[name] - exact[name]).norm() / exact[name].norm())
        assert task.relative_error < 0.5 * float_error


def test_needs_calibration(tmp_path):
    with pytest.raises(ConfigError, match="calibrate first"):
        export_qcdq(QuantMultiTaskViT(tiny()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
