"""The reference page ``docs/reference.md``: presets, constants, registers, commands, record and sizes in memory."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Sequence

from accel import commands, memory_map, record, registers
from accel.commands import Opcode
from accel.config import (
    HARDWARE,
    NETWORKS,
    Config,
    Formats,
    Hardware,
    Network,
    Task,
    engine_hash,
    hardware,
)
from accel.emit_constants import COMMAND_LINE, described_fields, groups, members
from accel.errors import ConfigError
from accel.layers import Kind, Layer, engine_layers

_SHAPE = (
    "tokens",
    "inputs",
    "outputs",
    "units",
    "tiles_per_unit",
    "unit_bytes",
    "weights",
    "input",
    "output",
)

OPERANDS: dict[Opcode, tuple[str, ...]] = {
    Opcode.END: (),
    Opcode.JOB_END: ("job",),
    Opcode.BARRIER: (),
    Opcode.LINEAR: _SHAPE,
    Opcode.ACCUMULATE: (*_SHAPE, "residual"),
    Opcode.MLP: (*_SHAPE, "hidden", "residual"),
    Opcode.MOE: (
        *_SHAPE,
        "hidden",
        "residual",
        "experts",
        "top_k",
        "schedule",
        "gate",
        "gate_shift",
    ),
    Opcode.NORM: (),
    Opcode.ATTENTION: (),
    Opcode.CONV3X3: (),
}
"""Fields that mean something to each command besides opcode, flags, job and layer."""

NOTES: dict[Opcode, str] = {
    Opcode.END: "Must be the last command. Commands after it are not read.",
    Opcode.JOB_END: "The next job may already be loading: closing a job never waits for it.",
    Opcode.BARRIER: "For negative controls and debugging. Programs for speed have none.",
    Opcode.LINEAR: "QKV carries the flag NARROW, because q will sit in the array's weight operand.",
    Opcode.ACCUMULATE: "The projection after attention, and the patch embedding with the positions as residual.",
    Opcode.MLP: "Every token has combine weight 65536 (1.0). All units are rounded by themselves, then added.",
    Opcode.MOE: "Ties in top-k go to the lower expert index. Empty experts are neither loaded nor computed. The "
    "schedule changes only the order, never a bit of the output.",
    Opcode.NORM: "Engines refuse it with error OPCODE.",
    Opcode.ATTENTION: "Engines refuse it with error OPCODE.",
    Opcode.CONV3X3: "Engines refuse it with error OPCODE.",
}


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _sentence(text: str) -> str:
    text = text.replace("``", "`").rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _presets() -> Iterator[str]:
    yield "## Presets"
    yield ""
    yield "### Networks"
    yield ""
    names = [item.name for item in dataclasses.fields(Network) if item.name not in ("name", "tasks")]
    derived = ("tokens", "patch_dim", "head_dim", "dense_units", "expert_units")
    rows: list[list[object]] = [[f"`{name}`", *(getattr(n, name) for n in NETWORKS.values())] for name in names]
    rows += [[f"{name} (derived)", *(getattr(n, name) for n in NETWORKS.values())] for name in derived]
    tasks = (", ".join(f"{t.name} ({t.channels}, {t.kind})" for t in n.tasks) for n in NETWORKS.values())
    rows.append(["tasks", *tasks])
    yield from _table(["field", *NETWORKS], rows)
    yield "### Hardware"
    yield ""
    names = [item.name for item in dataclasses.fields(Hardware) if item.name != "name"]
    derived = ("macs_per_cycle", "row_bytes", "line_bytes", "burst_bytes", "stripe_bytes")
    rows = [[f"`{name}`", *(getattr(h, name) for h in HARDWARE.values())] for name in names]
    rows += [[f"{name} (derived)", *(getattr(h, name) for h in HARDWARE.values())] for name in derived]
    rows.append(
        [
            "engine hash, 8-bit formats",
            *(f"`{engine_hash(Formats(), h):08x}`" for h in HARDWARE.values()),
        ]
    )
    yield from _table(["field", *HARDWARE], rows)
    yield "### Configuration hashes"
    yield ""
    yield "Network on hardware with 8-bit formats, or why the two do not fit."
    yield ""
    rows = []
    for net in NETWORKS.values():
        for hw in HARDWARE.values():
            try:
                found = f"`{Config(net, Formats(), hw).hash}`"
            except ConfigError as error:
                found = str(error).partition(": ")[2]
            rows.append([f"`{net.name}`", f"`{hw.name}`", found])
    yield from _table(["network", "hardware", "hash"], rows)


def _fields() -> Iterator[str]:
    yield "## Configuration fields"
    yield ""
    yield "A configuration file is JSON with `network`, `formats` and `hardware`; a preset's name"
    yield "stands for its fields."
    yield ""
    for title, cls in (
        ("network", Network),
        ("formats", Formats),
        ("hardware", Hardware),
        ("network.tasks[]", Task),
    ):
        texts = described_fields(cls)
        rows = []
        for item in dataclasses.fields(cls):
            default = "required" if item.default is dataclasses.MISSING else f"`{item.default}`"
            text = texts.get(item.name, "Identifier in files and messages." if item.name == "name" else "")
            rows.append([f"`{item.name}`", f"`{item.type}`", default, _sentence(text)])
        yield f"### `{title}`"
        yield ""
        if not texts:
            yield " ".join(inspect.cleandoc(cls.__doc__ or "").replace("``", "`").split())
            yield ""
        yield from _table(["field", "type", "default", "meaning"], rows)


def _numbers() -> Iterator[str]:
    yield "## Numeric constants"
    yield ""
    yield "What they are for is worked out in [numerics.md](numerics.md)."
    yield ""
    numeric = next(group for group in groups(Formats(), hardware("zcu104")) if group.title == "Numeric contract")
    yield from _table(
        ["name", "value", "meaning"],
        ([f"`{c.name}`", c.value, _sentence(c.meaning)] for c in numeric.constants),
    )


def _registers() -> Iterator[str]:
    yield "## Registers"
    yield ""
    yield f"AXI4-Lite, 32 bit, {registers.SPAN} bytes, laid out as Vitis HLS lays out `ap_ctrl_hs`."
    yield f"Addresses without a register read `{registers.UNMAPPED:#010x}`."
    yield ""
    rows: list[list[object]] = []
    for item in registers.REGISTERS:
        access = item.access.name.lower().replace("_", " ")
        rows.append([f"`{item.offset:#04x}`", f"`{item.name}`", "", access, _sentence(item.meaning)])
        for bit in item.bits:
            access = bit.access.name.lower().replace("_", " ")
            rows.append(["", f"`{item.name}.{bit.name}`", bit.bit, access, _sentence(bit.meaning)])
    yield from _table(["offset", "name", "bit", "access", "meaning"], rows)


def _commands() -> Iterator[str]:
    yield "## Commands"
    yield ""
    yield f"{commands.COMMAND_BYTES} bytes each, {commands.WORDS} little-endian 32-bit words; bits that no"
    yield "field covers are zero. The loop nests behind the actions are in [formats.md](formats.md)."
    yield ""
    rows: list[list[object]] = [
        [item.word, f"{item.low + item.bits - 1}:{item.low}", f"`{item.name}`", "signed" if item.signed else "unsigned",
         _sentence(item.meaning)]
        for item in commands.FIELDS
    ]  # fmt: skip
    yield from _table(["word", "bits", "field", "type", "meaning"], rows)
    yield "Flags:"
    yield ""
    yield from _table(["value", "flag", "meaning"], ([v, f"`{n}`", text] for n, v, text in members(commands.Flag)))
    for name, value, action in members(Opcode):
        opcode = Opcode(value)
        operands = ", ".join(f"`{field}`" for field in OPERANDS[opcode])
        yield f"### `{name}` ({value:#04x})"
        yield ""
        yield f"* **Format:** {operands or 'no operands'}."
        yield f"* **Action:** {action}"
        yield f"* **Notes:** {NOTES[opcode]}"
        yield ""


def _record() -> Iterator[str]:
    yield "## Record"
    yield ""
    yield "Written by the engine to memory when a program ends; little-endian, offsets in bytes."
    yield ""
    tables = (("Header", record.HEADER), ("Counters", record.COUNTERS))
    for title, slots in tables:
        yield f"### {title}"
        yield ""
        yield from _table(
            ["offset", "bytes", "name", "meaning"],
            ([slot.offset, slot.bytes, f"`{slot.name}`", _sentence(slot.meaning)] for slot in slots),
        )
    yield "### Job entries"
    yield ""
    yield f"Entry i starts at {record.JOBS_OFFSET} + {record.JOB_BYTES}·i."
    yield ""
    yield from _table(
        ["offset", "bytes", "name", "meaning"],
        ([slot.offset, slot.bytes, f"`{slot.name}`", _sentence(slot.meaning)] for slot in record.JOB),
    )
    yield "### Error codes"
    yield ""
    rows: list[list[object]] = [
        [value, f"`{name}`", text or "The program ended with END."] for name, value, text in members(record.ErrorCode)
    ]
    yield from _table(["code", "name", "meaning"], rows)


def _arena() -> Iterator[str]:
    yield "## Arena"
    yield ""
    yield f"Regions in this order, each at a multiple of {memory_map.ARENA_ALIGNMENT} bytes."
    yield ""
    yield from _table(["region", "holds"], ([f"`{name}`", _sentence(text)] for name, text in memory_map.REGIONS))


def _distinct(layers: Sequence[Layer]) -> dict[Layer, list[str]]:
    """Layers that differ in more than their name → names."""
    kinds: dict[Layer, list[str]] = {}
    for layer in layers:
        kinds.setdefault(dataclasses.replace(layer, name=""), []).append(layer.name)
    return kinds


def _memory() -> Iterator[str]:
    yield "## Layers and sizes in memory"
    yield ""
    yield "Every layer that the engine computes, folded onto `zcu104` (the demo: `ci`). Bytes are padded"
    yield "to stripes; the byte order inside is in [formats.md](formats.md)."
    yield ""
    for net in NETWORKS.values():
        config = Config(net, Formats(), hardware("ci" if net.name == "m3vit-demo" else "zcu104"))
        yield f"### `{config.name}`"
        yield ""
        rows: list[list[object]] = []
        total = 0
        for layer, names in _distinct(engine_layers(config)).items():
            blocks = names[0] if len(names) == 1 else f"{names[0]}, {names[1]}, … ({len(names)})"
            gates = len(net.tasks) * layer.gate_bytes
            total += len(names) * (layer.experts * layer.expert_bytes + gates)
            shape = f"{layer.tokens} × {layer.inputs} → {layer.outputs}"
            hidden = f"{layer.hidden} × {layer.units}" if layer.hidden else f"– × {layer.units}"
            moe = f"{layer.experts}, top {layer.top_k}" if layer.kind is Kind.MOE else "–"
            rows.append(
                [
                    blocks,
                    layer.kind.name,
                    shape,
                    hidden,
                    moe,
                    layer.unit_bytes,
                    layer.gate_bytes or "–",
                ]
            )
        head = [
            "layers",
            "kind",
            "tokens × in → out",
            "hidden × units",
            "experts",
            "unit bytes",
            "gate bytes",
        ]
        yield from _table(head, rows)
        yield f"Weights and gate tables together: {total:,} bytes."
        yield ""


def emit() -> str:
    """Text of ``docs/reference.md``; it depends on the presets and the contract only."""
    lines = [
        f"<!-- Generated by `{COMMAND_LINE} --reference docs/reference.md`. Do not edit. -->",
        "",
        "# Reference",
        "",
        "Presets, configuration fields, numeric constants, registers, commands, record and sizes in memory, as",
        "the code defines them.",
        "",
    ]
    for part in (_presets, _fields, _numbers, _registers, _commands, _record, _arena, _memory):
        lines += part()
    return "\n".join(lines).rstrip() + "\n"
