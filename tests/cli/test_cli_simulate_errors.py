"""Bad input of ``m3vit simulate`` and ``m3vit explore``: one line, exit code 1, no file left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome

from accel.config import NETWORKS, hardware, to_dict
from accel.usage import ExpertUsage, save_usage
from sim.trace import RoutingTrace, network_hash, save_trace

Run = Callable[..., Outcome]
NETWORK = "m3vit-demo"


def recorded(name: str) -> RoutingTrace:
    """A trace of one frame, drawn."""
    net = NETWORKS[name]
    shape = (1, len(net.tasks), len(net.moe_blocks), net.tokens, net.experts)
    chosen = np.argsort(np.random.default_rng(0).random(shape), axis=-1)[..., : net.top_k].astype(np.uint16)
    return RoutingTrace(name, network_hash(net), net.task_names, net.moe_blocks, chosen)


def save_arrays(path: Path, **changes: object) -> None:
    """A trace whose arrays are not as they should be."""
    trace = recorded(NETWORK)
    arrays = {"format": "m3vit-routing-trace", "version": 1, "network": trace.network, "tasks": np.array(trace.tasks),
              "network_hash": trace.network_hash, "blocks": np.array(trace.blocks), "chosen": trace.chosen}  # fmt: skip
    np.savez_compressed(path, **{**arrays, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that can be wrong with a file."""
    folder = tmp_path_factory.mktemp("files")
    save_trace(folder / "good.npz", recorded(NETWORK))
    save_trace(folder / "other.npz", recorded("m3vit-tiny-cityscapes"))
    chosen = recorded(NETWORK).chosen
    wild = chosen.copy()
    wild[0, 0, 0, 0, 0] = 9
    save_arrays(folder / "range.npz", chosen=wild)
    twice = chosen.copy()
    twice[0, 0, 0, 0] = 3
    save_arrays(folder / "twice.npz", chosen=twice)
    save_arrays(folder / "short.npz", chosen=chosen[..., :1])
    save_arrays(folder / "blocks.npz", blocks=np.array([0, 2, 4]))
    save_arrays(folder / "text.npz", blocks=np.array(["a", "b", "c"]))
    save_arrays(folder / "newer.npz", version=2)
    whole = (folder / "good.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    middle = whole.index(b"chosen.npy") + 40
    for offset in range(middle, middle + 60):
        flipped[offset] ^= 0x5A
    (folder / "flipped.npz").write_bytes(flipped)
    (folder / "empty.npz").write_bytes(b"")
    net = NETWORKS["m3vit-tiny-cityscapes"]
    each = [net.tokens * net.top_k // net.experts] * net.experts
    each[0] += net.tokens * net.top_k - sum(each)
    table = {task: {block: each for block in net.moe_blocks} for task in net.task_names}
    save_usage(folder / "usage.json", ExpertUsage(net.name, 1, net.tokens, net.top_k, net.experts, table))
    engine = to_dict(hardware("zcu104"))
    for name, data in {
        "unknown": {**engine, "speed": 3},
        "missing": {key: value for key, value in engine.items() if key != "slot_rows"},
        "kind": {**engine, "ports": "four"},
        "ports": {**engine, "ports": 3},
        "rows": {**engine, "slot_rows": 4},
        "tokens": {**engine, "max_tokens": 8},
        "list": [engine],
        "space-unknown": {"speed": [1]},
        "space-empty": {"ports": []},
        "space-rows": {"slot_rows": [4]},
        "space-large": {"tile_tokens": [64]},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    (folder / "damaged.json").write_text('{"name": "x", ')
    (folder / "double.json").write_text('{"name": "x", "name": "y"}')
    return folder


SHARED = {
    "trace of another network": ("--routing other.npz", "expected a trace of m3vit-demo"),
    "expert out of range": ("--routing range.npz", "expert 9: expected 0 to 7"),
    "expert twice": ("--routing twice.npz", "expected different experts for a token, found one twice"),
    "trace of another top-k": ("--routing short.npz", "chosen: expected shape (frames, 4, 3, 65, 2)"),
    "trace of other blocks": ("--routing blocks.npz", "blocks: expected 1, 3, 5, found 0, 2, 4"),
    "trace with text": ("--routing text.npz", "blocks: expected integers of 1 dimensions"),
    "newer trace": ("--routing newer.npz", "version: expected 1, found 2"),
    "trace cut off": ("--routing cut.npz", "cut.npz: cannot read as a routing trace"),
    "damaged trace": ("--routing flipped.npz", "flipped.npz: cannot read as a routing trace"),
    "empty trace": ("--routing empty.npz", "empty.npz: cannot read as a routing trace"),
    "no trace": ("--routing absent.npz", "absent.npz: cannot read as a routing trace: No such file"),
    "usage of another network": ("--routing usage.json", "tokens_per_image: expected 65 as in m3vit-demo"),
    "no usage": ("--routing absent.json", "absent.json: cannot read: No such file"),
    "unknown routing": ("--routing nowhere", "routing 'nowhere': expected one of uniform, zipf, one"),
    "zero bandwidth": ("--memory bytes_per_cycle=0", "bytes_per_cycle = 0: expected an integer from 1"),
    "negative latency": ("--memory latency=-1", "latency = -1: expected an integer from 1"),
    "latency in words": ("--memory latency=fast", "latency = 'fast': expected an integer"),
    "unknown memory": ("--memory speed=1", "memory 'speed=1': expected NAME=NUMBER"),
    "memory twice": ("--memory latency=9 --memory latency=9", "memory: latency is given twice"),
    "bucket below rate": ("--memory bytes_per_cycle=4000", "bucket_bytes = 256: expected at least bytes_per_cycle"),
    "empty job list": ("--jobs ,", "jobs ',': expected some of semseg, depth, normals, edge, separated by commas"),
    "no job list": ("--jobs=", "jobs '': expected some of semseg"),
    "empty job": ("--jobs semseg,,depth", "jobs 'semseg,,depth': expected some of semseg"),
    "unknown job": ("--jobs fly", "task 'fly': expected one of semseg"),
    "unknown engine": ("--hardware fpga", "hardware 'fpga': expected a .json file or one of ci, zcu104"),
    "no engine": ("--hardware absent.json", "absent.json: cannot read hardware: No such file"),
    "engine with unknown field": ("--hardware unknown.json", "unknown.json: unknown field 'speed': expected only name"),
    "engine without a field": ("--hardware missing.json", "missing.json: missing field 'slot_rows'"),
    "engine of another type": ("--hardware kind.json", "kind.json: ports = 'four': expected int, found str"),
    "engine that cannot be": ("--hardware ports.json", "ports = 3: expected a power of two"),
    "engine in a list": ("--hardware list.json", "list.json: expected a table of fields, found list"),
    "engine not JSON": ("--hardware damaged.json", "damaged.json: not valid JSON"),
    "field twice": ("--hardware double.json", "double.json: field 'name' is given twice"),
}
SIMULATE = {
    "buffer smaller than a tile": ("--hardware rows.json", "unit rows = 56: expected at most slot_rows = 4"),
    "buffer smaller than a frame": ("--hardware tokens.json", "tokens = 65: expected at most max_tokens = 8"),
}
SIMULATE |= {
    f"{first} with {second}": (f"{first} {second}", f"{first.split()[0]}: expected without {second.split()[0]}")
    for first, second in (
        ("--schedule longest_first", "--policy combined"), ("--schedule index", "--compare"),
        ("--barrier", "--compare"), ("--no-prefetch", "--compare index"), ("--policy combined", "--switching 3"),
        ("--policy combined", "--scaling"),
    )
}  # fmt: skip
SIMULATE |= {
    "usage without a policy": ("--usage usage.json", "--usage: expected together with --policy or --compare"),
    "plots in a file": ("--plots double.json/plots", "double.json/plots: cannot write: Not a directory"),
    "timeline in a file": ("--timeline double.json/x", "double.json/x: cannot write"),
}
EXPLORE = {
    "buffer smaller than a tile": ("--space space-rows.json", "none of its 1 engines is possible (1 network)"),
    "nothing fits": ("--space space-large.json", "none of its 1 engines is possible (1 dsp)"),
    "space with unknown field": ("--space space-unknown.json", "unknown field 'speed': expected only tile_tokens"),
    "space without candidates": ("--space space-empty.json", "ports: expected a list of candidates, found []"),
    "space in a list": ("--space list.json", "list.json: expected a table of fields and lists"),
    "no space": ("--space absent.json", "absent.json: cannot read space: No such file"),
    "space not JSON": ("--space damaged.json", "damaged.json: not valid JSON"),
    "unknown objective": ("--objectives ms,price", "objective 'price': expected some of ms, resources"),
    "no objective": ("--objectives=", "objective '': expected some of ms, resources"),
    "objective twice": ("--objectives ms,ms", "objectives: ms is given twice"),
}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        pytest.param(command, *case, id=f"{command}: {name}")
        for command, own in (("simulate", SIMULATE), ("explore", EXPLORE))
        for name, case in {**SHARED, **own}.items()
    ],
)
def test_bad_input_is_one_line(
    m3vit: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: str, message: str
) -> None:
    monkeypatch.chdir(files)
    more = ["--out", tmp_path / "out", "-q"] if command == "explore" else []
    error = m3vit(command, NETWORK, *arguments.split(), *more).error()
    assert message in error
    assert not [path.name for path in tmp_path.rglob("*") if path.name not in ("out", "plan.json", "simulations.jsonl")]


def test_the_good_files_are_good(m3vit: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    data = m3vit("simulate", NETWORK, "--routing", "good.npz", "--jobs", "depth", "--json").json()
    assert data["routing"] == "good.npz"


def test_a_folder_is_no_file_and_a_file_no_folder(m3vit: Run, files: Path, tmp_path: Path) -> None:
    """Before anything is simulated."""
    for option, path, message in (("--plots", files / "double.json", "is a file"),
                                  ("--timeline", tmp_path, "is a directory")):  # fmt: skip
        outcome = m3vit("simulate", NETWORK, option, path)
        assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err


def test_a_policy_has_no_schedule(m3vit: Run) -> None:
    data = m3vit("simulate", NETWORK, "--jobs", "depth", "--policy", "combined", "--json").json()
    assert data["policy"] == "combined" and data["schedule"] is None
    assert m3vit("simulate", NETWORK, "--jobs", "depth", "--json").json()["schedule"] == "index"
