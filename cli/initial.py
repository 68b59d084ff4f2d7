"""The checkpoint that training starts from: ``m3vit train --init``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.errors import CheckpointError
from cli.recipes import check_image_size

if TYPE_CHECKING:
    from accel.config import Network
    from model.recipes.loader import Recipe
    from model.vit import MultiTaskViT


@dataclass(frozen=True)
class Initial:
    """Float weights with their network and expert windows.

    Attributes:
        path: the checkpoint, for messages.
        model: restricted to the checkpoint's windows, if it has some.
        digest: of weights and windows: two runs that start from the same digest start alike.
    """

    path: Path
    model: MultiTaskViT
    digest: str

    @property
    def network(self) -> Network:
        return self.model.network


def load_initial(path: Path) -> Initial:
    """Read a float checkpoint: trained, imported or pruned.

    Raises:
        CheckpointError: not a float checkpoint, or damaged.
    """
    from accel.config import digest
    from model.windows import windows_metadata
    from quant.checkpoint import load_float
    from quant.finetune import weights_digest

    model = load_float(path)
    identity: dict[str, Any] = {"weights": weights_digest(model), **windows_metadata(model)}
    return Initial(path, model, digest(identity)[:16])


def check_initial(initial: Initial, recipe: Recipe, net: Network) -> None:
    """Refuse a checkpoint that the recipe cannot go on with; its dimensions, routing and heads may be its own.

    Args:
        net: the recipe's network.

    Raises:
        CheckpointError: another image size, other tasks, or a task with other channels or of another kind.
    """
    found = initial.network
    check_image_size(initial.path, found, recipe, net)
    if set(found.task_names) != set(recipe.tasks):
        raise CheckpointError(
            f"{initial.path}: network.tasks: expected {', '.join(recipe.tasks)} as in {recipe.where}, "
            f"found {', '.join(found.task_names)}: choose the same ones (`train --task`, `import --tasks`)"
        )
    for task in found.tasks:
        wanted = net.task(task.name)
        for field in ("channels", "kind"):
            value, expected = getattr(task, field), getattr(wanted, field)
            if value != expected:
                raise CheckpointError(f"{initial.path}: network.tasks.{task.name}.{field}: expected {expected!r} as in "
                                      f"{recipe.where}, found {value!r}")  # fmt: skip
