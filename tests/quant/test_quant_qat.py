"""The quantized network: float mode, integer mode against golden at every boundary, training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from quant_cases import random_images, random_model, small_network

from accel.config import Formats
from accel.errors import ConfigError, DataError
from accel.golden import GoldenEngine, run_frame
from quant.export import export_encoder
from quant.qat import QuantMultiTaskViT


@pytest.mark.parametrize("head", ["light", "pup"])
def test_without_quantization_it_is_the_float_network(routing, head):
    network = small_network(routing, head=head)
    model = random_model(network)
    quantized = QuantMultiTaskViT.from_float(model).eval()
    images = random_images(network, 3)
    with torch.no_grad(), quantized.float_mode():
        found, expected = quantized(images), model(images)
    for name, output in expected.outputs.items():
        assert torch.allclose(found.outputs[name], output, atol=1e-4)
    for block, stats in expected.routing.items():
        assert torch.equal(found.routing[block].indices, stats.indices)
        assert torch.equal(found.routing[block].load, stats.load)
    assert torch.allclose(found.balance_loss, expected.balance_loss, rtol=1e-4)


@pytest.mark.parametrize("formats", [Formats(), Formats(4, 4), Formats(3, 6)])
def test_integer_mode_equals_golden_at_every_boundary(make_quantized, routing, formats):
    network = small_network(routing)
    model = make_quantized(network, formats)
    encoder = export_encoder(model)
    images = random_images(network, 3, seed=1)
    images[0], images[1, ::2] = 255, 0
    traces = model.integer_mode().trace(images)
    engine = GoldenEngine(encoder)
    compared = mismatches = 0
    for task in network.task_names:
        for frame in range(len(images)):
            golden = run_frame(encoder, images[frame].numpy(), task, engine, record=True).trace
            assert set(golden) == set(traces[task])
            for name, expected in golden.items():
                found = traces[task][name][frame]
                assert found.shape == expected.shape
                compared += found.size
                mismatches += int((found != expected).sum())
    values_per_block = 8 * network.embed_dim  # norm1, qkv, attention, attn_residual, norm2, residual
    assert compared > 6 * network.tokens * network.depth * values_per_block
    assert mismatches == 0
    used = np.unique(np.concatenate([t["blocks.1.topk"].ravel() for t in traces.values()]))
    assert len(used) > 2


def test_single_task_trace_equals_that_of_all_tasks(make_quantized, routing):
    network = small_network(routing)
    twin = make_quantized(network).integer_mode()
    images = random_images(network, 2)
    everything = twin.trace(images)
    for task in network.task_names:
        alone = twin.trace(images, [task])[task]
        assert set(alone) == set(everything[task])
        assert all(np.array_equal(alone[name], everything[task][name]) for name in alone)


def test_training_forward_is_close_to_the_integers(make_quantized, routing):
    model = make_quantized(small_network(routing))
    images = random_images(model.network, 16)
    with torch.no_grad():
        found, exact = model(images), model.integer_mode()(images)
    for name, output in exact.outputs.items():
        step = 2.0 ** model.heads[name].out.format.value
        difference = (found.outputs[name] - output).abs()
        # float32 rounds the combine sums now and then by one step of the residual.
        assert (difference > step / 2).float().mean() < 0.05
        assert difference.mean() < 0.01 * output.abs().mean()


def test_eight_bits_are_close_to_float_and_four_are_not(routing):
    network = small_network(routing)
    model = random_model(network)
    images = random_images(network, 8)
    errors = []
    for formats in (Formats(8, 8), Formats(4, 4)):
        quantized = QuantMultiTaskViT.from_float(model, formats).eval()
        quantized.calibrate(images)
        with torch.no_grad():
            found, expected = quantized(images).outputs, model(images).outputs
        difference = torch.cat([(found[n] - expected[n]).flatten() for n in found])
        scale = torch.cat([v.flatten() for v in expected.values()])
        errors.append(float(difference.norm() / scale.norm()))
    assert errors[0] < 0.1
    assert errors[1] > 3 * errors[0]


def test_gradients_are_finite_and_point_like_the_float_ones(routing):
    network = small_network(routing)
    quantized = QuantMultiTaskViT.from_float(random_model(network)).train()
    images = random_images(network, 8)
    quantized.calibrate(images)
    assert quantized.training

    def gradients():
        quantized.zero_grad()
        result = quantized(images)
        loss = sum(v.square().mean() for v in result.outputs.values()) + 0.01 * result.balance_loss
        loss.backward()
        return {n: p.grad.clone() for n, p in quantized.named_parameters() if p.grad is not None}

    found = gradients()
    with quantized.float_mode():
        exact = gradients()
    assert set(found) == set(exact) == {n for n, _ in quantized.named_parameters()}
    for name, grad in found.items():
        assert torch.isfinite(grad).all(), name
    a, b = (torch.cat([g[n].flatten() for n in sorted(g)]) for g in (found, exact))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9


def test_gate_override_and_task_subset(make_quantized):
    model = make_quantized()
    images = random_images(model.network, 2)
    with torch.no_grad():
        both = model(images)
        swapped = model(images, gate_override={"semseg": "depth"})
        alone = model(images, ["depth"])
    assert torch.equal(alone.outputs["depth"], both.outputs["depth"])
    assert torch.equal(swapped.outputs["depth"], both.outputs["depth"])
    assert not torch.equal(swapped.outputs["semseg"], both.outputs["semseg"])
    stats = swapped.routing[1].indices
    assert torch.equal(stats[0], both.routing[1].indices[1])


def test_copies_and_state_dicts_keep_everything(make_quantized):
    model = make_quantized()
    other = QuantMultiTaskViT(model.network, model.formats)
    other.load_state_dict(model.state_dict())
    images = random_images(model.network, 2)
    with torch.no_grad():
        expected = model(images).outputs["depth"]
        assert torch.equal(other.eval()(images).outputs["depth"], expected)
        assert torch.equal(copy.deepcopy(model)(images).outputs["depth"], expected)
    assert model.position.dtype == torch.float32  # integer_mode copies


def test_errors(make_quantized):
    model = make_quantized()
    images = random_images(model.network, 1)
    with pytest.raises(DataError, match="images: expected shape"):
        model(images[:, :8])
    with pytest.raises(ConfigError, match="nothing"):
        model(images, ["nothing"])
    with pytest.raises(ConfigError, match="at least one task"):
        model(images, [])
    with pytest.raises(ConfigError, match="trace: expected integer mode"):
        model.trace(images)
    with pytest.raises(ConfigError, match="images = 0"):
        model.calibrate(images[:0])
    fresh = QuantMultiTaskViT(model.network)
    with pytest.raises(ConfigError, match="calibrate first"):
        fresh(images)
