"""``m3vit simulate``: how many cycles, and where they go, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.console import emit_json, json_option, note, quiet_option, table

if TYPE_CHECKING:
    from accel.config import Hardware
    from accel.energy import EnergyEstimate
    from sim.comparing import PolicyRow
    from sim.results import Result
    from sim.scaling import ScalingRow

_SCHEDULES = ("index", "longest_first", "resident_first")
_EXCLUSIVE = (
    ("--schedule", "--policy"), ("--schedule", "--compare"), ("--barrier", "--compare"), ("--no-prefetch", "--compare"),
    ("--policy", "--switching"), ("--policy", "--scaling"),
)  # fmt: skip
"""Options without effect on what the other does: a policy orders the experts itself, a comparison runs its own
programs, sequences and scaling follow --schedule."""


@click.command()
@click.argument("source", metavar="BUNDLE|NETWORK")
@click.option("--hardware", "hardware_name", metavar="NAME|FILE.json",
              help="Engine.  [default: the bundle's, or zcu104]")  # fmt: skip
@click.option("--jobs", metavar="TASK,TASK,…", help="One frame for each, chained.  [default: every task]")
@click.option("--routing", default="uniform", show_default=True, metavar="uniform|zipf|one|local:P|FILE",
              help="Where tokens go: a pattern (local: neighbours keep an expert with probability P), a trace of "
                   "`m3vit trace` (.npz), or expert usage (.json).")  # fmt: skip
@click.option("--schedule", type=click.Choice(_SCHEDULES), help="Order of the experts.  [default: index]")
@click.option("--policy", metavar="NAME", help="Instead of --schedule: a policy of --compare but cache.")
@click.option("--compare", is_flag=False, flag_value="all", metavar="[POLICY,…]",
              help="Also run the same jobs under these policies, or all of them, and say how far each is from what is "
                   "possible (docs/simulator.md).")  # fmt: skip
@click.option("--usage", type=click.Path(path_type=Path), metavar="FILE.json",
              help="What policies know of expert usage beforehand (`m3vit experts usage`).")  # fmt: skip
@click.option("--memory", multiple=True, metavar="NAME=NUMBER",
              help="Change the memory, in cycles of 300 MHz: latency=150, bytes_per_cycle=24; repeat.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of drawn routing.")
@click.option("--barrier", is_flag=True, help="Every job waits for the end of the one before (negative control).")
@click.option("--no-prefetch", is_flag=True, help="No weights are loaded across jobs (negative control).")
@click.option("--switching", type=click.IntRange(min=2), metavar="JOBS",
              help="Also run sequences of this many jobs of two tasks: A→A, A→B, alternating, random.")  # fmt: skip
@click.option("--scaling", is_flag=True,
              help="Also run one frame with 4 to 256 experts at constant activated work.")  # fmt: skip
@click.option("--timeline", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a Chrome trace (ui.perfetto.dev) there.")  # fmt: skip
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False),
              help="Write plots as SVG to this folder.")  # fmt: skip
@click.option("--layers", is_flag=True, help="Print every layer of the first job.")
@json_option
@quiet_option
def command(
    source: str, hardware_name: str | None, jobs: str | None, routing: str, schedule: str | None, policy: str | None,
    compare: str | None, usage: Path | None, memory: tuple[str, ...], seed: int, barrier: bool, no_prefetch: bool,
    switching: int | None, scaling: bool, timeline: Path | None, plots: Path | None, layers: bool, as_json: bool,
    quiet: bool,
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
      m3vit simulate m3vit-small-pascal --jobs semseg --scaling --plots build/plots
      m3vit simulate build/bundle --routing trace.npz --compare
      m3vit simulate m3vit-tiny-cityscapes --compare index,interleaved,combined --plots build/plots
    """
    from accel.routing import Schedule
    from accel.usage import load_usage
    from cli.simulation import compare_policies, open_config, parse_jobs, parse_memory, parse_policy, parse_routing
    from sim.energy import energy_estimate
    from sim.model import simulate_workload
    from sim.policies import PLANS, parse_policies
    from sim.switching import switch_extra_cycles, switching_report
    from sim.workload import workload

    given = {
        "--schedule": schedule is not None, "--policy": policy is not None, "--compare": compare is not None,
        "--usage": usage is not None, "--barrier": barrier, "--no-prefetch": no_prefetch,
        "--switching": switching is not None, "--scaling": scaling,
    }  # fmt: skip
    _check_options({name for name, present in given.items() if present})
    settings = parse_memory(memory)
    config = open_config(source, hardware_name)
    model = settings.at_clock(config.hardware.clock_mhz)
    tasks = parse_jobs(jobs, config.network)
    pattern = parse_routing(routing)
    order = Schedule[(schedule or "index").upper()]
    work = workload(
        config, tasks, pattern, seed=seed, schedule=order, barrier_between_jobs=barrier,
        prefetch_across_jobs=not no_prefetch,
    )  # fmt: skip
    names = None if compare is None else parse_policies(compare)
    usage_file = None if usage is None else load_usage(usage)
    work, chosen = parse_policy(policy, work, config, model, usage_file)
    paired = policy is not None and PLANS[policy].interleaved and len(tasks) > 1
    result = simulate_workload(work, config.hardware, model, timeline=timeline is not None, policy=chosen)
    extra = None if policy is not None else switch_extra_cycles(work, result)
    compared = None
    if names is not None:
        compared = compare_policies(config, tasks, pattern, model, names, seed, usage_file, quiet)
    rows = None
    if switching is not None:
        others = [*dict.fromkeys([*tasks, *config.network.task_names])]
        rows = switching_report(config, others, pattern, model, jobs=switching, seed=seed, schedule=order)
    energy = energy_estimate(result, work.commands)
    scaled = None
    if scaling:
        from sim.scaling import scaling_study

        scaled = scaling_study(config, pattern, model, task=tasks[0], seed=seed, schedule=order)
    files: list[Path] = []
    if timeline is not None:
        from sim.timeline import save_timeline

        save_timeline(timeline, result, work.tasks)
        files.append(timeline)
    if plots is not None:
        from sim.plots import save_plots

        files += save_plots(plots, result, scaled, compared)
    if as_json:
        data: dict[str, Any] = {
            "source": source, "config": config.name, "config_hash": config.hash, "jobs_run": list(work.tasks),
            "routing": routing, "schedule": order.name.lower() if policy is None else None, "policy": policy,
            "jobs_paired": paired, "seed": seed, "memory": model.to_dict(), "memory_hash": model.hash,
            "switch_extra_cycles": extra, **result.to_dict(), "energy_estimate": energy.to_dict(),
        }  # fmt: skip
        if rows is not None:
            data["switching"] = [row.to_dict() for row in rows]
        if compared is not None:
            data["compare"] = [row.to_dict() for row in compared]
        if scaled is not None:
            from sim.scaling import memory_study

            data["scaling"] = {"frame": [row.to_dict() for row in scaled],
                               "max_experts": memory_study(config.hardware)}  # fmt: skip
        data["files"] = [str(file) for file in files]
        emit_json(data)
        return
    _print(result, work.tasks, extra, config.name, layers, paired)
    _print_energy(energy)
    if rows is not None:
        print()
        header = ("sequence", "switches", "cycles", "extra", "idle each", "+ no prefetch", "+ barrier")
        print(table(header, [(row.sequence, row.switches, row.cycles, row.extra, round(row.boundary_idle, 1),
                              row.without_prefetch, row.with_barrier) for row in rows]))  # fmt: skip
    if compared is not None:
        _print_policies(compared)
    if scaled is not None:
        _print_scaling(scaled, config.hardware)
    for file in files:
        note(f"wrote {file}", quiet)


def _check_options(given: set[str]) -> None:
    """ConfigError for options of which one would be without effect beside, or without, the other."""
    from accel.errors import ConfigError

    for first, second in _EXCLUSIVE:
        if {first, second} <= given:
            raise ConfigError(f"{first}: expected without {second}, which it has no effect on; found both")
    if "--usage" in given and not given & {"--policy", "--compare"}:
        raise ConfigError("--usage: expected together with --policy or --compare, found neither")


def _print(
    result: Result, tasks: tuple[str, ...], extra: int | None, name: str, layers: bool, paired: bool
) -> None:
    switched = f"; task switches cost {extra:,} cycles" if extra is not None and len(set(tasks)) > 1 else ""
    plural = "s" if len(tasks) > 1 else ""
    print(f"{name}: {len(tasks)} job{plural}, {result.cycles:,} cycles, {result.milliseconds:.3f} ms at "
          f"{result.hardware.clock_mhz} MHz; utilization {result.utilization:.1%}, "
          f"{result.roofline_cycles / result.cycles:.1%} of the roofline; {result.ddr_bytes / 1e6:,.1f} MB of memory "
          f"traffic{switched}\n")  # fmt: skip
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
    if paired:
        print("tasks of a pair are computed layer by layer: the first job of a pair stands for both")
    if layers:
        print()
        header = ("layer", "kind", "cycles", "ideal", "array", "stalls", "idle", "MB moved")
        print(table(header, [
            (layer.name, layer.kind, round(layer.cycles), round(layer.ideal), layer.array_cycles,
             round(sum(layer.stalls.values())), round(layer.idle),
             round((layer.read_bytes + layer.written_bytes) / 1e6, 2))
            for layer in result.layers if layer.job == result.layers[0].job
        ]))  # fmt: skip


def _print_policies(rows: list[PolicyRow]) -> None:
    print("\nthe same jobs under other policies:")
    header = ("policy", "cycles", "ms", "× index", "MB weights", "wasted", "on chip", "over its roofline",
              "over the jobs' roofline", "orders over optimum", "RTL")  # fmt: skip
    print(table(header, [
        (row.name, row.cycles, row.milliseconds, row.ratio, round(row.weight_bytes / 1e6, 2),
         round(row.wasted_bytes / 1e6, 2), f"{row.hit_rate:.1%}", f"{row.over_roofline:+.1%}",
         f"{row.over_jobs_roofline:+.1%}",
         "–" if row.order_extra is None else f"{'' if row.order_exact else '≤ '}{row.order_extra:,}", row.hardware)
        for row in rows
    ]))  # fmt: skip


def _print_energy(energy: EnergyEstimate) -> None:
    (low, high), (least, most) = energy.joules_per_frame, energy.watts
    print(f"\nenergy, an estimate: {1e3 * low:.3g} to {1e3 * high:.3g} mJ per frame, {least:.1f} to {most:.1f} W "
          f"at {energy.clock_mhz} MHz ({energy.covers})")  # fmt: skip
    parts = energy.per_frame()["parts"]
    print(table(("part", "mJ low", "mJ high"), [(name, 1e3 * a, 1e3 * b) for name, (a, b) in parts.items()]))


def _print_scaling(rows: list[ScalingRow], hardware: Hardware) -> None:
    from sim.scaling import memory_study

    print("\none frame, top-k and expert width as they are:")
    header = ("experts", "cycles", "ms", "ideal, no gates", "gates", "padding", "stalls", "MB moved",
              "mJ low", "mJ high")  # fmt: skip
    print(table(header, [
        (row.experts, row.cycles, row.milliseconds, row.ideal_experts, row.gate_cycles, row.breakdown["padding"],
         row.stalls, round(row.ddr_bytes / 1e6, 1), 1e3 * row.joules[0], 1e3 * row.joules[1])
        for row in rows
    ]))  # fmt: skip
    print(f"\n{hardware.name} built for at most so many experts:")
    print(table(("max_experts", "RAMB36", "URAM", "on chip, KiB"), [
        (row["max_experts"], row["bram"], row["uram"], row["on_chip_bytes"] // 1024) for row in memory_study(hardware)
    ]))  # fmt: skip
