"""``m3vit cost``: what one frame of one task costs, by formula."""

from __future__ import annotations

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
@json_option
def command(network_name: str, per_task: bool, head: str | None, hardware_name: str, as_json: bool) -> None:
    """Multiply-accumulates, parameters and bytes of NETWORK (a preset or a JSON file) for one frame of one task.

    A MAC is one multiplication with its addition. Counted: all matrix products and convolutions, every token, the top-k
    experts of each. Not counted: norms, softmax, GELU, biases, up-sampling. The paper's "84 GFLOPs" are these MACs of
    the encoder and one PUP head.

    \b
    Examples:
      m3vit cost m3vit-small-pascal --head pup
      m3vit cost m3vit-small-nyud --head pup --tasks
      m3vit cost m3vit-tiny-cityscapes --json
    """
    from model.costs import report

    network = parse_network(network_name)
    data = report(network, head)
    data["engine"] = _engine_bytes(network, parse_hardware(hardware_name))
    if as_json:
        emit_json(data)
        return
    encoder = data["encoder"]
    facts = (
        f"encoder {_giga(encoder['macs'])} GMAC",
        f"{_mega(encoder['parameters'])} M parameters",
        f"{_mega(encoder['activated'])} M activated per token",
        f"{_mega(encoder['weight_bytes'])} MB streamed",
    )
    print(f"{data['network']}: {', '.join(facts)}\n")
    rows = [
        (name, _giga(part["macs"]), _mega(part["parameters"]), _mega(part["activated"]), _mega(part["weight_bytes"]))
        for name, part in data["parts"].items()
    ]
    headers = ("GMAC", "M parameters", "M activated", "MB")
    print(table(("part", *headers), rows))
    tasks = data["tasks"] if per_task else dict([next(iter(data["tasks"].items()))])
    print()
    rows = [
        (name, _giga(task["macs"]), _mega(task["parameters"]), _mega(task["activated"]),
         _mega(task["encoder_bytes"] + task["head_bytes"]))
        for name, task in tasks.items()
    ]  # fmt: skip
    print(table((f"with {data['head']} head", *headers), rows))
    print(f"\nall tasks: {_mega(data['model_parameters'])} M parameters")
    if data["engine"]["bytes"] is None:
        note(f"engine {data['engine']['hardware']}: {data['engine']['reason']}")
    else:
        print(f"engine {data['engine']['hardware']}: {_mega(data['engine']['bytes'])} MB per frame in its layout "
              "(padding, shifts, GELU tables), every expert used")  # fmt: skip
    _print_claim(data["claim"])


def _print_claim(claim: dict[str, Any]) -> None:
    print(f"\nThe paper claims {claim['claimed']:.0%} fewer inference FLOPs. One {claim['task']} frame with a "
          f"{claim['head']} head takes {_giga(claim['macs'])} GMAC, against:")  # fmt: skip
    rows = [
        (item["baseline"], _giga(item["baseline_macs"]), f"{item['saving']:.1%}", item["holds"], item["source"])
        for item in claim["comparisons"]
    ]
    print(table(("baseline", "G", "saved", "88 %?", "source"), rows))
    print(f"88 % needs a baseline of {_giga(claim['needed_baseline_macs'])} G. Top-k by itself leaves out "
          f"{claim['expert_layer_saving']:.1%} of the expert MACs.")  # fmt: skip


def _engine_bytes(network: Network, hardware: Hardware) -> dict[str, Any]:
    """Bytes that the engine reads per frame with every expert in use, or why the network does not fit it."""
    from accel.layers import engine_layers

    try:
        layers = engine_layers(Config(network, hardware=hardware))
    except ConfigError as error:
        return {"hardware": hardware.name, "bytes": None, "reason": str(error)}
    size = sum(layer.experts * layer.expert_bytes + layer.gate_bytes for layer in layers)
    return {"hardware": hardware.name, "bytes": size, "reason": None}


def _giga(value: float) -> float:
    return round(value / 1e9, 3)


def _mega(value: float) -> float:
    return round(value / 1e6, 2)
