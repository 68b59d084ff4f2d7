"""Outputs exist completely or not at all: failures, kills at the worst moment, leftovers and concurrent writers."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel import atomic
from accel.atomic import atomic_directory, atomic_write, recover
from accel.errors import M3vitError

ROOT = Path(__file__).resolve().parents[2]


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def tree(path: Path) -> dict[str, str]:
    return {str(item.relative_to(path)): item.read_text() for item in path.rglob("*") if item.is_file()}


def fill(directory: Path, text: str, count: int = 3) -> None:
    (directory / "sub").mkdir()
    for index in range(count):
        (directory / "sub" / f"{index}.txt").write_text(text)


def write_directory(target: Path, text: str) -> None:
    with atomic_directory(target) as directory:
        fill(directory, text)


def content(text: str) -> dict[str, str]:
    return {f"sub/{index}.txt": text for index in range(3)}


@pytest.fixture(params=["swap", "fallback"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of putting one directory in the place of another."""
    if request.param == "fallback":
        monkeypatch.setattr(atomic, "_swap", lambda first, second: False)
    return request.param


# ---- files ----------------------------------------------------------------------------


def test_file_is_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(str(target)) as temporary:
            assert temporary.parent == target.parent and temporary != target
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == text
        assert stat.S_IMODE(target.stat().st_mode) == 0o644
        assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_the_old_file(tmp_path: Path, old: bool, error: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    if old:
        target.write_text("old")
    with pytest.raises(error), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise error("stop")
    assert names(tmp_path) == (["file.txt"] if old else [])
    assert not old or target.read_text() == "old"


def test_file_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "directory" / "full").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for target, reason in (
        (tmp_path / "directory", "Is a directory"),
        (tmp_path / "file" / "below", "File exists"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(M3vitError) as error, atomic_write(target) as temporary:
            temporary.write_text("new")
        assert str(error.value) == f"{target}: cannot write: {reason}"
    with pytest.raises(M3vitError, match="out: cannot write: No space left"), atomic_write(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == ["directory", "file"] and names(tmp_path / "directory") == ["full"]


# ---- directories ----------------------------------------------------------------------


def test_directory_is_written_and_replaced(tmp_path: Path, exchange: str) -> None:
    target = tmp_path / "new" / "b"
    for text in ("first", "second", "third"):
        with atomic_directory(target) as temporary:
            fill(temporary, text)
            assert not target.exists() or set(tree(target).values()) < {"first", "second", "third"} - {text}
        assert tree(target) == content(text)
        assert stat.S_IMODE(target.stat().st_mode) == 0o755
        assert names(target.parent) == ["b"]


def test_this_system_swaps_in_one_step(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.mkdir()
        (path / path.name).touch()
    if not atomic._swap(first, second):
        pytest.skip("no renameat2 here: only the fallback is used")
    assert names(first) == ["second"] and names(second) == ["first"]
    assert not atomic._swap(first, tmp_path / "missing") and names(first) == ["second"]


def test_old_c_library_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldLibrary:
        def __init__(self, *_: object, **__: object) -> None:
            pass

    monkeypatch.setattr(atomic.ctypes, "CDLL", OldLibrary)
    assert atomic._swap(tmp_path, tmp_path) is False
    write_directory(tmp_path / "b", "old")
    write_directory(tmp_path / "b", "new")
    assert tree(tmp_path / "b") == content("new") and names(tmp_path) == ["b"]


@pytest.mark.parametrize("old", [True, False])
def test_exception_leaves_the_old_directory(tmp_path: Path, exchange: str, old: bool) -> None:
    target = tmp_path / "b"
    if old:
        write_directory(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_directory(target) as temporary:
        fill(temporary, "half")
        _ = 1 // 0
    assert names(tmp_path) == (["b"] if old else [])
    assert not old or tree(target) == content("old")


def test_target_that_is_a_file(tmp_path: Path, exchange: str) -> None:
    target = tmp_path / "b"
    target.write_text("mine")
    with pytest.raises(M3vitError, match="b: expected a directory, found a file"), atomic_directory(target):
        pytest.fail("entered")
    target.unlink()
    with pytest.raises(M3vitError, match="b: cannot write: Not a directory"), atomic_directory(target) as temporary:
        fill(temporary, "new")
        target.write_text("appeared meanwhile")
    assert target.read_text() == "appeared meanwhile" and names(tmp_path) == ["b"]


def test_empty_and_linked_targets(tmp_path: Path, exchange: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for text in ("first", "second"):
        write_directory(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and tree(tmp_path / "real") == content(text)
    assert names(tmp_path) == ["link", "real"]
    (tmp_path / "dangling").symlink_to("made")
    write_directory(tmp_path / "dangling", "third")
    assert tree(tmp_path / "made") == content("third")


def test_a_linked_directory_is_never_emptied_through_its_link(tmp_path: Path) -> None:
    write_directory(tmp_path / "real", "mine")
    (tmp_path / "link").symlink_to("real")
    atomic._remove(tmp_path / "link")
    assert names(tmp_path) == ["real"] and tree(tmp_path / "real") == content("mine")


# ---- kills ----------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from accel import atomic

steps, last = 0, int(sys.argv[2])
replace = Path.replace

def counted(self, target):
    global steps
    try:
        result = replace(self, target)
    except OSError:
        return replace(self, target)  # fails again, as it did
    steps += 1
    if steps == last:
        os._exit(9)
    return result

atomic._swap = lambda first, second: False
Path.replace = counted
with atomic.atomic_directory(sys.argv[1]) as directory:
    (directory / "sub").mkdir()
    for index in range(3):
        (directory / "sub" / f"{index}.txt").write_text("new")
os._exit(0)
"""


def run_killed(target: Path, step: int) -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", KILLED, str(target), str(step)], env=environment).returncode


def test_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    target = tmp_path / "b"
    write_directory(target, "old")
    assert run_killed(target, 1) == 9
    assert not target.exists() and ".b.old" in names(tmp_path)
    assert recover(str(target)) == target
    assert tree(target) == content("old") and ".b.old" not in names(tmp_path)
    assert recover(target) == target and tree(target) == content("old")


def test_kill_after_both_renames_keeps_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "b"
    write_directory(target, "old")
    assert run_killed(target, 2) == 9
    assert names(tmp_path) == [".b.old", "b"]
    recover(target)
    assert tree(target) == content("new"), "what stepped aside does not come back over a complete directory"
    monkeypatch.setattr(atomic, "_swap", lambda first, second: False)
    write_directory(target, "newer")
    assert tree(target) == content("newer") and names(tmp_path) == ["b"]


def test_writer_recovers_first(tmp_path: Path) -> None:
    target = tmp_path / "b"
    write_directory(target, "old")
    os.rename(target, tmp_path / ".b.old")
    with pytest.raises(ZeroDivisionError), atomic_directory(target):
        assert tree(target) == content("old")
        _ = 1 // 0
    assert tree(target) == content("old") and names(tmp_path) == ["b"]


def test_recover_touches_nothing_else(tmp_path: Path) -> None:
    assert recover(tmp_path / "b") == tmp_path / "b"
    (tmp_path / ".b.old").write_text("a file of that name")
    recover(tmp_path / "b")
    assert names(tmp_path) == [".b.old"]
    assert recover(".") == Path.cwd()
    assert recover(tmp_path / "x" / "..") == tmp_path


# ---- leftovers ------------------------------------------------------------------------


def leftover(path: Path, age: float, directory: bool = True) -> Path:
    if directory:
        path.mkdir()
        (path / "half.bin").write_text("half")
    else:
        path.write_text("half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


@pytest.fixture
def locked() -> Iterator[list[int]]:
    handles: list[int] = []
    yield handles
    for handle in handles:
        os.close(handle)


@pytest.mark.parametrize("directory", [True, False])
def test_leftovers_of_dead_writers_are_removed_and_no_others(
    tmp_path: Path, locked: list[int], directory: bool
) -> None:
    old, young = 2 * atomic._STALE_SECONDS, 0.5 * atomic._STALE_SECONDS
    leftover(tmp_path / ".b.tmp-dead", old, directory)
    leftover(tmp_path / ".b.tmp-young", young, directory)
    alive = leftover(tmp_path / ".b.tmp-alive", old, directory)
    leftover(tmp_path / ".b2.tmp-dead", old, directory)
    leftover(tmp_path / "b.tmp-mine", old, directory)
    locked.append(os.open(alive, os.O_RDONLY))
    fcntl.flock(locked[0], fcntl.LOCK_EX)
    kept = [".b.tmp-alive", ".b.tmp-young", ".b2.tmp-dead", "b.tmp-mine"]
    write_directory(tmp_path / "b", "new")
    assert names(tmp_path) == sorted([*kept, "b"])
    os.close(locked.pop())
    with atomic_write(tmp_path / "b2") as temporary:
        temporary.write_text("x")
    write_directory(tmp_path / "b", "newer")
    assert names(tmp_path) == sorted([".b.tmp-young", "b", "b2", "b.tmp-mine"])


WAITING = """
import sys
from accel.atomic import atomic_directory
with atomic_directory(sys.argv[1]) as directory:
    (directory / "half.bin").write_text("half")
    print(directory, flush=True)
    sys.stdin.read()
"""


def test_temporary_of_a_living_process_is_kept_and_of_a_killed_one_removed(tmp_path: Path) -> None:
    target = tmp_path / "b"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    temporary = Path(process.stdout.readline().strip())
    then = time.time() - 2 * atomic._STALE_SECONDS
    os.utime(temporary, (then, then))
    write_directory(target, "new")
    assert tree(temporary) == {"half.bin": "half"}
    process.kill()
    process.communicate()
    assert temporary.is_dir(), "a kill leaves it behind"
    write_directory(target, "newer")
    assert names(tmp_path) == ["b"] and tree(target) == content("newer")


# ---- concurrent writers ---------------------------------------------------------------


def test_another_writer_finishes_first(tmp_path: Path, exchange: str) -> None:
    """Neither the first directory nor an exchange may be assumed at the start of the block."""
    target = tmp_path / "b"
    with atomic_directory(target) as temporary:
        fill(temporary, "slow")
        write_directory(target, "fast")
        assert tree(target) == content("fast")
    assert tree(target) == content("slow") and names(tmp_path) == ["b"]


def test_many_writers_of_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    swaps = atomic._swap(tmp_path / "x", tmp_path / "y")
    for name in ("x", "y"):
        (tmp_path / name).rmdir()
    if not swaps:
        pytest.skip("without renameat2 a writer may find the target missing for a moment and says so")
    monkeypatch.setattr(atomic, "_sync", lambda path: None)
    target, failures = tmp_path / "b", []
    start = threading.Barrier(6)

    def write(index: int) -> None:
        start.wait()
        for turn in range(10):
            try:
                write_directory(target, f"{index}-{turn}")
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = tree(target)
    assert len(set(found.values())) == 1 and found == content(found["sub/0.txt"])
    assert found["sub/0.txt"].endswith("-9") and names(tmp_path) == ["b"]


def test_readers_of_a_file_never_see_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_sync", lambda path: None)
    target, done, seen = tmp_path / "file", threading.Event(), []

    def write(letter: str) -> None:
        for _ in range(40):
            with atomic_write(target) as temporary, temporary.open("w") as file:
                for _ in range(8):
                    file.write(letter * 1000)
                    file.flush()

    def read() -> None:
        while not done.is_set():
            if target.exists():
                seen.append(target.read_text())

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen and set(seen) <= {letter * 8000 for letter in "abc"}
    assert names(tmp_path) == ["file"]
