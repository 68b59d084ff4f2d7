"""Every back end that computes, by name: the functional model behind registers, the simulated RTL, and the HLS engine
in C simulation, its processes in turn on one thread or on a thread each. Missing tools skip a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_programs import EngineBench

from accel.config import Formats, hardware
from accel.errors import DeviceError
from host.backends.golden import GoldenDevice
from host.backends.hls import HlsDevice
from host.backends.hls_build import build as build_hls
from host.backends.hls_build import find_compiler
from host.backends.rtl import RtlDevice
from host.backends.rtl_build import ROOT, build
from host.backends.toolchain import find_toolchain
from host.device import Device

COVERAGE = os.environ.get("M3VIT_RTL_COVERAGE") == "1"
MEMORY = 1 << 30
"""Bytes of a simulated memory; its pages are taken only as they are touched."""
PARAMETERS = ["golden", pytest.param("rtl", marks=pytest.mark.verilator), "hls", "hls-threads"]
"""For ``params`` of a fixture."""

Open = Callable[[], Device]


def _need(find: Callable[[], object]) -> None:
    try:
        find()
    except DeviceError as error:
        pytest.skip(str(error))


def golden_engine(preset: str) -> Open:
    return lambda: GoldenDevice(hardware(preset), Formats())


def rtl_engine(preset: str, *, assertions: bool = True, max_cycles: int = 20_000_000) -> Open:
    """The simulated board. With M3VIT_RTL_COVERAGE=1 it records its line coverage."""
    _need(find_toolchain)
    engine = hardware(preset)
    library = build(engine, Formats(), assertions=assertions, coverage=COVERAGE)
    return lambda: RtlDevice(engine, Formats(), library=library, memory_bytes=MEMORY, max_cycles=max_cycles)


def hls_engine(preset: str, library: Path | None = None, **options: Any) -> Open:
    """The C++ engine: ``library`` or the fast build of it; ``options`` of :class:`HlsDevice`."""
    _need(find_compiler)
    engine = hardware(preset)
    path = library or build_hls(engine, Formats())
    return lambda: HlsDevice(engine, Formats(), library=path, memory_bytes=MEMORY, **options)


def engine(name: str, preset: str) -> Open:
    """What opens the engine called ``name`` in :data:`PARAMETERS`."""
    if name == "golden":
        return golden_engine(preset)
    if name == "rtl":
        return rtl_engine(preset)
    return hls_engine(preset, sequential=name != "hls-threads")


def counted(preset: str, open_device: Open) -> Iterator[EngineBench]:
    """A bench for fixtures: fails at its end if it compared nothing. The RTL's line coverage, where it is recorded, is
    added to what the cocotb benches recorded."""
    bench = EngineBench(open_device, hardware(preset))
    yield bench
    if COVERAGE and isinstance(bench.device, RtlDevice):
        folder = ROOT / "build" / "rtl_tb" / f"engine-{preset}-{os.getpid()}-{id(bench):x}-coverage"
        folder.mkdir(parents=True, exist_ok=True)
        bench.device.write_coverage(folder / "coverage.dat")
    bench.close()
    print(f"{bench.device.name}, {preset}: {bench.compared:,} integers compared")
    assert bench.compared, "nothing was compared"


def open_bench(name: str, preset: str) -> Iterator[EngineBench]:
    """A bench on the engine called ``name`` in :data:`PARAMETERS`."""
    yield from counted(preset, engine(name, preset))


def rtl_bench(preset: str, **options: Any) -> Iterator[EngineBench]:
    """A bench on the simulated board; ``options`` of :func:`rtl_engine`."""
    yield from counted(preset, rtl_engine(preset, **options))


def hls_bench(preset: str, library: Path | None = None, **options: Any) -> Iterator[EngineBench]:
    """A bench on the C++ engine; arguments of :func:`hls_engine`."""
    yield from counted(preset, hls_engine(preset, library, **options))
