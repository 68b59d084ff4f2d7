"""The C++ header of an engine, for HLS (C++14) and host programs (C++17): values, enumerations, tables, checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

from accel import commands, record, tables
from accel.config import Formats, Hardware
from accel.emit_constants import TABLES, Constant, ascii_comment, flag_constants, headed, members, preamble
from accel.routing import Schedule


def _constant(item: Constant) -> str:
    digits = (item.bits + 3) // 4
    kind = "std::uint32_t" if item.bits else "int"
    value = f"0x{item.value:0{digits}x}U" if item.bits else str(item.value)
    line = f"constexpr {kind} {item.name} = {value};"
    return f"{line}  // {ascii_comment(item.meaning)}" if item.meaning else line


def _heading(title: str) -> Iterator[str]:
    yield ""
    yield f"// {ascii_comment(title)}"


def _enumeration(name: str, underlying: str, cls: type[IntEnum]) -> Iterator[str]:
    yield ""
    yield f"enum class {name} : std::{underlying} {{"
    for member, value, meaning in members(cls):
        yield (f"  {member} = {value},  // {ascii_comment(meaning)}" if meaning else f"  {member} = {value},")
    yield "};"


_FIELD = """
// Place of a command field: bits low .. low + bits - 1 of 32-bit little-endian word `word`; errors name it by `index`.
struct Field {
  int word;
  int low;
  int bits;
  bool is_signed;
  std::uint32_t index;
};

// Value of a field in the word that holds it, sign-extended where the field is signed.
constexpr std::int64_t field_value(std::uint32_t word, const Field& field) {
  return (field.is_signed && ((word >> (field.low + field.bits - 1)) & 1U))
             ? static_cast<std::int64_t>((word >> field.low) & ((std::uint64_t{1} << field.bits) - 1)) -
                   (std::int64_t{1} << field.bits)
             : static_cast<std::int64_t>((word >> field.low) & ((std::uint64_t{1} << field.bits) - 1));
}"""


def _command() -> Iterator[str]:
    yield _FIELD
    yield ""
    for index, item in enumerate(commands.FIELDS):
        sign = "true" if item.signed else "false"
        yield (
            f"constexpr Field FIELD_{item.name.upper()}{{{item.word}, {item.low}, {item.bits}, {sign}, {index}}};"
            f"  // {ascii_comment(item.meaning)}"
        )
    last = max(item.word for item in commands.FIELDS)
    yield _constant(Constant("COMMAND_RESERVED_WORD", last + 1, "first of the reserved words, which are zero"))


def _table(name: str, values: Sequence[int], meaning: str) -> Iterator[str]:
    yield ""
    yield f"// {ascii_comment(meaning[0].upper() + meaning[1:])}."
    yield f"// SHA-256 of the little-endian words: {tables.SHA256[name]}"
    yield f"constexpr std::uint16_t {name}[{name}_ENTRIES] = {{"
    for start in range(0, len(values), 12):
        yield f"    {', '.join(str(int(value)) for value in values[start : start + 12])},"
    yield "};"


_CHECKS = (
    ("LINE_BYTES == PORTS * PORT_BYTES", "a line is one beat of every port"),
    ("STRIPE_BYTES == LINE_BYTES * BURST_BEATS", "a stripe is one burst of every port"),
    ("ROW_BYTES == TILE_OUTPUTS * TILE_INPUTS", "a weight row feeds the array for one cycle"),
    ("ROW_BYTES % LINE_BYTES == 0", "weight rows are whole lines"),
    ("GROUP_BYTES % LINE_BYTES == 0", "parameter groups are whole lines"),
    (
        "GROUP_BYTES >= TILE_OUTPUTS * (BIAS_BYTES + SHIFT_BYTES)",
        "a parameter group holds every lane",
    ),
    ("(TILE_TOKENS & (TILE_TOKENS - 1)) == 0", "tile_tokens is a power of two"),
    ("(TILE_INPUTS & (TILE_INPUTS - 1)) == 0", "tile_inputs is a power of two"),
    ("MAX_WIDTH % TILE_OUTPUTS == 0", "token rows are whole tiles"),
    ("WEIGHT_SLOTS >= 2", "one slot loads while another computes"),
    ("WRITE_PORTS <= PORTS", "ports that write also read"),
    ("WEIGHT_MAX == (1 << (WEIGHT_BITS - 1)) - 1", "weights are narrow range"),
    ("COMBINE_ONE == 1 << COMBINE_FRACTION", "1.0 as a combine weight"),
    ("COMMAND_BYTES == 4 * COMMAND_WORDS", "commands are 32-bit words"),
    ("RECORD_JOBS_START % RECORD_JOB_BYTES == 0", "job entries are aligned"),
    ("EXP2_ENTRIES == 1 << EXP2_BITS", "EXP2 covers one octave"),
    ("sizeof(std::uint16_t) * EXP2_ENTRIES == sizeof(EXP2)", "EXP2 holds 16-bit words"),
    ("EXP2[0] == 32768U", "2^0 in Q15"),
    ("RSQRT[0] > RSQRT[RSQRT_ENTRIES - 1]", "RSQRT falls"),
)


def _lines(formats: Formats, hardware: Hardware) -> Iterator[str]:
    yield from preamble(formats, hardware)
    yield ""
    yield "#ifndef M3VIT_CONFIG_H"
    yield "#define M3VIT_CONFIG_H"
    yield ""
    yield "#include <cstdint>"
    yield ""
    yield "namespace m3vit {"
    yield ""
    yield f'constexpr char HARDWARE_NAME[] = "{ascii_comment(hardware.name)}";'
    for group in headed(formats, hardware):
        yield from _heading(group.title)
        yield from map(_constant, group.constants)
    yield from _enumeration("Opcode", "uint8_t", commands.Opcode)
    yield from _enumeration("Schedule", "uint8_t", Schedule)
    yield from _enumeration("ErrorCode", "uint32_t", record.ErrorCode)
    yield from _heading("Flags of a command")
    yield from map(_constant, flag_constants())
    yield from _command()
    for name, values, meaning in TABLES:
        yield from _table(name, values, meaning)
    yield ""
    for condition, reason in _CHECKS:
        yield f'static_assert({condition}, "{reason}");'
    yield ""
    yield "}  // namespace m3vit"
    yield ""
    yield "#endif  // M3VIT_CONFIG_H"


def emit(formats: Formats, hardware: Hardware) -> str:
    """Text of ``m3vit_config.h``."""
    return "\n".join(_lines(formats, hardware)) + "\n"
