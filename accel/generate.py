"""Generators: what is known once, in Python, becomes a SystemVerilog package, a C++ header and a reference page.

::

    python -m accel.generate --hardware zcu104 --out build/generated
    python -m accel.generate --reference docs/reference.md

The package and the header belong to one engine (number formats and hardware parameters) and go to a folder named from
it; they are not committed. The reference page depends only on the presets and the contract, and is.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from accel import emit_cpp, emit_reference, emit_sv
from accel.atomic import atomic_directory, atomic_write
from accel.config import HARDWARE, Formats, Hardware, build_hash, hardware, load_config
from accel.errors import ConfigError, M3vitError

SV_PACKAGE = "m3vit_pkg.sv"
CPP_HEADER = "m3vit_config.h"
REFERENCE = "reference.md"


def generate(formats: Formats, hardware: Hardware) -> dict[str, str]:
    """All generated files of an engine: name → text. The same configuration always gives the same text."""
    return {
        SV_PACKAGE: emit_sv.emit(formats, hardware),
        CPP_HEADER: emit_cpp.emit(formats, hardware),
        REFERENCE: emit_reference.emit(),
    }


def folder_name(formats: Formats, hardware: Hardware) -> str:
    """Name of an engine's build folder: hardware, widths and build hash, e.g. ``zcu104-w8a8-0123abcd``."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", hardware.name):
        raise ConfigError(
            f"hardware: name = {hardware.name!r}: expected letters, digits, '_', '.' and '-' only, as it names a folder"
        )
    widths = f"w{formats.weight_bits}a{formats.activation_bits}"
    return f"{hardware.name}-{widths}-{build_hash(formats, hardware):08x}"


def write(directory: str | os.PathLike[str], formats: Formats, hardware: Hardware) -> Path:
    """Write all files of an engine to its folder inside ``directory``, completely or not at all.

    Files that are already as they should be are left alone, so that build tools see no change.

    Returns:
        The engine's folder.

    Raises:
        ConfigError: the hardware's name cannot name a folder.
        M3vitError: the file system refused.
    """
    target = Path(directory) / folder_name(formats, hardware)
    files = generate(formats, hardware)
    if not _current(target, files):
        with atomic_directory(target) as temporary:
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
    return target


def _current(directory: Path, files: dict[str, str]) -> bool:
    """Whether ``directory`` holds exactly ``files``."""
    try:
        return {item.name for item in directory.iterdir()} == set(files) and all(
            (directory / name).read_bytes() == text.encode() for name, text in files.items()
        )
    except OSError:
        return False


def write_reference(path: str | os.PathLike[str]) -> Path:
    """Write the reference page, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(emit_reference.emit(), encoding="utf-8")
    return Path(path)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m accel.generate", description=__doc__.partition("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--hardware", metavar="NAME", help=f"hardware preset: {', '.join(HARDWARE)}")
    source.add_argument("--config", metavar="FILE", help="configuration file (JSON); its network is not used")
    parser.add_argument("--weight-bits", type=int, metavar="N", help="2 to 8, with --hardware (default: 8)")
    parser.add_argument("--activation-bits", type=int, metavar="N", help="2 to 8, with --hardware (default: 8)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="build/generated",
        help="parent folder (default: %(default)s)",
    )
    parser.add_argument("--reference", metavar="FILE", help="write only the reference page")
    return parser


def _engine(options: argparse.Namespace) -> tuple[Formats, Hardware]:
    widths = {"weight_bits": options.weight_bits, "activation_bits": options.activation_bits}
    given = {name: bits for name, bits in widths.items() if bits is not None}
    if options.config is None:
        return Formats(**given), hardware(options.hardware or "zcu104")
    if given:
        name = next(iter(given))
        raise ConfigError(f"--{name.replace('_', '-')}: expected only with --hardware, found with --config")
    config = load_config(options.config)
    return config.formats, config.hardware


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints the folder or file written. Returns 1 after printing a one-line error."""
    options = _arguments().parse_args(arguments)
    try:
        if options.reference is not None:
            print(write_reference(options.reference))
        else:
            print(write(options.out, *_engine(options)))
    except M3vitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
