"""What the tensors of foreign checkpoints mean: key by key onto this model's state dict.

Three layouts: the M³ViT training code's state dict, Edge-MoE's per-tensor float dumps (gates transposed to [E, D]), and
DeiT or timm ViTs. Every key ends up in exactly one place: assigned, dropped for a stated reason, or unexpected.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import CheckpointError, ConfigError
from model.import_files import MANIFEST, RAW_SUFFIXES, Source, read_raw

if TYPE_CHECKING:
    from accel.config import Network

TASK_ORDER = ("semseg", "human_parts", "sal", "normals", "edge", "depth")
"""M³ViT numbers the gates of its tasks in this order, leaving out those not trained."""
POSITIONS = "backbone.pos_embed"
NORMALIZATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": None,
}
"""Mean and standard deviation of what the weights were trained on, over RGB in 0…1: ImageNet's (M³ViT, DeiT), none
(M³ViT's Cityscapes), 0.5 (timm's AugReg); ``none``: already this project's input, nothing to convert."""

_CLASSIFIER = re.compile(r"^(backbone\.)?(head|head_dist|fc_norm|pre_logits)\.")
_GATE = re.compile(r"^(backbone\.blocks\.\d+\.mlp\.gate)\.(?:(\d+)\.)?w_gate$")
_DENSE = re.compile(r"^backbone\.blocks\.(\d+)\.mlp\.fc[12]\.")


@dataclass
class Mapped:
    """Outcome of a mapping.

    Attributes:
        values: model key → tensor, not yet checked for shape.
        origins: model key → source key.
        dropped: source key → why it is not needed.
        unexpected: source keys with no place, and a hint where there is one.
        may_start_fresh: prefixes or fragments of model keys that this layout cannot hold.
        warnings: for the user.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    may_start_fresh: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)

    def assign(self, key: str, origin: str, value: Tensor) -> None:
        self.values[key], self.origins[key] = value, origin


def detect_kind(source: Source) -> str:
    """``m3vit`` or ``deit`` by keys."""
    keys = source.tensors
    if any(".mlp.experts." in key or ".mlp.gate." in key or key.startswith("decoders.") for key in keys):
        return "m3vit"
    if any(key.endswith("blocks.0.attn.qkv.weight") for key in keys):
        return "deit"
    raise CheckpointError(
        f"{source.path}: expected keys of M3ViT (…mlp.experts…) or of a ViT (blocks.0.attn.qkv.weight), "
        f"found {', '.join(sorted(keys)[:3])}, …"
    )


def _canonical(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Key with ``backbone.`` → key as found; bare backbones (pre-training) lack the prefix."""
    if any(key.startswith("backbone.") for key in tensors):
        return {key: key for key in tensors}
    return {key if key.startswith("decoders.") else f"backbone.{key}": key for key in tensors}


def follow(network: Network, source: Source, routing: str | None) -> Network:
    """``network`` with the heads and the routing that the M³ViT checkpoint has, or the routing asked for.

    Raises:
        CheckpointError: the checkpoint was trained with the other routing than the one asked for.
    """
    keys = _canonical(source.tensors)
    if any(re.match(r"decoders\.\w+\.conv_0\.weight", key) for key in keys):
        network = dataclasses.replace(network, head="pup")
    embedding = keys.get("backbone.gate_task_represent.fc1.weight")
    several = any((match := _GATE.match(key)) and match[2] is not None for key in keys)
    found = "task_conditioned" if embedding else "multi_gate" if several else routing or network.routing
    if routing is not None and found != routing:
        raise CheckpointError(f"{source.path}: routing: asked for {routing}, found the gates of {found}")
    width = (*source.tensors[embedding].shape, 0)[0] if embedding else network.task_embed_dim
    if found == "task_conditioned" and not width:
        raise ConfigError(f"network {network.name!r}: task_embed_dim = 0: expected the width of the task embedding")
    return dataclasses.replace(network, routing=found, task_embed_dim=width if found == "task_conditioned" else 0)


def map_m3vit(source: Source, network: Network, wanted: Mapping[str, Tensor]) -> Mapped:
    """Keys of the M³ViT training code; gates and task embedding re-ordered to this network's tasks."""
    keys, mapped = _canonical(source.tensors), Mapped()
    trained = _trained_tasks(source, keys, network)
    decoders = any(key.startswith("decoders.") for key in keys)
    mapped.may_start_fresh = () if decoders else ("decoders.", "backbone.gate_task_represent.")
    for key, origin in keys.items():
        value = source.tensors[origin]
        gate = _GATE.match(key)
        if _CLASSIFIER.match(key) or key.startswith("backbone.norm."):
            mapped.dropped[origin] = "classifier of pre-training: task heads have their own norm"
        elif key.startswith("tam_model") or ".tam_model" in key:
            mapped.dropped[origin] = "cross-task attention, used in training only"
        elif gate and gate[2] is not None and network.routing == "multi_gate":
            number = int(gate[2])
            task = trained[number] if number < len(trained) else None
            if task not in network.task_names:
                mapped.unexpected[origin] = f"the network has no task {task!r}" if task else "a gate without a task"
            elif (own := f"{gate[1]}.{network.task_index(task)}.w_gate") in wanted:
                mapped.assign(own, origin, value)
            else:
                mapped.unexpected[origin] = ""
        elif gate and network.routing == "multi_gate" and f"{gate[1]}.0.w_gate" in wanted:
            for index in range(len(network.tasks)):  # what M³ViT does with a single pre-trained gate
                mapped.assign(f"{gate[1]}.{index}.w_gate", origin, value)
        elif key == "backbone.gate_task_represent.fc1.weight" and _covers(value, trained, network):
            mapped.assign(key, origin, value[:, [trained.index(name) for name in network.task_names]])
        elif key == POSITIONS and not decoders:
            mapped.assign(key, origin, resize_positions(value, network, f"{source.path}: {origin}"))
        elif key in wanted:
            mapped.assign(key, origin, value)
        else:
            mapped.unexpected[origin] = _hint(key, network)
    return mapped


def _trained_tasks(source: Source, keys: Mapping[str, str], network: Network) -> tuple[str, ...]:
    """Tasks of the checkpoint in the order of its gates: those with a decoder, else the network's."""
    names = {key.split(".")[1] for key in keys if key.startswith("decoders.")} or set(network.task_names)
    order = tuple(task for task in TASK_ORDER if task in names) + tuple(sorted(names - set(TASK_ORDER)))
    gates = {int(match[2]) for key in keys if (match := _GATE.match(key)) and match[2] is not None}
    if gates and len(gates) != len(order):
        raise CheckpointError(
            f"{source.path}: backbone.blocks.1.mlp.gate: expected one gate for each of {', '.join(order)}, "
            f"found {len(gates)} gates"
        )
    return order


def _covers(one_hot_weight: Tensor, trained: tuple[str, ...], network: Network) -> bool:
    """Whether the columns of a task embedding's first layer are this network's tasks, in whatever order."""
    columns = one_hot_weight.shape[1] if one_hot_weight.ndim == 2 else None
    return columns == len(trained) and set(trained) == set(network.task_names)


def _hint(key: str, network: Network) -> str:
    if key.endswith("w_noise"):
        return "learned gate noise: another gate (renormalized scores) than noisy_vmoe"
    if key.endswith("_aux"):
        return "decoupled gate, not noisy_vmoe"
    if key.startswith("decoders.") and key.split(".")[1] not in network.task_names:
        return f"the network has no task {key.split('.')[1]!r}"
    return ""


def map_deit(source: Source, network: Network, wanted: Mapping[str, Tensor]) -> Mapped:
    """A dense ViT: patch embedding, attention, norms and even MLPs. Experts, gates and heads start fresh."""
    mapped = Mapped(may_start_fresh=(".mlp.experts.", ".mlp.gate.", "backbone.gate_task_represent.", "decoders."))
    keys = _canonical(source.tensors)
    distilled = "backbone.dist_token" in keys
    for key, origin in keys.items():
        value, dense = source.tensors[origin], _DENSE.match(key)
        if _CLASSIFIER.match(key) or key.startswith("backbone.norm."):
            mapped.dropped[origin] = "classifier: task heads have their own norm"
        elif key == "backbone.dist_token":
            mapped.dropped[origin] = "distillation token: not used, and its position with it"
        elif dense and int(dense[1]) < network.depth and network.is_moe(int(dense[1])):
            mapped.dropped[origin] = f"block {dense[1]} has experts instead of a dense MLP"
        elif key == POSITIONS:
            if distilled and value.ndim == 3:
                value = torch.cat([value[:, :1], value[:, 2:]], 1)
            mapped.assign(key, origin, resize_positions(value, network, f"{source.path}: {origin}"))
        elif key in wanted:
            mapped.assign(key, origin, value)
        else:
            mapped.unexpected[origin] = ""
    usual = network.embed_dim // 64
    if network.heads != usual:
        mapped.warnings.append(
            f"network {network.name!r} has {network.heads} heads of {network.head_dim} channels, but DeiT and timm "
            f"train {network.embed_dim} channels with {usual} heads of 64: the attention weights load, yet are split "
            f"and scaled differently from how they were trained (heads = {usual} keeps the pre-trained function)"
        )
    return mapped


def resize_positions(positions: Tensor, network: Network, where: str) -> Tensor:
    """Position embedding [1, 1 + n, D] for the network's grid: bilinear over the square grid, cls kept.

    Unchanged if it has the network's number of tokens already.

    Raises:
        CheckpointError: the grid to resize is not square.
    """
    if positions.ndim != 3 or positions.shape[1] in (0, network.tokens):
        return positions
    cls, grid = positions[:, :1].float(), positions[:, 1:].float()
    side = round(grid.shape[1] ** 0.5)
    if side * side != grid.shape[1] or not side:
        raise CheckpointError(
            f"{where}: expected {network.tokens} positions or a square grid and cls, found {positions.shape[1]}"
        )
    square = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, (network.grid_h, network.grid_w), mode="bilinear", align_corners=False)
    return torch.cat([cls, resized.flatten(2).transpose(1, 2)], 1)


def fold_normalization(weight: Tensor, bias: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """Patch embedding [D, 3, p, p], [D] for this project's input (u8 − 128) / 128 instead of the trained one.

    Trained on x = (u8 / 255 − mean) / std = a · (u8 − 128) / 128 + b with a = 128 / (255 std) and
    b = (128 / 255 − mean) / std per channel: a goes into the weights, b through them into the bias. Patches do not
    overlap or pad, so this is exact but for rounding, which happens once (computed in double precision).
    """
    statistics = NORMALIZATIONS[normalization]
    if statistics is None:
        return weight, bias
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in statistics)
    gain, offset = 128 / (255 * std), (128 / 255 - mean) / std
    wide = weight.double()
    shift = (wide.sum((2, 3)) * offset).sum(1)
    return (wide * gain[:, None, None]).to(weight), (bias.double() + shift).to(bias)


def map_raw(directory: Path, network: Network, wanted: Mapping[str, Tensor]) -> tuple[Mapped, list[str]]:
    """Per-tensor float dumps, by manifest or by file name (``docs/checkpoints.md``); also the files read.

    Raises:
        CheckpointError: a file of the wrong length, a manifest that is not one, two files for a tensor.
    """
    mapped = Mapped(may_start_fresh=("decoders.",))
    entries = _manifest(directory) if (directory / MANIFEST).exists() else _by_name(directory, wanted, mapped)
    for key, (name, shape) in entries.items():
        if key not in wanted:
            mapped.unexpected[key] = f"{name}: the model has no such weight"
            continue
        expected = tuple(wanted[key].shape)
        turned = key.endswith("w_gate")
        shape = shape or (expected[::-1] if turned else expected)
        value = read_raw(directory / name, shape, key)
        # A square gate is taken as [E, D], too: Edge-MoE always transposes.
        if turned and shape == expected[::-1]:
            value = value.t().contiguous()
        mapped.assign(key, name, value)
    if "backbone.cls_token" not in mapped.values and POSITIONS in mapped.values:
        zero = torch.zeros_like(wanted["backbone.cls_token"])
        mapped.assign("backbone.cls_token", f"{mapped.origins[POSITIONS]} (row 0)", zero)
        mapped.warnings.append("no file for cls_token: taken as already added to row 0 of the position embedding")
    return mapped, sorted(name for name, _ in entries.values())


def _manifest(directory: Path) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """Model key → file, shape if stated."""
    path = directory / MANIFEST
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        tensors = data["tensors"]
        entries = {}
        for key, entry in tensors.items():
            shape = tuple(int(n) for n in entry["shape"]) if "shape" in entry else None
            name = str(entry["file"])
            if Path(name).name != name:
                raise CheckpointError(f"{path}: tensors.{key}: file: expected a name in this folder, found {name!r}")
            entries[str(key).removeprefix("module.")] = (name, shape)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{path}: expected {{"tensors": {{key: {{"file": name}}}}}}, found {error!r}') from error
    return entries


def _by_name(
    directory: Path, wanted: Mapping[str, Tensor], mapped: Mapped
) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    names = {stem: key for key in wanted for stem in raw_names(key)}
    entries: dict[str, tuple[str, tuple[int, ...] | None]] = {}
    for item in sorted(directory.iterdir()):
        suffix = next((s for s in RAW_SUFFIXES if item.name.endswith(s)), None)
        if suffix is None:
            continue
        stem = item.name.removesuffix(suffix).removeprefix("module.")
        if stem in names:
            key = names[stem]
            if key in entries:
                raise CheckpointError(f"{item}: {key}: found twice, also as {entries[key][0]}")
            entries[key] = (item.name, None)
        elif stem == "image" or re.fullmatch(r"l\d+_x_\w+", stem):
            mapped.dropped[item.name] = "activation kept for comparison"
        else:
            mapped.unexpected[item.name] = "no tensor is called so"
    return entries


def raw_names(key: str) -> set[str]:
    """Names, without suffix, under which a dump may hold the tensor ``key``.

    The key itself, with or without ``backbone.``, with dots or underscores; and Edge-MoE's own short names.
    """
    short = key.removeprefix("backbone.")
    names = {key, short, key.replace(".", "_"), short.replace(".", "_")}
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", short)
    if block is None:
        return names | {short.replace("patch_embed.proj.", "patch_embed_")}
    layer, rest = block.groups()
    gate = re.fullmatch(r"mlp\.gate\.(?:(\d+)\.)?w_gate", rest)
    if gate:
        task = "" if gate[1] is None else f"_task{gate[1]}"
        return names | {f"{name}_T" for name in names} | {f"l{layer}_w_gate_T{task}", f"l{layer}_w_gate{task}"}
    own = rest.replace("attn.qkv.", "qkv_").replace("mlp.experts.", "").replace("mlp.", "")
    return names | {f"l{layer}_{own.replace('.', '_')}"}
