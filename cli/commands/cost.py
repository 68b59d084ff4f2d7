"""``m3vit cost``: what one frame of one task costs, by formula."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from accel.config import HARDWARE, HEADS, Config, Hardware, Network
from accel.errors import ConfigError
from cli.arguments import parse_hardware, parse_network
from cli.console import emit_json, json_option, note, table


@click.command()
@click.argument("network_name", metavar="NETWORK")
@click.option("--tasks", "per_task", is_flag=True, help="One line for every task.")
@click.option("--head", type=click.Choice(HEADS), help="Heads to count.  [default: the network's]")
@click.option("--hardware", "hardware_name", default="zcu104", show_default=True, metavar="NAME|FILE.json",
              help=f"Engine whose memory layout gives the bytes streamed ({', '.join(HARDWARE)}).")  # fmt: skip
@click.option("--usage", "usage_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Bytes streamed with the experts that got tokens, by a file of `m3vit experts usage`.  "
                   "[default: all experts]")  # fmt: skip
@json_option
def command(
    network_name: str, per_task: bool, head: str | None, hardware_name: str, usage_file: Path | None, as_json: bool
) -> None:
    """Multiply-accumulates, parameters and bytes of NETWORK (a preset, recipe or JSON file) for one frame of one task.

    A MAC is one multiplication with its addition. Counted: all matrix products and convolutions, every token, the top-k
    experts of each. Not counted: norms, softmax, GELU, biases, up-sampling. The paper's "84 GFLOPs" are these MACs of
    the encoder and one PUP head.

    \b
    Examples:
      m3vit cost m3vit-small-pascal --head pup
      m3vit cost m3vit-small-nyud --head pup --tasks
      m3vit cost m3vit-tiny-cityscapes --json
      m3vit cost base-nyud-multi_gate
      m3vit cost m3vit-small-nyud --usage usage.json
    """
    from model.costs import report

    network = parse_network(network_name)
    usage = None if usage_file is None else _read_usage(usage_file, network)
    data = report(network, head, usage and usage["used"])
    data["usage"] = usage
    data["engine"] = _engine_bytes(network, parse_hardware(hardware_name), usage and usage["used"])
    if as_json:
        emit_json(data)
        return
    encoder = data["encoder"]
    facts = (
        f"encoder {_giga(encoder['macs'])} GMAC",
        f"{_mega(encoder['parameters'])} M parameters",
        f"{_mega(encoder['activated'])} M activated per token",
        f"{_mega(encoder['weight_bytes'])} MB of weights",
    )
    print(f"{data['network']}: {', '.join(facts)}\n")
    rows = [
        (name, _giga(part["macs"]), _mega(part["parameters"]), _mega(part["activated"]), _mega(part["weight_bytes"]))
        for name, part in data["parts"].items()
    ]
    headers = ("GMAC", "M parameters", "M activated", "MB")
    print(table(("part", *headers), rows))
    tasks = data["tasks"] if per_task or usage else dict([next(iter(data["tasks"].items()))])
    print()
    rows = [
        (name, _giga(task["macs"]), _mega(task["parameters"]), _mega(task["activated"]),
         _mega(task["encoder_bytes"] + task["head_bytes"]))
        for name, task in tasks.items()
    ]  # fmt: skip
    print(table((f"with {data['head']} head", *headers[:-1], "MB streamed"), rows))
    print(f"\nall tasks: {_mega(data['model_parameters'])} M parameters")
    if data["engine"]["bytes"] is None:
        note(f"engine {data['engine']['hardware']}: {data['engine']['reason']}")
    else:
        print(f"engine {data['engine']['hardware']}: {_mega(data['engine']['bytes'])} MB per frame in its layout "
              "(padding, shifts, GELU tables), every expert used")  # fmt: skip
        for name, size in data["engine"]["tasks"].items() if usage else ():
            print(f"  {name}: {_mega(size)} MB with the experts that got tokens")
    if usage:
        _print_usage(usage)
    _print_claim(data["claim"])


def _print_claim(claim: dict[str, Any]) -> None:
    print(f"\nThe paper claims {claim['claimed']:.0%} fewer inference FLOPs. One {claim['task']} frame with a "
          f"{claim['head']} head takes {_giga(claim['macs'])} GMAC, against:")  # fmt: skip
    rows = [
        (item["baseline"], _giga(item["baseline_macs"]), _percent(item["saving"]), item["holds"], item["source"])
        for item in claim["comparisons"]
    ]
    print(table(("baseline", "G", "saved", "88 %?", "source"), rows))
    print(f"88 % needs a baseline of {_giga(claim['needed_baseline_macs'])} G. Top-k by itself leaves out "
          f"{claim['expert_layer_saving']:.1%} of the expert MACs.")  # fmt: skip


def _read_usage(path: Path, network: Network) -> dict[str, Any]:
    """Which experts of every block got a token, by a usage file of this network."""
    from accel.usage import load_usage

    found = load_usage(path)
    found.check_network(network, str(path))
    return {
        "file": str(path), "network": found.network, "images": found.images, "experts": found.experts,
        "used": {task: found.used(task) for task in found.tokens},
    }  # fmt: skip


def _print_usage(usage: dict[str, Any]) -> None:
    shares = (f"{task} {sum(used.values())} of {usage['experts'] * len(used)}" for task, used in usage["used"].items())
    images = "the image" if usage["images"] == 1 else f"any of the {usage['images']} images"
    print(f"\nMB streamed: only experts that got a token of {images} in {usage['file']}: {', '.join(shares)}."
          + ("" if usage["images"] == 1 else " A single frame streams at most that."))  # fmt: skip


def _engine_bytes(
    network: Network, hardware: Hardware, used_experts: Mapping[str, Mapping[int, int]] | None
) -> dict[str, Any]:
    """Bytes of weights that the engine reads per frame with every expert in use and, if given, per task with the used
    ones; or why the network does not fit it."""
    from accel.layers import Kind, engine_layers

    try:
        layers = engine_layers(Config(network, hardware=hardware))
    except ConfigError as error:
        return {"hardware": hardware.name, "bytes": None, "tasks": None, "reason": str(error)}
    size = sum(layer.experts * layer.expert_bytes + layer.gate_bytes for layer in layers)
    data: dict[str, Any] = {"hardware": hardware.name, "bytes": size, "tasks": None, "reason": None}
    if used_experts is not None:
        moe = dict(zip(network.moe_blocks, (layer for layer in layers if layer.kind is Kind.MOE), strict=True))
        data["tasks"] = {
            task: size - sum((moe[block].experts - count) * moe[block].expert_bytes for block, count in used.items())
            for task, used in used_experts.items()
        }
    return data


def _giga(value: float) -> float:
    return round(value / 1e9, 3)


def _mega(value: float) -> float:
    return round(value / 1e6, 2)


def _percent(share: float) -> str:
    """One decimal, and no minus sign before a zero."""
    return f"{round(share, 3) + 0.0:.1%}"
