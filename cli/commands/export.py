"""``m3vit export``: trained, random or existing integer parameters → a bundle, and ONNX files beside it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accel.config import HARDWARE, NETWORKS, ROUTINGS, Formats
from cli.arguments import parse_hardware, parse_network, with_routing
from cli.console import emit_json, json_option, note, quiet_option
from cli.exporting import read_checkpoint, save_integer_onnx_files, write

if TYPE_CHECKING:
    from accel.bundle import Bundle
    from accel.params import Encoder

QCDQ_SCENES = 2
"""Rendered scenes on which a QCDQ file is compared with the integers."""


@click.command()
@click.argument("paths", nargs=-1, metavar="[CHECKPOINT] BUNDLE", type=click.Path(path_type=Path))
@click.option("--random", "random_network", metavar="NAME|FILE.json",
              help=f"Random weights, without PyTorch, for {', '.join(NETWORKS)} or a file.")  # fmt: skip
@click.option("--from-bundle", "old_bundle", type=click.Path(path_type=Path),
              help="Pack the parameters of another bundle again, for other hardware.")  # fmt: skip
@click.option("--hardware", "hardware_name", default="zcu104", show_default=True, metavar="NAME|FILE.json",
              help=f"Engine whose byte order the blobs get ({', '.join(HARDWARE)}).")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="With --random: seed.")
@click.option("--routing", type=click.Choice(ROUTINGS), help="With --random: another routing.")
@click.option("--weight-bits", default=8, show_default=True, help="With --random: width of weights, 2 to 8.")
@click.option("--activation-bits", default=8, show_default=True, help="With --random: width of activations, 2 to 8.")
@click.option("--onnx/--no-onnx", default=False, help="Also one integer ONNX file per task, bit-exact.")
@click.option("--qcdq", is_flag=True, help="Also a QCDQ file for other tools (from a checkpoint only).")
@click.option("--onnx-dir", type=click.Path(path_type=Path), help="Where ONNX files go.  [default: BUNDLE.onnx]")
@json_option
@quiet_option
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[Path, ...],
    random_network: str | None,
    old_bundle: Path | None,
    hardware_name: str,
    seed: int,
    routing: str | None,
    weight_bits: int,
    activation_bits: int,
    onnx: bool,
    qcdq: bool,
    onnx_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn trained weights into a BUNDLE: integers only, one blob per expert and dense layer.

    CHECKPOINT is the qat.safetensors that `m3vit train` leaves. Nothing is coerced: a scale that is no power of two, a
    missing expert or a value out of range is an error. A bundle already there is replaced whole or not at all.

    \b
    Examples:
      m3vit export build/run/qat.safetensors build/bundle
      m3vit export build/run/qat.safetensors build/bundle --hardware ci --onnx
      m3vit export --random m3vit-small-pascal build/random --seed 0
      m3vit export --from-bundle build/bundle build/bundle-ci --hardware ci
    """
    if random_network is not None and old_bundle is not None:
        raise click.UsageError("--random and --from-bundle exclude each other: give one source")
    without_checkpoint = random_network is not None or old_bundle is not None
    expected = ("BUNDLE",) if without_checkpoint else ("CHECKPOINT", "BUNDLE")
    if len(paths) != len(expected):
        raise click.UsageError(f"expected {' '.join(expected)}, found {len(paths)} path{'s' * (len(paths) != 1)}")
    if not paths[-1].name:
        raise click.UsageError(f"BUNDLE: expected a path that ends in a name, found {str(paths[-1])!r}")
    _refuse_ignored(ctx, random_network is not None, without_checkpoint)
    hardware, target = parse_hardware(hardware_name), paths[-1]
    began = time.perf_counter()

    if random_network is not None:
        network = with_routing(parse_network(random_network), routing)
        encoder, source = _random(network, Formats(weight_bits, activation_bits), seed)
    elif old_bundle is not None:
        encoder, source = _repacked(old_bundle)
    else:
        encoder, source = read_checkpoint(paths[0])
    bundle = write(target, encoder, hardware, source, quiet)
    folder = onnx_dir or Path(f"{target}.onnx")
    files = save_integer_onnx_files(encoder, folder, quiet) if onnx else []
    agreements: dict[str, Any] = {}
    if qcdq:
        path, agreements = _save_qcdq(paths[0], folder)
        files.append(path)
    seconds = time.perf_counter() - began
    if as_json:
        emit_json(_facts(bundle, files, agreements, seconds))
        return
    sizes = [entry["bytes"] for entry in bundle.manifest["blobs"].values()]
    config = bundle.config
    print(f"{bundle.path}: {config.name}, {len(sizes)} blobs, {sum(sizes) / 1e6:.1f} MB, configuration {config.hash}")
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    for task, result in agreements.items():
        print(f"QCDQ {task}: {100 * result['equal']:.2f} % of {result['compared']:,} outputs equal the integers, "
              f"the others differ by at most {result['max_lsb']} steps")  # fmt: skip
    note(f"exported in {seconds:.1f} s", quiet)
    print(f"next: m3vit verify {bundle.path}")


def _refuse_ignored(ctx: click.Context, is_random: bool, without_checkpoint: bool) -> None:
    """An option that would have no effect is a mistake in the making."""
    names = {"seed": "--seed", "routing": "--routing", "weight_bits": "--weight-bits",
             "activation_bits": "--activation-bits"}  # fmt: skip
    typed = click.core.ParameterSource.COMMANDLINE
    given = {name for name in (*names, "qcdq") if ctx.get_parameter_source(name) is typed}
    for name, option in names.items():
        if name in given and not is_random:
            raise click.UsageError(f"{option} only goes with --random")
    if "qcdq" in given and without_checkpoint:
        raise click.UsageError("--qcdq only goes with a CHECKPOINT: the file is made from the quantized PyTorch model")


def _random(network: Any, formats: Formats, seed: int) -> tuple[Encoder, dict[str, Any]]:
    from accel.random_params import random_encoder

    return random_encoder(network, formats, seed), {"source": "random", "seed": seed}


def _repacked(path: Path) -> tuple[Encoder, dict[str, Any]]:
    from accel.bundle import open_bundle

    old = open_bundle(path)
    origin = {"config": old.config.name, "config_hash": old.manifest["config_hash"]}
    return old.encoder, {"source": "bundle", "bundle": origin, "origin": dict(old.manifest["provenance"])}


def _save_qcdq(checkpoint: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The QCDQ file, and how far its outputs agree with the integers on a few rendered scenes."""
    from model.scenes import render_range
    from quant.checkpoint import load_qat
    from quant.qcdq import agreement, export_qcdq

    model = load_qat(checkpoint)
    network = model.network
    path = export_qcdq(model, folder / "qcdq.onnx")
    images = render_range(0, 0, QCDQ_SCENES, network.image_height, network.image_width)["image"]
    return path, {task: dataclasses.asdict(result) for task, result in agreement(path, model, images).items()}


def _facts(bundle: Bundle, files: list[Path], agreements: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What ``--json`` prints."""
    sizes = [entry["bytes"] for entry in bundle.manifest["blobs"].values()]
    return {
        "bundle": str(bundle.path),
        "config": bundle.config.name,
        "config_hash": bundle.config.hash,
        "blobs": len(sizes),
        "bytes": sum(sizes),
        "onnx": [str(path) for path in files],
        "qcdq_agreement": agreements,
        "seconds": seconds,
        "provenance": bundle.manifest["provenance"],
    }
