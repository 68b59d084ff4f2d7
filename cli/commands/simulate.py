"""``m3vit simulate``: how many cycles, and where they go, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.console import emit_json, json_option, note, quiet_option, table

if TYPE_CHECKING:
    from sim.results import Result

_SCHEDULES = ("index", "longest_first", "resident_first")


@click.command()
@click.argument("source", metavar="BUNDLE|NETWORK")
@click.option("--hardware", "hardware_name", metavar="NAME|FILE.json",
              help="Engine.  [default: the bundle's, or zcu104]")  # fmt: skip
@click.option("--jobs", default="", metavar="TASK,TASK,…", help="One frame for each, chained.  [default: every task]")
@click.option("--routing", default="uniform", show_default=True, metavar="uniform|zipf|one|FILE",
              help="Where tokens go: a pattern, a trace of `m3vit trace` (.npz), or expert usage (.json).")  # fmt: skip
@click.option("--schedule", default="index", show_default=True, type=click.Choice(_SCHEDULES),
              help="Order of the experts.")  # fmt: skip
@click.option("--memory", multiple=True, metavar="NAME=NUMBER",
              help="Change the memory: latency=150, bytes_per_cycle=24, stall_percent=30; repeat.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of drawn routing.")
@click.option("--barrier", is_flag=True, help="Every job waits for the end of the one before (negative control).")
@click.option("--no-prefetch", is_flag=True, help="No weights are loaded across jobs (negative control).")
@click.option("--switching", type=click.IntRange(min=2), metavar="JOBS",
              help="Also run sequences of this many jobs of two tasks: A→A, A→B, alternating, random.")  # fmt: skip
@click.option("--timeline", type=click.Path(path_type=Path), help="Write a Chrome trace (ui.perfetto.dev) there.")
@click.option("--plots", type=click.Path(path_type=Path), help="Write plots as SVG to this folder.")
@click.option("--layers", is_flag=True, help="Print every layer of the first job.")
@json_option
@quiet_option
def command(
    source: str, hardware_name: str | None, jobs: str, routing: str, schedule: str, memory: tuple[str, ...], seed: int,
    barrier: bool, no_prefetch: bool, switching: int | None, timeline: Path | None, plots: Path | None, layers: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Simulate frames of BUNDLE or NETWORK (a preset, recipe or JSON file) on the engine: cycles and their causes.

    Cycle-approximate: within 2 % of the RTL on its test programs (docs/simulator.md). Counted are the layers that the
    engine computes, chained without pauses of the host; LayerNorm, attention and heads are not in it. Milliseconds are
    cycles at the clock of the configuration: a figure of the model, not of a board.

    \b
    Examples:
      m3vit simulate m3vit-small-pascal --jobs semseg,normals,semseg
      m3vit simulate build/bundle --jobs semseg,depth,semseg --json
      m3vit simulate build/bundle --routing trace.npz --timeline run.trace.json --plots build/plots
      m3vit simulate m3vit-tiny-cityscapes --memory latency=150 --memory bytes_per_cycle=32
      m3vit simulate m3vit-small-nyud --switching 6
    """
    from accel.routing import Schedule
    from cli.simulation import open_config, parse_jobs, parse_memory, parse_routing
    from sim.model import simulate_workload
    from sim.switching import switch_extra_cycles, switching_report
    from sim.workload import workload

    model = parse_memory(memory)
    config = open_config(source, hardware_name)
    tasks = parse_jobs(jobs, config.network)
    pattern = parse_routing(routing)
    order = Schedule[schedule.upper()]
    work = workload(
        config, tasks, pattern, seed=seed, schedule=order, barrier_between_jobs=barrier,
        prefetch_across_jobs=not no_prefetch,
    )  # fmt: skip
    result = simulate_workload(work, config.hardware, model, timeline=timeline is not None)
    extra = switch_extra_cycles(work, result)
    rows = None
    if switching is not None:
        others = [*dict.fromkeys([*tasks, *config.network.task_names])]
        rows = switching_report(config, others, pattern, model, jobs=switching, seed=seed, schedule=order)
    files: list[Path] = []
    if timeline is not None:
        from sim.timeline import save_timeline

        save_timeline(timeline, result, work.tasks)
        files.append(timeline)
    if plots is not None:
        from sim.plots import save_plots

        files += save_plots(plots, result)
    if as_json:
        data: dict[str, Any] = {
            "source": source, "config": config.name, "config_hash": config.hash, "jobs_run": list(work.tasks),
            "routing": routing, "schedule": schedule, "seed": seed, "memory": model.to_dict(),
            "memory_hash": model.hash, "switch_extra_cycles": extra, **result.to_dict(),
        }  # fmt: skip
        if rows is not None:
            data["switching"] = [row.to_dict() for row in rows]
        data["files"] = [str(file) for file in files]
        emit_json(data)
        return
    _print(result, work.tasks, extra, config.name, layers)
    if rows is not None:
        print()
        header = ("sequence", "switches", "cycles", "extra", "idle each", "+ no prefetch", "+ barrier")
        print(table(header, [(row.sequence, row.switches, row.cycles, row.extra, round(row.boundary_idle, 1),
                              row.without_prefetch, row.with_barrier) for row in rows]))  # fmt: skip
    for file in files:
        note(f"wrote {file}", quiet)


def _print(result: Result, tasks: tuple[str, ...], extra: int, name: str, layers: bool) -> None:
    print(f"{name}: {len(tasks)} jobs, {result.cycles:,} cycles, {result.milliseconds:.3f} ms at "
          f"{result.hardware.clock_mhz} MHz; utilization {result.utilization:.1%}, "
          f"{result.roofline_cycles / result.cycles:.1%} of the roofline; {result.ddr_bytes / 1e6:,.1f} MB of memory "
          f"traffic; task switches cost {extra:,} cycles\n")  # fmt: skip
    total = result.cycles
    rows = [(part.removeprefix("stall_").removesuffix("_cycles") if part.startswith("stall") else part,
             "stall" if part.startswith("stall") else "", cycles, f"{cycles / total:.1%}")
            for part, cycles in result.breakdown.items()]  # fmt: skip
    print(table(("cycles", "", "count", "share"), rows))
    print()
    header = ("job", "task", "cycles", "array", "gate", "idle in layers", "idle to next", "experts")
    print(table(header, [
        (job["job"], tasks[index], job["cycles"], job["array_cycles"], job["gate_cycles"], job["layer_idle"],
         job["boundary_idle"], job["experts"])
        for index, job in enumerate(result.jobs)
    ]))  # fmt: skip
    if layers:
        print()
        header = ("layer", "kind", "cycles", "ideal", "array", "stalls", "idle", "MB moved")
        print(table(header, [
            (layer.name, layer.kind, round(layer.cycles), round(layer.ideal), layer.array_cycles,
             round(sum(layer.stalls.values())), round(layer.idle),
             round((layer.read_bytes + layer.written_bytes) / 1e6, 2))
            for layer in result.layers if layer.job == result.layers[0].job
        ]))  # fmt: skip
