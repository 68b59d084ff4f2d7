"""``m3vit import``: a checkpoint of other code becomes one of this project."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from accel.config import NETWORKS, ROUTINGS, Network
from accel.errors import ConfigError
from cli.arguments import parse_network
from cli.console import emit_json, json_option, note, quiet_option, table


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--network", "network_name", required=True, metavar="NAME|FILE",
              help=f"Dimensions and tasks: a preset ({', '.join(NETWORKS)}), a recipe (name or .toml) "
                   "or a .json file.")  # fmt: skip
@click.option("--tasks", metavar="A,B", help="Only these tasks of the network.")
@click.option("--routing", type=click.Choice(ROUTINGS), help="Insist on this routing.  [default: as in the checkpoint]")
@click.option("--kind", default="auto", show_default=True, type=click.Choice(("auto", "m3vit", "edge-moe", "deit")),
              help="Layout of the source.")  # fmt: skip
@click.option("--normalization", type=click.Choice(("imagenet", "unit", "half", "none")),
              help="Of the images the weights were trained on: ImageNet mean and std, RGB 0…1 as it is, mean and std "
                   "0.5, or none: already this project's (u8 − 128) / 128. Must be given for Cityscapes networks."
                   "  [default: imagenet, with a warning]")  # fmt: skip
@click.option("--allow-missing", is_flag=True, help="Weights not found keep their initial values.")
@click.option("--allow-unexpected", is_flag=True, help="Leave out keys that the network has no place for.")
@click.option("--seed", default=0, show_default=True, help="Of the initial values of what the source does not hold.")
@json_option
@quiet_option
def command(
    source: Path,
    out: Path,
    network_name: str,
    tasks: str | None,
    routing: str | None,
    kind: str,
    normalization: str | None,
    allow_missing: bool,
    allow_unexpected: bool,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Import SOURCE into the checkpoint OUT (.safetensors, stage float).

    SOURCE is a checkpoint of the M³ViT training code (a file, or a directory with the shards 0.pth, 1.pth, …), a
    directory of raw float32 files as Edge-MoE uses them, or a DeiT or timm ViT. Every key is accounted for; nothing is
    downloaded, and nothing in SOURCE is executed. `m3vit eval` measures OUT, `m3vit train CONFIG --init OUT` trains it.

    \b
    Examples:
      m3vit import best_model.pth.tar pascal.safetensors --network m3vit-small-pascal
      m3vit import nyud/checkpoint.pth.tar nyud.safetensors --network small-nyud2-multi_gate
      m3vit import weights/ tiny.safetensors --network m3vit-tiny-cityscapes --normalization unit
      m3vit import deit_small_patch16_224.pth start.safetensors --network small-pascal-multi_gate
    """
    from model.importing import import_checkpoint, save_imported

    network = _with_tasks(parse_network(network_name), tasks)
    model, report = import_checkpoint(
        source,
        network,
        kind=kind,
        routing=routing,
        normalization=normalization,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
        seed=seed,
    )
    save_imported(out, model, report)
    for warning in report.warnings:
        note(f"warning: {warning}", quiet)
    data = report.asdict()
    if as_json:
        emit_json({"out": str(out), **data})
        return
    facts = [
        ("source", f"{report.source} ({report.kind}, {len(report.files)} files)"),
        ("network", f"{report.network}, {report.routing}, {report.head} heads"),
        ("normalization", report.normalization),
        *((name, str(value)) for name, value in report.facts.items()),
    ]
    for name, value in facts:
        print(f"{name:14} {value}")
    print()
    print(table(("keys", "count", "which"), _rows(data)))
    print(f"\nwrote {out}")


def _with_tasks(network: Network, names: str | None) -> Network:
    if names is None:
        return network
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ConfigError(f"tasks = {names!r}: expected names of tasks, separated by commas")
    for name in wanted:
        network.task_index(name)
    return dataclasses.replace(network, tasks=tuple(task for task in network.tasks if task.name in wanted))


def _rows(data: dict[str, Any]) -> list[tuple[str, int, str]]:
    """One line for the keys used, one line for each group of the others."""
    rows = [("used", len(data["used"]), "")]
    for group in ("initialized", "missing"):
        prefixes: dict[str, int] = {}
        for key in data[group]:
            name = ".".join(part if not part.isdigit() else "*" for part in key.split("."))
            prefixes[name] = prefixes.get(name, 0) + 1
        rows += [(group, count, name) for name, count in prefixes.items()]
    for group in ("dropped", "unexpected"):
        reasons: dict[str, list[str]] = {}
        for key, reason in data[group].items():
            reasons.setdefault(reason, []).append(key)
        rows += [(group, len(keys), f"{keys[0]}{' …' if len(keys) > 1 else ''}: {reason}".rstrip(": "))
                 for reason, keys in reasons.items()]  # fmt: skip
    return rows
