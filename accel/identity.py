"""Identity of an engine: what bytes and results depend on, and nothing else.

Two engines with the same identity run the same bundle and programs to the same integers, whatever their clock,
number of weight slots or language. A change of any table below changes the identity by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from accel import numerics, tables
from accel.commands import FIELDS, Flag, Opcode
from accel.record import COUNTERS, HEADER, JOB, JOB_BYTES

RULES_VERSION = 1
"""Raise this when a rule changes that no table shows: an algorithm of ``accel.numerics`` or a layout of ``pack``."""

COMPATIBLE = (
    "tile_outputs", "tile_inputs", "slot_rows", "slot_groups", "max_tokens", "max_width", "max_inputs", "max_hidden",
    "max_experts", "max_top_k", "ports", "port_bytes", "burst_beats",
)  # fmt: skip
"""Hardware fields that bytes in memory or the programs an engine accepts depend on."""


def digest(data: object) -> str:
    """SHA-256 of the canonical JSON of ``data``, hexadecimal."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def contract() -> dict[str, Any]:
    """Everything of the contract that tables hold, ready for JSON."""
    return {
        "rules": RULES_VERSION,
        "fields": [dataclasses.astuple(item)[:5] for item in FIELDS],
        "opcodes": {item.name: int(item) for item in Opcode},
        "flags": {item.name: int(item) for item in Flag},
        "record": [[slot.name, slot.offset, slot.bytes] for table in (HEADER, COUNTERS, JOB) for slot in table],
        "job_bytes": JOB_BYTES,
        "constants": {name: value for name, value in vars(numerics).items() if name.isupper() and type(value) is int},
        "tables": tables.SHA256,
    }


def engine_hash(formats: dict[str, Any], hardware: dict[str, Any]) -> int:
    """32-bit identity of an engine with these formats and hardware fields (as dictionaries)."""
    fields = {name: hardware[name] for name in COMPATIBLE}
    return int(digest({"contract": contract(), "formats": formats, "hardware": fields})[:8], 16)


def build_hash(formats: dict[str, Any], hardware: dict[str, Any]) -> int:
    """32-bit hash of everything an engine was built with, for benchmarks and logs.

    No bundle is refused for it. Only an overlay whose engine is not the one that its manifest names is.
    """
    return int(digest({"contract": contract(), "formats": formats, "hardware": hardware})[:8], 16)
