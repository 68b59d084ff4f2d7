"""``m3vit eval``: metrics, Δm and predictions of a trained checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.console import emit_json, json_option, note, quiet_option, table


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--task", "tasks", multiple=True, help="Measure this task; repeat for several.  [default: all shared]")
@click.option("--split", default="val", show_default=True, type=click.Choice(("train", "val")), help="Which images.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data set.  [default: environment]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep rendered scenes here.  [default: nowhere]")
@click.option("--single-task-results", "single", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="JSON with single-task metrics, for Δm; repeat for several.")  # fmt: skip
@click.option("--dump", type=click.Path(path_type=Path), metavar="DIR", help="Write a prediction per task and image.")
@click.option("--device", help="cpu, cuda, cuda:1 …  [default: a GPU, else the CPU]")
@json_option
@quiet_option
def command(
    config: str,
    checkpoint: Path,
    tasks: tuple[str, ...],
    split: str,
    data_root: Path | None,
    data_dir: Path | None,
    single: tuple[Path, ...],
    dump: Path | None,
    device: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure a checkpoint (float or quantized) on the data set of CONFIG, a recipe's name or .toml file.

    The network is the checkpoint's, which may be imported or pruned: of CONFIG come data set, image size and tasks. The
    tasks that both have are measured.

    Δm, the mean relative gain over single-task models, needs their results: files that `m3vit eval --json` printed for
    them. --dump writes DIR/TASK/IMAGE: labels, edges, saliency (0 to 255) and normals as .png, depth in metres as .npy.

    \b
    Examples:
      m3vit eval small-nyud-multi_gate run/float.safetensors --data-root data/NYUD_MT
      m3vit eval small-nyud-multi_gate run/qat.safetensors --single-task-results semseg.json \\
          --single-task-results depth.json --json
      m3vit eval mine.toml run/float.safetensors --task normals --dump predictions
    """
    from cli.recipes import (
        check_image_size,
        image_names,
        load_trained,
        measure,
        open_split,
        recipe_network,
        shared_tasks,
    )
    from model import distributed
    from model.delta import delta_m, read_results
    from model.predictions import PredictionWriter
    from model.recipes.loader import load_recipe

    recipe = load_recipe(config)
    place = distributed.resolve_device(device)
    results = read_results(single, dataset=recipe.dataset, split=split) if single else None
    trained = load_trained(checkpoint)
    net = trained.network
    check_image_size(checkpoint, net, recipe, recipe_network(recipe))
    names = shared_tasks(checkpoint, net, recipe, tuple(dict.fromkeys(tasks)))
    dataset = open_split(recipe, net, split, tasks=names, data_root=data_root, cache=data_dir, quiet=quiet)
    writer = PredictionWriter(dump, net, image_names(dataset)) if dump is not None else None
    note(f"measuring {', '.join(names)} on {len(dataset)} images", quiet)
    metrics = measure(recipe, trained.model.to(place), dataset, names, writer.write if writer else None)

    document: dict[str, Any] = {
        "recipe": recipe.name, "checkpoint": str(checkpoint), "stage": trained.stage, "step": trained.step,
        "dataset": recipe.dataset, "split": split, "images": len(dataset), "metrics": metrics,
    }  # fmt: skip
    parts: list[Any] = []
    if results is not None:
        document["delta_m"], parts = delta_m(metrics, results, ", ".join(map(str, single)))
        document["delta_m_tasks"] = {part.task: part.percent for part in parts}
    if writer is not None:
        document["dump"], document["files"] = str(dump), writer.files
    if as_json:
        emit_json(document)
        return
    _show(document, parts)
    if writer is not None:
        note(f"{writer.files} predictions: {dump}", quiet)


def _show(document: dict[str, Any], parts: list[Any]) -> None:
    from model.metrics import UNITS

    rows = [
        (task, metric, UNITS[metric], value)
        for task, values in document["metrics"].items()
        for metric, value in values.items()
    ]
    print(table(("task", "metric", "unit", "value"), rows))
    if parts:
        lines = [(part.task, part.metric, part.single, part.multi, part.percent) for part in parts]
        print()
        print(table(("task", "metric", "single-task", "this model", "better by %"), lines))
        print(f"\nΔm = {document['delta_m']:+.3f} %")
