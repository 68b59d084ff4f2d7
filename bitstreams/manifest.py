"""Writes the manifest of an overlay that Vivado has just built; the last step of ``make overlay``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from accel.config import Formats, Hardware, hardware
from accel.errors import DeviceError, M3vitError
from bitstreams.generate import ROOT, arguments
from host.overlay import overlay_folder, write_manifest

BUILD = "build.txt"
"""What ``overlay.tcl`` writes: one name and value per line."""
_FIGURES = ("clock_mhz", "setup_slack_ns", "hold_slack_ns")


def write(folder: Path, engine: str, hardware: Hardware, formats: Formats) -> Path:
    """Write the manifest beside the overlay's files, with what the build reported."""
    source = folder / BUILD
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DeviceError(f"{source}: expected what overlay.tcl writes at its end, found nothing: {error}") from error
    said = dict(line.partition(" ")[::2] for line in lines)
    missing = [name for name in ("tool", *_FIGURES) if name not in said]
    if missing:
        raise DeviceError(f"{source}: expected a line {missing[0]!r}, found {', '.join(said) or 'nothing'}")
    figures = {name: float(said[name]) for name in _FIGURES}
    return write_manifest(folder, engine, hardware, formats, said["tool"], figures)


def main(given: Sequence[str] | None = None) -> int:
    """Command line; prints the file."""
    options = arguments(str(__doc__).partition("\n")[0]).parse_args(given)
    chosen = hardware(options.hardware)
    folder = options.out or ROOT / overlay_folder(options.engine, Formats(), chosen)
    try:
        print(write(folder, options.engine, chosen, Formats()))
    except (M3vitError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
