"""The command itself: help, versions, exit codes, arguments, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from command_line import TINY, Outcome, environment

from accel.config import HARDWARE, NETWORKS, network_from_dict, to_dict
from accel.errors import ConfigError
from cli import main as cli_main
from cli.arguments import parse_hardware, parse_network, with_routing
from cli.console import emit_json, progress, step_lines, table, tool_version

Run = Callable[..., Outcome]


def test_help_teaches_the_chain(m3vit: Run) -> None:
    outcome = m3vit("--help")
    assert outcome.code == 0
    for name in cli_main.COMMANDS:
        assert f"m3vit {name} " in outcome.out or f"m3vit {name}" in outcome.out


@pytest.mark.parametrize("name", list(cli_main.COMMANDS))
def test_every_command_has_help_with_an_example(m3vit: Run, name: str) -> None:
    outcome = m3vit(name, "--help")
    assert outcome.code == 0
    assert f"m3vit {name} " in outcome.out.partition("Options:")[0].replace("Usage: m3vit", "", 1)
    assert "--json" in outcome.out


def test_version(m3vit: Run) -> None:
    outcome = m3vit("--version")
    assert outcome.code == 0 and tool_version() in outcome.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("fly", "No such command 'fly'; see `m3vit --help`"),
        ("experts fly", "No such command 'fly'; see `m3vit experts --help`"),
        ("export --wings", "see `m3vit export --help`"),
        ("train", "Missing option '--out'; see `m3vit train --help`"),
        ("train --out x --steps a", "'a' is not a valid integer; see `m3vit train --help`"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(m3vit: Run, arguments: str, says: str) -> None:
    outcome = m3vit(*arguments.split())
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert outcome.err.startswith("m3vit: error: ") and says in outcome.err


def test_no_command_shows_the_help(m3vit: Run) -> None:
    outcome = m3vit()
    assert outcome.code == 2 and "Commands:" in outcome.err


def _replace(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    monkeypatch.setattr(cli_main.m3vit, "get_command", lambda ctx, name: click.Command(name, callback=action))


def test_interruption_exits_with_130(m3vit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    _replace(monkeypatch, interrupted)
    outcome = m3vit("train")
    assert (outcome.code, outcome.out) == (130, "") and outcome.err.strip() == "m3vit: interrupted"


def test_a_command_decides_its_exit_code(m3vit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, lambda: click.get_current_context().exit(1))
    assert m3vit("verify").code == 1


def test_missing_package_names_the_extra(m3vit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    _replace(monkeypatch, unavailable)
    assert m3vit("train").error() == "this needs torch, which is not installed: pip install 'm3vit-codesign[train]'"


def test_a_defect_is_not_hidden(m3vit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'cli.missing'", name="cli.missing")

    _replace(monkeypatch, broken)
    with pytest.raises(ModuleNotFoundError):
        m3vit("train")


def test_messages_of_several_lines_become_one(m3vit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise ConfigError("file: field\n  expected a,\n  found b")

    _replace(monkeypatch, failing)
    assert m3vit("train").error() == "file: field expected a, found b"


def test_reader_that_left_is_no_traceback() -> None:
    code = (
        "import sys; from cli.main import main, m3vit; import click\n"
        "def many():\n"
        "    for i in range(100000): print(i)\n"
        "type(m3vit).get_command = lambda self, ctx, name: click.Command(name, callback=many)\n"
        "sys.exit(main(['inspect']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_presets_and_files(tmp_path: Path) -> None:
    for name, network in NETWORKS.items():
        assert parse_network(name) == network
    for name, hardware in HARDWARE.items():
        assert parse_hardware(name) == hardware
    file = tmp_path / "n.json"
    file.write_text(json.dumps(TINY))
    assert parse_network(str(file)) == network_from_dict(TINY)
    file.write_text(json.dumps({"network": "m3vit-demo", "hardware": {**to_dict(HARDWARE["ci"]), "clock_mhz": 200}}))
    assert parse_network(str(file)) == NETWORKS["m3vit-demo"]
    assert parse_hardware(str(file)).clock_mhz == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"name": "a", "name": "b"}', "field 'name' is given twice"),
        (json.dumps({**TINY, "wings": 2}), "unknown field 'wings'"),
        (json.dumps({k: v for k, v in TINY.items() if k != "depth"}), "missing field 'depth'"),
        (json.dumps({**TINY, "top_k": 5}), "top_k = 5: expected 1 to 4"),
        ("[]", "expected a table of fields, found list"),
    ],
)
def test_bad_network_files(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "n.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="n.json") as caught:
        parse_network(str(file))
    assert message in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="network 'm3vit-huge': expected a .json file or one of m3vit-demo"):
        parse_network("m3vit-huge")
    with pytest.raises(ConfigError, match="absent.json: cannot read hardware: No such file"):
        parse_hardware("absent.json")


def test_routing() -> None:
    network = NETWORKS["m3vit-demo"]
    assert with_routing(network, None) is network
    conditioned = with_routing(network, "task_conditioned")
    assert (conditioned.routing, conditioned.task_embed_dim) == ("task_conditioned", 16)
    assert with_routing(conditioned, "multi_gate") == network


def test_table_aligns_numbers_to_the_right() -> None:
    text = table(["name", "count", "value"], [["a", 5, 1.25], ["long name", 12345, 150.0], ["none", 1, None]])
    assert text.splitlines() == [
        "name        count   value",
        "─────────  ──────  ──────",
        "a               5   1.250",
        "long name  12,345  150.00",
        "none            1       –",
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time that the progress sees: ``clock["now"]``."""
    time = {"now": 0.0}
    monkeypatch.setattr("cli.console.time.monotonic", lambda: time["now"])
    return time


def test_progress_in_a_log(clock: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    """A line per tenth, none within five seconds of another, one after a minute in any case."""
    with progress(40, "verify", "frame") as bar:
        bar.set_postfix_str("blob")
        for now, count in ((3, 3), (10, 1), (20, 4), (21, 4), (30, 9), (31, 1), (89, 1), (91, 1), (100, 16)):
            clock["now"] = now
            bar.update(count)
    assert bar.n == 40 and capsys.readouterr().err.splitlines() == [
        "verify: 4 of 40 frames, 10 s, about 90 s left",
        "verify: 8 of 40 frames, 20 s, about 80 s left",
        "verify: 21 of 40 frames, 30 s, about 27 s left",
        "verify: 24 of 40 frames, 91 s, about 61 s left",
        "verify: 40 of 40 frames, 100 s",
    ]


def test_work_of_seconds_says_nothing_in_a_log(
    clock: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    for total in (5, 0):
        with progress(total, "fast") as bar:
            clock["now"] += 4.9
            bar.update(5)
    assert capsys.readouterr().err == ""


def test_training_in_a_log(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says = step_lines("qat", 100, False)
    assert says is not None
    for done in range(85, 101):  # a run that goes on at step 84
        clock["now"] += 2.0
        says(done)
    assert capsys.readouterr().err.splitlines() == [
        "training (qat): 90 of 100 steps, 12 s, about 20 s left", "training (qat): 100 of 100 steps, 32 s"
    ]  # fmt: skip
    assert step_lines("qat", 100, True) is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert step_lines("qat", 100, False) is None, "there is a bar"


def test_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        emit_json({"loss": float("nan")})
