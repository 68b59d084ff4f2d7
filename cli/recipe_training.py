"""Training by a recipe: float stage, quantization-aware stage, metrics of both, on any of the data sets.

The run folder is that of :mod:`cli.training`: same files, same rules for resuming.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import Formats, Network, digest, to_dict
from accel.errors import ConfigError
from cli.console import bars_hidden, note, step_lines
from cli.recipes import measure, open_split, recipe_network, restrict_to_windows
from cli.training import (
    METRICS_FILE,
    RunSummary,
    checkpoint_file,
    measure_stages,
    progress_note,
    start_run,
    write_json,
)

if TYPE_CHECKING:
    from torch import nn

    from cli.initial import Initial
    from model.data import Dataset
    from model.recipes.loader import Recipe
    from model.samples import FolderDataset


@dataclass(frozen=True)
class RecipePlan:
    """One run of a recipe. ``steps`` and ``qat_steps`` follow from epochs, batch and the size of the data set.

    ``init`` is the digest of the weights that the float stage starts from, None for new ones.
    """

    recipe: Recipe
    network: Network
    formats: Formats
    run_dir: Path
    steps: int
    qat_steps: int
    data_key: str
    init: str | None = None

    def options(self) -> dict[str, Any]:
        """The recipe as it is kept in checkpoints."""
        given = {} if self.init is None else {"init": self.init}
        return {**self.recipe.document(), "data": self.data_key, **given}

    def identity(self) -> dict[str, Any]:
        """Everything that changes the results, ready for JSON."""
        return {**self.options(), "network": to_dict(self.network), "formats": to_dict(self.formats)}


def train_recipe(
    recipe: Recipe,
    run_dir: Path,
    *,
    initial: Initial | None = None,
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
        initial: weights to start from, of the network to train: its tasks must be the recipe's, the other dimensions
            are its own. Its expert windows go before the recipe's. Needed by a recipe of 0 epochs.
        data_root: of a data set on disk; from the environment by default.
        data_dir: where rendered scenes are kept; ``run_dir``/data by default.

    Raises:
        ConfigError: the folder holds another run, or the network does not fit the data set.
        DataError: the data set is missing, incomplete or damaged.
        M3vitError: the loss diverged, or the file system refused.
    """
    from cli.initial import check_initial
    from model import distributed
    from model.data import Dataset
    from model.metrics import trivial_metrics
    from model.train import fit
    from model.vit import MultiTaskViT
    from model.windows import windows_metadata
    from quant.finetune import finetune, qat_options

    if initial is None and not recipe.epochs:
        raise ConfigError(f"{recipe.where}: epochs = 0: expected at least 1, or a checkpoint to start from (--init)")
    net = recipe_network(recipe)
    if initial is not None:
        check_initial(initial, recipe, net)
        net = initial.network
    formats = Formats(recipe.quantization["weight_bits"], recipe.quantization["activation_bits"])
    place = distributed.resolve_device(device)
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
    float_options = recipe.options(len(train_set), **common) if recipe.epochs else None
    epoch_steps = math.ceil(len(train_set) / recipe.batch)
    qat_steps = recipe.quantization["epochs"] * epoch_steps
    tuning = None
    if qat_steps:
        tuning = qat_options(
            qat_steps, lr=recipe.quantization["lr"], batch_size=recipe.batch, seed=recipe.seed,
            balance_weight=recipe.balance_weight, precision=recipe.precision, **recipe.losses(), **common,
        )  # fmt: skip
    steps = float_options.steps if float_options else 0
    init = initial.digest if initial else None
    plan = RecipePlan(recipe, net, formats, run_dir, steps, qat_steps, train_set.key, init)
    model = (initial.model if initial else MultiTaskViT(net, recipe.seed)).to(place)
    if not windows_metadata(model):
        restrict_to_windows(recipe, model)
    if chief:
        start_run(plan, resume)

    float_fit = None
    if float_options:
        float_fit = fit(
            model, train_set, float_options, run_dir, "float", device=place, resume=resume,
            on_step=step_lines("float", steps, hush),
        )  # fmt: skip
    note(progress_note("float", float_fit), hush)

    quantized = finetune(
        model, train_set, run_dir, tuning, formats, device=place, resume=resume,
        on_step=step_lines("qat", qat_steps, hush),
    )  # fmt: skip
    note(progress_note("qat", quantized.fit), hush)

    metrics: dict[str, Any] = {}
    if recipe.dataset == "scenes":
        assert isinstance(train_set, Dataset) and isinstance(val_set, Dataset)
        metrics["trivial"] = trivial_metrics(net, train_set, val_set)
    models: dict[str, nn.Module] = {"float": model, "qat": quantized.model}
    metrics |= measure_stages(plan, models, val_set, lambda trained: measure(recipe, trained, val_set), hush)
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
