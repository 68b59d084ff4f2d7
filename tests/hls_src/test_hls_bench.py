"""The C++ test bench, with sanitizers, and the compilers that must accept the engine without a warning."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from host_networks import TINY
from PIL import Image

from accel.bundle import write_bundle
from accel.config import Formats, hardware
from accel.errors import DeviceError
from accel.random_params import random_encoder
from accel.routing import Schedule
from hls_src.cases import small_program, write_frame, write_synthetic
from host.backends.hls_build import HEADER, RACES, SANITIZE, SOURCES, WARNINGS, build, find_compiler, source_files
from rtl_tb.engine_cases import CASES, random_program

CI = hardware("ci")


def replay(program: Path, *arguments: str | Path) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_cases(folder: Path) -> list[Path]:
    names = [name for name in CASES if name not in ("queues_of_every_length", "top_eight")]  # resident weights
    for name in names:
        write_synthetic(folder / name, CI, CASES[name](CI))
    return [folder / name for name in names]


def test_recorded_cases_pass_and_a_wrong_byte_is_found(compiler: str, tmp_path: Path) -> None:
    program = build(CI, Formats(), flags=("-O2",), bench=True)
    write_synthetic(tmp_path / "small", CI, small_program(CI))
    assert "1 cases, passed" in replay(program, tmp_path / "small")
    after = bytearray((tmp_path / "small" / "after.bin").read_bytes())
    after[-1] ^= 1
    (tmp_path / "small" / "after.bin").write_bytes(bytes(after))
    done = subprocess.run([program, tmp_path / "small"], capture_output=True, text=True)
    assert done.returncode == 1 and "1 differ" in done.stdout and "FAILED" in done.stdout
    assert subprocess.run([program], capture_output=True).returncode == 2
    assert subprocess.run([program, tmp_path / "none"], capture_output=True).returncode == 1


def test_a_whole_frame(compiler: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", random_encoder(TINY, seed=1), CI)
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    write_frame(tmp_path / "frame", str(bundle.path), str(tmp_path / "p.png"), bundle.config.network.task_names[0])
    program = build(bundle.config.hardware, bundle.config.formats, flags=("-O2",), bench=True)
    assert "1 cases, passed" in replay(program, tmp_path / "frame")


def test_cases_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hls_src.cases", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SOURCES.parent)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identify", "small"]


def test_address_and_undefined_behaviour_sanitizers(compiler: str, tmp_path: Path) -> None:
    program = build(CI, Formats(), flags=SANITIZE, bench=True)
    cases = write_cases(tmp_path)
    assert f"{len(cases)} cases, passed" in replay(program, *cases)


@pytest.mark.slow
def test_sanitizers_with_threads_and_random_programs(compiler: str, tmp_path: Path) -> None:
    program = build(CI, Formats(), flags=SANITIZE, bench=True)
    cases = write_cases(tmp_path)
    assert f"{len(cases)} cases, passed" in replay(program, "--threads", *cases)
    drawn = [random_program(40_000 + seed, CI) for seed in range(20)]
    chosen = [item for item in drawn if all(command.schedule != Schedule.RESIDENT_FIRST for command in item.commands)]
    for index, item in enumerate(chosen):
        write_synthetic(tmp_path / f"random{index}", CI, item)
    folders = [tmp_path / f"random{index}" for index in range(len(chosen))]
    assert len(chosen) > 10 and f"{len(chosen)} cases, passed" in replay(program, *folders)


@pytest.mark.slow
def test_thread_sanitizer(compiler: str, tmp_path: Path) -> None:
    """Two processes share the weight store and the input store: the tokens alone keep them apart."""
    program = build(CI, Formats(), flags=RACES, bench=True)
    assert "cases, passed" in replay(program, "--threads", *write_cases(tmp_path))


@pytest.mark.parametrize("preset", ["ci", pytest.param("zcu104", marks=pytest.mark.slow)])
def test_clang(preset: str) -> None:
    try:
        clang = find_compiler(("clang++",))
    except DeviceError as error:
        pytest.skip(str(error))
    build(hardware(preset), Formats(), flags=("-O1",), compiler=clang)


def test_clang_tidy(library: Path) -> None:
    tidy = shutil.which("clang-tidy")
    if tidy is None:
        pytest.skip("clang-tidy is not installed")
    files = [str(path) for path in source_files() if path.suffix == ".cpp"]
    assert (library.parent / HEADER).is_file()
    flags = ["-std=c++17", f"-I{SOURCES}", f"-I{library.parent}", *(item for item in WARNINGS if item != "-Werror")]
    done = subprocess.run(
        [tidy, "--quiet", f"--config-file={SOURCES / '.clang-tidy'}", *files, "--", *flags],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
