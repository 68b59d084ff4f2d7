"""Back ends by name. A new one joins with one line in :data:`BACKENDS`."""

from __future__ import annotations

import importlib
from typing import Any

from accel.config import Formats, Hardware
from accel.errors import DeviceError
from host.device import Device

BACKENDS: dict[str, str] = {
    "golden": "host.backends.golden:GoldenDevice",
    "rtl": "host.backends.rtl:RtlDevice",
    "board": "host.backends.board:BoardDevice",
    "hls": "host.backends.hls:HlsDevice",
}
"""Name → ``module:class``, imported only when it is opened. The class is called as
``cls(hardware, formats, **options)``."""


def open_device(
    name: str, hardware: Hardware, formats: Formats | None = None, **options: Any
) -> Device:
    """Open the back end called ``name``.

    Args:
        name: one of :data:`BACKENDS`.
        hardware, formats: what the engine was built with, or is to be built with.
        options: passed on to the back end.

    Raises:
        DeviceError: no such back end; the message lists the known ones.
    """
    if name not in BACKENDS:
        raise DeviceError(f"back end {name!r}: expected one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    device: Device = getattr(importlib.import_module(module), attribute)(
        hardware, formats or Formats(), **options
    )
    return device
