"""Commands, registers and the record: encodings, errors, and the layouts other parties rely on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import record, registers
from accel.commands import (
    COMMAND_BYTES,
    FIELDS,
    RESERVED,
    Command,
    Field,
    Flag,
    Opcode,
    decode_program,
    encode_program,
)
from accel.errors import DeviceError, ProgramError
from accel.record import ErrorCode, Record
from accel.registers import REGISTERS, SPAN, Access, Reg, mask

quick = settings(deadline=None, max_examples=80)


def _limits(item: Field) -> tuple[int, int]:
    low = -(1 << (item.bits - 1)) if item.signed else 0
    return low, low + (1 << item.bits) - 1


def _values(item: Field) -> st.SearchStrategy[int]:
    low, high = _limits(item)
    return st.one_of(st.sampled_from([low, high]), st.integers(low, high))


PLAIN = [item for item in FIELDS if item.name not in ("opcode", "flags", "schedule")]
commands = st.builds(
    Command,
    opcode=st.sampled_from(list(Opcode)),
    flags=st.builds(Flag, st.integers(0, 3)),
    schedule=st.integers(0, 2),
    **{item.name: _values(item) for item in PLAIN},
)


# ---- commands -------------------------------------------------------------------------


@quick
@given(commands)
def test_round_trip(command: Command) -> None:
    data = command.encode()
    assert len(data) == COMMAND_BYTES
    assert Command.decode(data) == command
    for item in FIELDS:  # every field lies where the table says
        word = int.from_bytes(data[4 * item.word : 4 * item.word + 4], "little")
        raw = (word >> item.low) & ((1 << item.bits) - 1)
        assert raw == getattr(command, item.name) % (1 << item.bits)


@quick
@given(st.lists(commands, max_size=6))
def test_program_round_trip(program: list[Command]) -> None:
    assert decode_program(encode_program(program)) == program


def test_fields_do_not_overlap_and_name_the_command() -> None:
    bits = [32 * item.word + item.low + bit for item in FIELDS for bit in range(item.bits)]
    assert len(bits) == len(set(bits)) and max(bits) < 8 * COMMAND_BYTES
    assert all(item.low + item.bits <= 32 for item in FIELDS)
    assert [item.name for item in FIELDS][:2] == ["opcode", "flags"]
    assert {item.name for item in FIELDS} == {item.name for item in dataclasses.fields(Command)}


@pytest.mark.parametrize("item", PLAIN, ids=lambda item: item.name)
def test_values_outside_a_field_are_refused(item: Field) -> None:
    low, high = _limits(item)
    command = Command(Opcode.MOE)
    for value in (low - 1, high + 1):
        changes: dict[str, Any] = {item.name: value}
        with pytest.raises(ProgramError, match=f"MOE: {item.name} = {value}: expected {low} to {high}"):
            dataclasses.replace(command, **changes).encode()


def test_unknown_opcode_is_refused() -> None:
    data = bytearray(Command(Opcode.END).encode())
    data[0] = 0x7F
    with pytest.raises(ProgramError, match="command 1: opcode = 0x7f: expected one of END"):
        decode_program(Command(Opcode.JOB_END).encode() + bytes(data))


@pytest.mark.parametrize("bit", range(2, 8))
def test_unknown_flags_are_refused(bit: int) -> None:
    data = bytearray(Command(Opcode.LINEAR, Flag.NARROW).encode())
    data[1] |= 1 << bit
    with pytest.raises(ProgramError, match="flags"):
        Command.decode(bytes(data))


@pytest.mark.parametrize("bit", [11 * 32 + 4, 12 * 32 - 1, 12 * 32, 12 * 32 + 5, 16 * 32 - 1])
def test_reserved_bits_are_refused(bit: int) -> None:
    data = bytearray(Command(Opcode.LINEAR).encode())
    data[bit // 8] |= 1 << bit % 8
    with pytest.raises(ProgramError, match="reserved"):
        Command.decode(bytes(data))


def test_every_bit_is_a_field_or_reserved() -> None:
    """Whatever single bit is set, decoding gives it back or refuses it; none is dropped."""
    refused = set()
    for bit in range(8 * COMMAND_BYTES):
        data = bytearray(COMMAND_BYTES)
        data[bit // 8] |= 1 << bit % 8
        try:
            command = Command.decode(bytes(data))
        except ProgramError:
            refused.add(bit)
            continue
        assert command.encode() == bytes(data)
    named = {32 * item.word + item.low + bit for item in FIELDS for bit in range(item.bits)}
    opcodes = {bit for bit in range(8) if 1 << bit not in Opcode.__members__.values()}
    assert refused == set(range(8 * COMMAND_BYTES)) - named | opcodes | set(range(8 + len(Flag), 16))


def test_tables_are_those_of_the_contract() -> None:
    """Position and width of what was added last; a moved field would make old programs mean something else."""
    places = {item.name: (item.word, item.low, item.bits, item.signed) for item in FIELDS}
    assert places["weight_source"] == (11, 0, 4, False) and places["gate_shift"] == (0, 24, 8, True)
    assert FIELDS[-1].name == "weight_source" and Command(Opcode.LINEAR).weight_source == 0


@pytest.mark.parametrize("size", [0, 63, 65])
def test_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ProgramError, match=f"found {size}"):
        Command.decode(bytes(size))
    if size:
        with pytest.raises(ProgramError, match="multiple of 64"):
            decode_program(bytes(size))


def test_listing_leaves_out_zero_fields() -> None:
    assert Command(Opcode.LINEAR, tokens=3).asdict() == {"opcode": "LINEAR", "tokens": 3}


def test_room_is_reserved_for_the_rest_of_the_encoder() -> None:
    assert {Opcode.NORM, Opcode.ATTENTION, Opcode.CONV3X3} == RESERVED


# ---- registers ------------------------------------------------------------------------


def test_registers_do_not_overlap() -> None:
    offsets = [item.offset for item in REGISTERS]
    assert len(set(offsets)) == len(offsets) == len({item.name for item in REGISTERS})
    assert all(offset % 4 == 0 and 0 <= offset < SPAN for offset in offsets)
    for item in REGISTERS:
        assert len({bit.bit for bit in item.bits}) == len(item.bits)
        assert all(0 <= bit.bit < 32 for bit in item.bits)


def test_control_registers_match_vitis_ap_ctrl_hs() -> None:
    """UG1399, "S_AXILITE Control Register Map": offsets, bits and access of ap_ctrl_hs (ap_ctrl_chain off)."""
    table = {item.name: item for item in REGISTERS}
    assert {name: table[name].offset for name in ("AP_CTRL", "GIER", "IER", "ISR")} == {
        "AP_CTRL": 0x00, "GIER": 0x04, "IER": 0x08, "ISR": 0x0C,
    }  # fmt: skip
    bits = {bit.name: (bit.bit, bit.access) for bit in table["AP_CTRL"].bits}
    assert bits == {
        "start": (0, Access.SELF_CLEARING),
        "done": (1, Access.CLEAR_ON_READ),
        "idle": (2, Access.READ),
        "ready": (3, Access.CLEAR_ON_READ),
        "auto_restart": (7, Access.READ_WRITE),
        "interrupt": (9, Access.READ),
    }
    assert {bit.name: bit.bit for bit in table["IER"].bits} == {"done": 0, "ready": 1}
    assert all(bit.access is Access.TOGGLE_ON_WRITE for bit in table["ISR"].bits)
    arguments = [item for item in REGISTERS if item.offset >= 0x10]
    assert all(item.access is Access.READ_WRITE for item in arguments)
    # HLS puts a 64-bit pointer's halves on neighbouring words, and nothing else in its slot.
    for index in range(4):
        assert table[f"ARENA{index}_HI"].offset == table[f"ARENA{index}_LO"].offset + 4
        assert table[f"ARENA{index}_LO"].offset % 16 == 0
    slots = [item.offset // 16 for item in arguments if not item.name.endswith("_HI")]
    assert len(slots) == len(set(slots))


def test_names_and_masks() -> None:
    assert Reg["RECORD"] == 0x80 and mask("AP_CTRL", "auto_restart") == 0x80
    with pytest.raises(KeyError):
        mask("AP_CTRL", "nothing")
    assert registers.UNMAPPED == 0xDEADBEEF


# ---- record ---------------------------------------------------------------------------

_FIXED = ("magic", "version", "jobs", "error")
_headers = st.fixed_dictionaries(
    {slot.name: st.integers(0, 2**32 - 1) for slot in record.HEADER if slot.name not in _FIXED}
    | {"error": st.sampled_from([int(code) for code in ErrorCode])}
)
_counters = st.fixed_dictionaries({slot.name: st.integers(0, 2**64 - 1) for slot in record.COUNTERS})
_jobs = st.lists(st.fixed_dictionaries({slot.name: st.integers(0, 2**64 - 1) for slot in record.JOB}), max_size=4)


@quick
@given(_headers, _counters, _jobs)
def test_record_round_trip(header: dict[str, int], counters: dict[str, int], jobs: list[dict[str, int]]) -> None:
    data = Record(header, counters, jobs).encode()
    assert len(data) == record.record_bytes(len(jobs))
    found = Record.decode(data + bytes(100))
    assert found.counters == counters and found.jobs == jobs
    assert {name: found.header[name] for name in header} == header
    assert found.header["jobs"] == len(jobs) and found.error == header["error"]


def test_slots_do_not_overlap() -> None:
    spans = [(slot.offset, slot.bytes) for slot in record.HEADER + record.COUNTERS]
    used = [byte for offset, size in spans for byte in range(offset, offset + size)]
    assert len(used) == len(set(used)) and max(used) < record.JOBS_OFFSET
    assert all(slot.offset % slot.bytes == 0 for slot in record.HEADER + record.COUNTERS + record.JOB)
    jobs = [byte for slot in record.JOB for byte in range(slot.offset, slot.offset + slot.bytes)]
    assert len(jobs) == len(set(jobs)) and max(jobs) < record.JOB_BYTES
    # Entries and the first of them start lines, so that an engine writes them in whole beats.
    assert record.JOB_BYTES == 128 and record.JOBS_OFFSET % 64 == 0
    for table in (record.HEADER, record.COUNTERS, record.JOB):
        assert len({slot.name for slot in table}) == len(table)


def test_what_a_record_counts() -> None:
    """Names are shared by every back end and the simulator: whoever drops or renames one breaks them."""
    assert [slot.name for slot in record.HEADER] == [
        "magic", "version", "engine_hash", "error", "error_command", "error_detail", "commands", "jobs", "build_hash",
    ]  # fmt: skip
    cycles = [slot.name for slot in record.COUNTERS if slot.name.endswith("cycles")]
    assert cycles == [
        "cycles", "load_only_cycles", "compute_only_cycles", "overlap_cycles", "idle_cycles", "stall_weights_cycles",
        "stall_input_cycles", "stall_route_cycles", "stall_drain_cycles", "stall_store_cycles", "array_cycles",
        "gate_cycles",
    ]  # fmt: skip
    rest = [slot.name for slot in record.COUNTERS if slot.name not in cycles]
    assert rest == ["bytes_read", "bytes_written", "weight_bytes", "pairs", "experts", "units", "macs"]
    assert [slot.name for slot in record.JOB] == [
        "job", "cycles", "boundary_idle", "bytes_ahead", "layer_idle", "layer_idle_max", "array_cycles", "gate_cycles",
        "pairs", "experts", "macs", "queue_crc",
    ]  # fmt: skip
    for slot in record.HEADER + record.COUNTERS + record.JOB:
        assert slot.meaning and "\n" not in slot.meaning, slot.name


def test_entries_of_jobs_lie_128_bytes_apart() -> None:
    data = Record(jobs=[{"job": 7}, {"job": 8, "queue_crc": 0xFFFFFFFF}, {"job": 9}]).encode()
    slot = next(slot for slot in record.JOB if slot.name == "queue_crc")
    assert len(data) == record.JOBS_OFFSET + 3 * 128
    for index in range(3):
        base = record.JOBS_OFFSET + 128 * index
        assert int.from_bytes(data[base : base + 8], "little") == 7 + index
        value = int.from_bytes(data[base + slot.offset :][:8], "little")
        assert value == (0xFFFFFFFF if index == 1 else 0)


def test_records_that_are_none_are_refused() -> None:
    good = bytearray(Record(jobs=[{}]).encode())
    with pytest.raises(DeviceError, match="expected at least"):
        Record.decode(bytes(good[:100]))
    with pytest.raises(DeviceError, match="magic = 0x00000000"):
        Record.decode(record.empty_record(1).tobytes())
    with pytest.raises(DeviceError, match="jobs = 1: expected"):
        Record.decode(bytes(good[:-1]))
    for name, value in (("version", 9), ("error", 77)):
        slot = next(slot for slot in record.HEADER if slot.name == name)
        broken = bytearray(good)
        broken[slot.offset] = value
        with pytest.raises(DeviceError, match=f"{name} = {value}"):
            Record.decode(bytes(broken))


def test_unknown_counters_are_refused() -> None:
    with pytest.raises(KeyError, match="no slot"):
        Record(counters={"flops": 1}).encode()
    assert not np.any(record.empty_record(2)) and len(record.empty_record(2)) == record.record_bytes(2)
