"""``m3vit inspect``: what is in a bundle or a checkpoint, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.console import emit_json, json_option, table

if TYPE_CHECKING:
    from accel.bundle import Bundle


@click.command()
@click.argument("path", type=click.Path())
@click.option("--layer", help="Only this layer, with its blobs, e.g. blocks.1.mlp.")
@click.option("--program", "task", metavar="TASK", help="List the commands of one frame for this task.")
@json_option
def command(path: str, layer: str | None, task: str | None, as_json: bool) -> None:
    """Show what is in a bundle: configuration, layers, gates, sizes, provenance.

    Reads no weights: whether the blobs are whole is for `m3vit verify` to say.

    A checkpoint (.safetensors) is recognized, too: only its header is read.

    \b
    Examples:
      m3vit inspect build/bundle
      m3vit inspect build/bundle --layer blocks.1.mlp
      m3vit inspect build/bundle --program depth
      m3vit inspect build/run/qat.safetensors --json
    """
    from pathlib import Path

    from accel.bundle import open_bundle
    from accel.errors import BundleError
    from cli.checkpoint_header import read_header

    if Path(path).is_file() and Path(path).name != "manifest.json":
        if layer or task:
            raise BundleError(f"{path}: --layer and --program: expected a bundle directory, found a file")
        header = read_header(path)
        if as_json:
            emit_json(header)
        else:
            _print_checkpoint(path, header)
        return
    bundle = open_bundle(Path(path).parent if Path(path).name == "manifest.json" else path)
    report = _describe(bundle)
    if layer is not None:
        report["layers"] = [_one_layer(bundle, report["layers"], layer)]
    if task is not None:
        report["program"] = _program(bundle, task)
    if as_json:
        emit_json(report)
    elif task is not None:
        _print_program(report["program"])
    elif layer is not None:
        _print_layer(report["layers"][0])
    else:
        _print_bundle(bundle, report)


def _describe(bundle: Bundle) -> dict[str, Any]:
    """Everything but the weights, ready for JSON."""
    from accel.config import to_dict
    from accel.layers import engine_layers

    config, manifest = bundle.config, bundle.manifest
    sizes = {name: entry["bytes"] for name, entry in manifest["blobs"].items()}
    layers = []
    for layer in engine_layers(config):
        blobs = list(layer.weight_blobs())
        layers.append({
            "name": layer.name, "kind": layer.kind.value, "tokens": layer.tokens, "inputs": layer.inputs,
            "hidden": layer.hidden, "outputs": layer.outputs, "experts": layer.experts, "top_k": layer.top_k,
            "units_per_expert": layer.units, "unit_bytes": layer.unit_bytes,
            "bytes": sum(sizes[name] for name in blobs),
        })  # fmt: skip
    gates = {
        name: {"shift": entry["shift"], "bytes": sizes[name]} for name, entry in manifest["gates"].items()
    }
    return {
        "type": "bundle",
        "path": str(bundle.path),
        "name": config.name,
        "config_hash": config.hash,
        "engine_hash": f"{config.engine_hash:#010x}",
        "config": to_dict(config),
        "residual_exponent": manifest["residual_exponent"],
        "layers": layers,
        "gates": gates,
        "heads": dict(manifest["heads"]),
        "blobs": len(sizes),
        "bytes": sum(sizes.values()),
        "provenance": dict(manifest["provenance"]),
    }


def _one_layer(bundle: Bundle, layers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    from accel.errors import ConfigError

    for entry in layers:
        if entry["name"] == name:
            blobs = {
                blob: dict(facts) for blob, facts in bundle.manifest["blobs"].items()
                if blob == name or blob.startswith(f"{name}.")
            }  # fmt: skip
            return {**entry, "blobs": blobs}
    known = ", ".join(entry["name"] for entry in layers)
    raise ConfigError(f"{bundle.path}: layer {name!r}: expected one of {known}")


def _program(bundle: Bundle, task: str) -> list[dict[str, Any]]:
    """Commands of one frame for one task, as the live programs of its layers hold them."""
    from accel.compiler import live_arena, live_program
    from accel.layers import engine_layers

    bundle.config.network.task_index(task)
    arena = live_arena(bundle.config)
    listing = []
    for index, layer in enumerate(engine_layers(bundle.config)):
        program, _ = live_program(bundle, layer, task, arena, index=index)
        listing.append({"name": layer.name, **program.commands[0].asdict()})
    return listing


def _print_bundle(bundle: Bundle, report: dict[str, Any]) -> None:
    net, hw = bundle.config.network, bundle.config.hardware
    facts = [
        ("bundle", report["path"]),
        ("configuration", f"{report['name']}, hash {report['config_hash']}, engine {report['engine_hash']}"),
        ("network", f"{net.image_height}×{net.image_width} image, patch {net.patch}, {net.tokens} tokens × "
                    f"{net.embed_dim}, {net.depth} blocks, {net.heads} heads"),
        ("experts", f"{net.experts} in {len(net.moe_blocks)} blocks, top {net.top_k}, hidden {net.expert_hidden}, "
                    f"{net.routing}"),
        ("tasks", ", ".join(f"{task.name} ({task.channels}, {task.kind})" for task in net.tasks)),
        ("formats", f"weights {bundle.config.formats.weight_bits} bits, activations "
                    f"{bundle.config.formats.activation_bits} bits, residual exponent {report['residual_exponent']}"),
        ("engine", f"{hw.name}: {hw.tile_tokens} × {hw.tile_outputs} × {hw.tile_inputs} MAC per cycle, "
                   f"{hw.weight_slots} weight slots"),
        ("size", f"{report['bytes']:,} bytes in {report['blobs']} blobs"),
    ]  # fmt: skip
    for name, value in facts:
        print(f"{name:14} {value}")
    for name, value in report["provenance"].items():
        for key, item in value.items() if isinstance(value, dict) else [("", value)]:
            if not isinstance(item, dict):  # metrics and the like: --json has them
                print(f"{'from':14} {name}{' ' + key if key else ''}: {item}")
    print()
    keys = ("name", "kind", "tokens", "inputs", "hidden", "outputs", "experts", "units_per_expert", "bytes")
    headers = ("layer", "kind", "tokens", "in", "hidden", "out", "experts", "units", "bytes")
    print(table(headers, [tuple(layer[key] or None for key in keys) for layer in report["layers"]]))
    print()
    rows = []
    for block in net.moe_blocks:
        entries = [report["gates"][f"blocks.{block}.mlp.gate.{task}"] for task in net.task_names]
        rows.append((f"blocks.{block}.mlp", *(entry["shift"] for entry in entries), entries[0]["bytes"]))
    print(table(("gate shifts", *net.task_names, "bytes each"), rows))


def _print_layer(layer: dict[str, Any]) -> None:
    for name, value in layer.items():
        if name != "blobs":
            print(f"{name:17} {value}")
    print()
    rows = [(name, entry["bytes"], entry["sha256"][:16]) for name, entry in layer["blobs"].items()]
    print(table(("blob", "bytes", "SHA-256"), rows))


def _print_program(listing: list[dict[str, Any]]) -> None:
    for entry in listing:
        fields = " ".join(f"{k}={v}" for k, v in entry.items() if k not in ("name", "opcode"))
        print(f"{entry['name']:14} {entry['opcode']:10} {fields}")


def _print_checkpoint(path: str, header: dict[str, Any]) -> None:
    net = header["network"]
    facts = [
        ("checkpoint", path),
        ("stage", f"{header['stage']}, step {header['step']}"),
        ("network", f"{net.get('name', 'unnamed')}: {', '.join(f'{k} {v}' for k, v in net.items() if _plain(v))}"),
        ("tasks", ", ".join(str(task.get("name")) for task in net.get("tasks", []) if isinstance(task, dict))),
        ("weights", f"{header['parameters']:,} numbers in {header['tensors']} tensors"),
        ("optimizer", f"{header['optimizer_tensors']} tensors"),
        ("options", ", ".join(f"{k} {v}" for k, v in header["options"].items()) or "none"),
    ]
    for name, value in facts:
        print(f"{name:14} {value}")
    for task, values in header["metrics"].items():
        print(f"{'metric':14} {task}: {values}")


def _plain(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
