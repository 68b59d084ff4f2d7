"""The record that an engine writes to memory when a program ends: identity, error, counters, one entry per job."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from accel.errors import DeviceError

MAGIC = 0x4D33_5654
"""``M3VT``."""
VERSION = 1


class ErrorCode(IntEnum):
    """Why a program stopped early."""

    NONE = 0
    OPCODE = 1
    """Unknown or reserved opcode, unknown flag, or reserved bits not zero."""
    SHAPE = 2
    """A shape exceeds the engine's stores or is zero."""
    ADDRESS = 3
    """An offset is not aligned to a stripe."""
    READ = 4
    """A memory port answered a read with an error."""
    WRITE = 5
    """A memory port answered a write with an error."""
    PROGRAM = 6
    """The program has no END within its length."""


@dataclass(frozen=True)
class Slot:
    """A named little-endian integer in the record."""

    name: str
    offset: int
    bytes: int
    meaning: str


def _table(start: int, size: int, *rows: tuple[str, str]) -> tuple[Slot, ...]:
    return tuple(Slot(name, start + i * size, size, meaning) for i, (name, meaning) in enumerate(rows))


HEADER = _table(
    0, 4,
    ("magic", "0x4D335654"),
    ("version", "layout of this record"),
    ("engine_hash", "identity of formats and hardware parameters"),
    ("error", "error code"),
    ("error_command", "index of the command that failed"),
    ("error_detail", "port for bus errors, field number for others"),
    ("commands", "commands completed"),
    ("jobs", "job entries that follow"),
)  # fmt: skip

COUNTERS = _table(
    64, 8,
    ("cycles", "from start to the last write"),
    ("load_only_cycles", "memory reads in flight, array idle"),
    ("compute_only_cycles", "array busy, no memory reads in flight"),
    ("overlap_cycles", "array busy while memory reads are in flight"),
    ("idle_cycles", "neither"),
    ("stall_weights_cycles", "array waits for weights"),
    ("stall_input_cycles", "array waits for input rows"),
    ("stall_route_cycles", "array waits for the first queue"),
    ("stall_drain_cycles", "array waits for the drain of a tile"),
    ("stall_store_cycles", "combine waits for the store unit"),
    ("bytes_read", "all reads: commands, weights, activations"),
    ("bytes_written", "activations written"),
    ("weight_bytes", "weights and gate tables read"),
    ("pairs", "token-expert pairs computed; a dense layer has one per token"),
    ("experts", "non-empty experts computed; a dense layer counts one"),
    ("units", "units computed"),
    ("macs", "useful multiply-accumulates, gates included"),
)  # fmt: skip
"""Names are shared by every back end and by the simulator. Cycle counters are zero where there is no clock."""

JOB = _table(
    0, 8,
    ("job", "index of the job"),
    ("cycles", "from the end of the previous job to the end of this one"),
    ("boundary_idle", "array-idle cycles between the last beat of this job and the first of the next"),
    ("bytes_ahead", "bytes of the next job read before the last beat of this one"),
    ("pairs", "token-expert pairs computed"),
    ("experts", "non-empty experts computed"),
    ("macs", "useful multiply-accumulates"),
    ("queue_crc", "CRC-32 of all queue entries as appended: expert u16, token u16, weight u32 each"),
)  # fmt: skip

COUNTERS_END = COUNTERS[-1].offset + COUNTERS[-1].bytes
JOBS_OFFSET = -(-COUNTERS_END // 64) * 64
JOB_BYTES = 64


def record_bytes(jobs: int) -> int:
    """Size of a record with ``jobs`` entries."""
    return JOBS_OFFSET + jobs * JOB_BYTES


@dataclass
class Record:
    """Decoded record. Missing names are zero."""

    header: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    jobs: list[dict[str, int]] = field(default_factory=list)

    @property
    def error(self) -> ErrorCode:
        return ErrorCode(self.header.get("error", 0))

    def encode(self) -> bytes:
        """Bytes as the engine writes them."""
        data = bytearray(record_bytes(len(self.jobs)))
        header = {"magic": MAGIC, "version": VERSION, **self.header, "jobs": len(self.jobs)}
        groups = [(HEADER, 0, header), (COUNTERS, 0, self.counters)]
        groups += [(JOB, JOBS_OFFSET + i * JOB_BYTES, job) for i, job in enumerate(self.jobs)]
        for table, base, values in groups:
            unknown = set(values) - {slot.name for slot in table}
            if unknown:
                raise KeyError(f"record has no slot {sorted(unknown)}")
            for slot in table:
                value = int(values.get(slot.name, 0))
                data[base + slot.offset : base + slot.offset + slot.bytes] = value.to_bytes(slot.bytes, "little")
        return bytes(data)

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Inverse of :meth:`encode`; raises DeviceError if this is not a record."""
        if len(data) < JOBS_OFFSET:
            raise DeviceError(f"record: expected at least {JOBS_OFFSET} bytes, found {len(data)}")

        def read(table: tuple[Slot, ...], base: int) -> dict[str, int]:
            return {
                slot.name: int.from_bytes(data[base + slot.offset : base + slot.offset + slot.bytes], "little")
                for slot in table
            }

        header = read(HEADER, 0)
        if header["magic"] != MAGIC:
            raise DeviceError(f"record: magic = {header['magic']:#010x}: expected {MAGIC:#010x}; no engine wrote here")
        if header["version"] != VERSION:
            raise DeviceError(f"record: version = {header['version']}: expected {VERSION}")
        if len(data) < record_bytes(header["jobs"]):
            expected = record_bytes(header["jobs"])
            raise DeviceError(f"record: jobs = {header['jobs']}: expected {expected} bytes, found {len(data)}")
        if header["error"] not in ErrorCode.__members__.values():
            raise DeviceError(f"record: error = {header['error']}: expected a known error code")
        jobs = [read(JOB, JOBS_OFFSET + i * JOB_BYTES) for i in range(header["jobs"])]
        return cls(header, read(COUNTERS, 0), jobs)


def empty_record(jobs: int) -> np.ndarray:
    """Zeroed space for a record, so that a record left over from another run is never mistaken for this one's."""
    return np.zeros(record_bytes(jobs), np.uint8)
