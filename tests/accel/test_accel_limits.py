"""What an engine refuses: every limit from both sides, and nothing that a configuration allows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from accel import functional, limits, pack
from accel.commands import FIELDS, Command, Flag, Opcode
from accel.compiler import layer_bytes
from accel.config import Config, Formats, Hardware, Network, Task, hardware, network
from accel.errors import ConfigError
from accel.layers import Kind, Layer, engine_layers
from accel.limits import KINDS, MAX_UNITS, OPCODES, EngineError, Limits
from accel.record import ErrorCode

CI, ZCU104 = hardware("ci"), hardware("zcu104")
MEMORY = 1 << 32
POSITION = {item.name: index for index, item in enumerate(FIELDS)}


def command_of(layer: Layer, /, **changes: Any) -> Command:
    """A command for the layer; operands lie side by side from 0, in the order input, output, residual."""
    gated = layer.kind is Kind.MOE
    offsets, end = {}, 0
    for name, size in layer_bytes(layer).items():
        offsets[name] = end
        end += size
    command = Command(
        OPCODES[layer.kind], Flag(0), 0, layer.top_k if gated else 0, 0, 0, 0, layer.tokens,
        layer.experts if gated else 0, layer.inputs, layer.outputs, layer.hidden, layer.units, layer.tiles_per_unit,
        layer.unit_bytes, end, end + layer.experts * layer.expert_bytes if gated else 0, **offsets,
    )  # fmt: skip
    return dataclasses.replace(command, **changes)


def plain(kind: Kind, inputs: int, outputs: int, units: int = 1, hw: Hardware = CI, tokens: int = 5) -> Layer:
    return Layer("layer 0", kind, tokens, inputs, outputs, 0, 1, units, 1, hw)


def mixture(
    width: int, hidden: int, units: int = 1, experts: int = 0, top_k: int = 1, hw: Hardware = CI, outputs: int = 0
) -> Layer:
    kind = Kind.MOE if experts else Kind.MLP
    return Layer("layer 0", kind, 5, width, outputs or width, hidden, experts or 1, units, top_k, hw)


def accepted(layer: Layer, **changes: Any) -> None:
    assert Limits(layer.hardware).check(command_of(layer, **changes), MEMORY) == layer


def refused(layer: Layer, name: str, code: ErrorCode = ErrorCode.SHAPE, **changes: Any) -> None:
    with pytest.raises(EngineError) as error:
        Limits(layer.hardware).check(command_of(layer, **changes), MEMORY)
    assert error.value.code is code, error.value
    assert FIELDS[error.value.detail].name == name


# ---- each limit from both sides -------------------------------------------------------


def test_the_functional_engine_uses_these_limits() -> None:
    assert functional.EngineError is limits.EngineError and functional.Limits is limits.Limits
    assert set(KINDS) == {Opcode.LINEAR, Opcode.ACCUMULATE, Opcode.MLP, Opcode.MOE}


@pytest.mark.parametrize("kind", [Kind.LINEAR, Kind.ACCUMULATE])
def test_rows_wider_than_the_store_stream_past_one_unit(kind: Kind) -> None:
    wide = dataclasses.replace(CI, slot_rows=10_000, max_inputs=1024)
    for inputs in (CI.max_width, CI.max_width + 8, 1024):
        accepted(plain(kind, inputs, 128, hw=wide))
    accepted(plain(kind, CI.max_width, 128, units=2, hw=wide))
    refused(plain(kind, CI.max_width + 8, 128, units=2, hw=wide), "inputs")
    refused(plain(kind, 1032, 128, hw=wide), "inputs")
    accepted(mixture(16, 16), inputs=16)
    refused(mixture(CI.max_width + 8, 16, hw=wide, outputs=16), "inputs")
    refused(mixture(CI.max_width + 8, 16, experts=2, hw=wide, outputs=16), "inputs")


def test_outputs_of_int8_may_be_wider_than_the_store() -> None:
    accepted(plain(Kind.LINEAR, 16, 1000))
    accepted(plain(Kind.ACCUMULATE, 16, CI.max_width))
    refused(plain(Kind.ACCUMULATE, 16, CI.max_width + 1), "outputs")
    refused(mixture(16, 16, outputs=CI.max_width + 1), "outputs")
    refused(plain(Kind.LINEAR, 16, 48), "outputs", outputs=0)


@pytest.mark.parametrize(("kind", "most"), [(Kind.MLP, 15), (Kind.MOE, 14)])
def test_units_keep_the_combine_within_36_bits(kind: Kind, most: int) -> None:
    assert MAX_UNITS[kind] == most
    experts = 3 if kind is Kind.MOE else 0
    accepted(mixture(16, 16, units=most, experts=experts))
    refused(mixture(16, 16, units=most + 1, experts=experts), "units")


def test_plain_units_all_have_tiles() -> None:
    """int8: four tiles of 16 fill a line of 64, so 9 tiles make three units of 4, 4 and 1."""
    accepted(plain(Kind.LINEAR, 16, 129, units=3))
    refused(plain(Kind.LINEAR, 16, 128, units=3), "units")
    accepted(plain(Kind.LINEAR, 8, 255 * 64, units=255))
    refused(plain(Kind.LINEAR, 16, 129), "units", units=0)
    refused(plain(Kind.LINEAR, 16, 129, units=3), "tiles_per_unit", tiles_per_unit=3)


def test_hidden_columns() -> None:
    accepted(mixture(16, CI.max_hidden))
    refused(mixture(16, CI.max_hidden + 8), "hidden")
    refused(mixture(16, 16), "hidden", hidden=12)
    refused(mixture(16, 16), "hidden", hidden=0)
    refused(plain(Kind.LINEAR, 16, 16), "hidden", hidden=8)


def test_slots_hold_rows_and_parameter_groups() -> None:
    """A unit of 16 × 32 and 32 × 16: 2·2 + 1·4 rows, 2 + 1 groups. Then QKV: 16 → 48 in 3 tiles of 2 rows."""
    layer, qkv = mixture(16, 32), plain(Kind.LINEAR, 16, 48)
    for name, most, part, blamed in (
        ("slot_rows", 8, layer, "hidden"), ("slot_groups", 3, layer, "hidden"),
        ("slot_rows", 6, qkv, "tiles_per_unit"), ("slot_groups", 3, qkv, "tiles_per_unit"),
    ):  # fmt: skip
        accepted(dataclasses.replace(part, hardware=dataclasses.replace(CI, **{name: most})))
        refused(dataclasses.replace(part, hardware=dataclasses.replace(CI, **{name: most - 1})), blamed)


def test_gates_have_a_slot_of_their_own() -> None:
    """49 experts: 4 tiles of 2 rows, while the units are small."""
    layer = mixture(16, 16, experts=49)
    for name, most in (("slot_rows", 8), ("slot_groups", 4)):
        accepted(dataclasses.replace(layer, hardware=dataclasses.replace(CI, **{name: most})))
        refused(dataclasses.replace(layer, hardware=dataclasses.replace(CI, **{name: most - 1})), "experts")
    accepted(mixture(384, 8, experts=256, top_k=8))  # 16 tiles of 48 rows are the 768 of a slot


def test_experts_and_gates() -> None:
    small = dataclasses.replace(CI, max_experts=6, max_top_k=3)
    layer = mixture(16, 16, experts=6, top_k=3, hw=small)
    accepted(layer)
    refused(dataclasses.replace(layer, experts=7), "experts")
    refused(layer, "experts", experts=0)
    refused(dataclasses.replace(layer, top_k=4), "top_k")
    refused(layer, "top_k", top_k=0)
    refused(mixture(16, 16, experts=2, top_k=3, hw=small), "top_k")
    for shift in (-16, 31):
        accepted(layer, gate_shift=shift)
    for shift in (-17, 32):
        refused(layer, "gate_shift", gate_shift=shift)
    for schedule in range(3):
        accepted(layer, schedule=schedule)
    refused(layer, "schedule", schedule=3)


@pytest.mark.parametrize("layer", [plain(Kind.LINEAR, 16, 48), plain(Kind.ACCUMULATE, 16, 48), mixture(16, 16),
                                   mixture(16, 16, experts=3)], ids=lambda layer: layer.kind.value)  # fmt: skip
def test_weights_come_from_the_store(layer: Layer) -> None:
    accepted(layer, weight_source=0)
    for source in (1, 2, 15):
        refused(layer, "weight_source", ErrorCode.OPCODE, weight_source=source)
        refused(layer, "weight_source", ErrorCode.OPCODE, weight_source=source, tokens=0)


# ---- operands -------------------------------------------------------------------------

MOE = mixture(16, 16, units=2, experts=3, top_k=2)
SPANS = {
    "weights": 3 * 2 * MOE.unit_bytes, "gate": MOE.gate_bytes, "input": pack.token_bytes(5, 16, 1, CI),
    "residual": pack.token_bytes(5, 16, 2, CI), "output": pack.token_bytes(5, 16, 2, CI),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SPANS))
def test_operands_end_within_the_memory(name: str) -> None:
    memory = 1 << 20
    last = memory - SPANS[name]
    assert Limits(CI).check(command_of(MOE, **{name: last}), memory) == MOE
    with pytest.raises(EngineError) as error:
        Limits(CI).check(command_of(MOE, **{name: last + CI.stripe_bytes}), memory)
    assert error.value.code is (ErrorCode.WRITE if name == "output" else ErrorCode.READ)
    assert error.value.detail == 0, "a port, not a field"
    for step in (1, 64, CI.burst_bytes, CI.stripe_bytes - 1):
        refused(MOE, name, ErrorCode.ADDRESS, **{name: step})
    refused(MOE, "unit_bytes", ErrorCode.ADDRESS, unit_bytes=MOE.unit_bytes + CI.stripe_bytes)


def test_shapes_go_before_addresses_and_those_before_spans() -> None:
    far = MEMORY - CI.stripe_bytes
    refused(MOE, "tokens", tokens=0, input=1, weights=far)
    refused(MOE, "input", ErrorCode.ADDRESS, input=1, weights=far)
    with pytest.raises(EngineError) as error:
        Limits(CI).check(command_of(MOE, weights=far, output=far), MEMORY)
    assert error.value.code is ErrorCode.READ


UNUSED: dict[Kind, tuple[str, ...]] = {
    Kind.LINEAR: ("schedule", "top_k", "gate_shift", "experts", "gate", "residual", "job", "layer"),
    Kind.ACCUMULATE: ("schedule", "top_k", "gate_shift", "experts", "gate", "job", "layer"),
    Kind.MLP: ("schedule", "top_k", "gate_shift", "experts", "gate", "job", "layer"),
    Kind.MOE: ("job", "layer"),
}


@pytest.mark.parametrize("kind", list(Kind))
@given(data=st.data())
def test_only_fields_that_an_opcode_uses_are_looked_at(kind: Kind, data: st.DataObject) -> None:
    layer = {Kind.MLP: mixture(16, 16, units=2), Kind.MOE: MOE}.get(kind) or plain(kind, 16, 48)
    changes = {}
    for item in FIELDS:
        if item.name in UNUSED[kind]:
            low = -(1 << (item.bits - 1)) if item.signed else 0
            changes[item.name] = data.draw(st.integers(low, low + (1 << item.bits) - 1), item.name)
    found = Limits(CI).check(command_of(layer, **changes), MEMORY)
    assert dataclasses.replace(found, name=layer.name) == layer


@pytest.mark.parametrize("kind", list(Kind))
def test_every_other_field_is_looked_at(kind: Kind) -> None:
    """The counterpart: a value that cannot be right is refused in every field that is used."""
    layer = {Kind.MLP: mixture(16, 16, units=2), Kind.MOE: MOE}.get(kind) or plain(kind, 16, 48)
    for item in FIELDS:
        if item.name in (*UNUSED[kind], "opcode", "flags"):
            continue
        most = (1 << (item.bits - item.signed)) - 1
        with pytest.raises(EngineError):
            Limits(CI).check(command_of(layer, **{item.name: most}), MEMORY)


# ---- configurations -------------------------------------------------------------------


def check_all(config: Config) -> int:
    layers = engine_layers(config)
    for index, layer in enumerate(layers):
        found = Limits(config.hardware).check(command_of(layer, layer=index), MEMORY)
        assert dataclasses.replace(found, name=layer.name) == layer
        assert found.name == f"layer {index}"
    return len(layers)


@pytest.mark.parametrize(
    "config",
    [Config(network("m3vit-demo"), Formats(), CI), *[Config(network(name)) for name in
     ("m3vit-demo", "m3vit-tiny-cityscapes", "m3vit-small-pascal", "m3vit-small-nyud")]],
    ids=lambda config: config.name,
)  # fmt: skip
def test_presets_run(config: Config) -> None:
    assert check_all(config) == 1 + 3 * config.network.depth


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_an_engine_takes_every_network_that_its_configuration_allows(data: st.DataObject) -> None:
    """Config and Limits state the same rules from two sides; the engine must not refuse what Config let through."""

    def up_to(most: int) -> int:
        return data.draw(st.integers(1, most))

    def around(value: int) -> int:
        return max(1, value + data.draw(st.integers(-1, 60)))

    width, unit, experts = 8 * up_to(8), 8 * up_to(8), up_to(80)
    net = Network(
        "any", 32, 32, patch=data.draw(st.sampled_from([4, 8, 16])), embed_dim=width, depth=2, heads=1,
        dense_hidden=unit * up_to(15), experts=experts, top_k=up_to(min(8, experts)),
        expert_hidden=unit * up_to(14), unit_hidden=unit, tasks=(Task("depth", 1, "depth"),),
    )  # fmt: skip
    base = data.draw(st.sampled_from([CI, ZCU104]))
    lanes = base.tile_outputs
    hw = dataclasses.replace(
        base, slot_rows=around(96), slot_groups=around(4),
        max_tokens=around(net.tokens), max_width=lanes * -(-around(width) // lanes), max_inputs=around(net.patch_dim),
        max_hidden=around(unit), max_experts=min(256, around(experts)), max_top_k=min(8, around(net.top_k)),
    )  # fmt: skip
    try:
        config = Config(net, Formats(), hw)
        engine_layers(config)
    except ConfigError:
        assume(False)
    check_all(config)
