"""Byte layouts: round trips over hardware variants and odd sizes, and the addresses checked literally."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import layers, pack
from accel.config import Config, Formats, Hardware, Network, Task, hardware, network
from accel.errors import BundleError, ConfigError
from accel.layers import Kind, Layer, TileGeometry, engine_layers, round_up
from accel.params import Gate, Linear, Unit

quick = settings(deadline=None, max_examples=60)

CI = hardware("ci")
VARIANTS = [
    CI,
    hardware("zcu104"),
    dataclasses.replace(CI, name="wide", tile_outputs=32),
    dataclasses.replace(CI, name="shallow", tile_outputs=24, tile_inputs=4, max_width=96, ports=2),
    dataclasses.replace(CI, name="single", ports=1, write_ports=1, burst_beats=4),
    dataclasses.replace(CI, name="narrow", tile_outputs=16, tile_inputs=2, port_bytes=8, burst_beats=8),
]
variants = st.sampled_from(VARIANTS)
seeds = st.integers(0, 2**32 - 1)


def random_linear(rng: np.random.Generator, outputs: int, inputs: int) -> Linear:
    return Linear(
        rng.integers(-127, 128, (outputs, inputs)).astype(np.int8),
        rng.integers(-(2**31), 2**31, outputs).astype(np.int32),
        rng.integers(-8, 32, outputs).astype(np.int8),
    )


def assert_same(found: Linear, expected: Linear) -> None:
    for name in ("weight", "bias", "shift"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b), name


# ---- interleaving ---------------------------------------------------------------------


def test_port_p_burst_b_lies_at_its_address() -> None:
    """Port p, burst b at (4b + p)·256; beat j of all four ports together is line j of the stripe."""
    lines = np.random.default_rng(0).integers(0, 256, 3 * 1024).astype(np.uint8)
    memory = pack.interleave(lines, hardware("zcu104"))
    for burst in range(3):
        for port in range(4):
            for beat in range(16):
                address = (4 * burst + port) * 256 + 16 * beat
                line = (16 * burst + beat) * 64
                assert np.array_equal(memory[address : address + 16], lines[line + 16 * port :][:16])


@quick
@given(variants, st.integers(0, 5000), seeds)
def test_interleave_round_trip(hw: Hardware, size: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    memory = pack.interleave(data, hw)
    assert len(memory) == round_up(size, hw.stripe_bytes)
    back = pack.deinterleave(memory, hw)
    assert np.array_equal(back[:size], data) and not back[size:].any()
    assert np.array_equal(pack.deinterleave(memory.tobytes(), hw), back)


def test_partial_stripe_is_refused() -> None:
    with pytest.raises(BundleError, match="expected a multiple of 1024 bytes, found 1000"):
        pack.deinterleave(np.zeros(1000, np.uint8), CI)


# ---- linear layers --------------------------------------------------------------------


@quick
@given(variants, st.integers(1, 100), st.integers(1, 70), seeds)
def test_linear_round_trip(hw: Hardware, outputs: int, inputs: int, seed: int) -> None:
    linear = random_linear(np.random.default_rng(seed), outputs, inputs)
    data = pack.pack_linear(linear, hw)
    assert len(data) == TileGeometry(outputs, inputs, hw).bytes and len(data) % hw.line_bytes == 0
    assert_same(pack.unpack_linear(data, outputs, inputs, hw), linear)


def test_linear_layout_literally() -> None:
    """Tile: 16 biases, 16 shifts, padding to a line; then rows of 16 × 8 weights."""
    linear = random_linear(np.random.default_rng(3), 20, 24)
    data = pack.pack_linear(linear, CI)
    group, row = 128, 128  # 16·5 = 80 bytes padded to 128; 16·8
    tile = group + 3 * row
    assert len(data) == 2 * tile
    for output in range(20):
        base, lane = (output // 16) * tile, output % 16
        assert int.from_bytes(data[base + 4 * lane :][:4].tobytes(), "little", signed=True) == linear.bias[output]
        assert data[base + 64 + lane].view(np.int8) == linear.shift[output]
        for column in range(24):
            place = base + group + (column // 8) * row + lane * 8 + column % 8
            assert data[place].view(np.int8) == linear.weight[output, column]
    used = 20 * (4 + 1 + 24)
    assert np.count_nonzero(data) <= used  # padding lanes are zero


@pytest.mark.parametrize("place", [16 * 4 - 1, 64 + 15, 128 + 15 * 8])
def test_padding_lanes_must_be_zero_unless_an_engine_reads(place: int) -> None:
    linear = random_linear(np.random.default_rng(3), 5, 8)
    data = pack.pack_linear(linear, CI)
    data[place] = 1
    with pytest.raises(BundleError, match="expected zero padding lanes"):
        pack.unpack_linear(data, 5, 8, CI)
    assert_same(pack.unpack_linear(data, 5, 8, CI, strict=False), linear)


def test_padding_inputs_must_be_zero_unless_an_engine_reads() -> None:
    linear = random_linear(np.random.default_rng(3), 16, 5)
    data = pack.pack_linear(linear, CI)
    data[128 + 5] = 1  # input 5 of lane 0
    with pytest.raises(BundleError, match="expected zero padding lanes"):
        pack.unpack_linear(data, 16, 5, CI)
    assert_same(pack.unpack_linear(data, 16, 5, CI, strict=False), linear)


def test_short_linear_is_refused() -> None:
    data = pack.pack_linear(random_linear(np.random.default_rng(3), 5, 8), CI)
    with pytest.raises(BundleError, match="linear layer 5×8: expected 256 bytes, found 255"):
        pack.unpack_linear(data[:-1], 5, 8, CI)


# ---- layers ---------------------------------------------------------------------------


def plain_layer(hw: Hardware, outputs: int, inputs: int, units: int, kind: Kind = Kind.LINEAR) -> Layer:
    return Layer("blocks.0.qkv", kind, 9, inputs, outputs, 0, 1, units, 1, hw)


def lanes_of_units(layer: Layer) -> list[range]:
    """Outputs that each unit of a plain layer computes."""
    lanes = layer.tiles_per_unit * layer.hardware.tile_outputs
    return [range(unit * lanes, min((unit + 1) * lanes, layer.outputs)) for unit in range(layer.units)]


def check_lines(layer: Layer) -> None:
    """Every output has one unit, no unit is empty, and no line of an output row has two writers."""
    units = lanes_of_units(layer)
    assert [output for lanes in units for output in lanes] == list(range(layer.outputs))
    assert all(len(lanes) for lanes in units)
    size = 1 if layer.kind is Kind.LINEAR else 2
    writers: dict[int, set[int]] = {}
    for unit, lanes in enumerate(units):
        for output in lanes:
            for byte in range(output * size, (output + 1) * size):
                writers.setdefault(byte // layer.hardware.line_bytes, set()).add(unit)
    assert len(writers) == -(-layer.outputs * size // layer.hardware.line_bytes)
    assert all(len(found) == 1 for found in writers.values())


plain_kinds = st.sampled_from([Kind.LINEAR, Kind.ACCUMULATE])


@quick
@given(variants, plain_kinds, st.integers(1, 600), st.integers(1, 40), st.integers(1, 4), seeds)
def test_plain_layer_round_trip(hw: Hardware, kind: Kind, outputs: int, inputs: int, units: int, seed: int) -> None:
    layer = plain_layer(hw, outputs, inputs, units, kind)
    while (layer.units - 1) * layer.tiles_per_unit * hw.tile_outputs >= outputs:  # no unit without a tile
        layer = plain_layer(hw, outputs, inputs, layer.units - 1, kind)
    check_lines(layer)
    linear = random_linear(np.random.default_rng(seed), outputs, inputs)
    memory = pack.pack_plain(linear, layer)
    assert len(memory) == layer.expert_bytes == layer.units * layer.unit_bytes
    assert layer.unit_bytes % hw.stripe_bytes == 0
    assert_same(pack.unpack_plain(memory.tobytes(), layer), linear)
    for unit, lanes in enumerate(lanes_of_units(layer)):
        piece = pack.deinterleave(memory[unit * layer.unit_bytes :][: layer.unit_bytes], hw)
        assert_same(pack.unpack_linear(piece, len(lanes), inputs, hw), linear.rows(lanes.start, lanes.stop))


@pytest.mark.parametrize(
    ("kind", "outputs", "units", "lanes"),
    [
        (Kind.LINEAR, 48, 1, [48]),  # one unit needs no whole lines
        (Kind.LINEAR, 80, 2, [64, 16]),  # ⌈5/2⌉ = 3 tiles are 48 bytes: rounded up to a line of 64
        (Kind.LINEAR, 150, 3, [64, 64, 22]),  # the last unit is ragged in tiles and in lanes
        (Kind.ACCUMULATE, 150, 3, [64, 64, 22]),  # ⌈10/3⌉ = 4 tiles are two lines of int16 already
        (Kind.ACCUMULATE, 33, 2, [32, 1]),  # 2 tiles of int16 are one line
    ],
)
def test_units_of_plain_layers_literally(kind: Kind, outputs: int, units: int, lanes: list[int]) -> None:
    layer = plain_layer(CI, outputs, 24, units, kind)
    assert [len(part) for part in lanes_of_units(layer)] == lanes
    assert layer.second.outputs == lanes[0], "the first unit is the widest"
    check_lines(layer)


def test_a_line_with_two_writers_would_be_noticed() -> None:
    class Cut(Layer):
        tiles_per_unit = 3  # 48 bytes of a line of 64

    layer = plain_layer(CI, 80, 24, 2)
    with pytest.raises(AssertionError):
        check_lines(Cut(*[getattr(layer, item.name) for item in dataclasses.fields(layer)]))


@quick
@given(variants, st.integers(2, 400), st.integers(1, 64), st.integers(1, 48), st.data())
def test_layers_of_any_width_are_cut_at_lines(
    hw: Hardware, rows: int, groups: int, columns: int, data: st.DataObject
) -> None:
    """Whatever a slot holds, the units that the compiler makes fit it and share no line."""
    inputs = columns * hw.tile_inputs
    outputs = data.draw(st.integers(1, 40 * hw.tile_outputs))
    kind = data.draw(plain_kinds)
    small = dataclasses.replace(hw, slot_rows=rows, slot_groups=groups)
    try:
        layer = layers._plain("layer", kind, 5, inputs, outputs, small)
    except ConfigError as error:
        # Refused only where the smallest unit is too large: one tile, or the tiles of whole lines if more are needed.
        tiles, size = -(-outputs // hw.tile_outputs), hw.tile_outputs * (1 if kind is Kind.LINEAR else 2)
        line = next(count for count in range(1, 65) if count * size % hw.line_bytes == 0)
        least = min(tiles, line)
        assert least > groups or least * columns > rows
        unit = f"unit of {least} output tiles of {inputs} inputs"
        stores = f"slot_rows = {rows} and slot_groups = {groups}"
        assert str(error) == f"layer layer: {unit}: expected to fit {stores}, found {least * columns} rows"
        return
    check_lines(layer)
    assert layer.second.rows <= rows and layer.second.tiles <= groups


@quick
@given(variants, st.integers(1, 60), st.integers(1, 60), seeds)
def test_unit_round_trip(hw: Hardware, width: int, hidden: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = Layer("blocks.1.mlp", Kind.MOE, 9, width, width, hidden, 3, 1, 2, hw)
    gelu = rng.integers(-128, 128, 256).astype(np.int8)
    unit = Unit(random_linear(rng, hidden, width), gelu, random_linear(rng, width, hidden))
    memory = pack.pack_unit(unit, layer)
    assert len(memory) == layer.unit_bytes
    found = pack.unpack_unit(memory.tobytes(), layer)
    assert_same(pack.unpack_unit(memory, layer, strict=False).second, unit.second)
    assert_same(found.first, unit.first)
    assert_same(found.second, unit.second)
    assert found.gelu.dtype == np.int8 and np.array_equal(found.gelu, gelu)
    with pytest.raises(BundleError, match="expected a unit of"):
        pack.unpack_unit(memory[:-1], layer)


@quick
@given(variants, st.integers(1, 100), st.integers(1, 60), st.integers(-16, 31), seeds)
def test_gate_round_trip(hw: Hardware, experts: int, width: int, shift: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = Layer("blocks.1.mlp", Kind.MOE, 9, width, width, 8, experts, 1, 1, hw)
    linear = random_linear(rng, experts, width)
    memory = pack.pack_gate(Gate(linear.weight, linear.bias, shift), layer)
    assert len(memory) == layer.gate_bytes
    found = pack.unpack_gate(memory, layer, shift)
    assert np.array_equal(found.weight, linear.weight) and np.array_equal(found.bias, linear.bias)
    assert found.shift == shift
    with pytest.raises(BundleError, match="expected a gate table of"):
        pack.unpack_gate(memory[:-1], layer, shift)


@quick
@given(variants, st.integers(1, 20), st.integers(1, 150), st.sampled_from([np.int8, np.int16]), seeds)
def test_tokens_round_trip(hw: Hardware, tokens: int, width: int, dtype: type, seed: int) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    values: np.ndarray = rng.integers(info.min, info.max, (tokens, width), endpoint=True).astype(dtype)
    memory = pack.pack_tokens(values, hw)
    assert len(memory) == pack.token_bytes(tokens, width, values.itemsize, hw)
    found = pack.unpack_tokens(memory.tobytes(), tokens, width, dtype, hw)
    assert found.dtype == np.dtype(dtype) and np.array_equal(found, values)
    line = round_up(width * values.itemsize, hw.line_bytes)
    logical = pack.deinterleave(memory, hw)
    last = values[-1].astype(values.dtype.newbyteorder("<")).tobytes()
    assert logical[(tokens - 1) * line :][: len(last)].tobytes() == last  # every token starts a line
    with pytest.raises(BundleError, match="activations"):
        pack.unpack_tokens(memory[:-1], tokens, width, dtype, hw)


def test_wrong_kind_and_size_are_refused() -> None:
    layer = plain_layer(CI, 20, 24, 1)
    with pytest.raises(BundleError, match="expected a layer with hidden units"):
        pack.unpack_unit(np.zeros(1024, np.uint8), layer)
    with pytest.raises(BundleError, match=f"blocks.0.qkv: expected {layer.expert_bytes} bytes, found 3"):
        pack.unpack_plain(np.zeros(3, np.uint8), layer)


# ---- folding --------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["m3vit-demo", "m3vit-tiny-cityscapes", "m3vit-small-pascal", "m3vit-small-nyud"])
def test_every_unit_fits_its_slot_and_covers_its_layer(net: str) -> None:
    config = Config(network(net), Formats(), hardware("zcu104"))
    found = engine_layers(config)
    assert len(found) == 1 + 3 * config.network.depth
    assert sum(layer.kind is Kind.MOE for layer in found) == len(config.network.moe_blocks)
    for layer in found:
        folds = [layer.second] + ([layer.first] if layer.first else [])
        assert sum(fold.rows for fold in folds) <= config.hardware.slot_rows
        assert sum(fold.tiles for fold in folds) <= config.hardware.slot_groups
        if not layer.hidden:
            check_lines(layer)
        assert layer.unit_bytes % config.hardware.stripe_bytes == 0


def test_folding_counts_of_small() -> None:
    found = {layer.name: layer for layer in engine_layers(Config(network("m3vit-small-pascal")))}
    assert found["blocks.0.qkv"].units == 2
    assert found["blocks.0.proj"].units == 1
    assert found["blocks.0.mlp"].units == 4
    assert (found["blocks.1.mlp"].units, found["blocks.1.mlp"].experts) == (1, 16)
    assert found["blocks.1.mlp"].macs_per_pair == 2 * 384 * 384
    assert found["blocks.0.qkv"].macs_per_pair == 384 * 1152


def test_odd_sizes_fold() -> None:
    task = Task("depth", 1, "depth")
    net = Network("odd", 14, 14, patch=2, embed_dim=24, depth=2, heads=3, dense_hidden=56, experts=5, top_k=3,
                  expert_hidden=56, unit_hidden=56, tasks=(task,))  # fmt: skip
    hw = dataclasses.replace(CI, tile_inputs=4, tile_outputs=16)
    for layer in engine_layers(Config(net, Formats(), hw)):
        assert layer.second.tiles * hw.tile_outputs >= min(layer.outputs, layer.tiles_per_unit * hw.tile_outputs)
        assert layer.unit_bytes >= layer.second.bytes
