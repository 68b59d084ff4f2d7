"""The integer ONNX against the contract's own functions, at every layer boundary: 0 mismatches, counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from accel import numerics
from accel.config import Formats, Network, Task, network
from accel.errors import ConfigError, DataError, ExportError
from accel.golden import GoldenEngine, run_frame
from accel.params import Attention, Encoder, LayerNorm, LightHead, Linear, PupHead, Unit
from accel.random_params import random_encoder
from quant import onnx_integer
from quant.onnx_integer import OnnxReferee, build_integer_onnx, save_integer_onnx

Arrays = dict[str, NDArray[Any]]

# Not square, several units per MLP and per expert, an odd number of experts.
TINY = Network(
    "tiny", 16, 24, patch=8, embed_dim=16, depth=4, heads=2, dense_hidden=32, experts=5, top_k=2, expert_hidden=32,
    unit_hidden=16, head_hidden=24,
    tasks=(Task("semseg", 3, "labels"), Task("depth", 1, "log_depth"), Task("normals", 3, "normals")),
)  # fmt: skip
CONDITIONED = dataclasses.replace(TINY, routing="task_conditioned", task_embed_dim=4)
VARIANTS = ("plain", "peaked", "flat", "saturated", "narrow")


def make_encoder(net: Network, variant: str) -> Encoder:
    """Random parameters with ties between experts, bent to one extreme.

    ``peaked``: every attention row is one-hot. ``flat``: every probability is 254 and every v is ±127, the sums
    that break 16-bit pair sums. ``saturated``: the residual starts at its limits. ``narrow``: 4-bit weights and
    6-bit activations.
    """
    encoder = random_encoder(net, Formats(4, 6) if variant == "narrow" else Formats(), seed=1)
    blocks = []
    for block in encoder.blocks:
        for number, gate in enumerate(block.gates.values()):
            gate.weight[-1], gate.bias[-1] = gate.weight[0], gate.bias[0]
            if number == 1 and net.routing == "multi_gate":
                gate.weight[:] = 0  # nothing but ties
        if variant in ("peaked", "flat"):
            block.qkv.shift[2 * net.embed_dim :] = -8
            block = dataclasses.replace(block, attention=Attention(-16 if variant == "peaked" else 31, 0))
        blocks.append(block)
    if variant == "saturated":
        encoder.patch.shift[:] = -8
    return dataclasses.replace(encoder, blocks=tuple(blocks))


def reference(encoder: Encoder, images: NDArray[np.uint8], task: str) -> Arrays:
    """Every layer boundary, straight from the functions of the contract."""
    net, bits, found = encoder.network, encoder.formats.activation_bits, Arrays()

    def linear(x: Any, layer: Linear, width: int, narrow: bool = False) -> Any:
        return numerics.requantize(numerics.linear(x, layer.weight, layer.bias), layer.shift, width, narrow)

    def norm(x: Any, p: LayerNorm) -> Any:
        return numerics.layer_norm(x, p.gamma, p.beta, p.eps, p.exponent, bits)

    def unit(x: Any, p: Unit) -> Any:
        return linear(numerics.gelu(linear(x, p.first, bits), p.gelu), p.second, 16)

    def keep(name: str, value: Any, dtype: type) -> Any:
        assert np.array_equal(value, np.asarray(value).astype(dtype)), f"{name} leaves {dtype}"
        found[name] = np.asarray(value).astype(dtype)
        return np.asarray(value, np.int64)

    count, p = len(images), net.patch
    pixels = images.astype(np.int64) - 128
    patches = pixels.reshape(count, net.grid_h, p, net.grid_w, p, 3).transpose(0, 1, 3, 2, 4, 5)
    start = np.broadcast_to(numerics.combine_start(encoder.position), (count, net.tokens, net.embed_dim)).copy()
    start[:, 1:] += linear(patches.reshape(count, net.tokens - 1, -1), encoder.patch, 16) * numerics.COMBINE_ONE
    x = keep("embed", numerics.combine_finish(start), np.int16)
    for i, block in enumerate(encoder.blocks):
        y = keep(f"blocks.{i}.norm1", norm(x, block.norm1), np.int8)
        qkv = keep(f"blocks.{i}.qkv", linear(y, block.qkv, bits, narrow=True), np.int8)
        q, k, v = qkv.reshape(count, net.tokens, 3, net.heads, net.head_dim).transpose(2, 0, 3, 1, 4)
        probability = numerics.attention_probabilities(q @ k.swapaxes(-1, -2), block.attention.score_shift)
        total = probability.sum(-1, keepdims=True)
        out = numerics.attention_output(probability @ v, total, block.attention.output_shift, bits)
        out = keep(f"blocks.{i}.attention", out.transpose(0, 2, 1, 3).reshape(x.shape), np.int8)
        wide = numerics.combine_start(x) + numerics.COMBINE_ONE * linear(out, block.proj, 16)
        x = keep(f"blocks.{i}.attn_residual", numerics.combine_finish(wide), np.int16)
        y = keep(f"blocks.{i}.norm2", norm(x, block.norm2), np.int8)
        wide = numerics.combine_start(x)
        if net.is_moe(i):
            gate = block.gates[task]
            logits = numerics.linear(y, gate.weight, gate.bias)
            chosen = keep(f"blocks.{i}.topk", numerics.top_k(logits, net.top_k), np.int64)
            weights = keep(f"blocks.{i}.weights", numerics.gate_weights(logits, chosen, gate.shift), np.int32)
            for image, token, slot in np.ndindex(*chosen.shape):
                for part in block.experts[chosen[image, token, slot]]:
                    wide[image, token] += weights[image, token, slot] * unit(y[image, token], part)
        else:
            wide = wide + sum(numerics.COMBINE_ONE * unit(y, part) for part in block.experts[0])
        x = keep(f"blocks.{i}.residual", numerics.combine_finish(wide), np.int16)
    head = encoder.heads[task]
    if isinstance(head, LightHead):
        y = keep("head.norm", norm(x[:, 1:], head.norm), np.int8)
        hidden = keep("head.hidden", numerics.gelu(linear(y, head.fc1, bits), head.gelu), np.int8)
        keep("head.output", linear(hidden, head.fc2, 16), np.int16)
    return found


def frames(net: Network) -> NDArray[np.uint8]:
    """Random, black, white, a checkerboard of pixels and one of patches."""
    images = np.random.default_rng(7).integers(0, 256, (5, net.image_height, net.image_width, 3), dtype=np.uint8)
    rows, columns = np.arange(net.image_height)[:, None], np.arange(net.image_width)
    images[1], images[2] = 0, 255
    images[3] = ((rows + columns) % 2 * 255)[..., None]
    images[4] = ((rows // net.patch + columns // net.patch) % 2 * 255)[..., None]
    return images


def compare(expected: Arrays, found: Arrays) -> tuple[int, dict[str, int]]:
    """(integers compared, mismatches by name where there are any)."""
    assert list(expected) == list(found)
    for name, value in expected.items():
        assert (value.dtype, value.shape) == (found[name].dtype, found[name].shape), name
    wrong = {name: int((value != found[name]).sum()) for name, value in expected.items()}
    return sum(value.size for value in expected.values()), {name: n for name, n in wrong.items() if n}


@pytest.mark.parametrize(
    ("net", "variant"),
    [*((TINY, variant) for variant in VARIANTS), (CONDITIONED, "plain")],
    ids=[*VARIANTS, "task_conditioned"],
)
def test_every_boundary_equals_the_contract(net: Network, variant: str) -> None:
    encoder, images = make_encoder(net, variant), frames(net)
    tasks = net.tasks if variant == "plain" else net.tasks[:1]
    expected = {task.name: reference(encoder, images, task.name) for task in tasks}
    compared = 0
    for optimization in ("disable", "all"):
        referee = OnnxReferee(encoder, list(expected), optimization=optimization, threads=1)
        for task in referee.tasks:
            count, wrong = compare(expected[task], referee.run(images, task))
            assert not wrong, (optimization, task)
            compared += count
    encoded = net.tokens * (net.embed_dim * (1 + net.depth * 8) + len(net.moe_blocks) * 2 * net.top_k)
    patches, channels = net.tokens - 1, sum(task.channels for task in tasks)
    heads = patches * (len(tasks) * (net.embed_dim + net.head_hidden) + net.patch**2 * channels)
    assert compared == 2 * len(images) * (len(tasks) * encoded + heads) > 50_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_reach_what_they_are_for(variant: str) -> None:
    """The comparison above would prove little on constant tensors."""
    encoder = make_encoder(TINY, variant)
    found = reference(encoder, frames(TINY), "semseg")
    q, k, v = (part.astype(np.int64) for part in np.split(found["blocks.1.qkv"], 3, axis=-1))
    per_head = [x.reshape(5, TINY.tokens, TINY.heads, -1).transpose(0, 2, 1, 3) for x in (q, k)]
    scores = per_head[0] @ per_head[1].swapaxes(-1, -2)
    probability = numerics.attention_probabilities(scores, encoder.blocks[1].attention.score_shift)
    if variant == "peaked":
        assert set(np.unique(probability)) == {0, 254}
    elif variant == "flat":
        assert set(np.unique(probability)) == {254} and (np.abs(v) == 127).mean() > 0.9
    else:
        assert len(np.unique(probability)) > 30
    if variant == "saturated":
        assert (np.abs(found["embed"][:, 1:].astype(int)) >= 32767).mean() > 0.4
    elif variant == "narrow":
        assert found["blocks.1.qkv"].min() == -31 and found["blocks.3.norm1"].max() <= 31
    else:
        assert (np.abs(found["blocks.3.residual"].astype(int)) < 32767).mean() > 0.5
    assert len(np.unique(found["head.output"])) > 100
    assert len({tuple(row) for row in found["blocks.1.topk"].reshape(-1, TINY.top_k)}) > 3
    assert np.isin(found["blocks.1.topk"], [0, TINY.experts - 1]).any()  # the two with equal logits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", ["semseg", "depth"])
def test_second_runtime_agrees(variant: str, task: str) -> None:
    """ONNX's own evaluator (NumPy) reads the same integers, so they are no habit of onnxruntime."""
    encoder, images = make_encoder(TINY, variant), frames(TINY)
    model = build_integer_onnx(encoder, task)
    names = [output.name for output in model.graph.output]
    values: Any = ReferenceEvaluator(model).run(names, {"image": images})
    compared, wrong = compare(reference(encoder, images, task), dict(zip(names, values, strict=True)))
    assert compared > 20_000 and not wrong


def test_comparison_sees_one_changed_weight() -> None:
    encoder = make_encoder(TINY, "plain")
    referee = OnnxReferee(encoder, ["normals"], threads=1)
    encoder.blocks[1].experts[0][1].second.weight[3, 4] ^= 64
    compared, wrong = compare(reference(encoder, frames(TINY), "normals"), referee.run(frames(TINY), "normals"))
    assert compared > 0 and "blocks.1.residual" in wrong and "blocks.1.norm2" not in wrong


@pytest.mark.parametrize("routing", ["multi_gate", "task_conditioned"])
def test_demo_network_equals_golden(routing: str) -> None:
    width = 16 if routing == "task_conditioned" else 0
    net = dataclasses.replace(network("m3vit-demo"), routing=routing, task_embed_dim=width)
    encoder, images = random_encoder(net), frames(net)
    golden = GoldenEngine(encoder)
    traces = [run_frame(encoder, image, "edge", golden, record=True).trace for image in images]
    found = OnnxReferee(encoder, ["edge"]).run(images, "edge")
    assert set(found) == set(traces[0])
    wrong = {name: int((np.stack([trace[name] for trace in traces]) != found[name]).sum()) for name in found}
    assert not any(wrong.values()), wrong
    assert sum(value.size for value in found.values()) > 5 * 8 * net.depth * net.tokens * net.embed_dim


# Structure


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return build_integer_onnx(make_encoder(TINY, "plain"), "semseg")


def test_model_is_standard_and_valid(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "network": "tiny", "task": "semseg", "residual_exponent": "-10", "head_exponent": "-11",
    }  # fmt: skip


def test_no_product_of_uint8_and_int8(model: onnx.ModelProto) -> None:
    """AVX2 without VNNI saturates those pair sums; this looks at types, so it fails on any machine."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    products = [node for node in inferred.node if node.op_type == "MatMulInteger"]
    pairs = {tuple(types[name] for name in node.input) for node in products}
    assert len(products) > 4 * 6
    assert pairs == {(TensorProto.INT8, TensorProto.INT8), (TensorProto.INT8, TensorProto.UINT8)}


def test_final_outputs_only() -> None:
    encoder, images = make_encoder(TINY, "plain"), frames(TINY)
    found = OnnxReferee(encoder, ["depth"], boundaries=False).run(images, "depth")
    assert list(found) == ["blocks.3.residual", "head.output"]
    expected = reference(encoder, images, "depth")
    assert all(np.array_equal(expected[name], value) for name, value in found.items())


def pup_head(width: int, channels: int) -> PupHead:
    """A float head of zeros."""
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (width,), "norm.bias": (width,)}
    for index, inputs in enumerate((width, 256, 256, 256)):
        shapes |= {f"conv_{index}.weight": (256, inputs, 3, 3), f"conv_{index}.bias": (256,)}
    shapes |= {"conv_4.weight": (channels, 256, 1, 1), "conv_4.bias": (channels,)}
    return PupHead({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def test_pup_head_ends_at_the_last_residual() -> None:
    encoder = make_encoder(TINY, "plain")
    heads = {task.name: pup_head(TINY.embed_dim, task.channels) for task in TINY.tasks}
    encoder = dataclasses.replace(encoder, network=dataclasses.replace(TINY, head="pup"), heads=heads)
    outputs = [value.name for value in build_integer_onnx(encoder, "depth").graph.output]
    assert outputs[-1] == "blocks.3.residual" and len(outputs) == 1 + 4 * 6 + 2 * 2


def test_long_runs_are_cut_into_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = make_encoder(TINY, "plain"), frames(TINY)
    referee = OnnxReferee(encoder, ["depth"], threads=1)
    whole = referee.run(images, "depth")
    monkeypatch.setattr(onnx_integer, "SCORES_AT_ONCE", 2 * TINY.heads * TINY.tokens**2)
    compared, wrong = compare(whole, referee.run(images, "depth"))
    assert compared > 0 and not wrong


def test_save_is_deterministic_and_loads(model: onnx.ModelProto, tmp_path: Path) -> None:
    again = build_integer_onnx(make_encoder(TINY, "plain"), "semseg")
    for name, item in (("a.onnx", model), ("b.onnx", again)):
        save_integer_onnx(item, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert onnx.load(tmp_path / "a.onnx") == model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_save_refuses_more_than_protobuf_allows(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_integer, "PROTOBUF_LIMIT", 1000)
    with pytest.raises(ExportError, match="expected at most 1000 bytes of ONNX, found"):
        save_integer_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_errors_name_what_was_expected() -> None:
    encoder = make_encoder(TINY, "plain")
    with pytest.raises(ConfigError, match="'sal'.*semseg, depth, normals"):
        build_integer_onnx(encoder, "sal")
    with pytest.raises(ConfigError, match="optimization = 'most': expected one of disable"):
        OnnxReferee(encoder, [], optimization="most")
    referee = OnnxReferee(encoder, ["depth"])
    with pytest.raises(ConfigError, match="'semseg': expected one of depth"):
        referee.run(frames(TINY), "semseg")
    wrong: list[Any] = [frames(TINY).astype(np.int8), frames(TINY)[0], frames(TINY)[:, 1:], frames(TINY)[:0]]
    for images in wrong:
        with pytest.raises(DataError, match=r"uint8 of shape \(B, 16, 24, 3\)"):
            referee.run(images, "depth")
    encoder.blocks[0].qkv.shift[0] = 40
    with pytest.raises(ExportError, match="blocks.0.qkv.shift"):
        build_integer_onnx(encoder, "depth")
