"""The SETR-PUP head against loops that follow the definitions one value at a time, and against torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from host_networks import TINY

from accel.config import network
from accel.errors import BundleError
from accel.golden import GoldenEngine, run_frame
from accel.params import PupHead
from host import pup
from host.outputs import output_map
from host.pup import conv3x3, layer_norm, pup_head, resize_bilinear


def naive_conv(x, weight, bias):
    height, width, inputs = x.shape
    result = np.zeros((height, width, weight.shape[0]))
    for y in range(height):
        for left in range(width):
            for out in range(weight.shape[0]):
                total = float(bias[out])
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= y + dy < height and 0 <= left + dx < width:
                            pixel, tap = x[y + dy, left + dx], weight[out, :, dy + 1, dx + 1]
                            pixel, tap = x[y + dy, left + dx], weight[out, :, dy + 1, dx + 1]
                            for channel in range(inputs):
                                total += float(pixel[channel]) * float(tap[channel])
                result[y, left, out] = total
    return result


def naive_resize(x, height, width):
    rows, columns, channels = x.shape
    result = np.zeros((height, width, channels))
    for y in range(height):
        for left in range(width):
            sy = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            sx = min(max((left + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            fy, fx = sy - y0, sx - x0
            top = x[y0, x0] * (1 - fx) + x[y0, x1] * fx
            low = x[y1, x0] * (1 - fx) + x[y1, x1] * fx
            result[y, left] = top * (1 - fy) + low * fy
    return result


def random(rng, *shape):
    return rng.normal(0, 1, shape).astype(np.float32)


def test_conv(monkeypatch):
    rng = np.random.default_rng(0)
    x, weight, bias = random(rng, 5, 4, 3), random(rng, 6, 3, 3, 3), random(rng, 6)
    expected = naive_conv(x, weight, bias)
    assert conv3x3(x, weight, bias) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(pup, "_COLUMNS_BYTES", 2 * 4 * 9 * 3 * 4)  # two rows at once, and one left over
    assert conv3x3(x, weight, bias) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [(6, 10), (3, 5), (7, 4), (12, 20)])
def test_resize(size):
    x = random(np.random.default_rng(1), 3, 5, 2)
    assert resize_bilinear(x, *size) == pytest.approx(naive_resize(x, *size), abs=1e-5)


def test_layer_norm():
    x = random(np.random.default_rng(2), 4, 8) * 3 + 1
    y = layer_norm(x, np.full(8, 2.0, np.float32), np.full(8, 0.5, np.float32))
    assert y.mean(axis=1) == pytest.approx(0.5, abs=1e-5)
    assert y.std(axis=1) == pytest.approx(2.0, abs=1e-4)


def make_head(net, channels, rng, hidden=8):
    tensors = {"norm.weight": random(rng, net.embed_dim), "norm.bias": random(rng, net.embed_dim)}
    for index in range(4):
        inputs = hidden if index else net.embed_dim
        tensors[f"conv_{index}.weight"] = random(rng, hidden, inputs, 3, 3) / np.float32(3 * inputs**0.5)
        tensors[f"conv_{index}.bias"] = random(rng, hidden)
    tensors["conv_4.weight"], tensors["conv_4.bias"] = random(rng, channels, hidden, 1, 1), random(rng, channels)
    return PupHead(tensors)


@pytest.mark.parametrize("patch", [2, 4, 8, 12, 16])
def test_whole_head_against_naive(patch):
    net = dataclasses.replace(TINY, patch=patch, image_height=2 * patch, image_width=3 * patch, head="pup")
    rng = np.random.default_rng(patch)
    head = make_head(net, 3, rng, hidden=4)
    residual = rng.integers(-3000, 3000, (net.tokens, net.embed_dim)).astype(np.int16)
    found = pup_head(head, residual, -9, net)
    x = layer_norm(residual[1:] / np.float32(512), head.tensors["norm.weight"], head.tensors["norm.bias"])
    x = x.reshape(2, 3, net.embed_dim)
    # A patch of 2^n has n doublings: one after each of the last n - 1 convolutions, one at the end.
    doublings = {2: 1, 4: 2, 8: 3, 12: 4, 16: 4}[patch]
    for index in range(4):
        x = np.maximum(naive_conv(x, head.tensors[f"conv_{index}.weight"], head.tensors[f"conv_{index}.bias"]), 0)
        if 2 - index < doublings - 1 and index < 3:
            x = naive_resize(x, 2 * x.shape[0], 2 * x.shape[1])
    x = x @ head.tensors["conv_4.weight"][:, :, 0, 0].T + head.tensors["conv_4.bias"]
    expected = naive_resize(x, net.image_height, net.image_width)
    assert found.shape == (net.image_height, net.image_width, 3) and found.dtype == np.float32
    assert found == pytest.approx(expected, abs=2e-3)


def test_missing_tensor():
    head = make_head(TINY, 1, np.random.default_rng(0))
    tensors = {name: array for name, array in head.tensors.items() if name != "conv_2.bias"}
    with pytest.raises(BundleError, match=r"conv_2\.bias: missing"):
        pup_head(PupHead(tensors), np.zeros((TINY.tokens, TINY.embed_dim), np.int16), -9, TINY)


def test_equals_the_torch_head():
    """With batch norm folded as export folds it."""
    torch = pytest.importorskip("torch")
    from model.heads import PupHead as TorchPupHead

    net = dataclasses.replace(network("m3vit-demo"), head="pup", image_height=32, image_width=48)
    torch.manual_seed(0)
    reference = TorchPupHead(net, net.task("normals")).eval()
    tensors = {"norm.weight": reference.norm.weight, "norm.bias": reference.norm.bias}
    for index in range(4):
        conv, norm = reference.get_submodule(f"conv_{index}"), reference.get_submodule(f"syncbn_fc_{index}")
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        tensors[f"conv_{index}.weight"] = conv.weight * gain[:, None, None, None]
        tensors[f"conv_{index}.bias"] = (conv.bias - norm.running_mean) * gain + norm.bias
    tensors |= {"conv_4.weight": reference.conv_4.weight, "conv_4.bias": reference.conv_4.bias}
    head = PupHead({name: values.detach().numpy() for name, values in tensors.items()})
    residual = np.random.default_rng(5).integers(-4000, 4000, (net.tokens, net.embed_dim)).astype(np.int16)
    with torch.no_grad():
        expected = reference(torch.from_numpy(residual / np.float32(1024))[None])[0].permute(1, 2, 0).numpy()
    assert pup_head(head, residual, -10, net) == pytest.approx(expected, abs=1e-3)


def test_output_map_uses_the_float_head(bundle, image):
    encoder = bundle.encoder
    net = dataclasses.replace(encoder.network, head="pup")
    heads = {task.name: make_head(net, task.channels, np.random.default_rng(6)) for task in net.tasks}
    encoder = dataclasses.replace(encoder, network=net, heads=heads)
    result = run_frame(encoder, image, "normals", GoldenEngine(encoder))
    assert result.head is None
    found = output_map(encoder, result)
    assert (found == pup_head(heads["normals"], result.residual, encoder.residual_exponent, net)).all()
    assert found.std() > 0
