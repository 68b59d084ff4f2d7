"""Encoder.check: whatever breaks the contract is refused with layer and field, what was expected and what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from accel_cases import CONDITIONED, NETWORK, changed, leaves, one_line, with_pup_heads

from accel.config import Formats
from accel.errors import ExportError
from accel.params import Encoder
from accel.random_params import random_encoder

ENCODER = random_encoder(NETWORK, seed=4)
Place = tuple[str | int, ...]
GATE: Place = ("blocks", 1, "gates", "depth")
UNIT: Place = ("blocks", 3, "experts", 4, 1)


def at(encoder: Encoder, place: Place) -> Any:
    part: Any = encoder
    for key in place:
        part = getattr(part, key) if isinstance(key, str) and hasattr(part, key) else part[key]
    return part


def refusal(encoder: Encoder) -> str:
    with pytest.raises(ExportError) as error:
        encoder.check()
    return one_line(error.value)


def value(index: int, new: int) -> Callable[[np.ndarray], np.ndarray]:
    """One element replaced."""

    def edit(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        copy.reshape(-1)[index] = new
        return copy

    return edit


def test_random_encoders_pass() -> None:
    for network in (NETWORK, CONDITIONED):
        for formats in (Formats(), Formats(2, 2), Formats(4, 8)):
            random_encoder(network, formats, seed=1).check()
    with_pup_heads(ENCODER).check()
    assert sum(1 for _ in ENCODER.units()) == 2 * 2 + 2 * 5 * 2
    assert [item[:3] for item in ENCODER.units()][:4] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]


# ---- every array ----------------------------------------------------------------------

ARRAYS = [(name, array) for name, array in leaves(ENCODER) if isinstance(array, np.ndarray)]


def test_every_array_is_checked() -> None:
    """Each array with another dtype and another shape, wherever it is."""
    parts = ("weight", "bias", "shift")
    places: list[Place] = [("patch", part) for part in parts] + [("position",)]
    for index, block in enumerate(ENCODER.blocks):
        base: Place = ("blocks", index)
        places += [(*base, norm, part) for norm in ("norm1", "norm2") for part in ("gamma", "beta")]
        places += [(*base, linear, part) for linear in ("qkv", "proj") for part in parts]
        for e, units in enumerate(block.experts):
            for u in range(len(units)):
                unit: Place = (*base, "experts", e, u)
                places += [(*unit, linear, part) for linear in ("first", "second") for part in parts]
                places.append((*unit, "gelu"))
        places += [(*base, "gates", task, part) for task in block.gates for part in ("weight", "bias")]
    for task in ENCODER.heads:
        head: Place = ("heads", task)
        places += [(*head, "norm", "gamma"), (*head, "norm", "beta"), (*head, "gelu")]
        places += [(*head, linear, part) for linear in ("fc1", "fc2") for part in parts]
    assert len(places) == len(ARRAYS)
    for place in places:
        array = at(ENCODER, place)
        name = ".".join(f"[{key}]" if isinstance(key, int) and "experts" in place and place.index("experts") < i
                        else str(key) for i, key in enumerate(place)).replace(".[", "[")  # fmt: skip
        wide = refusal(changed(ENCODER, place, array.astype(np.int64)))
        assert wide == f"{name}: expected {array.dtype}, found int64"
        short = refusal(changed(ENCODER, place, array[:-1]))
        assert short == f"{name}: expected shape {array.shape}, found {array[:-1].shape}"
        listed = refusal(changed(ENCODER, place, array.tolist()))
        assert listed == f"{name}: expected {array.dtype}, found list"


# ---- values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "edit", "message"),
    [
        (("patch", "weight"), value(3, -128), "patch.weight: expected a value from -127 to 127, found -128"),
        (("blocks", 0, "qkv", "shift"), value(5, 32), "blocks.0.qkv.shift: expected a value from -8 to 31, found 32"),
        (("blocks", 2, "proj", "shift"), value(0, -9), "blocks.2.proj.shift: expected a value from -8 to 31, found -9"),
        ((*UNIT, "first", "weight"), value(0, -128), "blocks.3.experts[4][1].first.weight: expected a value from -127"),
        ((*UNIT, "second", "shift"), value(15, 127), "blocks.3.experts[4][1].second.shift: expected a value"),
        ((*GATE, "weight"), value(0, -128), "blocks.1.gates.depth.weight: expected a value from 0 to 127, found 128"),
        (("heads", "edge", "fc1", "weight"), value(1, -128), "heads.edge.fc1.weight: expected a value from -127"),
        (("heads", "semseg", "fc2", "shift"), value(1, 33), "heads.semseg.fc2.shift: expected a value from -8"),
    ],
)
def test_elements_out_of_range(place: Place, edit: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    assert refusal(changed(ENCODER, place, edit(at(ENCODER, place)))).startswith(message)


@pytest.mark.parametrize(
    ("place", "low", "high", "name"),
    [
        (("residual_exponent",), -31, 15, "residual_exponent"),
        (("blocks", 1, "norm1", "eps"), 0, 1 << 50, "blocks.1.norm1.eps"),
        (("blocks", 1, "norm2", "exponent"), -22, 15, "blocks.1.norm2.exponent"),
        (("blocks", 0, "attention", "score_shift"), -16, 31, "blocks.0.attention.score_shift"),
        (("blocks", 3, "attention", "output_shift"), -16, 16, "blocks.3.attention.output_shift"),
        ((*GATE, "shift"), -16, 31, "blocks.1.gates.depth.shift"),
        (("heads", "depth", "exponent"), -31, 15, "heads.depth.exponent"),
        (("heads", "depth", "norm", "eps"), 0, 1 << 50, "heads.depth.norm.eps"),
    ],
)
def test_numbers_and_their_limits(place: Place, low: int, high: int, name: str) -> None:
    for inside in (low, high):
        changed(ENCODER, place, inside).check()
    for outside in (low - 1, high + 1):
        found = refusal(changed(ENCODER, place, outside))
        assert found == f"{name}: expected a value from {low} to {high}, found {outside}"
    # What JSON would not give back as the same integer.
    for odd, kind in ((1.0, "float 1.0"), (True, "bool True"), (np.int64(1), "int64"), (None, "NoneType")):
        assert refusal(changed(ENCODER, place, odd)).startswith(f"{name}: expected an integer, found {kind}")


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_weights_are_checked_against_their_width(bits: int) -> None:
    encoder = random_encoder(NETWORK, Formats(weight_bits=bits), seed=1)
    limit = (1 << (bits - 1)) - 1
    for place in (("patch", "weight"), (*UNIT, "second", "weight"), (*GATE, "weight")):
        for sign in (1, -1):
            changed(encoder, place, value(0, sign * limit)(at(encoder, place))).check()
            message = refusal(changed(encoder, place, value(0, sign * (limit + 1))(at(encoder, place))))
            assert f"to {limit}, found " in message and message.endswith(f"{limit + 1}")


def test_accumulator_bound_is_exact() -> None:
    """128·Σ|w| + |b| may be 2^31 − 1 and not one more, whichever the sign of the bias."""
    place: Place = (*UNIT, "first")
    linear = at(ENCODER, place)
    column = 128 * int(np.abs(linear.weight.astype(int)).sum(axis=1)[2])
    for sign in (1, -1):
        most = (1 << 31) - 1 - column
        fits = dataclasses.replace(linear, bias=value(2, sign * most)(linear.bias))
        changed(ENCODER, place, fits).check()
        over = dataclasses.replace(linear, bias=value(2, sign * (most + 1))(linear.bias))
        expected = f"expected a value from 0 to {2**31 - 1}, found {2**31}"
        message = f"blocks.3.experts[4][1].first: accumulator bound 128·Σ|w| + |b|: {expected}"
        assert refusal(changed(ENCODER, place, over)) == message


def test_logit_bound_is_exact() -> None:
    gate = at(ENCODER, GATE)
    row = 128 * int(np.abs(gate.weight.astype(int)).sum(axis=1)[1])
    most = (1 << 30) - 1 - row
    changed(ENCODER, (*GATE, "bias"), value(1, most)(gate.bias)).check()
    message = refusal(changed(ENCODER, (*GATE, "bias"), value(1, -most - 1)(gate.bias)))
    assert message.startswith("blocks.1.gates.depth: logit bound 128·Σ|w| + |b|: expected a value from 0 to")


# ---- what is missing ------------------------------------------------------------------


def without(place: Place, key: str | int) -> Encoder:
    part = at(ENCODER, place)
    if isinstance(part, tuple):
        return changed(ENCODER, place, tuple(item for index, item in enumerate(part) if index != key))
    owner, name = at(ENCODER, place[:-1]), str(place[-1])
    rest = {item: content for item, content in part.items() if item != key}
    return changed(ENCODER, place[:-1], dataclasses.replace(owner, **{name: rest}))


def replaced(place: Place, name: str, content: Any) -> Encoder:
    """A field replaced as a whole."""
    return changed(ENCODER, place, dataclasses.replace(at(ENCODER, place), **{name: content}))


def test_missing_and_surplus_parts() -> None:
    block = ENCODER.blocks[1]
    assert refusal(without(("blocks",), 2)) == "blocks: expected 4, found 3"
    assert refusal(without(("blocks", 1, "experts"), 4)) == "blocks.1.experts: expected 5, found 4"
    assert refusal(without(("blocks", 3, "experts", 2), 0)) == "blocks.3.experts[2]: expected 2 units, found 1"
    more = (*ENCODER.blocks[0].experts, ENCODER.blocks[0].experts[0])
    assert refusal(replaced(("blocks", 0), "experts", more)) == "blocks.0.experts: expected 1, found 2"
    names = "('semseg', 'depth', 'edge')"
    assert refusal(without(("blocks", 1, "gates"), "depth")) == (
        f"blocks.1.gates: expected {names}, found ('semseg', 'edge')"
    )
    assert refusal(replaced(("blocks", 1), "gates", {})) == f"blocks.1.gates: expected {names}, found none"
    turned = dict(reversed(list(block.gates.items())))
    assert "found ('edge', 'depth', 'semseg')" in refusal(replaced(("blocks", 1), "gates", turned))
    assert refusal(replaced(("blocks", 2), "gates", dict(block.gates))) == (
        f"blocks.2.gates: expected none, found {names}"
    )
    heads = dict(ENCODER.heads)
    listed = "heads: expected semseg, depth, edge, found"
    assert refusal(without(("heads",), "edge")) == f"{listed} semseg, depth"
    assert refusal(replaced((), "heads", {})) == f"{listed} none"
    assert refusal(replaced((), "heads", heads | {"flow": heads["edge"]})) == f"{listed} semseg, depth, edge, flow"
    renamed = {"flow" if name == "edge" else name: head for name, head in heads.items()}
    assert refusal(replaced((), "heads", renamed)) == f"{listed} semseg, depth, flow"


def test_heads_of_other_tasks_do_not_fit() -> None:
    heads = dict(ENCODER.heads)
    swapped = heads | {"semseg": heads["edge"], "edge": heads["semseg"]}
    assert refusal(replaced((), "heads", swapped)).startswith("heads.semseg.fc2.weight: expected shape (192, 24)")


# ---- float heads ----------------------------------------------------------------------

PUP = with_pup_heads(ENCODER)
TENSORS: Place = ("heads", "depth", "tensors")


def test_float_heads_have_the_tensors_of_setr_pup() -> None:
    names = ["norm.weight", "norm.bias", *[f"conv_{i}.{part}" for i in range(5) for part in ("weight", "bias")]]
    expected = f"heads.depth: expected tensors {', '.join(names)}, found"
    tensors = at(PUP, TENSORS)
    assert sorted(tensors) == sorted(names)
    for name in names:
        rest = {key: array for key, array in tensors.items() if key != name}
        assert refusal(changed(PUP, TENSORS, rest)) == f"{expected} {', '.join(rest)}"
    assert refusal(changed(PUP, TENSORS, {})) == f"{expected} none"
    more = tensors | {"conv_5.bias": np.zeros(1, np.float32)}
    assert refusal(changed(PUP, TENSORS, more)) == f"{expected} {', '.join(more)}"


def test_every_float_tensor_has_its_shape_and_type() -> None:
    shapes = {"norm.weight": (16,), "norm.bias": (16,), "conv_0.weight": (256, 16, 3, 3)}
    shapes |= {f"conv_{i}.weight": (256, 256, 3, 3) for i in (1, 2, 3)} | {f"conv_{i}.bias": (256,) for i in range(4)}
    shapes |= {"conv_4.weight": (1, 256, 1, 1), "conv_4.bias": (1,)}
    assert set(shapes) == set(at(PUP, TENSORS))
    for name, shape in shapes.items():
        array, place = at(PUP, TENSORS)[name], (*TENSORS, name)
        assert array.shape == shape
        where = f"heads.depth.{name}"
        short = array[..., :-1]
        assert refusal(changed(PUP, place, short)) == f"{where}: expected shape {shape}, found {short.shape}"
        for other in (np.float64, np.float16, np.int8):
            message = refusal(changed(PUP, place, array.astype(other)))
            assert message == f"{where}: expected float32, found {np.dtype(other)}"
        assert refusal(changed(PUP, place, None)) == f"{where}: expected float32, found NoneType"
        for odd in (np.nan, np.inf, -np.inf):
            copy = array.copy()
            copy.reshape(-1)[-1] = odd
            assert refusal(changed(PUP, place, copy)) == f"{where}: expected finite values, found others"


def test_float_heads_follow_their_network() -> None:
    """Output channels are the task's; the width is the encoder's."""
    heads = dict(PUP.heads)
    swapped = heads | {"semseg": heads["edge"], "edge": heads["semseg"]}
    expected = "heads.semseg.conv_4.weight: expected shape (3, 256, 1, 1), found (1, 256, 1, 1)"
    assert refusal(dataclasses.replace(PUP, heads=swapped)) == expected
    wide = with_pup_heads(random_encoder(dataclasses.replace(NETWORK, embed_dim=32), seed=4)).heads
    message = refusal(dataclasses.replace(PUP, heads=wide))
    assert message == "heads.semseg.norm.weight: expected shape (16,), found (32,)"


def test_heads_are_of_the_kind_that_the_network_names() -> None:
    light = dataclasses.replace(PUP, network=ENCODER.network)
    assert refusal(light) == "heads.semseg: expected a light head, found a pup head"
    pup = dataclasses.replace(ENCODER, network=PUP.network)
    assert refusal(pup) == "heads.semseg: expected a pup head, found a light head"
    mixed = changed(PUP, ("heads", "edge"), ENCODER.heads["edge"])
    assert refusal(mixed) == "heads.edge: expected a pup head, found a light head"
    mixed = changed(ENCODER, ("heads", "depth"), PUP.heads["depth"])
    assert refusal(mixed) == "heads.depth: expected a light head, found a pup head"
