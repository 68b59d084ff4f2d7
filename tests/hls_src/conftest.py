"""The RTL's cases on the engine in HLS C++: the programs and the bench that compares are those of tests/rtl_tb."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in ("rtl_tb", "host"):
    sys.path.append(str(Path(__file__).parents[1] / folder))

from engine_programs import EngineBench  # noqa: E402

from accel.config import Formats, hardware  # noqa: E402
from accel.errors import DeviceError  # noqa: E402
from host.backends.hls import HlsDevice, HlsLibrary  # noqa: E402
from host.backends.hls_build import build, find_compiler  # noqa: E402


@pytest.fixture(scope="session")
def compiler() -> str:
    try:
        return find_compiler()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def library(compiler: str) -> Path:
    return build(hardware("ci"), Formats())


@pytest.fixture(scope="session")
def streams(library: Path) -> dict[str, tuple[int, int]]:
    """Depth and least depth of every stream."""
    return {item.name: (item.depth, item.least) for item in HlsLibrary(library).streams()}


def open_bench(preset: str, library: Path, **options: object) -> Iterator[EngineBench]:
    """A bench on the C++ engine: fails at its end if it compared nothing."""
    engine = hardware(preset)

    def open_device() -> HlsDevice:
        return HlsDevice(engine, Formats(), library=library, memory_bytes=1 << 30, **options)  # type: ignore[arg-type]

    bench = EngineBench(open_device, engine)
    yield bench
    bench.close()
    print(f"{preset}: {bench.compared:,} integers compared")
    assert bench.compared, "nothing was compared"


@pytest.fixture(scope="module", params=["in turn", "threads"])
def bench(request: pytest.FixtureRequest, library: Path) -> Iterator[EngineBench]:
    yield from open_bench("ci", library, sequential=request.param == "in turn")
