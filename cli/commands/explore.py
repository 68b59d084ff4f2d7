"""``m3vit explore``: which engine for a network, of all that fit the device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accel.config import parse_json
from accel.errors import ConfigError
from cli.arguments import parse_hardware
from cli.console import emit_json, json_option, note, progress, quiet_option, table

if TYPE_CHECKING:
    from cli.exploring import Exploration
    from sim.explore import Problem, Space
    from sim.pareto import Point


@click.command()
@click.argument("source", metavar="BUNDLE|NETWORK")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the journal and of the results.")  # fmt: skip
@click.option("--space", "space_file", type=click.Path(path_type=Path), metavar="FILE.json",
              help="Candidates by field.  [default: array, slots, buffers, ports, clock, schedule]")  # fmt: skip
@click.option("--objectives", default="ms,resources", show_default=True, metavar="NAME,NAME,…",
              help="What to minimize: ms, resources (largest share), dsp, bram, uram, lut, energy, clock.")  # fmt: skip
@click.option("--trials", default=200, show_default=True, type=click.IntRange(min=1),
              help="Configurations to simulate; all that fit, if they are no more.")  # fmt: skip
@click.option("--rtl-only/--any-engine", default=True, show_default=True,
              help="Whether the RTL must be able to be built so.")  # fmt: skip
@click.option("--hardware", "hardware_name", metavar="NAME|FILE.json",
              help="Engine for fields that the space does not list.  [default: the bundle's, or zcu104]")  # fmt: skip
@click.option("--jobs", metavar="TASK,TASK,…", help="One frame for each, chained.  [default: every task]")
@click.option("--routing", default="uniform", show_default=True, metavar="uniform|zipf|one|local:P|FILE",
              help="Where tokens go, as for `m3vit simulate`.")  # fmt: skip
@click.option("--memory", multiple=True, metavar="NAME=NUMBER",
              help="Change the memory, in cycles of 300 MHz; engines see the same nanoseconds; repeat.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of routing and search.")
@click.option("--processes", type=click.IntRange(min=1), help="That simulate at the same time.  [default: all cores]")
@click.option("--resume/--no-resume", default=True, help="Continue the exploration found in OUT, or start it anew.")
@json_option
@quiet_option
def command(
    source: str, out: Path, space_file: Path | None, objectives: str, trials: int, rtl_only: bool,
    hardware_name: str | None, jobs: str | None, routing: str, memory: tuple[str, ...], seed: int,
    processes: int | None, resume: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Search engines for BUNDLE or NETWORK that fit a ZCU104, simulate them, and keep those that no other beats.

    Few configurations are simulated one and all, many by a genetic search (NSGA-II). The base engine comes first, where
    it is possible, and counts like any other. A run that was killed continues; a configuration is simulated once. OUT
    gets explore.json, pareto.svg, a hardware file for every configuration of the front and best.json, the fastest of
    them: files that --hardware of other commands takes.

    Whether an engine meets its clock is not known here, so with several clocks the clock is minimized too: each has its
    own front. LUTs are a fit (docs/exploring.md); all cycles are the simulator's.

    \b
    Examples:
      m3vit explore m3vit-tiny-cityscapes --out build/tiny
      m3vit explore build/bundle --jobs semseg,depth --objectives ms,dsp,energy --out build/search
      m3vit simulate m3vit-tiny-cityscapes --hardware build/tiny/best.json
    """
    from cli.exploring import Search
    from cli.exploring_journal import Journal, identity
    from cli.exploring_report import write_results

    wanted = _objectives(objectives)
    space = _space(space_file)
    problem = _problem(source, hardware_name, jobs, routing, memory, seed)
    with Journal(out, identity(problem), resume) as journal:
        held = len(journal.figures)
        search = Search(problem, space, journal, wanted, trials=trials, seed=seed, rtl_only=rtl_only,
                        processes=processes or len(os.sched_getaffinity(0)))  # fmt: skip
        note(f"{space.size:,} configurations of {space.engines:,} engines"
             + (f"; {held} simulated already" if held else ""), quiet)  # fmt: skip
        listed = search.look()
        if listed is not None:
            note(f"{len(listed.fitting):,} different engines are possible; {listed.reasons()}", quiet)
        with progress(search.expected(listed), "explore", "configuration", quiet) as bar:
            search.progress = bar.update
            found = search.run(listed)
        for line in found.failed.values():
            note(f"cannot simulate {line}")  # quiet or not: the front lacks it
        document, files = write_results(out, found, source)
    if as_json:
        emit_json({**document, "files": [str(file) for file in files]})
        return
    _print(found, document)
    for file in files:
        note(f"wrote {file}", quiet)


def _objectives(text: str) -> tuple[str, ...]:
    """Comma-separated names of objectives."""
    from sim.pareto import OBJECTIVES

    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(f"objective {name!r}: expected some of {', '.join(OBJECTIVES)}, separated by commas")
        if names.count(name) > 1:
            raise ConfigError(f"objectives: {name} is given twice")
    return names


def _space(path: Path | None) -> Space:
    """Space of a JSON file, or the default one."""
    from sim.explore import DEFAULT_SPACE, parse_space

    if path is None:
        return parse_space(DEFAULT_SPACE)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read space: {getattr(error, 'strerror', None) or error}") from error
    return parse_space(parse_json(text, str(path)), str(path))


def _problem(
    source: str, hardware_name: str | None, jobs: str | None, routing: str, memory: Sequence[str], seed: int
) -> Problem:
    """What the command line asks for; ConfigError or DataError for what does not fit the network."""
    from cli.simulation import DEFAULT_HARDWARE, open_source, parse_jobs, parse_memory, parse_routing
    from sim.explore import Problem

    network, formats, own = open_source(source)
    base = own if own is not None and hardware_name is None else parse_hardware(hardware_name or DEFAULT_HARDWARE)
    tasks = tuple(parse_jobs(jobs, network))
    pattern = parse_routing(routing)
    if not isinstance(pattern, str):
        pattern.check_network(network, routing)
    return Problem(network, formats, tasks, pattern, seed, parse_memory(memory), base)


def _row(point: Point, mark: str) -> tuple[Any, ...]:
    engine, shares = point.candidate.hardware, point.shares
    low, high = point.figures["millijoules"]
    return (
        mark, point.name, engine.weight_slots, engine.slot_rows, engine.max_tokens,
        f"{engine.ports}/{engine.write_ports}", engine.clock_mhz, point.candidate.schedule,
        point.figures["milliseconds"], *(f"{share:.1%}" for share in shares.values()), f"{low:.3g} to {high:.3g}",
        "yes" if point.rtl_refusal is None else "no",
    )  # fmt: skip


def _print(found: Exploration, document: dict[str, Any]) -> None:
    how = "all that are possible" if found.exhaustive else "chosen by NSGA-II"
    print(f"{found.problem.network.name}, {', '.join(found.problem.tasks)}: {len(found.points):,} configurations "
          f"simulated, {how}; {len(found.front)} that no other beats in {', '.join(found.objectives)}\n")  # fmt: skip
    header = ("", "engine", "slots", "slot rows", "tokens", "ports r/w", "MHz", "schedule", "ms per frame",
              "DSP", "BRAM", "URAM", "LUT (fit)", "mJ (estimate)", "RTL")  # fmt: skip
    rows = [_row(point, "best" if point.name == document["best"] else "") for point in found.front]
    if found.reference is not None:
        rows.append(_row(found.reference, "base"))
    print(table(header, rows))
