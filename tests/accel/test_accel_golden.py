"""The golden model against a plain walk written with accel.numerics only, and the order independence of routing."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import golden, numerics
from accel.config import Formats, Network, Task
from accel.errors import ConfigError, DataError
from accel.golden import GoldenEngine, check_image, patches, run_frame, unpatch
from accel.kernels import PreparedUnit
from accel.params import Block, Encoder, Gate, LightHead, Linear, Unit
from accel.random_params import random_encoder
from accel.routing import Queue, Routing, Schedule, schedule

TASKS = (Task("semseg", 3, "labels"), Task("depth", 1, "depth"))
NETWORK = Network(
    "tiny", 16, 24, patch=8, embed_dim=16, depth=4, heads=2, dense_hidden=32, experts=6, top_k=2, expert_hidden=32,
    unit_hidden=16, tasks=TASKS, head_hidden=16,
)  # fmt: skip
CONDITIONED = dataclasses.replace(NETWORK, name="conditioned", routing="task_conditioned", task_embed_dim=4)
BOUNDARIES = 1 + 4 * 6 + 2 * 2 + 3
"""embed; six per block; topk and weights in two MoE blocks; three in the head."""


def image_of(network: Network, seed: int) -> np.ndarray:
    shape = (network.image_height, network.image_width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# ---- a walk without kernels, engines or queues ----------------------------------------


def _linear(layer: Linear, x: np.ndarray, bits: int, narrow: bool = False) -> np.ndarray:
    return numerics.requantize(numerics.linear(x, layer.weight, layer.bias), layer.shift, bits, narrow)


def _unit(unit: Unit, x: np.ndarray, bits: int) -> np.ndarray:
    return _linear(unit.second, numerics.gelu(_linear(unit.first, x, bits), unit.gelu), 16)


def _attention(block: Block, qkv: np.ndarray, heads: int, bits: int) -> np.ndarray:
    width = qkv.shape[1] // 3
    size = width // heads
    output = np.empty((len(qkv), width), np.int64)
    for head in range(heads):
        q, k, v = (qkv[:, part * width + head * size :][:, :size] for part in range(3))
        p = numerics.attention_probabilities(q @ k.T, block.attention.score_shift)
        output[:, head * size : (head + 1) * size] = numerics.attention_output(
            p @ v, p.sum(axis=1, keepdims=True), block.attention.output_shift, bits
        )
    return output


def walk(encoder: Encoder, image: np.ndarray, task: str) -> dict[str, np.ndarray]:
    """The encoder token by token and expert by expert, straight from the contract."""
    net, bits = encoder.network, encoder.formats.activation_bits
    trace = {}
    tokens = [encoder.position[0].astype(np.int64)]
    for row in range(net.grid_h):
        for column in range(net.grid_w):
            square = image[row * net.patch :, column * net.patch :][: net.patch, : net.patch]
            vector = square.astype(np.int64).reshape(-1) - 128
            start = numerics.combine_start(encoder.position[len(tokens)])
            tokens.append(numerics.combine_finish(start + numerics.COMBINE_ONE * _linear(encoder.patch, vector, 16)))
    x = trace["embed"] = np.stack(tokens)
    for index, block in enumerate(encoder.blocks):
        name = f"blocks.{index}"
        n1, n2 = block.norm1, block.norm2
        norm1 = numerics.layer_norm(x, n1.gamma, n1.beta, n1.eps, n1.exponent, bits)
        qkv = _linear(block.qkv, norm1, bits, narrow=True)
        attended = _attention(block, qkv, net.heads, bits)
        start = numerics.combine_start(x)
        middle = numerics.combine_finish(start + numerics.COMBINE_ONE * _linear(block.proj, attended, 16))
        norm2 = numerics.layer_norm(middle, n2.gamma, n2.beta, n2.eps, n2.exponent, bits)
        wide = numerics.combine_start(middle)
        if net.is_moe(index):
            gate = block.gates[task]
            logits = numerics.linear(norm2, gate.weight, gate.bias)
            chosen = numerics.top_k(logits, net.top_k)
            weights = numerics.gate_weights(logits, chosen, gate.shift)
            for token in range(net.tokens):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    for unit in block.experts[expert]:
                        wide[token] += weight * _unit(unit, norm2[token], bits)
            trace |= {f"{name}.topk": chosen, f"{name}.weights": weights}
        else:
            for unit in block.experts[0]:
                wide += numerics.COMBINE_ONE * _unit(unit, norm2, bits)
        assert np.abs(wide).max() < 1 << (numerics.COMBINE_BITS - 1)
        x = numerics.combine_finish(wide)
        boundary = dict(norm1=norm1, qkv=qkv, attention=attended, attn_residual=middle, norm2=norm2, residual=x)
        trace |= {f"{name}.{key}": value for key, value in boundary.items()}
    head = encoder.heads[task]
    assert isinstance(head, LightHead)
    norm = numerics.layer_norm(x[1:], head.norm.gamma, head.norm.beta, head.norm.eps, head.norm.exponent, bits)
    hidden = numerics.gelu(_linear(head.fc1, norm, bits), head.gelu)
    return trace | {"head.norm": norm, "head.hidden": hidden, "head.output": _linear(head.fc2, hidden, 16)}


@pytest.mark.parametrize("formats", [Formats(), Formats(weight_bits=4, activation_bits=6)])
@pytest.mark.parametrize("network", [NETWORK, CONDITIONED], ids=["multi_gate", "task_conditioned"])
def test_every_boundary_equals_the_plain_walk(network: Network, formats: Formats) -> None:
    encoder = random_encoder(network, formats, seed=11)
    engine = GoldenEngine(encoder)
    images = [image_of(network, 1), np.zeros_like(image_of(network, 0)), np.full_like(image_of(network, 0), 255)]
    compared = boundaries = 0
    for task in network.task_names:
        for image in images:
            expected = walk(encoder, image, task)
            result = run_frame(encoder, image, task, engine, record=True)
            assert set(result.trace) == set(expected)
            for name, values in expected.items():
                assert result.trace[name].shape == values.shape
                assert np.array_equal(result.trace[name], values), name
                compared += values.size
                boundaries += 1
            assert np.array_equal(result.residual, expected["blocks.3.residual"])
            assert result.head is not None and np.array_equal(result.head, expected["head.output"])
    assert boundaries == 2 * 3 * BOUNDARIES
    per_frame = 7 * 16 * (1 + 4 * 5) + 4 * 7 * 48 + 2 * 2 * 7 * 2  # embed, blocks, qkv, topk and weights
    heads = sum(6 * (16 + 16 + 64 * task.channels) for task in network.tasks)
    assert compared == 3 * (2 * per_frame + heads)


def test_tasks_differ_in_their_gates_and_heads_only() -> None:
    encoder = random_encoder(NETWORK, seed=2)
    engine, image = GoldenEngine(encoder), image_of(NETWORK, 3)
    first, second = (run_frame(encoder, image, task, engine, record=True).trace for task in NETWORK.task_names)
    assert np.array_equal(first["blocks.1.norm2"], second["blocks.1.norm2"])
    assert not np.array_equal(first["blocks.1.topk"], second["blocks.1.topk"])


# ---- order of experts and tokens ------------------------------------------------------


def shuffled(seed: int):
    """Random order of the queues and of the entries within each."""
    rng = np.random.default_rng(seed)

    def order(queues: list[Queue]) -> list[Queue]:
        result = []
        for index in rng.permutation(len(queues)):
            queue = queues[index]
            entries = rng.permutation(len(queue))
            result.append(Queue(queue.expert, queue.tokens[entries], queue.weights[entries]))
        return result

    return order


ENCODER = random_encoder(NETWORK, seed=5)
IMAGE = image_of(NETWORK, 5)
EXPECTED = run_frame(ENCODER, IMAGE, "depth", GoldenEngine(ENCODER))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_any_order_of_experts_and_tokens_gives_the_same_bits(seed: int) -> None:
    found = run_frame(ENCODER, IMAGE, "depth", GoldenEngine(ENCODER, order=shuffled(seed)))
    assert np.array_equal(found.residual, EXPECTED.residual)
    assert found.head is not None and EXPECTED.head is not None
    assert np.array_equal(found.head, EXPECTED.head)


@pytest.mark.parametrize("policy", list(Schedule))
def test_every_schedule_gives_the_same_bits(policy: Schedule) -> None:
    engine = GoldenEngine(ENCODER, order=lambda queues: schedule(queues, policy, resident=(3, 5)))
    assert np.array_equal(run_frame(ENCODER, IMAGE, "depth", engine).residual, EXPECTED.residual)


def test_a_lost_entry_would_be_noticed() -> None:
    engine = GoldenEngine(ENCODER, order=lambda queues: queues[1:])
    assert not np.array_equal(run_frame(ENCODER, IMAGE, "depth", engine).residual, EXPECTED.residual)


# ---- corner cases of routing ----------------------------------------------------------


def mixture_reference(engine_block: Block, x: np.ndarray, residual: np.ndarray, routing: Routing) -> np.ndarray:
    wide = numerics.combine_start(residual)
    for token in range(len(x)):
        for expert, weight in zip(routing.chosen[token], routing.weights[token], strict=True):
            for unit in engine_block.experts[expert]:
                wide[token] += weight * _unit(unit, x[token], 8)
    return numerics.combine_finish(wide)


def with_gate(encoder: Encoder, gate: Gate) -> Encoder:
    block = dataclasses.replace(encoder.blocks[1], gates={task: gate for task in encoder.network.task_names})
    return dataclasses.replace(encoder, blocks=(encoder.blocks[0], block, *encoder.blocks[2:]))


def run_mixture(gate: Gate, tokens: int, network: Network = NETWORK) -> tuple[Routing, np.ndarray, np.ndarray]:
    """Block 1's experts behind ``gate`` on random input: routing, result and what it should be."""
    encoder = with_gate(random_encoder(network, seed=8), gate)
    rng = np.random.default_rng(8)
    x = rng.integers(-128, 128, (tokens, network.embed_dim)).astype(np.int8)
    residual = rng.integers(-32768, 32768, x.shape).astype(np.int16)
    found, routing = GoldenEngine(encoder).mixture("blocks.1.mlp", x, residual, "semseg")
    assert routing is not None
    return routing, found, mixture_reference(encoder.blocks[1], x, residual, routing)


def zero_gate(bias: list[int]) -> Gate:
    return Gate(np.zeros((len(bias), NETWORK.embed_dim), np.int8), np.array(bias, np.int32), 0)


def test_one_expert_gets_every_token_and_others_stay_empty() -> None:
    routing, found, expected = run_mixture(zero_gate([0, 0, 9000, 0, 0, 0]), 7)
    assert routing.load(6).tolist() == [7, 0, 7, 0, 0, 0]  # 2 wins; the tie for second goes to 0
    assert routing.chosen.tolist() == [[2, 0]] * 7
    assert routing.weights.tolist() == [[65535, 0]] * 7
    assert [queue.expert for queue in routing.queues(6)] == [0, 2]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("tokens", [1, 2])
def test_single_tokens(tokens: int) -> None:
    routing, found, expected = run_mixture(random_encoder(NETWORK, seed=1).blocks[1].gates["depth"], tokens)
    assert sum(len(queue) for queue in routing.queues(6)) == 2 * tokens
    assert np.array_equal(found, expected)


def test_no_tokens_for_an_expert_of_256() -> None:
    network = dataclasses.replace(NETWORK, experts=256, top_k=8, expert_hidden=16)
    gate = Gate(np.zeros((256, 16), np.int8), np.arange(256, dtype=np.int32), 0)
    routing, found, expected = run_mixture(gate, 3, network)
    assert routing.chosen.tolist() == [list(range(255, 247, -1))] * 3
    assert np.array_equal(found, expected)


def test_all_logits_tie() -> None:
    routing, found, expected = run_mixture(zero_gate([4] * 6), 5)
    assert routing.chosen.tolist() == [[0, 1]] * 5
    sixth = round(65536 / 6)
    assert np.abs(routing.weights - sixth).max() <= 1
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("sign", "limit"), [(1, 32767), (-1, -32768)])
def test_combine_saturates(sign: int, limit: int) -> None:
    encoder = with_gate(random_encoder(NETWORK, seed=8), zero_gate([9000, 0, 0, 0, 0, 0]))
    unit = encoder.blocks[1].experts[0][0]
    pushing = Linear(unit.second.weight * 0, np.full(16, sign * 2**24, np.int32), np.zeros(16, np.int8))
    experts = list(encoder.blocks[1].experts)
    experts[0] = tuple(dataclasses.replace(item, second=pushing) for item in experts[0])
    block = dataclasses.replace(encoder.blocks[1], experts=tuple(experts))
    encoder = dataclasses.replace(encoder, blocks=(encoder.blocks[0], block, *encoder.blocks[2:]))
    x = np.zeros((4, 16), np.int8)
    residual = np.full((4, 16), sign * 20000, np.int16)
    found, _ = GoldenEngine(encoder).mixture("blocks.1.mlp", x, residual, "depth")
    assert (found == limit).all()
    # Two units of ±32767 and −32768 each: without saturation the sum would be far outside.
    dense = GoldenEngine(encoder).accumulate("blocks.0.proj", np.full((4, 16), 127, np.int8), residual * 0 + limit)
    assert dense.dtype == np.int16 and abs(int(dense.max())) <= 32768


def test_accumulate_saturates_both_sides() -> None:
    bias = np.array([2**20, -(2**20)] * 8, np.int32)
    base = random_encoder(NETWORK, seed=4)
    patch = Linear(base.patch.weight * 0, bias, np.zeros(16, np.int8))
    engine = GoldenEngine(dataclasses.replace(base, patch=patch))
    found = engine.accumulate("patch", np.zeros((2, 192), np.int8), np.array([[100, -100] * 8] * 2, np.int16))
    assert found.tolist() == [[32767, -32768] * 8] * 2


# ---- what both engines share ----------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_accumulate_is_a_combine_of_weight_one(tokens: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    residual = rng.integers(-32768, 32768, (tokens, width)).astype(np.int16)
    contribution = rng.integers(-32768, 32768, (tokens, width)).astype(rng.choice([np.float32, np.int16]))
    kept = residual.copy()
    found = golden.accumulate(residual, contribution)
    wide = numerics.combine_start(residual) + numerics.COMBINE_ONE * contribution.astype(np.int64)
    assert found.dtype == np.int16 and np.array_equal(found, numerics.combine_finish(wide))
    assert np.array_equal(residual, kept), "the residual is left alone"


def test_everyone_is_the_queue_of_a_dense_layer() -> None:
    queue = golden.everyone(5)
    assert queue.expert == 0 and queue.tokens.tolist() == list(range(5)) and queue.weights.tolist() == [65536] * 5


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 8), st.integers(-16, 31), st.integers(0, 2**32 - 1))
def test_route_tokens_is_the_contract(tokens: int, experts: int, top_k: int, shift: int, seed: int) -> None:
    rng, top_k = np.random.default_rng(seed), min(top_k, experts)
    weight = rng.integers(-127, 128, (experts, 24)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, experts).astype(np.int32)
    weight[-1], bias[-1] = weight[0], bias[0]  # ties
    x = rng.integers(-128, 128, (tokens, 24)).astype(np.int8)
    found = golden.route_tokens(golden.PreparedGate(weight, bias), x, top_k, shift)
    logits = numerics.linear(x, weight, bias)
    chosen = numerics.top_k(logits, top_k)
    assert np.array_equal(found.chosen, chosen)
    assert np.array_equal(found.weights, numerics.gate_weights(logits, chosen, shift))


def constant_unit(value: int, width: int = 4) -> PreparedUnit:
    """A unit whose output is ``value`` in every channel, whatever its input."""
    zeros = np.zeros((width, width), np.int8)
    shift = np.zeros(width, np.int8)
    first = Linear(zeros, np.zeros(width, np.int32), shift)
    return PreparedUnit(Unit(first, np.zeros(256, np.int8), Linear(zeros, np.full(width, value, np.int32), shift)))


@pytest.mark.parametrize("value", [32767, -32768])
@pytest.mark.parametrize(("units", "experts", "weights"), [(15, 1, [65536]), (14, 2, [65535, 2])])
def test_combine_is_exact_at_its_bound(value: int, units: int, experts: int, weights: list[int]) -> None:
    """Residual and all units at their limits: the accumulator comes near 2^35 and no bit is lost on the way."""
    rng = np.random.default_rng(0)
    residual = np.where(rng.random((6, 4)) < 0.5, 32767, -32768).astype(np.int16)
    x = rng.integers(-128, 128, (6, 4)).astype(np.int8)
    queues = [Queue(e, np.arange(6), np.full(6, weights[e])) for e in range(experts)]
    found = golden.combine_queues(residual, x, queues, lambda _: [constant_unit(value)] * units, 8)
    wide = numerics.combine_start(residual) + units * sum(weights) * value
    assert (1 << 34) < np.abs(wide).max() <= 1 << 35
    assert np.array_equal(found, numerics.combine_finish(wide))


@pytest.mark.parametrize("value", [1, -1, 3, -5, 1000])
def test_combine_rounds_once_and_half_to_even(value: int) -> None:
    """Weights around one half of 2^16: each contribution alone would round, the sum must not."""
    residual = np.arange(-8, 8, dtype=np.int16).reshape(4, 4)
    x = np.zeros((4, 4), np.int8)
    for weight in (1, 32767, 32768, 32769, 65535):
        queues = [Queue(e, np.arange(4), np.full(4, weight)) for e in range(3)]
        for order in (queues, queues[::-1]):
            found = golden.combine_queues(residual, x, order, lambda queue: [constant_unit(value + queue.expert)], 8)
            wide = numerics.combine_start(residual) + weight * (3 * value + 3)
            assert np.array_equal(found, numerics.combine_finish(wide))


def test_combine_touches_only_the_tokens_of_a_queue() -> None:
    residual = np.arange(16, dtype=np.int16).reshape(4, 4)
    x = np.zeros((4, 4), np.int8)
    assert np.array_equal(golden.combine_queues(residual, x, [], lambda _: [], 8), residual)
    queue = Queue(7, np.array([3, 1]), np.array([65536, 32768]))
    asked = []

    def units(found: Queue) -> list[PreparedUnit]:
        asked.append(found)
        return [constant_unit(10), constant_unit(100)]

    found = golden.combine_queues(residual, x, [queue], units, 8)
    assert asked == [queue] and (found - residual)[:, 0].tolist() == [0, 55, 0, 110]


# ---- queues ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_queues_hold_every_pair_once_in_token_order(tokens: int, experts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, experts + 1))
    chosen = np.stack([rng.permutation(experts)[:k] for _ in range(tokens)])
    weights = rng.integers(0, 65536, (tokens, k))
    queues = Routing(chosen, weights).queues(experts)
    assert [queue.expert for queue in queues] == sorted(set(chosen.reshape(-1).tolist()))
    found: dict[tuple[int, int], int] = {}
    for queue in queues:
        assert len(queue) > 0 and (np.diff(queue.tokens) > 0).all()
        found |= {(int(t), queue.expert): int(w) for t, w in zip(queue.tokens, queue.weights, strict=True)}
    expected = {(t, int(chosen[t, j])): int(weights[t, j]) for t in range(tokens) for j in range(k)}
    assert found == expected
    assert sum(len(queue) for queue in queues) == tokens * k


def test_schedules() -> None:
    chosen = np.array([[3, 0], [3, 1], [3, 0], [1, 0]])
    queues = Routing(chosen, np.ones_like(chosen)).queues(5)
    assert [q.expert for q in schedule(queues, Schedule.INDEX)] == [0, 1, 3]
    assert [q.expert for q in schedule(queues, Schedule.LONGEST_FIRST)] == [0, 3, 1]  # tie: lower index
    assert [q.expert for q in schedule(queues, Schedule.RESIDENT_FIRST, resident=(3,))] == [3, 0, 1]


def test_queue_crc_covers_every_entry_in_order() -> None:
    def crc(chosen: list[list[int]], weights: list[list[int]], start: int = 0) -> int:
        return Routing(np.array(chosen), np.array(weights)).crc(start)

    entries = [(0, 0, 5), (1, 0, 6), (1, 1, 7), (0, 1, 8)]  # expert, token, weight as appended
    data = b"".join(e.to_bytes(2, "little") + t.to_bytes(2, "little") + w.to_bytes(4, "little") for e, t, w in entries)
    plain = crc([[0, 1], [1, 0]], [[5, 6], [7, 8]])
    assert plain == zlib.crc32(data)
    others = [
        crc([[0, 1], [1, 0]], [[5, 6], [7, 9]]),
        crc([[1, 0], [1, 0]], [[6, 5], [7, 8]]),
        crc([[0, 2], [1, 0]], [[5, 6], [7, 8]]),
    ]
    assert len({plain, *others}) == 4
    assert crc([[1, 0]], [[7, 8]], plain) == zlib.crc32(bytes([1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]), plain)


# ---- images ---------------------------------------------------------------------------


def test_patches_follow_py_px_c() -> None:
    image = image_of(NETWORK, 7)
    found = patches(image, NETWORK)
    assert found.shape == (6, 192) and found.dtype == np.int8
    for row, column, y, x, c in ((0, 0, 0, 0, 0), (1, 2, 7, 7, 2), (0, 1, 3, 5, 1)):
        pixel = int(image[row * 8 + y, column * 8 + x, c])
        assert found[row * 3 + column, (y * 8 + x) * 3 + c] == pixel - 128


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_unpatch_is_the_inverse_of_cutting(channels: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(-100, 100, (16, 24, channels))
    rows = [picture[r : r + 8, c : c + 8].reshape(-1) for r in (0, 8) for c in (0, 8, 16)]
    assert np.array_equal(unpatch(np.stack(rows), NETWORK, channels), picture)


@pytest.mark.parametrize(
    "image",
    [np.zeros((16, 24, 3)), np.zeros((24, 16, 3), np.uint8), np.zeros((16, 24), np.uint8), "picture"],
    ids=["float", "turned", "grey", "text"],
)
def test_wrong_images_are_refused(image: object) -> None:
    with pytest.raises(DataError, match="photo.png: expected"):
        check_image(image, NETWORK, "photo.png")  # type: ignore[arg-type]


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="task 'colour': expected one of semseg, depth"):
        run_frame(ENCODER, IMAGE, "colour", GoldenEngine(ENCODER))
