"""``m3vit experts``: who uses which expert, and a smaller network without the idle ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from accel.config import Network
from accel.errors import CheckpointError, ConfigError
from cli.console import emit_json, json_option, note, progress, quiet_option, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from accel.usage import ExpertUsage
    from model.data import Dataset
    from model.samples import FolderDataset

SCENES = 64
_BATCH = 16
_SPLITS = {"usage": "val", "prune": "train"}
"""Pruning is part of training: it must not look at what is measured on."""
_DATA_OPTIONS = (
    click.option("--scenes", default=SCENES, show_default=True, type=click.IntRange(min=1),
                 help="Use this many rendered scenes."),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the rendered scenes."),
    click.option("--images", type=click.Path(path_type=Path), help="Use the PNG and JPEG images of this folder."),
    click.option("--recipe", metavar="CONFIG", help="Use the data set of a recipe (a name or a .toml file)."),
    click.option("--split", type=click.Choice(("train", "val")),
                 help="With --recipe: which images.  [default: train to prune, else val]"),
    click.option("--data-root", type=click.Path(path_type=Path),
                 help="With --recipe: folder of the data set.  [default: from the environment]"),
    click.option("--limit", type=click.IntRange(min=1), help="With --images or --recipe: only the first images."),
)  # fmt: skip


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say on which images to measure, passed as ``data`` (`DataChoice`)."""
    for option in reversed(_DATA_OPTIONS):
        function = option(function)
    return function


class DataChoice:
    """Images to measure on: rendered scenes, a folder, or a recipe's data set."""

    def __init__(self, ctx: click.Context) -> None:
        self.options = {name: ctx.params[name] for name in
                        ("scenes", "seed", "images", "recipe", "split", "data_root", "limit")}  # fmt: skip
        given = {name for name in self.options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        kind = "recipe" if self.options["recipe"] else "images" if self.options["images"] else "scenes"
        fitting = {"scenes": {"scenes", "seed"}, "images": {"images", "limit"},
                   "recipe": {"recipe", "split", "data_root", "limit"}}[kind]  # fmt: skip
        wrong = sorted(given - fitting)
        if wrong:
            option = f"--{wrong[0].replace('_', '-')}"
            reason = f"does not go with --{kind}" if kind != "scenes" else "needs --images or --recipe"
            raise click.UsageError(f"{option} {reason if wrong[0] != 'split' else 'needs --recipe'}", ctx)
        self.kind = kind
        self.split: str = self.options["split"] or _SPLITS[str(ctx.command.name)]

    def frames(self, net: Network, quiet: bool) -> tuple[int, Iterator[NDArray[np.uint8]]]:
        """Number of images, and the images uint8 [H, W, 3]; needs torch for a recipe's data set only."""
        limit = self.options["limit"]
        if self.kind == "images":
            from host.images import load_directory

            found = load_directory(self.options["images"], net, limit or 1 << 31)
            return len(found), (pixels for _, pixels in found)
        if self.kind == "scenes":
            from model.scenes import render_scene, split_seed

            count, seed = self.options["scenes"], split_seed(self.options["seed"], self.split)
            size = net.image_height, net.image_width
            return count, (render_scene(seed, index, *size).image for index in range(count))
        dataset = self._of_recipe(net, quiet)
        return len(dataset), itertools.chain.from_iterable(images for images, _ in dataset.chunks(_BATCH, ()))

    def dataset(self, net: Network, quiet: bool) -> Dataset | FolderDataset:
        """The same as a data set of the float model's tools."""
        if self.kind == "recipe":
            return self._of_recipe(net, quiet)
        import numpy as np

        from model.data import Dataset

        return Dataset(np.stack(list(self.frames(net, quiet)[1])), {})

    def require_right_data(self, net: Network, trained_on: str | None) -> None:
        """Refuse to fall back on rendered scenes for a network that was made for other images."""
        from accel.config import network

        if self.kind != "scenes":
            return
        foreign = [task.name for task in net.tasks if task not in network("m3vit-demo").tasks]
        if trained_on not in (None, "scenes"):
            why = f"it was trained on {trained_on}"
        elif foreign:
            why = f"its task {foreign[0]!r} is not theirs"
        else:
            return
        raise ConfigError(f"network {net.name!r}: expected images of its own data set (--recipe or --images), "
                          f"found rendered scenes: {why}")  # fmt: skip

    def _of_recipe(self, net: Network, quiet: bool) -> Dataset | FolderDataset:
        from cli.recipes import open_split
        from model.recipes.loader import load_recipe

        recipe = load_recipe(self.options["recipe"])
        if recipe.dataset != "scenes":
            from model.datasets import check_network, dataset_spec

            check_network(dataset_spec(recipe.dataset), net)  # the right data, though no target is read
        dataset = open_split(recipe, net, self.split, tasks=(), data_root=self.options["data_root"], quiet=quiet)
        return dataset.subset(self.options["limit"]) if self.options["limit"] else dataset


@click.group()
def command() -> None:
    """Experts: which task uses which, as a file for schedules and simulators; and pruning the idle ones.

    \b
    Examples:
      m3vit experts usage build/bundle --out usage.json --json
      m3vit experts prune build/run/float.safetensors pruned.safetensors --keep 4
    """


@command.command("usage")
@click.argument("source", metavar="CHECKPOINT|BUNDLE", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@data_options
@json_option
@quiet_option
@click.pass_context
def usage(ctx: click.Context, source: Path, out: Path, as_json: bool, quiet: bool, **_: Any) -> None:
    """Count the tokens that every expert gets from every task, and write them to a JSON file.

    A BUNDLE runs in the golden integer model and needs no PyTorch (but for the data set of a recipe); a CHECKPOINT,
    float or quantized, runs in PyTorch.

    \b
    Examples:
      m3vit experts usage build/bundle --out usage.json
      m3vit experts usage build/bundle --images photos --out usage.json
      m3vit experts usage run/float.safetensors --recipe small-nyud-multi_gate --data-root data/NYUD_MT --out u.json
    """
    from accel.usage import golden_usage, save_usage

    data = DataChoice(ctx)
    if source.is_file() and source.name != "manifest.json":
        from model.experts import measure_usage

        model, net = _load(source)
        found = measure_usage(model, data.dataset(net, quiet), _BATCH)
    else:
        from accel.bundle import open_bundle

        bundle = open_bundle(source.parent if source.name == "manifest.json" else source)
        bundle.verify()
        count, frames = data.frames(bundle.config.network, quiet)
        with progress(count, "experts", "image", quiet) as bar:
            found = golden_usage(bundle.encoder, frames, bar.update)
    save_usage(out, found)
    if as_json:
        used = {task: {str(block): count for block, count in found.used(task).items()} for task in found.tokens}
        emit_json({
            "source": str(source), "out": str(out), "data": data.kind, "network": found.network,
            "images": found.images, "experts": found.experts, "top_k": found.top_k, "used": used,
            "tokens": {task: {str(block): row for block, row in rows.items()} for task, rows in found.tokens.items()},
        })  # fmt: skip
        return
    _show_usage(found)
    note(f"{found.images} images: {out}", quiet)


def _show_usage(found: ExpertUsage) -> None:
    each = found.images * found.tokens_per_image
    rows = []
    for task in found.tokens:
        used = found.used(task)
        for block, row in zip(found.blocks, found.counts(task), strict=True):
            busiest = int(row.argmax())
            share = f"{row[busiest] / each:.0%} of tokens"
            rows.append((task, block, f"{used[block]} of {found.experts}", busiest, share))
    print(table(("task", "block", "experts used", "busiest", "which gets"), rows))


@command.command("prune")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--keep", required=True, type=click.IntRange(min=1), metavar="N",
              help="Keep the N most active experts of every gate.")  # fmt: skip
@data_options
@json_option
@quiet_option
@click.pass_context
def prune(
    ctx: click.Context, checkpoint: Path, out: Path, keep: int, as_json: bool, quiet: bool, **_: Any
) -> None:
    """Write a smaller network: of every block the experts that its gates are most active for, re-indexed.

    Activity is the mean gate probability on the images, by default training images. Rendered scenes serve networks that
    were trained on them; others need --recipe or --images. Tasks share the experts of a block, so the union over tasks
    stays; all blocks keep equally many. OUT keeps the index map under extra.pruned. CHECKPOINT must be a float one:
    quantize afterwards, if possible after some more training.

    \b
    Examples:
      m3vit experts prune run/float.safetensors pruned.safetensors --keep 4
      m3vit experts prune run/float.safetensors pruned.safetensors --keep 4 --recipe mine.toml --json
    """
    from model.checkpoint import load_checkpoint, save_checkpoint
    from model.experts import gate_activity, plan_pruning, prune_checkpoint
    from quant.checkpoint import STAGE

    data = DataChoice(ctx)
    loaded = load_checkpoint(checkpoint)
    if loaded.stage == STAGE:
        raise CheckpointError(f"{checkpoint}: stage: expected float weights, found {STAGE!r}: prune before quantizing")
    if out.exists() and out.samefile(checkpoint):
        raise CheckpointError(f"{out}: expected another file than the checkpoint that is pruned")
    model, net = _load(checkpoint)
    data.require_right_data(net, loaded.options.get("dataset"))
    dataset = data.dataset(net, quiet)
    note(f"gate activity on {len(dataset)} images", quiet)
    plan = plan_pruning(gate_activity(model, dataset, _BATCH), keep)
    pruned = prune_checkpoint(loaded, plan)
    save_checkpoint(out, pruned)
    if as_json:
        emit_json({
            "checkpoint": str(checkpoint), "out": str(out), "data": data.kind, "images": len(dataset), "keep": keep,
            "experts_before": net.experts, "experts": plan.experts,
            "index_map": {str(b): {str(old): new for old, new in plan.index_map(b).items()} for b in plan.kept},
            "original": pruned.extra["pruned"]["experts"],
            "activity_kept": pruned.extra["pruned"]["activity_kept"],
        })  # fmt: skip
        return
    rows = [
        (block, " ".join(f"{old}→{new}" for old, new in plan.index_map(block).items()),
         f"{min(shares[block] for shares in plan.activity_kept.values()):.1%}")
        for block in plan.kept
    ]  # fmt: skip
    print(table(("block", "expert before → now", "activity kept, worst task"), rows))
    print(f"{out}: {plan.experts} of {net.experts} experts per block")


def _load(path: Path) -> tuple[nn.Module, Network]:
    """The float or quantized network in a checkpoint."""
    from cli.checkpoint_header import read_header
    from quant.checkpoint import STAGE, load_float, load_qat

    model = load_qat(path) if read_header(path)["stage"] == STAGE else load_float(path)
    return model, model.network
