"""``m3vit bench``: latency by phase, cycles, throughput and energy of frames and task mixes on a back end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.console import emit_json, json_option, note, progress, quiet_option, table

if TYPE_CHECKING:
    from accel.bundle import Bundle

MIXES = ("alternating", "random", "grouped")
_ROWS = 12
"""Most jobs of a replay program that the table lists."""


@click.command()
@click.argument("paths", nargs=-1, metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--backend", default="golden", show_default=True, help="Engine to run on.")
@click.option("--frames", default=8, show_default=True, type=click.IntRange(min=1), help="Frames, one task each.")
@click.option("--tasks", default="", help="Tasks, separated by commas. Default: all.")
@click.option("--mix", default=MIXES[0], show_default=True, type=click.Choice(MIXES), help="Which task runs on which "
              "frame: in turn, at random, or all frames of a task before those of the next.")  # fmt: skip
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(min=1), help="Passes over the frames.")
@click.option("--replay/--no-replay", default=True, show_default=True, help="Also chain all frames in one program.")
@click.option("--images", type=click.Path(), help="Folder with PNG or JPEG images. Default: rendered scenes.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of scenes and random mixes.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Baseline: this checkpoint in PyTorch, on the CPU "
              "and, if there is one, on the GPU.")  # fmt: skip
@click.option("--onnx", "onnx_dir", type=click.Path(path_type=Path), help="Baseline: the ONNX files in this folder in "
              "onnxruntime.")  # fmt: skip
@click.option(
    "--timeout", default=3600.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
    help="Seconds that one engine program may take.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the whole result here, as JSON.")
@click.option("--compare", is_flag=True, help="Compare two result files instead: --compare A.json B.json.")
@json_option
@quiet_option
@click.pass_context
def command(
    ctx: click.Context, paths: tuple[Path, ...], backend: str, frames: int, tasks: str, mix: str, repeat: int,
    replay: bool, images: str | None, seed: int, checkpoint: Path | None, onnx_dir: Path | None, timeout: float,
    out: Path | None, compare: bool, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Run frames on an engine and say where the time goes.

    \b
    live     image in, decoded output out, one frame after the other; the host computes between the engine's layers
    replay   all frames chained in one program: nothing but the engine determines its cycles
    \b
    pack, unpack   tensors to and from the engine's byte order
    copy           into and out of its memory, with cache maintenance
    execute        from writing a program to its end
    host           everything the engine does not compute

    Milliseconds of phases are those of this machine, also where the engine is simulated; cycles are the engine's own,
    quoted at several clocks. Energy is measured on a board's power rails, and elsewhere estimated as a range; the two
    are never mixed. Every output is compared with the golden model.

    Exit code 1 if a check fails: phases that do not add up to the total within 2 %, or wrong results.

    \b
    Examples:
      m3vit bench build/bundle --backend rtl --tasks semseg,depth --out rtl.json
      m3vit bench build/bundle --mix random --frames 32 --seed 3 --repeat 3 --json
      m3vit bench build/demo/bundle --checkpoint build/demo/checkpoint-quick/qat.safetensors --onnx build/demo/onnx
      m3vit bench --compare before.json after.json
    """
    if compare:
        _compare(ctx, paths, as_json)
        return 0
    if len(paths) != 1:
        raise click.UsageError(f"expected one BUNDLE, found {len(paths)} paths")
    result = _measure(
        paths[0], backend, frames, tasks, mix, repeat, replay, images, seed, checkpoint, onnx_dir, timeout, quiet
    )
    if out is not None:
        _write(out, result)
        note(f"result: {out}", quiet or as_json)
    if as_json:
        emit_json(result)
    else:
        _print(result)
    failed = [entry for entry in result["checks"] if not entry["ok"]]
    for entry in failed:
        note(f"check fails: {entry['check']}: {entry['value']:.4g}, expected at most {entry['limit']:g}")
    return 1 if failed else 0


def _measure(
    path: Path, backend: str, frames: int, tasks: str, mix: str, repeat: int, replay: bool, images: str | None,
    seed: int, checkpoint: Path | None, onnx_dir: Path | None, timeout: float, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    from accel.bundle import open_bundle
    from cli.comparing import BENCHMARK, VERSION
    from cli.console import tool_version
    from cli.provenance import commit, machine
    from host.bench import Bench, order_jobs

    bundle = open_bundle(path)
    net = bundle.config.network
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip())) or list(net.task_names)
    for name in names:
        net.task_index(name)
    pixels = _images(bundle, frames, images, seed)
    jobs = order_jobs(names, frames, mix, seed)
    passes = 2 if replay else 1
    with progress(passes * repeat * frames, "bench", "frame", quiet) as bar:
        bench = Bench(bundle, pixels, jobs, backend=backend, repeat=repeat, timeout=timeout, progress=bar.update)
        result = bench.run(replay)
    baselines: dict[str, Any] = {}
    if checkpoint is not None:
        from cli.baselines import torch_baselines

        baselines |= torch_baselines(checkpoint, bundle, pixels, jobs, repeat)
    if onnx_dir is not None:
        from cli.baselines import onnx_baselines

        baselines |= onnx_baselines(onnx_dir, bundle, pixels, jobs, repeat, bench.golden)
    checks = result.pop("checks")
    checks += [
        {"check": f"{name}: integers that differ from golden", "value": entry["mismatches"], "limit": 0,
         "ok": not entry["mismatches"]}
        for name, entry in baselines.items() if "mismatches" in entry
    ]  # fmt: skip
    return {
        "benchmark": BENCHMARK, "version": VERSION, "tool": tool_version(), "bundle": str(path),
        "config": bundle.config.name, "config_hash": bundle.config.hash,
        "engine_hash": f"{bundle.config.engine_hash:#010x}", "commit": commit(), "machine": machine(),
        "macs_per_cycle": bundle.config.hardware.macs_per_cycle,
        "seed": seed, "images": images or "rendered scenes", "tasks": names, "mix": mix, "frames": frames,
        "repeat": repeat, **result, "baselines": baselines, "checks": checks,
    }  # fmt: skip


def _images(bundle: Bundle, frames: int, images: str | None, seed: int) -> list[Any]:
    """As many images as frames; a folder with fewer begins anew."""
    from cli.verification import held_out_scenes
    from host.images import load_directory

    net = bundle.config.network
    if images is None:
        return [frame.image for frame in held_out_scenes(frames, seed, net.image_height, net.image_width)]
    found = [pixels for _, pixels in load_directory(images, net, frames)]
    return [found[index % len(found)] for index in range(frames)]


def _write(path: Path, result: Mapping[str, Any]) -> None:
    import json

    from accel.atomic import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _compare(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> None:
    from cli.comparing import compare, load_result

    if len(paths) != 2:
        raise click.UsageError(f"--compare: expected two result files, found {len(paths)} paths")
    typed = click.core.ParameterSource.COMMANDLINE
    for name in ctx.params:
        if name not in ("paths", "compare", "as_json", "quiet") and ctx.get_parameter_source(name) is typed:
            raise click.UsageError(f"--compare takes no --{'onnx' if name == 'onnx_dir' else name}")
    first, second = (load_result(path) for path in paths)
    found = compare(first, second)
    if as_json:
        emit_json({"files": [str(path) for path in paths], **found})
        return
    rows = [(row["metric"], row["unit"], row["first"], row["second"], row["ratio"]) for row in found["metrics"]]
    print(table(("", "unit", str(paths[0]), str(paths[1]), "second/first"), rows))
    print(f"commits: {found['commits'][0]}, {found['commits'][1]}")
    for name, (left, right) in found["differences"].items():
        print(f"differs: {name}: {_short(left)} against {_short(right)}")
    kinds = [(data["live"]["energy"] or {}).get("kind") for data in (first, second)]
    if None not in kinds and kinds[0] != kinds[1]:
        print(f"energy is not compared: {kinds[0]} against {kinds[1]}")


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(str(item) for item in value.values())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _ms(found: Mapping[str, float], scale: float = 1e3) -> tuple[float, ...]:
    """Figures of a distribution; of one in seconds, in milliseconds."""
    return tuple(scale * found[name] for name in ("min", "median", "p95", "max"))


def _print(result: Mapping[str, Any]) -> None:
    where = "simulated on this machine" if result["simulated"] else "on the board"
    print(f"{result['config']} {result['config_hash']}, back end {result['backend']} ({where})")
    print(f"{result['frames']} frames × {result['repeat']}, {result['mix']}: {', '.join(result['tasks'])}, "
          f"seed {result['seed']}")  # fmt: skip
    for part in ("live", "replay"):
        if result[part] is not None:
            _print_part(part, result[part])
    if result["replay"] is not None and result["replay"]["engine"] is not None:
        _print_jobs(result)
    _print_energy(result)
    if result["baselines"]:
        rows = [(name, *_ms(entry["total"]), entry["jobs_per_second"], entry["device"], entry["note"])
                for name, entry in result["baselines"].items()]  # fmt: skip
        live, remark = result["live"], "time of the simulation" if result["simulated"] else "host and engine"
        rows.append((f"{result['backend']} live", *_ms(live["total"]), live["jobs_per_second"], where, remark))
        if live["engine"] is not None:
            clock, times = next(iter(live["engine"]["milliseconds"].items()))
            rows.append((f"{result['backend']} engine", *_ms(times, 1.0), live["engine"]["jobs_per_second"][clock],
                         f"{clock} MHz", "from its cycles; without the host's share"))  # fmt: skip
        print(f"\n{table(('ms per frame', 'min', 'median', 'p95', 'max', 'frames/s', 'device', ''), rows)}")
    wrong = sum(not entry["ok"] for entry in result["checks"])
    print(f"\nchecks: {len(result['checks']) - wrong} of {len(result['checks'])} hold; commit {result['commit']}, "
          f"{result['machine']['cpu']}, {result['machine']['cores']} cores")  # fmt: skip


def _print_part(part: str, found: Mapping[str, Any]) -> None:
    rows: list[tuple[object, ...]] = [
        (name, *_ms(entry), 100 * entry["share"]) for name, entry in found["phases"].items()
    ]
    rows.append(("total", *_ms(found["total"]), 100.0))
    unit = "ms per frame" if part == "live" else "ms per program"
    print(f"\n{table((f'{part}: {unit}', 'min', 'median', 'p95', 'max', '% of time'), rows)}")
    if found["engine"] is None:
        print("no clock: this back end counts no cycles")
        return
    cycles, rates = found["engine"]["cycles"], found["engine"]["jobs_per_second"]
    spread = f" ({cycles['min']:,.0f} to {cycles['max']:,.0f})" if cycles["min"] != cycles["max"] else ""
    print(f"\n{part}: engine alone, {cycles['mean']:,.0f} cycles per frame{spread}")
    rows = [(int(clock), *_ms(times, 1.0), rates[clock]) for clock, times in found["engine"]["milliseconds"].items()]
    print(table(("at MHz: ms per frame", "min", "median", "p95", "max", "frames/s"), rows))


def _print_jobs(result: Mapping[str, Any]) -> None:
    from host.simulated import JOB_HEADER, job_rows

    replay = result["replay"]
    shown = replay["jobs"][:_ROWS]
    rows = job_rows({"jobs": shown, "tasks": [job["task"] for job in shown]}, result["macs_per_cycle"])
    print(f"\n{table(JOB_HEADER, rows)}")
    more = len(replay["jobs"]) - len(shown)
    print((f"… and {more} more; " if more else "")
          + f"{100 * replay['utilization']:.1f} % of the array's peak useful, {100 * replay['overlap']:.1f} % of "
            f"reading behind computing, {replay['boundary_idle']:,} idle cycles between jobs")  # fmt: skip


def _print_energy(result: Mapping[str, Any]) -> None:
    print()
    for part in ("live", "replay"):
        energy = (result[part] or {}).get("energy")
        if energy is None:
            continue
        if energy["kind"] == "measured":
            rails = (f"{rail} {1e3 * entry['joules_per_frame']:.2f} mJ ({entry['watts']:.2f} W, at rest "
                     f"{entry['idle_watts']:.2f} W)" for rail, entry in energy["rails"].items())  # fmt: skip
            print(f"energy per frame, {part}, measured: {', '.join(rails)}")
            continue
        clock, entry = next(iter(energy["per_clock_mhz"].items()))
        low, high = (1e3 * value for value in entry["joules_per_frame"])
        print(f"energy per frame, {part}, estimate: {low:.3g} to {high:.3g} mJ at {clock} MHz, "
              f"{entry['watts'][0]:.1f} to {entry['watts'][1]:.1f} W ({energy['covers']})")  # fmt: skip
    if all((result[part] or {}).get("energy") is None for part in ("live", "replay")):
        print("energy: nothing measured, and no cycles to base an estimate on")
