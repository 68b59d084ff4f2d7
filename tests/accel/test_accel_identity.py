"""Identity of an engine: whatever changes bytes or results changes it, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
from enum import IntEnum, IntFlag
from typing import Any

import pytest

from accel import identity, numerics, tables
from accel.commands import FIELDS, Flag, Opcode
from accel.config import Formats, Hardware, build_hash, engine_hash, hardware, to_dict
from accel.identity import COMPATIBLE, contract
from accel.record import COUNTERS, HEADER, JOB, Slot

CI = hardware("ci")
FREE = {"name", "tile_tokens", "weight_slots", "topk_lanes", "write_ports", "outstanding", "clock_mhz"}
"""Fields of the hardware that only time depends on."""
OTHERS: dict[str, Any] = {
    "name": "other", "tile_tokens": 8, "tile_outputs": 32, "tile_inputs": 4, "weight_slots": 3, "slot_rows": 769,
    "slot_groups": 63, "max_tokens": 255, "max_width": 368, "max_inputs": 760, "max_hidden": 376, "max_experts": 255,
    "max_top_k": 7, "topk_lanes": 8, "ports": 2, "write_ports": 1, "port_bytes": 8, "burst_beats": 8,
    "outstanding": 4, "clock_mhz": 299,
}  # fmt: skip
"""A value for every field that the preset does not have."""


def both(formats: Formats | None = None, engine: Hardware = CI) -> tuple[int, int]:
    return engine_hash(formats or Formats(), engine), build_hash(formats or Formats(), engine)


ENGINE, BUILD = both()


# ---- hardware and formats -------------------------------------------------------------


def test_every_field_is_one_or_the_other() -> None:
    fields = {item.name for item in dataclasses.fields(Hardware)}
    assert set(COMPATIBLE) | FREE == fields == set(OTHERS) and not set(COMPATIBLE) & FREE
    assert len(COMPATIBLE) == len(set(COMPATIBLE))


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_fields_of_the_hardware(name: str) -> None:
    changed = dataclasses.replace(CI, **{name: OTHERS[name]})
    assert getattr(changed, name) != getattr(CI, name)
    found = both(engine=changed)
    assert (found[0] != ENGINE) == (name in COMPATIBLE)
    assert found[1] != BUILD


@pytest.mark.parametrize("name", ["weight_bits", "activation_bits"])
def test_formats(name: str) -> None:
    found = [both(Formats(**{name: bits})) for bits in range(2, 9)]
    assert len({engine for engine, _ in found}) == len({build for _, build in found}) == 7
    assert found[-1] == (ENGINE, BUILD)


def test_the_hashes_are_of_32_bits_and_not_each_other() -> None:
    for engine in (CI, hardware("zcu104")):
        pair = both(engine=engine)
        assert all(0 < value < 1 << 32 for value in pair) and len(set(pair)) == 2
    assert both(engine=hardware("zcu104"))[0] != ENGINE


def test_a_faster_engine_with_more_slots_is_the_same_engine() -> None:
    changes = {name: OTHERS[name] for name in FREE}
    assert both(engine=dataclasses.replace(CI, **changes))[0] == ENGINE


def test_the_order_of_fields_is_not_part_of_it() -> None:
    turned = dict(reversed(list(to_dict(CI).items())))
    assert identity.engine_hash(to_dict(Formats()), turned) == ENGINE
    assert identity.build_hash(to_dict(Formats()), turned) == BUILD


# ---- tables of the contract -----------------------------------------------------------


def differs() -> bool:
    """Whether both hashes are other ones than before."""
    found = both()
    assert (found[0] == ENGINE) == (found[1] == BUILD)
    return found[0] != ENGINE


def test_the_contract_is_json_and_holds_every_table() -> None:
    data = json.loads(json.dumps(contract()))
    assert [row[0] for row in data["fields"]] == [item.name for item in FIELDS]
    assert len(data["record"]) == len(HEADER) + len(COUNTERS) + len(JOB)
    assert set(data["opcodes"]) == set(Opcode.__members__) and set(data["flags"]) == set(Flag.__members__)
    assert data["tables"] == tables.SHA256 and data["constants"]["COMBINE_ONE"] == 65536
    assert {"OCTAVE_SHIFT_MIN", "OCTAVE_SHIFT_MAX", "SHIFT_MIN", "SHIFT_MAX"} <= set(data["constants"])


@pytest.mark.parametrize("index", range(len(FIELDS)), ids=[item.name for item in FIELDS])
def test_a_changed_command_field(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    item = FIELDS[index]
    for changes, matters in (
        ({"name": item.name + "_"}, True),
        ({"word": item.word + 1}, True),
        ({"low": item.low + 1}, True),
        ({"bits": item.bits - 1}, True),
        ({"signed": not item.signed}, True),
        ({"meaning": "said in other words"}, False),
    ):
        other = dataclasses.replace(item, **changes)  # type: ignore[arg-type]
        monkeypatch.setattr(identity, "FIELDS", (*FIELDS[:index], other, *FIELDS[index + 1 :]))
        assert differs() == matters, changes
    monkeypatch.setattr(identity, "FIELDS", FIELDS[:index] + FIELDS[index + 1 :])
    assert differs()


SLOTS = [(name, index) for name in ("HEADER", "COUNTERS", "JOB") for index in range(len(getattr(identity, name)))]


@pytest.mark.parametrize(("table", "index"), SLOTS)
def test_a_changed_slot_of_the_record(table: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slots: tuple[Slot, ...] = getattr(identity, table)
    slot = slots[index]
    for changes, matters in (
        ({"name": slot.name + "_"}, True),
        ({"offset": slot.offset + 1}, True),
        ({"bytes": slot.bytes * 2}, True),
        ({"meaning": "said in other words"}, False),
    ):
        other = dataclasses.replace(slot, **changes)  # type: ignore[arg-type]
        monkeypatch.setattr(identity, table, (*slots[:index], other, *slots[index + 1 :]))
        assert differs() == matters, changes


def test_changed_opcodes_flags_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {name: int(value) for name, value in Opcode.__members__.items()} | {"MOE": 0x14}
    more = {name: int(value) for name, value in Flag.__members__.items()} | {"LAST": 4}
    for name, value in (
        ("Opcode", IntEnum("Opcode", moved)),
        ("Flag", IntFlag("Flag", more)),
        ("JOB_BYTES", identity.JOB_BYTES + 64),
        ("RULES_VERSION", identity.RULES_VERSION + 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(identity, name, value)
            assert differs(), name
        assert not differs()


@pytest.mark.parametrize("name", sorted(contract()["constants"]))
def test_a_changed_constant_of_the_arithmetic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, name, getattr(numerics, name) + 1)
    assert differs()


@pytest.mark.parametrize("name", sorted(tables.SHA256))
def test_a_changed_table_of_the_arithmetic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = tables.SHA256[name]
    monkeypatch.setitem(tables.SHA256, name, digest[:-1] + ("0" if digest[-1] != "0" else "1"))
    assert differs()
