"""``m3vit run``: a photograph in, one picture per task out."""

from __future__ import annotations

from typing import Any

import click

from cli.console import emit_json, json_option, note, progress, quiet_option, table


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--image", required=True, type=click.Path(), help="Photograph, PNG or JPEG, any size.")
@click.option("--task", "tasks", multiple=True, help="Task to run; repeat, or use commas, for several. Default: all.")
@click.option("--backend", default="golden", show_default=True, help="Engine to run on.")
@click.option("--out", default="m3vit-run", show_default=True, type=click.Path(), help="Folder for the pictures.")
@click.option(
    "--timeout", default=60.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
    help="Seconds that one program may take.",
)  # fmt: skip
@json_option
@quiet_option
def command(
    bundle: str, image: str, tasks: tuple[str, ...], backend: str, out: str, timeout: float,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Run tasks on a photograph through the engine and write a picture for each.

    The photograph is cut to the network's aspect ratio and scaled. Every layer that the engine computes goes
    through program, memory and driver; the host computes the rest in the same integers.

    \b
    Examples:
      m3vit run build/bundle --image street.jpg --task depth
      m3vit run build/bundle --image street.jpg --task semseg --task depth --out pictures
    """
    from pathlib import Path

    from accel.bundle import open_bundle
    from host.backends import open_device
    from host.driver import Driver
    from host.images import load_image
    from host.outputs import picture, save_picture, side_by_side
    from host.runner import EncoderRunner

    opened = open_bundle(bundle)
    config = opened.config
    net = config.network
    names = list(dict.fromkeys(name for item in tasks for name in item.split(","))) or list(net.task_names)
    for name in names:
        net.task_index(name)
    pixels = load_image(image, net)
    folder, stem = Path(out), Path(image).stem
    report: dict[str, Any] = {}
    pictures = [("input", _to_image(pixels))]
    with (
        open_device(backend, config.hardware, config.formats) as device,
        Driver(device) as driver,
        driver.load(opened) as loaded,
        progress(len(names), "tasks", "task", quiet) as bar,
    ):
        runner = EncoderRunner(loaded, timeout=timeout, routing=True)
        for name in names:
            result = runner.run(pixels, [name])[0]
            decoded, report[name] = _describe(runner, result)
            drawn = picture(decoded, net.task(name))
            file = folder / f"{stem}.{name}.png"
            save_picture(file, drawn)
            report[name]["picture"] = str(file)
            pictures.append((name, drawn))
            bar.update()
    together = folder / f"{stem}.all.png"
    save_picture(together, side_by_side(pictures))
    if as_json:
        emit_json({
            "bundle": bundle, "config": config.name, "config_hash": config.hash, "backend": backend,
            "image": image, "tasks": report, "side_by_side": str(together),
        })  # fmt: skip
        return
    rows = [
        (name, entry["picture"], _experts(entry["experts_used"]), entry["counters"]["macs"],
         entry["counters"]["weight_bytes"], entry["counters"]["cycles"] or None, _short(entry["output"]))
        for name, entry in report.items()
    ]  # fmt: skip
    headers = ("task", "picture", f"of {net.experts} experts, by block", "MACs", "weight bytes", "cycles", "output")
    print(table(headers, rows))
    note(f"side by side: {together}", quiet)


def _to_image(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _describe(runner: Any, result: Any) -> tuple[Any, dict[str, Any]]:
    """Decoded output of one task, and what is worth telling about it."""
    from host.outputs import decode, output_map, summarize

    net = runner.encoder.network
    task = net.task(result.task)
    decoded = decode(output_map(runner.encoder, result), task)
    loads = {str(block): routing.load(net.experts).tolist() for block, routing in result.routing.items()}
    return decoded, {
        "output": summarize(decoded, task),
        "experts_used": {block: sum(1 for count in load if count) for block, load in loads.items()},
        "tokens_per_expert": loads,
        "counters": dict(runner.counters[result.task]),
    }


def _experts(used: dict[str, int]) -> str:
    """Non-empty experts per MoE block, e.g. ``7 8 6``."""
    return " ".join(str(count) for count in used.values()) or "none"


def _short(output: dict[str, Any]) -> str:
    """One cell from the numbers of :func:`host.outputs.summarize`."""
    if "share_of_pixels_per_class" in output:
        shares = sorted(output["share_of_pixels_per_class"].items(), key=lambda item: -item[1])[:3]
        return "classes " + ", ".join(f"{name}: {share:.0%}" for name, share in shares)
    if "metres" in output:
        metres = output["metres"]
        return f"{metres['p2']:.3g} to {metres['p98']:.3g} m, median {metres['median']:.3g}"
    if "mean_normal" in output:
        return "mean " + " ".join(f"{value:+.2f}" for value in output["mean_normal"])
    return f"{output['share_of_pixels_above_half']:.1%} of pixels"
