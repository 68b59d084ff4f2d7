"""Constants and packed structs of ``engine_pkg.sv`` for benches, read from the source so that they cannot drift::

engine = structs.load("ci")             # or load() inside a bench: the preset it runs with
engine.T, engine.TILE_BITS              # constants of engine_pkg and m3vit_pkg
engine.pack("tile_t", slot=1, count=4)  # fields not named are 0
engine.unpack("tile_t", 0x123)["slot"]
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

from rtl_tb.runner import RTL, package

_DECLARATION = re.compile(
    r"localparam\s+int\s+(?P<parameter>\w+)\s*=\s*(?P<value>[^;]+);"
    r"|typedef enum logic \[(?P<high>\d+):0\] \{(?P<members>[^}]*)\}\s*(?P<enum>\w+);"
    r"|typedef struct packed \{(?P<fields>[^}]*)\}\s*(?P<struct>\w+);"
)
_FIELD = re.compile(r"^\s*(?:logic(?:\s+signed)?\s*(?:\[(.+?):0\])?|([\w:]+_e|[\w:]+_t))\s+(\w+)\s*;", re.MULTILINE)
_MEMBER = re.compile(r"(\w+)\s*=\s*\d*'?[dh]?(\d+)")
_TERNARY = re.compile(r"^\((.*?)\?(.*?):(.*)\)$", re.DOTALL)


def _evaluate(expression: str, names: dict[str, Any]) -> int:
    """A constant expression of SystemVerilog: integers, names, + - * / << >> > ( ) ? : and $clog2."""
    text = expression.replace("m3vit_pkg::", "").replace("engine_pkg::", "")
    text = text.replace("$clog2", "clog2").replace("/", "//").strip()
    match = _TERNARY.match(text) or _TERNARY.match(f"({text})")
    if match and "?" in text:
        # The packages use one form only: (condition ? a : b), possibly divided.
        condition, yes, rest = match.groups()
        no, closing, divisor = rest.partition(")")
        chosen = yes if eval(condition.lstrip("("), {}, names) else no
        return int(eval(f"({chosen}){divisor if closing else ''}".rstrip(), {}, names))
    return int(eval(" ".join(text.split()), {}, names))


class Engine:
    """Constants as attributes, structs by name."""

    def __init__(self, preset: str) -> None:
        self._names: dict[str, Any] = {"clog2": lambda n: max(int(n) - 1, 0).bit_length()}
        widths: dict[str, int] = {}
        self.structs: dict[str, list[tuple[str, int]]] = {}
        for path in (package(preset), RTL / "engine_pkg.sv"):
            for found in _DECLARATION.finditer(re.sub(r"//.*", "", path.read_text(encoding="utf-8"))):
                if found["parameter"]:
                    value = re.sub(r"\$bits\((\w+)\)", lambda kind: str(widths[kind[1]]), found["value"])
                    self._names[found["parameter"]] = _evaluate(value, self._names)
                elif found["enum"]:
                    widths[found["enum"]] = int(found["high"]) + 1
                    self._names |= {name: int(value) for name, value in _MEMBER.findall(found["members"])}
                else:
                    fields = [
                        (name, widths[kind.split("::")[-1]] if kind else _evaluate(high or "0", self._names) + 1)
                        for high, kind, name in _FIELD.findall(found["fields"])
                    ]
                    self.structs[found["struct"]] = fields
                    widths[found["struct"]] = sum(width for _, width in fields)
        self.widths = widths

    def __getattr__(self, name: str) -> int:
        try:
            return int(self._names[name])
        except KeyError:
            raise AttributeError(name) from None

    def pack(self, struct: str, **values: int) -> int:
        """A struct as an integer; the first field is the highest."""
        result = 0
        for name, width in self.structs[struct]:
            result = result << width | int(values.pop(name, 0)) & ((1 << width) - 1)
        assert not values, f"{struct} has no {', '.join(values)}"
        return result

    def unpack(self, struct: str, value: int) -> dict[str, int]:
        """Fields of a struct, unsigned."""
        fields = {}
        for name, width in reversed(self.structs[struct]):
            fields[name] = value & ((1 << width) - 1)
            value >>= width
        return fields


@cache
def load(preset: str | None = None) -> Engine:
    """The engine of a preset; inside a bench, of the one it runs with."""
    return Engine(preset or os.environ["M3VIT_HARDWARE"])
