"""Recipes: which network, data and optimizer an experiment uses.

A recipe is named ``SIZE-DATASET-MODE``, for single tasks ``SIZE-DATASET-single_task-TASK``, and is put together from
``common.toml``, ``size_SIZE.toml``, ``data_DATASET.toml`` and ``mode_MODE.toml`` in this folder, later ones overriding
earlier ones value by value; image size and outputs that ``data_DATASET.toml`` does not say are the data set's own. A
file of one's own starts from a recipe (``recipe = "small-nyud-multi_gate"``) and overrides it the same way, or holds
everything itself.

Every value is checked: an unknown, duplicate or missing field and one of another type are errors that name the file.
Whether the dimensions of the network fit each other is for `accel.config.Network` to say.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from accel.errors import ConfigError
from model.datasets import DATASETS as SPECS
from model.losses import LOSS_NAMES, LOSS_WEIGHTS, LOSSES
from model.train import TrainOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SIZES = ("tiny", "small", "base")
DATASETS = ("pascal", "nyud", "nyud2", "cityscapes")
MODES = ("single_task", "multi_gate", "task_conditioned")
DEMO = ("demo", "scenes")
"""Size and data set of the recipes that need no files."""

Table = dict[str, Any]
_Schema = Mapping[str, Any]

_NUMBER = (int, float)
_OPTIMIZER: Table = {
    "lr": _NUMBER, "weight_decay": _NUMBER, "schedule": str, "power": _NUMBER, "final_lr": _NUMBER,
    "warmup_epochs": _NUMBER, "clip": _NUMBER,
}  # fmt: skip
_DIMENSIONS = (
    "image_height", "image_width", "patch", "embed_dim", "depth", "heads", "dense_hidden", "experts", "top_k",
    "expert_hidden", "unit_hidden", "task_embed_dim", "head_hidden",
)  # fmt: skip
_OUTPUT: Table = {"channels": int, "kind": str, "loss": str, "weight": _NUMBER}
SCHEMA: Table = {
    "recipe": str, "dataset": str, "tasks": list, "optimizer": str, "epochs": int, "batch": int, "seed": int,
    "balance_weight": _NUMBER, "gate_noise": _NUMBER, "expert_windows": int, "precision": str,
    "network": {"preset": str, "routing": str, "head": str, **dict.fromkeys(_DIMENSIONS, int)},
    "outputs": {"*": _OUTPUT},
    "sgd": {**_OPTIMIZER, "momentum": _NUMBER},
    "adamw": {**_OPTIMIZER, "beta1": _NUMBER, "beta2": _NUMBER},
    "quantization": {"epochs": int, "lr": _NUMBER, "weight_bits": int, "activation_bits": int},
    "scenes": {"train": int, "val": int},
}  # fmt: skip
"""Field → type, or the fields of a table; ``*`` stands for any name."""

_REQUIRED = ("dataset", "tasks", "optimizer", "epochs", "batch", "seed", "balance_weight", "gate_noise", "network")
_REQUIRED_IN = {
    "sgd": ("lr", "momentum", "weight_decay", "schedule"),
    "adamw": ("lr", "beta1", "beta2", "weight_decay", "schedule"),
    "quantization": ("epochs", "lr", "weight_bits", "activation_bits"),
    "scenes": ("train", "val"),
}


@dataclass(frozen=True)
class Recipe:
    """One experiment, complete and checked.

    Attributes:
        name: of the recipe, or the stem of the user's file.
        where: file or recipe, for messages.
        dataset: ``pascal``, ``nyud``, ``cityscapes`` or ``scenes``.
        tasks: in the order of their gates.
        network: fields of `accel.config.Network` but ``name`` and ``tasks``, and perhaps ``preset``, the network whose
            fields apply where none is given.
        outputs: task → ``channels``, ``kind``, ``loss``, ``weight``.
        optimizer: ``sgd`` or ``adamw``; settings: its table.
        epochs, batch, seed, balance_weight, gate_noise: of the float stage; 0 epochs only quantize weights that are
            given (``m3vit train --init``).
        quantization: ``epochs``, ``lr``, ``weight_bits``, ``activation_bits``.
        scenes: how many scenes to render, for that data set only.
        expert_windows: how many experts each task may use (`model.windows.expert_windows`); 0 = all.
        precision: of training on a GPU, in both stages (`model.train.TrainOptions`).
    """

    name: str
    where: str
    dataset: str
    tasks: tuple[str, ...]
    network: Table
    outputs: dict[str, Table]
    optimizer: str
    settings: Table
    epochs: int
    batch: int
    seed: int
    balance_weight: float
    gate_noise: float
    quantization: Table
    scenes: Table
    expert_windows: int = 0
    precision: str = "auto"

    def task_fields(self) -> list[Table]:
        """Fields of `accel.config.Task`, one table per task."""
        return [
            {"name": name, "channels": self.outputs[name]["channels"], "kind": self.outputs[name]["kind"]}
            for name in self.tasks
        ]

    def losses(self) -> Table:
        """The loss part of the options: ``loss_weights`` and ``loss_names``."""
        chosen = {name: self.outputs[name] for name in self.tasks}
        return {
            "loss_weights": {name: float(output["weight"]) for name, output in chosen.items()},
            "loss_names": {name: output["loss"] for name, output in chosen.items() if output["loss"] != output["kind"]},
        }

    def options(self, images: int, **changes: Any) -> TrainOptions:
        """Options of the float stage on a data set of ``images`` images."""
        epoch_steps = math.ceil(images / self.batch)
        settings = dict(self.settings)
        warmup = round(settings.pop("warmup_epochs", 0) * epoch_steps)
        values = {
            "steps": self.epochs * epoch_steps, "epoch_steps": epoch_steps, "batch_size": self.batch,
            "optimizer": self.optimizer, "warmup": warmup, "seed": self.seed, "balance_weight": self.balance_weight,
            "gate_noise": self.gate_noise, "precision": self.precision, **settings, **self.losses(), **changes,
        }  # fmt: skip
        return TrainOptions(**values)

    def document(self) -> Table:
        """Everything that changes results, ready for JSON."""
        values = dataclasses.asdict(self)
        del values["where"]
        for name, default in (("expert_windows", 0), ("precision", "auto")):
            if values[name] == default:  # runs from before there was this field go on
                del values[name]
        return {**values, "tasks": list(self.tasks)}


def recipe_names() -> list[str]:
    """Names of all packaged recipes."""
    names = []
    for size, dataset in [*((size, data) for size in SIZES for data in DATASETS), DEMO]:
        for mode in MODES:
            stem = f"{size}-{dataset}-{mode}"
            names += (
                [f"{stem}-{task}" for task in _packaged(f"data_{dataset}")["tasks"]] if mode == MODES[0] else [stem]
            )
    return names


def load_recipe(
    text: str | os.PathLike[str],
    *,
    tasks: tuple[str, ...] = (),
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a name or of a ``.toml`` file.

    Args:
        tasks: train these of the recipe's tasks only.
        changes: values that go before those of the files, nested as in a file.

    Raises:
        ConfigError: no such recipe or file, not TOML, or a field is unknown, duplicate, missing or of a wrong value.
    """
    path = Path(text)
    if path.suffix == ".toml":
        where, data = str(path), _read(path)
        if "recipe" in data:
            data = _merged(_named(data["recipe"], f"{where}: recipe"), data)
        name = path.stem
    else:
        name, where = str(text), f"recipe {str(text)!r}"
        data = _named(name, "recipe")
    if changes:
        _check_types(f"{where}: options", changes, SCHEMA)
        data = _merged(data, changes)
    if tasks:
        data = {**data, "tasks": [task for task in tasks]}
    return _recipe(name, where, data)


def _named(name: str, where: str) -> Table:
    """Merged tables of a packaged recipe."""
    parts = name.split("-")
    sizes = {*SIZES, DEMO[0]}
    if len(parts) not in (3, 4) or parts[0] not in sizes or parts[2] not in MODES:
        raise ConfigError(
            f"{where} {name!r}: expected SIZE-DATASET-MODE, as `m3vit recipes` lists them, or a .toml file"
        )
    size, dataset, mode = parts[:3]
    if (dataset not in DATASETS or size not in SIZES) and (size, dataset) != DEMO:
        raise ConfigError(f"{where} {name!r}: data set {dataset!r}: expected one of {', '.join(DATASETS)} for {size}")
    data: Table = {}
    for part in ("common", f"size_{size}", f"data_{dataset}", f"mode_{mode}"):
        data = _merged(data, _packaged(part))
    if mode == "single_task":
        known = data["tasks"]
        if len(parts) != 4 or parts[3] not in known:
            raise ConfigError(f"{where} {name!r}: expected {size}-{dataset}-{mode}-TASK with one of {', '.join(known)}")
        data["tasks"] = [parts[3]]
    elif len(parts) == 4:
        raise ConfigError(f"{where} {name!r}: expected {size}-{dataset}-{mode} without a task: it trains them all")
    return data


def _packaged(stem: str) -> Table:
    file = resources.files("model.recipes").joinpath(f"{stem}.toml")
    table = _parse(file.read_text(encoding="utf-8"), f"{stem}.toml")
    return _merged(_of_dataset(table["dataset"]), table) if "dataset" in table else table


def _of_dataset(name: str) -> Table:
    """Image size and outputs of a data set on disk, which its packaged recipes need not repeat."""
    if name not in SPECS:
        return {}
    spec = SPECS[name]
    return {
        "network": {"image_height": spec.height, "image_width": spec.width},
        "outputs": {task.name: {"channels": task.channels, "kind": task.kinds[0]} for task in spec.tasks},
    }


def _read(path: Path) -> Table:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read recipe: {getattr(error, 'strerror', None) or error}") from error


def _parse(text: str, where: str) -> Table:
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: {_explain(text, str(error))}") from error
    _check_types(where, data, SCHEMA)
    return data


def _explain(text: str, message: str) -> str:
    """What is wrong with a TOML file, with the line it is in: the parser names neither field nor table."""
    _, found, tail = message.rpartition("(at line ")
    number = int(tail.partition(",")[0]) if found and tail.partition(",")[0].isdigit() else 0
    lines = text.splitlines()
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    if "overwrite" in message or "twice" in message:
        field = line.partition("=")[0].strip(" []") or line
        return f"{field}: given twice (line {number})"
    return f"not valid TOML: {message}" + (f": {line}" if line else "")


def _check_types(where: str, data: Mapping[str, Any], schema: _Schema, prefix: str = "") -> None:
    """Refuse unknown fields and wrong types."""
    for name, value in data.items():
        expected = schema.get(name, schema.get("*"))
        field = f"{prefix}{name}"
        if expected is None:
            raise ConfigError(f"{where}: {field}: unknown field: expected one of {', '.join(schema)}")
        if isinstance(expected, dict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {field}: expected a table, found {value!r}")
            _check_types(where, value, expected, f"{field}.")
        elif not isinstance(value, expected) or isinstance(value, bool):
            wanted = "a number" if expected is _NUMBER else {int: "an integer", str: "text", list: "a list"}[expected]
            raise ConfigError(f"{where}: {field} = {value!r}: expected {wanted}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {field} = {value!r}: expected a finite number")


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> Table:
    """``base`` with the values of ``top``, table by table."""
    result: Table = dict(base)
    for name, value in top.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _recipe(name: str, where: str, data: Table) -> Recipe:
    _require_fields(where, data, _REQUIRED)
    dataset, tasks = data["dataset"], data["tasks"]
    _one_of(where, "dataset", dataset, tuple(LOSS_WEIGHTS))
    _one_of(where, "optimizer", data["optimizer"], ("sgd", "adamw"))
    tables = [data["optimizer"], "quantization", *(["scenes"] if dataset == "scenes" else [])]
    _require_fields(where, data, tables)
    for table in tables:
        _require_fields(where, data[table], _REQUIRED_IN[table], f"{table}.")
    for field, least in (("epochs", 0), ("batch", 1), ("seed", 0)):
        _at_least(where, field, data[field], least)
    _at_least(where, f"{data['optimizer']}.warmup_epochs", data[data["optimizer"]].get("warmup_epochs", 0), 0)
    _at_least(where, "expert_windows", data.get("expert_windows", 0), 0)
    _at_least(where, "quantization.epochs", data["quantization"]["epochs"], 0)
    for field in ("weight_bits", "activation_bits"):
        bits = data["quantization"][field]
        if not 2 <= bits <= 8:
            raise ConfigError(f"{where}: quantization.{field} = {bits}: expected 2 to 8")
    if not data["quantization"]["lr"] > 0:
        raise ConfigError(f"{where}: quantization.lr = {data['quantization']['lr']}: expected more than 0")
    for field, value in data.get("scenes", {}).items():
        _at_least(where, f"scenes.{field}", value, 1)
    outputs = {task: _output(where, dataset, task, data.get("outputs", {})) for task in _tasks(where, tasks)}
    recipe = Recipe(
        name=name, where=where, dataset=dataset, tasks=tuple(tasks), network=dict(data["network"]), outputs=outputs,
        settings=dict(data[data["optimizer"]]), quantization=dict(data["quantization"]),
        scenes=dict(data["scenes"]) if dataset == "scenes" else {}, expert_windows=data.get("expert_windows", 0),
        precision=data.get("precision", "auto"),
        **{field: data[field] for field in ("optimizer", "epochs", "batch", "seed", "balance_weight", "gate_noise")},
    )  # fmt: skip
    try:
        recipe.options(1, steps=max(1, recipe.epochs))
    except ConfigError as error:  # "training: FIELD = …": the options do not know which table a value is from
        problem = str(error).removeprefix("training: ")
        table = f"{recipe.optimizer}." if problem.partition(" ")[0] in recipe.settings else ""
        raise ConfigError(f"{where}: {table}{problem}") from error
    return recipe


def _tasks(where: str, tasks: list[Any]) -> Iterator[str]:
    if not tasks:
        raise ConfigError(f"{where}: tasks = []: expected at least one task")
    for i, task in enumerate(tasks):
        if not isinstance(task, str):
            raise ConfigError(f"{where}: tasks[{i}] = {task!r}: expected text")
        if task in tasks[:i]:
            raise ConfigError(f"{where}: tasks: {task!r} is given twice")
        yield task


def _output(where: str, dataset: str, task: str, outputs: Mapping[str, Table]) -> Table:
    """What a task's head produces and how it is trained, with the data set's loss and weight where none is given."""
    if task not in outputs:
        raise ConfigError(f"{where}: tasks: {task!r}: expected one of {', '.join(outputs) or 'none: no outputs'}")
    given = outputs[task]
    _require_fields(where, given, ("channels", "kind"), f"outputs.{task}.")
    output = {
        "channels": given["channels"],
        "kind": given["kind"],
        "loss": given.get("loss", LOSS_NAMES[dataset].get(task, given["kind"])),
        "weight": given.get("weight", LOSS_WEIGHTS[dataset].get(task, 1)),
    }
    fitting = _LOSSES_OF.get(output["kind"])
    if fitting is None:
        raise ConfigError(f"{where}: outputs.{task}.kind = {output['kind']!r}: expected one of {', '.join(_LOSSES_OF)}")
    _one_of(where, f"outputs.{task}.loss", output["loss"], fitting)
    if not output["weight"] > 0:
        raise ConfigError(f"{where}: outputs.{task}.weight = {output['weight']!r}: expected more than 0")
    return output


_LOSSES_OF = {
    kind: (kind, *(name for name in LOSSES if kind == "binary" and "balanced" in name))
    for kind in ("labels", "depth", "log_depth", "normals", "binary")
}


def _require_fields(where: str, data: Mapping[str, Any], names: Any, prefix: str = "") -> None:
    for name in names:
        if name not in data:
            raise ConfigError(f"{where}: {prefix}{name}: missing")


def _one_of(where: str, field: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{where}: {field} = {value!r}: expected one of {', '.join(known)}")


def _at_least(where: str, field: str, value: float, least: int) -> None:
    if value < least:
        raise ConfigError(f"{where}: {field} = {value}: expected at least {least}")
