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
    ("engine_hash", "identity: what bytes in memory and results depend on"),
    ("error", "error code"),
    ("error_command", "index of the command that failed"),
    ("error_detail", "port for bus errors, field number for others"),
    ("commands", "commands completed, END included"),
    ("jobs", "job entries that follow"),
    ("build_hash", "everything the engine was built with, for logs"),
)  # fmt: skip

COUNTERS = _table(
    64, 8,
    ("cycles", "from the cycle that takes start to the last write response before this record's own write"),
    ("load_only_cycles", "at least one read burst in flight, array idle"),
    ("compute_only_cycles", "array busy, no read burst in flight"),
    ("overlap_cycles", "array busy while at least one read burst is in flight"),
    ("idle_cycles", "neither; these four add up to cycles"),
    ("stall_weights_cycles", "array idle because the weights of the next tile are not there"),
    ("stall_input_cycles", "weights are there, input rows are not"),
    ("stall_route_cycles", "weights and input are there, no queue is"),
    ("stall_drain_cycles", "all are there, the drain of an earlier tile is not finished"),
    ("stall_store_cycles", "all are there, the accumulators wait for the store unit"),
    ("array_cycles", "array busy: load-independent work, gates and padding included"),
    ("gate_cycles", "share of array_cycles spent on gate tables"),
    ("bytes_read", "what executed commands name: commands, weights, input and residual rows, in stripes, each once"),
    ("bytes_written", "output rows, in stripes; not this record"),
    ("weight_bytes", "share of bytes_read that is weights and gate tables"),
    ("pairs", "token-expert pairs computed; a dense layer has one per token"),
    ("experts", "non-empty experts computed; a dense layer counts one"),
    ("units", "units computed"),
    ("macs", "multiply-accumulates that the layer needs, gates included, padding lanes and tokens not"),
)  # fmt: skip
"""Names are shared by every back end and by the simulator. Cycle counters are zero where there is no clock.

A cycle in which the array is idle counts for the first stall cause, in the order above, that applies; none applies
while there is nothing left to do. Bytes, pairs, experts, units and MACs are the same in every back end (but for
``RESIDENT_FIRST``, where weights on chip are not read again).
"""

JOB = _table(
    0, 8,
    ("job", "index of the job"),
    ("cycles", "from the retirement of the previous JOB_END (start, for the first) to that of this one"),
    ("boundary_idle", "array-idle cycles from the last beat of this job to the first of the next; 0 for the last job"),
    ("bytes_ahead", "bytes of the next job read before the last beat of this one; 0 for the last job"),
    ("layer_idle", "array-idle cycles from the last beat of a layer to the first of the next, summed over the job"),
    ("layer_idle_max", "largest of these"),
    ("array_cycles", "array busy"),
    ("gate_cycles", "share of array_cycles spent on gate tables"),
    ("pairs", "token-expert pairs computed"),
    ("experts", "non-empty experts computed"),
    ("macs", "multiply-accumulates that the layers need"),
    ("queue_crc", "CRC-32 of all queue entries of the job as appended: expert u16, token u16, weight u32 each"),
)  # fmt: skip
"""A JOB_END retires when every write of the job has been acknowledged."""

COUNTERS_END = COUNTERS[-1].offset + COUNTERS[-1].bytes
JOBS_OFFSET = -(-COUNTERS_END // 64) * 64
JOB_BYTES = 128


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
