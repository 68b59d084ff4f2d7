"""Training by a recipe: float stage, quantization-aware stage, metrics of both, on any of the data sets.

The run folder is that of :mod:`cli.training`: same files, same rules for resuming.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import Formats, Network, digest, to_dict
from cli.console import bars_hidden, note
from cli.recipes import measure, open_split, recipe_network, restrict_to_windows
from cli.training import (
    METRICS_FILE,
    RunSummary,
    checkpoint_file,
    measured_before,
    progress_note,
    save_measured,
    start_run,
    write_json,
)

if TYPE_CHECKING:
    from torch import nn

    from model.data import Dataset
    from model.recipes.loader import Recipe
    from model.samples import FolderDataset


@dataclass(frozen=True)
class RecipePlan:
    """One run of a recipe. ``steps`` and ``qat_steps`` follow from epochs, batch and the size of the data set."""

    recipe: Recipe
    network: Network
    formats: Formats
    run_dir: Path
    steps: int
    qat_steps: int
    data_key: str

    def options(self) -> dict[str, Any]:
        """The recipe as it is kept in checkpoints."""
        return {**self.recipe.document(), "data": self.data_key}

    def identity(self) -> dict[str, Any]:
        """Everything that changes the results, ready for JSON."""
        return {**self.options(), "network": to_dict(self.network), "formats": to_dict(self.formats)}


def train_recipe(
    recipe: Recipe,
    run_dir: Path,
    *,
    data_root: Path | None = None,
    data_dir: Path | None = None,
    resume: bool = True,
    device: str | None = None,
    tensorboard: bool = True,
    checkpoint_every: int = 100,
    quiet: bool = False,
) -> tuple[Network, RunSummary | None]:
    """Train, fine-tune and measure, like :func:`cli.training.train`; returns the network and what came of it.

    Args:
        data_root: of a data set on disk; from the environment by default.
        data_dir: where rendered scenes are kept; ``run_dir``/data by default.

    Raises:
        ConfigError: the folder holds another run, or the network does not fit the data set.
        DataError: the data set is missing, incomplete or damaged.
        M3vitError: the loss diverged, or the file system refused.
    """
    import torch

    from model import distributed
    from model.train import fit
    from model.vit import MultiTaskViT
    from quant.finetune import finetune, qat_options

    net = recipe_network(recipe)
    formats = Formats(recipe.quantization["weight_bits"], recipe.quantization["activation_bits"])
    place = torch.device(device) if device is not None else distributed.default_device()
    distributed.join(place)
    chief = distributed.rank() == 0
    hush = quiet or not chief

    def split(name: str) -> Dataset | FolderDataset:
        return open_split(recipe, net, name, data_root=data_root, cache=data_dir or run_dir / "data", quiet=hush)

    if not chief:
        distributed.barrier()  # the first process renders the scenes, the others find them
    train_set, val_set = split("train"), split("val")
    if chief:
        distributed.barrier()
    common = {
        "quiet": bars_hidden(quiet),
        "tensorboard": tensorboard,
        "checkpoint_every": checkpoint_every,
    }
    float_options = recipe.options(len(train_set), **common)
    epoch_steps = math.ceil(len(train_set) / recipe.batch)
    qat_steps = recipe.quantization["epochs"] * epoch_steps
    plan = RecipePlan(recipe, net, formats, run_dir, float_options.steps, qat_steps, train_set.key)
    if chief:
        start_run(plan, resume)

    model = MultiTaskViT(net, recipe.seed)
    restrict_to_windows(recipe, model)
    float_fit = fit(model, train_set, float_options, run_dir, "float", device=place, resume=resume)
    note(progress_note("float", float_fit), hush)

    tuning = None
    if qat_steps:
        tuning = qat_options(
            qat_steps, lr=recipe.quantization["lr"], batch_size=recipe.batch, seed=recipe.seed,
            balance_weight=recipe.balance_weight, **recipe.losses(), **common,
        )  # fmt: skip
    quantized = finetune(model, train_set, run_dir, tuning, formats, device=place, resume=resume)
    note(progress_note("qat", quantized.fit), hush)

    metrics = _measure(plan, {"float": model, "qat": quantized.model}, train_set, val_set, hush)
    fits = {"float": float_fit, "qat": quantized.fit}
    summary = RunSummary(
        checkpoints={stage: checkpoint_file(run_dir, stage) for stage in fits},
        metrics=metrics,
        resumed={stage: result.resumed_at if result else 0 for stage, result in fits.items()},
        seconds={stage: result.seconds if result else 0.0 for stage, result in fits.items()},
    )
    if not chief:
        return net, None
    write_json(run_dir / METRICS_FILE, _document(plan, summary))
    return net, summary


def _measure(
    plan: RecipePlan,
    models: Mapping[str, nn.Module],
    train_set: Dataset | FolderDataset,
    val_set: Dataset | FolderDataset,
    quiet: bool,
) -> dict[str, Any]:
    """Metrics of every stage, kept beside the weights by the first process.

    Every process measures, because a forward pass may wait for the others (see :func:`cli.training.train`).
    """
    import torch

    from model import distributed
    from model.data import Dataset
    from model.metrics import trivial_metrics

    chief = distributed.rank() == 0
    metrics: dict[str, Any] = {}
    if plan.recipe.dataset == "scenes":
        assert isinstance(train_set, Dataset) and isinstance(val_set, Dataset)
        metrics["trivial"] = trivial_metrics(plan.network, train_set, val_set)
    for stage, model in models.items():
        path = checkpoint_file(plan.run_dir, stage)
        known = measured_before(path, model, val_set) if chief else None
        missing = torch.tensor(float(chief and known is None), device=next(model.parameters()).device)
        if distributed.all_reduce_sum(missing) > 0:
            note(f"{stage}: measuring on {len(val_set)} held-out images", quiet)
            known = measure(plan.recipe, model, val_set)
            if chief:
                save_measured(plan, path, stage, model, known, val_set)
        metrics[stage] = known
    return metrics


def _document(plan: RecipePlan, summary: RunSummary) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        "recipe": plan.recipe.name,
        "network": plan.network.name,
        "network_hash": digest(to_dict(plan.network))[:16],
        "routing": plan.network.routing,
        "options": plan.options(),
        "formats": to_dict(plan.formats),
        "metrics": summary.metrics,
        "checkpoints": {stage: path.name for stage, path in summary.checkpoints.items()},
    }
