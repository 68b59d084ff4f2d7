"""``m3vit verify``: every integer of every back end against the golden model."""

from __future__ import annotations

from typing import Any

import click

from cli.console import emit_json, json_option, note, progress, quiet_option, table

_SMALL_TOKENS = 300
"""Up to this many tokens, traces of several frames fit in memory at once."""


@click.command()
@click.argument("bundle", type=click.Path())
@click.option(
    "--backends", default="golden", show_default=True,
    help="Some of golden, rtl, hls, board (engines), onnx, torch (whole encoders), separated by commas.",
)  # fmt: skip
@click.option("--frames", default=4, show_default=True, type=click.IntRange(min=1), help="Frames to compare.")
@click.option("--tasks", default="", help="Tasks, separated by commas. Default: all.")
@click.option("--images", type=click.Path(), help="Folder with PNG or JPEG images. Default: rendered scenes.")
@click.option("--checkpoint", type=click.Path(), help="QAT checkpoint that the bundle comes from, for torch.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the rendered scenes.")
@click.option(
    "--timeout", default=120.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
    help="Seconds that one engine program may take.",
)  # fmt: skip
@json_option
@quiet_option
def command(
    bundle: str, backends: str, frames: int, tasks: str, images: str | None, checkpoint: str | None,
    seed: int, timeout: float, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Compare back ends with the golden integer model at every layer boundary of every task.

    \b
    golden  the integer engine behind program, memory and driver: live and as replay programs
    onnx    the integer ONNX of the encoder in onnxruntime (needs the extra "export")
    torch   integer mode of the quantized model in --checkpoint (needs the extra "train")

    onnx and torch compute everything on their own. golden shares the arithmetic with the reference: it checks packing,
    programs, memory layout and driver. Of it only what the engine computes counts; "host_compared" is the rest.

    Exit code 1 if one integer differs or a back end compared nothing.

    \b
    Examples:
      m3vit verify build/bundle --backends golden --json
      m3vit verify build/bundle --backends golden,onnx,torch --checkpoint build/run/qat.safetensors --frames 64
    """
    from accel.bundle import open_bundle
    from cli.verification import Frame, check_backends, held_out_scenes, verify
    from host.images import load_directory

    opened = open_bundle(bundle)
    net = opened.config.network
    wanted = _names(backends)
    check_backends(wanted)
    names = _names(tasks) or list(net.task_names)
    for name in names:
        net.task_index(name)
    if images is not None:
        chosen = [Frame(*item) for item in load_directory(images, net, frames)]
    else:
        chosen = list(held_out_scenes(frames, seed, net.image_height, net.image_width))
    with progress(len(chosen), "verify", "frame", quiet) as bar:
        report = verify(
            opened, chosen, names, wanted, checkpoint=checkpoint, timeout=timeout,
            batch=8 if net.tokens <= _SMALL_TOKENS else 1, progress=bar.update,
        )  # fmt: skip
    result: dict[str, Any] = {
        "bundle": bundle, "config": opened.config.name, "config_hash": opened.config.hash, "tasks": names,
        "frames": len(chosen), "images": images or "rendered scenes", "seed": seed,
        **report.as_dict(wanted),
    }  # fmt: skip
    if as_json:
        emit_json(result)
    else:
        _print(report, result)
        if not result["ok"]:
            note(f"first mismatch: {result['first_mismatch'] or 'none: a back end compared nothing'}")
    return 0 if result["ok"] else 1


def _names(text: str) -> list[str]:
    """Comma-separated names, each once, in order."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _print(report: Any, result: dict[str, Any]) -> None:
    rows = [
        (name, kind, *report.total(backend=name, kind=kind))
        for name in result["backends"]
        for kind in report.kinds(name)
    ]
    rows.append(("all", "all", result["compared"], result["mismatches"]))
    print(table(("back end", "boundary", "compared", "mismatches"), rows))
    if result["host_compared"]:
        print(f"not counted: {result['host_compared']:,} integers that the host computes with the reference's own code")
    print(f"{result['config']} {result['config_hash']}: {result['frames']} frames × {len(result['tasks'])} tasks, "
          f"seed {result['seed']}: {'all equal' if result['ok'] else 'FAILED'}")  # fmt: skip
