"""``m3vit train``: float stage and quantization-aware stage, on rendered scenes or by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from accel.config import HEADS, NETWORKS, ROUTINGS, Formats, Network
from cli.arguments import parse_network, with_routing
from cli.console import emit_json, json_option, note, quiet_option, table

if TYPE_CHECKING:
    from cli.initial import Initial
    from cli.training import RunSummary

RECIPE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "epochs": ("epochs",),
    "qat_epochs": ("quantization", "epochs"),
    "optimizer": ("optimizer",),
    "head": ("network", "head"),
    "expert_windows": ("expert_windows",),
    "batch": ("batch",),
    "seed": ("seed",),
    "qat_lr": ("quantization", "lr"),
    "weight_bits": ("quantization", "weight_bits"),
    "activation_bits": ("quantization", "activation_bits"),
    "scenes": ("scenes", "train"),
    "val_scenes": ("scenes", "val"),
    "precision": ("precision",),
}
"""Option → the field of a recipe that it overrides."""
RECIPE_ONLY = ("epochs", "qat_epochs", "optimizer", "head", "expert_windows", "tasks", "data_root")
SCENES_ONLY = ("network_name", "steps", "qat_steps", "twin")
NOT_WITH_INIT = ("network_name", "routing", "head")


@click.command()
@click.argument("config", required=False, metavar="[CONFIG]")
@click.option("--network", "network_name", default="m3vit-demo", show_default=True, metavar="NAME|FILE.json",
              help=f"Preset ({', '.join(NETWORKS)}) or a file with the fields of a network.")  # fmt: skip
@click.option("--routing", type=click.Choice(ROUTINGS), help="Another routing than the network's own.")
@click.option("--out", "run_dir", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--init", "init", type=click.Path(path_type=Path), metavar="CKPT",
              help="Start from the float weights, network and expert windows of this checkpoint.")  # fmt: skip
@click.option("--steps", default=600, show_default=True,
              help="Optimizer steps of the float stage; 0 with --init: quantization only.")  # fmt: skip
@click.option("--qat-steps", default=100, show_default=True, help="Steps of the quantized stage; 0 only calibrates.")
@click.option("--batch", default=16, show_default=True, help="Images per step, over all processes.")
@click.option("--scenes", default=5120, show_default=True, help="Rendered scenes to train on.")
@click.option("--val-scenes", default=256, show_default=True, help="Held-out scenes to measure on.")
@click.option("--seed", default=0, show_default=True, help="Of weights, scenes, batches and gate noise.")
@click.option("--weight-bits", default=8, show_default=True, help="Width of weights, 2 to 8.")
@click.option("--activation-bits", default=8, show_default=True, help="Width of activations, 2 to 8.")
@click.option("--lr", default=1.5e-3, show_default=True, help="Peak learning rate of the float stage.")
@click.option("--qat-lr", default=3e-4, show_default=True, help="Peak learning rate of the quantized stage.")
@click.option("--twin", is_flag=True, help="Also train the float model as long as the quantized one, to compare.")
@click.option("--epochs", type=int,
              help="With CONFIG: epochs of the float stage; 0 with --init: quantization only.")  # fmt: skip
@click.option("--qat-epochs", type=int, help="With CONFIG: epochs of the quantized stage; 0 only calibrates.")
@click.option("--optimizer", type=click.Choice(("sgd", "adamw")), help="With CONFIG: another optimizer than its own.")
@click.option("--head", type=click.Choice(HEADS), help="With CONFIG: other heads than its own.")
@click.option("--expert-windows", type=int, metavar="N",
              help="With CONFIG: let each task use N experts of a block only; 0 = all.")  # fmt: skip
@click.option("--task", "tasks", multiple=True, help="With CONFIG: train this of its tasks; repeat for several.")
@click.option("--data-root", type=click.Path(path_type=Path),
              help="With CONFIG: folder of the data set.  [default: from the environment]")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep rendered scenes here.  [default: OUT/data]")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(("auto", "float32")),
              help="On a GPU: auto trains in mixed precision, float32 does not.")  # fmt: skip
@click.option("--device", help="cpu, cuda, cuda:1 …  [default: this process' GPU, else the CPU]")
@click.option("--checkpoint-every", default=100, show_default=True, help="Steps between checkpoints.")
@click.option("--resume/--no-resume", default=True, help="Continue the run found in OUT, or start it anew.")
@click.option("--tensorboard/--no-tensorboard", default=True, help="Event files beside the CSV logs.")
@json_option
@quiet_option
@click.pass_context
def command(
    ctx: click.Context,
    config: str | None,
    network_name: str,
    routing: str | None,
    run_dir: Path,
    init: Path | None,
    weight_bits: int,
    activation_bits: int,
    epochs: int | None,
    qat_epochs: int | None,
    optimizer: str | None,
    head: str | None,
    expert_windows: int | None,
    tasks: tuple[str, ...],
    data_root: Path | None,
    data_dir: Path | None,
    precision: str,
    device: str | None,
    checkpoint_every: int,
    resume: bool,
    tensorboard: bool,
    as_json: bool,
    quiet: bool,
    **numbers: float,
) -> None:
    """Train a multi-task MoE vision transformer, then with quantization in the loop.

    Without CONFIG on rendered scenes, as the options say. CONFIG is a recipe, by name (`m3vit recipes`) or as a .toml
    file: it says network, data set, tasks and optimizer, and options given here go before it.

    \b
    Leaves in OUT:
      float.safetensors   trained float weights      qat.safetensors   quantized: the input of `m3vit export`
      float.csv, qat.csv  losses by step             metrics.json      metrics per task on held-out images

    --init starts from an imported, pruned or trained float checkpoint. The network is then the checkpoint's, and its
    tasks must be those of CONFIG. With 0 epochs (without CONFIG: steps) its weights are quantized as they are: by QAT,
    or by calibration alone with 0 QAT epochs (steps), too.

    Killed or interrupted, the same command continues where it was. With other options it refuses: a run is never
    mixed. Several processes: torchrun --nproc_per_node 2 -m cli train --out OUT …

    \b
    Examples:
      m3vit train --out build/run
      m3vit train --out build/tc --routing task_conditioned
      m3vit train --out build/w4 --weight-bits 4 --activation-bits 4
      m3vit train --out build/smoke --steps 20 --qat-steps 5 --scenes 64 --val-scenes 16
      m3vit train small-nyud-multi_gate --data-root data/NYUD_MT --out build/nyud
      m3vit train mine.toml --out build/mine --optimizer adamw --epochs 30
      m3vit train small-pascal-multi_gate --init imported.safetensors --out build/tuned
      m3vit train mine.toml --init pruned.safetensors --epochs 0 --out build/pruned
    """
    watching: dict[str, Any] = {
        "data_dir": data_dir, "resume": resume, "device": device, "tensorboard": tensorboard,
        "checkpoint_every": checkpoint_every, "quiet": quiet,
    }  # fmt: skip
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    _refuse_options(ctx, given, RECIPE_ONLY if config is None else SCENES_ONLY, config)
    for name in NOT_WITH_INIT:
        if init is not None and name in given:
            raise click.UsageError(f"{_option(ctx, name)} does not apply with --init ({init} decides)", ctx)
    network: Network
    summary: RunSummary | None
    try:
        if config is not None:
            from cli.recipe_training import train_recipe

            recipe = _recipe(config, {name: ctx.params[name] for name in given}, tasks)
            initial = _initial(init)
            network, summary = train_recipe(recipe, run_dir, initial=initial, data_root=data_root, **watching)
        else:
            from cli.training import TrainPlan, train

            initial = _initial(init)
            network = initial.network if initial else with_routing(parse_network(network_name), routing)
            formats = Formats(weight_bits, activation_bits)
            plan = TrainPlan(network=network, run_dir=run_dir, formats=formats, precision=precision,
                             init=initial.digest if initial else None, **numbers)  # type: ignore[arg-type] # fmt: skip
            summary = train(plan, initial=initial, **watching)
    except KeyboardInterrupt:
        note("stopped; the same command continues from the last checkpoint, or anew if there is none yet", quiet)
        raise
    if summary is None:
        return
    if as_json:
        emit_json(
            {
                "network": network.name,
                "run_dir": str(run_dir),
                "checkpoints": {stage: str(path) for stage, path in summary.checkpoints.items()},
                "metrics": summary.metrics,
                "resumed": summary.resumed,
                "seconds": summary.seconds,
            }
        )
        return
    print(table(["task", "metric", "unit", *summary.columns()], summary.rows(network)))
    print(f"\nnext: m3vit export {summary.checkpoints['qat']} BUNDLE")


def _refuse_options(ctx: click.Context, given: list[str], others: tuple[str, ...], config: str | None) -> None:
    """Usage error if an option was given that belongs to the other way of training."""
    for name in given:
        if name in others:
            reason = "needs a CONFIG" if config is None else f"does not apply to a recipe ({config} decides)"
            raise click.UsageError(f"{_option(ctx, name)} {reason}", ctx)


def _option(ctx: click.Context, name: str) -> str:
    """How the option of a parameter is typed."""
    return next(param.opts[0] for param in ctx.command.params if param.name == name)


def _initial(path: Path | None) -> Initial | None:
    if path is None:
        return None
    from cli.initial import load_initial

    return load_initial(path)


def _recipe(config: str, given: Mapping[str, Any], tasks: tuple[str, ...]) -> Any:
    """The recipe, with the options that were given in place of its own values."""
    from accel.errors import ConfigError
    from model.recipes.loader import load_recipe

    changes: dict[str, Any] = {}
    for name, path in RECIPE_FIELDS.items():
        if name in given:
            table = changes
            for part in path[:-1]:
                table = table.setdefault(part, {})
            table[path[-1]] = given[name]
    recipe = load_recipe(config, changes=changes)
    if "routing" in given:
        width = 0 if given["routing"] == "multi_gate" else recipe.network.get("task_embed_dim") or 16
        changes.setdefault("network", {}).update(routing=given["routing"], task_embed_dim=width)
    if "lr" in given:
        changes[recipe.optimizer] = {"lr": given["lr"]}
    if recipe.dataset != "scenes" and "scenes" in changes:
        raise ConfigError(f"{recipe.where}: dataset = {recipe.dataset!r}: --scenes and --val-scenes need 'scenes'")
    return load_recipe(config, tasks=tuple(dict.fromkeys(tasks)), changes=changes)
