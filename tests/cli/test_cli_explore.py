"""``m3vit explore``: the search against brute force, kills, and files that other commands take."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, finish, start

from accel.config import Config, Formats, hardware, hardware_from_dict, network_from_dict, to_dict
from accel.errors import ConfigError
from accel.resources import faults
from host.backends.rtl_build import check_hardware
from sim.explore import Candidate, Problem

Run = Callable[..., Outcome]
SPACE = {
    "tile_tokens": [2, 4, 64], "tile_outputs": [16, 32], "weight_slots": [2, 3], "slot_rows": ["4x"],
    "slot_groups": ["4x"], "max_tokens": [64, 128], "max_width": ["1x"], "ports": [2, 4], "clock_mhz": [200, 300],
    "schedule": ["index", "longest_first"],
}  # fmt: skip
POINT = {"name", "hardware", "schedule", "cycles", "milliseconds", "utilization", "roofline", "ddr_bytes",
         "millijoules", "resources", "shares", "rtl", "rtl_refusal"}  # fmt: skip


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def explore(m3vit: Run, source: object, out: Path, *more: object) -> dict[str, Any]:
    return m3vit("explore", source, "--out", out, "--processes", 1, "-q", "--json", *more).json()


def test_a_small_space_is_brute_force(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    space = write(tmp_path / "space.json", SPACE)
    data = explore(m3vit, tiny_json, tmp_path / "out", "--space", space, "--jobs", "depth,semseg")
    problem = Problem(network_from_dict(json.loads(tiny_json.read_text())), Formats(), ("depth", "semseg"))
    values = {}
    base = problem.candidate({})  # outside this space, and a point too
    for choice in [None, *itertools.product(*SPACE.values())]:
        try:
            candidate = base if choice is None else problem.candidate(dict(zip(SPACE, choice, strict=True)))
            Config(problem.network, Formats(), candidate.hardware)
            check_hardware(candidate.hardware)
        except ConfigError:
            continue
        if not faults(candidate.hardware):
            share = max(data["shares"].values() for data in data["points"] if data["name"] == candidate.hardware.name)
            figures = problem.evaluate(candidate)
            values[candidate.hardware.name] = (figures["milliseconds"], max(share), candidate.hardware.clock_mhz)
    assert data["exhaustive"] and data["objectives"] == ["ms", "resources", "clock"]
    assert {point["name"] for point in data["points"]} == set(values) and len(values) == len(data["points"]) > 20
    beaten = {name for name, a in values.items() for b in values.values()
              if all(y <= x for x, y in zip(a, b, strict=True)) and b != a}  # fmt: skip
    front = [point["name"] for point in data["front"]]
    assert {values[name] for name in front} == {values[name] for name in set(values) - beaten}
    assert len({values[name] for name in front}) == len(front) and not set(front) & beaten
    assert values[data["best"]][0] == min(a[0] for a in values.values())
    assert base.hardware.name in values
    assert data["possible_engines"] + sum(data["refused_engines"].values()) <= data["engines"] == 48
    assert data["refused_engines"].keys() <= {"shape", "network", "dsp", "bram", "uram", "lut", "rtl"}


def test_what_it_leaves(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    """The JSON's fields; hardware files that simulate and export take, and that give the figures of the table."""
    out = tmp_path / "out"
    space = write(tmp_path / "space.json", {**SPACE, "clock_mhz": [250]})
    data = explore(m3vit, tiny_json, out, "--space", space, "--objectives", "energy,uram,ms", "--jobs", "depth")
    assert data == {**json.loads((out / "explore.json").read_text()), "files": data["files"]}
    assert [Path(name).name for name in data["files"]] == ["explore.json", "pareto.svg", "best.json", "front"]
    assert all(Path(name).exists() for name in data["files"]) and (out / "pareto.svg").read_text().startswith("<svg")
    assert data["format"] == "m3vit-exploration" and data["objectives"] == ["energy", "uram", "ms"]
    for point in [*data["points"], data["reference"]]:
        assert set(point) - {"objectives"} == POINT
        assert not faults(hardware_from_dict(point["hardware"]))
    for point in data["points"]:
        assert list(point["objectives"].values()) == [
            point["millijoules"][1], point["shares"]["uram"], point["milliseconds"]
        ]  # fmt: skip
    assert data["reference"]["name"] == "zcu104"
    assert {path.stem for path in (out / "front").iterdir()} == {point["name"] for point in data["front"]}
    for point in data["front"]:
        again = m3vit("simulate", tiny_json, "--hardware", out / "front" / f"{point['name']}.json", "--jobs", "depth",
                      "--schedule", point["schedule"], "--json").json()  # fmt: skip
        assert (again["cycles"], again["milliseconds"]) == (point["cycles"], point["milliseconds"])
    best = json.loads((out / "best.json").read_text())
    assert best == next(point["hardware"] for point in data["points"] if point["name"] == data["best"])
    made = m3vit("export", "--random", tiny_json, tmp_path / "b", "--hardware", out / "best.json", "-q", "--json")
    assert made.code == 0 and best["name"] in m3vit("inspect", tmp_path / "b").out, made.err
    table = m3vit("explore", tiny_json, "--out", out, "--space", space, "--jobs", "depth", "--processes", 1)
    assert "best" in table.out and "zcu104" in table.out and "LUT (fit)" in table.out
    assert "simulated already" in table.err and "wrote" in table.err


LARGE = {**SPACE, "weight_slots": [2, 3, 4, 5, 6, 7, 8], "clock_mhz": [150, 200, 250, 300]}


def test_a_search_depends_on_its_seed_alone(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    space = write(tmp_path / "space.json", LARGE)

    def names(out: str, *more: object) -> list[str]:
        data = explore(m3vit, tiny_json, tmp_path / out, "--space", space, "--jobs", "depth", *more)
        assert not data["exhaustive"] and len(data["points"]) == more[1]
        for point in data["points"]:
            engine = hardware_from_dict(point["hardware"])
            assert not faults(engine) and point["rtl"]
            check_hardware(engine)
        assert {point["name"] for point in data["front"]} <= {point["name"] for point in data["points"]}
        return [point["name"] for point in data["points"]]

    some = names("a", "--trials", 40)
    assert names("b", "--trials", 40, "--processes", 2) == some
    assert set(names("c", "--trials", 40, "--seed", 1)) != set(some)
    more = names("a", "--trials", 60)  # goes on
    assert set(some) < set(more) and names("d", "--trials", 60) == more


def test_nothing_is_simulated_twice(
    m3vit: Run, tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    evaluate = Problem.evaluate

    def counting(self: Problem, candidate: Any) -> dict[str, Any]:
        calls.append(candidate.key)
        return evaluate(self, candidate)

    monkeypatch.setattr(Problem, "evaluate", counting)
    space = write(tmp_path / "space.json", LARGE)
    first = explore(m3vit, tiny_json, tmp_path / "out", "--space", space, "--jobs", "depth", "--trials", 30)
    assert len(calls) == len(set(calls)) == 30  # the base engine is one of them
    assert Candidate(hardware("zcu104"), "index").key == calls[0]
    again = explore(m3vit, tiny_json, tmp_path / "out", "--space", space, "--jobs", "depth", "--trials", 30)
    assert again == first and len(calls) == 30
    other = explore(m3vit, tiny_json, tmp_path / "out", "--space", write(tmp_path / "s.json", SPACE), "--jobs", "depth",
                    "--objectives", "ms,dsp")  # fmt: skip
    shared = {point["name"] for point in first["points"]} & {point["name"] for point in other["points"]}
    assert shared and len(calls) == len(set(calls)) == 30 + len(other["points"]) - len(shared)
    explore(m3vit, tiny_json, tmp_path / "out", "--space", space, "--jobs", "depth", "--trials", 30, "--no-resume")
    assert len(calls) == 2 * 30 + len(other["points"]) - len(shared)


def test_what_cannot_be_simulated_is_named(
    m3vit: Run, tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the simulator costs the configuration that shows it, in one line, and nothing else."""
    evaluate = Problem.evaluate

    def failing(self: Problem, candidate: Any) -> dict[str, Any]:
        if candidate.hardware.weight_slots == 3 and candidate.schedule == "index":
            raise AssertionError("a fault")
        return evaluate(self, candidate)

    def run(out: str, *more: object, space: object) -> Outcome:
        return m3vit("explore", tiny_json, "--out", tmp_path / out, "--space", write(tmp_path / f"{out}.json", space),
                     "--jobs", "depth", "--processes", 1, "-q", "--json", *more)  # fmt: skip

    space = {"weight_slots": [2, 3, 4], "schedule": ["index", "longest_first"]}
    monkeypatch.setattr(Problem, "evaluate", failing)
    outcome = run("some", space=space)
    data = outcome.json()
    (line,) = data["failed"]
    assert outcome.err.strip() == f"cannot simulate {line}" and "weight_slots 3" in line and line.endswith(": a fault")
    assert ", index (" in line and len(data["points"]) == 6 and data["exhaustive"]  # 5 and the base
    assert len(run("search", "--trials", 5, space=space).json()["points"]) == 5
    base = write(tmp_path / "three.json", {**to_dict(hardware("zcu104")), "weight_slots": 3})
    error = run("all", "--hardware", base, space={"weight_slots": [3], "schedule": ["index"]}).error()
    assert error.startswith("none of 1 configurations could be simulated; the first: ") and "weight_slots 3" in error
    monkeypatch.undo()
    again = run("some", space=space).json()  # what failed is tried again
    assert len(again["points"]) == 7 and not again["failed"]


def test_a_kill_changes_nothing(tmp_path: Path) -> None:
    space = write(tmp_path / "space.json", {**LARGE, "max_tokens": [65, 128]})

    def run(out: str, processes: int) -> Any:
        return start("explore", "m3vit-demo", "--jobs", "depth", "--space", space, "--trials", 30, "--processes",
                     processes, "--out", tmp_path / out, "-q")  # fmt: skip

    whole = finish(run("whole", 1))
    assert whole.code == 0, whole.err
    journal = tmp_path / "killed" / "simulations.jsonl"
    for lines in (3, 12):
        process = run("killed", 2)
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')
    resumed = finish(run("killed", 1))
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "killed" / "explore.json").read_bytes() == (tmp_path / "whole" / "explore.json").read_bytes()
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 30


def test_a_folder_of_something_else_is_refused(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    out, space = tmp_path / "out", write(tmp_path / "space.json", {"weight_slots": [2]})

    def attempt(*more: object) -> Outcome:
        return m3vit("explore", tiny_json, "--out", out, "--space", space, "--processes", 1, "-q", *more)

    assert attempt().code == 0
    assert "jobs: this run was made with ['semseg', 'depth'], asked for ['depth']" in attempt("--jobs", "depth").error()
    assert "memory.latency: this run was made with 100, asked for 150" in attempt("--memory", "latency=150").error()
    assert attempt("--jobs", "depth", "--no-resume").code == 0
    journal = out / "simulations.jsonl"
    journal.write_text("nonsense\n" + journal.read_text())
    assert "simulations.jsonl: line 1: damaged: expected a simulation" in attempt("--jobs", "depth").error()
    assert attempt("--jobs", "depth", "--no-resume").code == 0
    import fcntl

    with journal.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another exploration is writing here" in attempt("--jobs", "depth").error()
    (tmp_path / "file").write_text("")
    assert m3vit("explore", tiny_json, "--out", tmp_path / "file").code == 2


@pytest.mark.parametrize("package", ["optuna", "joblib"])
def test_a_missing_package_is_named(
    m3vit: Run, tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    space = write(tmp_path / "space.json", LARGE)
    error = m3vit("explore", tiny_json, "--out", tmp_path / "o", "--space", space, "--trials", 2, "-q").error()
    assert error == f"this needs {package}, which is not installed: pip install 'm3vit-codesign[explore]'"


def test_any_engine_includes_what_the_rtl_is_not_written_for(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    space = write(tmp_path / "space.json", {"ports": [1, 4], "write_ports": [1]})
    data = explore(m3vit, tiny_json, tmp_path / "out", "--space", space, "--any-engine")
    assert {point["hardware"]["ports"]: point["rtl"] for point in data["points"]} == {1: False, 4: True}
    (refused,) = (point for point in data["points"] if not point["rtl"])
    assert refused["rtl_refusal"] == "ports = 1: expected at least 2 for the RTL engine"
    assert len(explore(m3vit, tiny_json, tmp_path / "rtl", "--space", space)["points"]) == 2  # and the base
    assert hardware("zcu104").ports == 4


def test_the_base_engine_is_a_point_like_any_other(m3vit: Run, tiny_json: Path, tmp_path: Path) -> None:
    """The best is never slower than a base that is possible; one that is not, or not at this clock, does not count."""
    slow = {"tile_tokens": [2], "tile_outputs": [16], "weight_slots": [2, 3, 4], "schedule": ["index"]}

    def run(name: str, space: object, *more: object) -> dict[str, Any]:
        return explore(m3vit, tiny_json, tmp_path / name, "--space", write(tmp_path / f"{name}.json", space), "--jobs",
                       "depth", *more)  # fmt: skip

    for name, trials in (("all", 4), ("sampled", 3)):
        data = run(name, slow, "--trials", trials)
        assert data["exhaustive"] == (name == "all") and len(data["points"]) == trials
        best = next(point for point in data["front"] if point["name"] == data["best"])
        base = data["reference"]
        assert {**best["hardware"], "name": "zcu104"} == base["hardware"] and best["schedule"] == base["schedule"]
        assert best["milliseconds"] == base["milliseconds"]
    at_200 = run("clock", {**slow, "clock_mhz": [200]})
    assert {point["hardware"]["clock_mhz"] for point in at_200["points"]} == {200} and len(at_200["points"]) == 4
    assert at_200["reference"]["hardware"]["clock_mhz"] == 300
    unbuilt = write(tmp_path / "unbuilt.json", {**to_dict(hardware("zcu104")), "ports": 1, "write_ports": 1})
    built = {**slow, "ports": [4], "write_ports": [2]}
    assert len(run("rtl", built, "--hardware", unbuilt)["points"]) == 3
    assert len(run("any", built, "--hardware", unbuilt, "--any-engine")["points"]) == 4
