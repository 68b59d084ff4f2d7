"""Import checkpoints of other code bases: M³ViT's own, Edge-MoE's float dumps, DeiT and timm ViTs.

Nothing is downloaded and nothing stored in a checkpoint is executed. Every key is accounted for in the report: used,
dropped for a stated reason, missing (the model keeps its initial value) or unexpected; the last two are errors unless
allowed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accel.errors import CheckpointError, ConfigError
from model.checkpoint import Checkpoint, save_checkpoint
from model.datasets.cityscapes import CITYSCAPES
from model.import_files import is_raw_directory, read_source
from model.import_layout import (
    NORMALIZATIONS,
    Mapped,
    detect_kind,
    fold_normalization,
    follow,
    map_deit,
    map_m3vit,
    map_raw,
)
from model.vit import MultiTaskViT

if TYPE_CHECKING:
    from accel.config import Network

KINDS = ("m3vit", "edge-moe", "deit")
_COUNTER = ".num_batches_tracked"
_SHOWN = 5


@dataclass(frozen=True)
class ImportReport:
    """Where every key of the source went, and where every weight of the model came from.

    Attributes:
        source, files, kind, normalization: what was read, and how.
        network, routing, head: what it became; heads and routing follow the checkpoint.
        used: model key → key or file of the source.
        initialized: model keys that this kind of checkpoint cannot hold and that keep their initial values.
        missing: model keys that should have been there (only with ``allow_missing``).
        dropped: source key → why it is not needed.
        unexpected: source key → hint (only with ``allow_unexpected``).
        warnings: what else the user should know.
        facts: other fields of the source (epoch, …).
    """

    source: str
    files: list[str]
    kind: str
    normalization: str
    network: str
    routing: str
    head: str
    used: dict[str, str]
    initialized: list[str]
    missing: list[str]
    dropped: dict[str, str]
    unexpected: dict[str, str]
    warnings: list[str]
    facts: dict[str, Any]

    def asdict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dataclasses.asdict(self)


def import_checkpoint(
    path: str | os.PathLike[str],
    network: Network,
    *,
    kind: str = "auto",
    routing: str | None = None,
    normalization: str | None = None,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
    seed: int = 0,
) -> tuple[MultiTaskViT, ImportReport]:
    """Read a foreign checkpoint into a model of ``network``, in evaluation mode.

    Args:
        path: a file, a directory of shards ``{rank}.pth``, or a directory of raw float32 files.
        network: dimensions and tasks. Heads and routing follow an M³ViT checkpoint.
        kind: ``m3vit``, ``edge-moe``, ``deit``, or ``auto`` to tell by the content.
        routing: insist on this routing.
        normalization: of the images that the weights were trained on, a key of `NORMALIZATIONS`. By default ImageNet's,
            with a warning, but for networks of Cityscapes' image size: M³ViT trains those on images as they are, others
            do not, and no checkpoint says which.
        allow_missing: weights not found keep their initial values.
        allow_unexpected: keys without a place are left out.
        seed: of the initial values.

    Raises:
        CheckpointError: unreadable, with pickled code, a shard or key missing, an unexpected key, a wrong shape, a
            value that is not finite. ConfigError: unknown kind or normalization, or none given where it must be.
    """
    source = Path(path)
    if kind not in ("auto", *KINDS):
        raise ConfigError(f"import: kind = {kind!r}: expected auto, {', '.join(KINDS)}")
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise ConfigError(f"import: normalization = {normalization!r}: expected {', '.join(NORMALIZATIONS)}")
    chosen, assumption = (normalization, []) if normalization else _assumed_normalization(network, source)
    shards = source.is_dir() and any(item.stem.isdigit() for item in source.glob("*.pth"))
    if kind == "edge-moe" or (kind == "auto" and not shards and is_raw_directory(source)):
        if not source.is_dir():
            raise CheckpointError(f"{source}: expected a directory of raw float32 files")
        kind = "edge-moe"
        network = _with_routing(network, routing)
        model = MultiTaskViT(network, seed)
        mapped, files = map_raw(source, network, model.state_dict())
        facts: dict[str, Any] = {}
    else:
        content = read_source(source, network.experts)
        kind = detect_kind(content) if kind == "auto" else kind
        network = follow(network, content, routing) if kind == "m3vit" else _with_routing(network, routing)
        model = MultiTaskViT(network, seed)
        map_keys = map_m3vit if kind == "m3vit" else map_deit
        mapped, files, facts = map_keys(content, network, model.state_dict()), content.files, content.facts
    initialized, missing = _take(source, model, mapped, allow_missing, allow_unexpected)
    with torch.no_grad():
        proj = model.backbone.patch_embed.proj
        if "backbone.patch_embed.proj.weight" in mapped.values:
            assert proj.bias is not None
            weight, bias = fold_normalization(proj.weight, proj.bias, chosen)
            proj.weight.copy_(weight)
            proj.bias.copy_(bias)
    report = ImportReport(
        str(source), files, kind, chosen, network.name, network.routing, network.head, dict(mapped.origins),
        initialized, missing, mapped.dropped, mapped.unexpected, [*assumption, *mapped.warnings], facts,
    )  # fmt: skip
    return model.eval(), report


def _assumed_normalization(network: Network, source: Path) -> tuple[str, list[str]]:
    """What to take where nothing was said, and the warning that says so."""
    if (network.image_height, network.image_width) == (CITYSCAPES.height, CITYSCAPES.width):
        raise ConfigError(f"{source}: normalization: expected {', '.join(NORMALIZATIONS)}, found none: a network of "
                          "Cityscapes' image size; unit is what M³ViT trains it on")  # fmt: skip
    return "imagenet", [
        "normalization: none given: assumed that the weights were trained on images with ImageNet's mean and deviation"
    ]


def save_imported(path: str | os.PathLike[str], model: MultiTaskViT, report: ImportReport) -> None:
    """Write the model as a checkpoint of stage ``float`` whose ``extra`` says where it came from."""
    checkpoint = Checkpoint(
        weights=dict(model.state_dict()),
        stage="float",
        step=0,
        network=dataclasses.asdict(model.network),
        extra={"imported": report.asdict()},
    )
    save_checkpoint(path, checkpoint)


def _with_routing(network: Network, routing: str | None) -> Network:
    if routing is None or routing == network.routing:
        return network
    return dataclasses.replace(network, routing=routing, task_embed_dim=16 if routing == "task_conditioned" else 0)


def _listed(keys: list[str], hints: Mapping[str, str] | None = None) -> str:
    """The first few keys, and how many more there are."""
    shown = [f"{key} ({hints[key]})" if hints and hints.get(key) else key for key in keys[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _take(
    source: Path, model: MultiTaskViT, mapped: Mapped, allow_missing: bool, allow_unexpected: bool
) -> tuple[list[str], list[str]]:
    """Copy the mapped values into the model; returns the keys that kept their initial values: expected so, and not."""
    wanted: Mapping[str, Tensor] = model.state_dict()
    absent = [key for key in wanted if key not in mapped.values and not key.endswith(_COUNTER)]
    initialized = [key for key in absent if any(part in key for part in mapped.may_start_fresh)]
    missing = [key for key in absent if key not in set(initialized)]
    if missing and not allow_missing:
        raise CheckpointError(f"{source}: {len(missing)} keys missing: {_listed(missing)}; --allow-missing keeps their "
                              "initial values")  # fmt: skip
    if mapped.unexpected and not allow_unexpected:
        keys = sorted(mapped.unexpected)
        raise CheckpointError(f"{source}: {len(keys)} unexpected keys: {_listed(keys, mapped.unexpected)}; "
                              "--allow-unexpected leaves them out")  # fmt: skip
    values = {}
    for key, value in mapped.values.items():
        expected, found = tuple(wanted[key].shape), tuple(value.shape)
        if expected != found:
            raise CheckpointError(f"{source}: {mapped.origins[key]}: expected shape {expected}, found {found}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = value[~torch.isfinite(value)].flatten()[0].item()
            raise CheckpointError(f"{source}: {mapped.origins[key]}: expected finite values, found {bad}")
        values[key] = value.to(wanted[key].dtype)
    model.load_state_dict(values, strict=False)
    return initialized, missing
