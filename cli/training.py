"""The training chain on rendered scenes: float stage, quantization-aware stage, metrics of both.

Kept apart from the command, because the demo runs the same chain. Everything heavy is imported where it is used.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from accel.atomic import atomic_write
from accel.config import Formats, Network, digest, parse_json, to_dict
from accel.errors import ConfigError, M3vitError
from cli.console import bars_hidden, note, step_lines

if TYPE_CHECKING:
    from torch import nn

    from cli.initial import Initial
    from model.data import Dataset
    from model.samples import FolderDataset
    from model.train import FitResult

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"


class Plan(Protocol):
    """What :class:`TrainPlan` and recipes have in common."""

    @property
    def network(self) -> Network: ...
    @property
    def formats(self) -> Formats: ...
    @property
    def run_dir(self) -> Path: ...
    @property
    def steps(self) -> int: ...
    @property
    def qat_steps(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """Everything that changes the results, ready for JSON."""

    def options(self) -> dict[str, Any]:
        """:meth:`identity` without the network and the formats."""


@dataclass(frozen=True)
class TrainPlan:
    """One run: what ``m3vit train`` was asked for.

    Attributes:
        network, formats: what to train, and the widths of its quantized form.
        run_dir: where everything goes.
        steps, qat_steps: optimizer steps of the float and of the quantized stage; 0 QAT steps calibrate only.
        batch: images per step over all processes.
        scenes, val_scenes: rendered scenes to train on, and held-out ones to measure on.
        seed: of weights, scenes, batches and gate noise.
        lr, qat_lr: peak learning rates.
        precision: ``auto`` or ``float32``, see :class:`model.train.TrainOptions`.
        init: digest of the weights that the float stage starts from; None for new ones. With it, ``steps`` may be 0.
        twin: train the float model ``qat_steps`` longer as well, with the QAT stage's learning rates, so that float
            and quantized metrics compare models trained equally long.
    """

    network: Network
    run_dir: Path
    formats: Formats = field(default_factory=Formats)
    steps: int = 600
    qat_steps: int = 100
    batch: int = 16
    scenes: int = 5120
    val_scenes: int = 256
    seed: int = 0
    lr: float = 1.5e-3
    qat_lr: float = 3e-4
    twin: bool = False
    precision: str = "auto"
    init: str | None = None

    def __post_init__(self) -> None:
        minimum = {"steps": 0 if self.init else 1, "qat_steps": 0, "batch": 1, "scenes": 1, "val_scenes": 1, "seed": 0}
        for name, least in minimum.items():
            if getattr(self, name) < least:
                raise ConfigError(f"training: {name} = {getattr(self, name)}: expected at least {least}")
        if self.twin and not self.qat_steps:
            raise ConfigError("training: twin: expected qat_steps of at least 1, found 0: there is nothing to match")

    def identity(self) -> dict[str, Any]:
        """Everything that changes the results, ready for JSON."""
        values = dataclasses.asdict(self)
        del values["run_dir"]
        for name, default in (("precision", "auto"), ("init", None)):
            if values[name] == default:  # runs from before there was this field go on
                del values[name]
        return json.loads(json.dumps(values))

    def options(self) -> dict[str, Any]:
        """:meth:`identity` without the network and the formats."""
        return {name: value for name, value in self.identity().items() if name not in ("network", "formats")}


@dataclass(frozen=True)
class RunSummary:
    """Outcome of :func:`train`.

    Attributes:
        checkpoints: stage → file with the trained weights and, in its header, the metrics.
        metrics: stage (and ``trivial``) → task → metric → value.
        resumed: stage → step at which this call began, equal to the stage's steps if nothing was left to do.
        seconds: stage → training time of this call.
    """

    checkpoints: Mapping[str, Path]
    metrics: dict[str, dict[str, dict[str, float]]]
    resumed: Mapping[str, int]
    seconds: Mapping[str, float]

    def rows(self, network: Network) -> list[tuple[Any, ...]]:
        """Rows of the metrics table: task, metric, unit, then one value per column of :meth:`columns`."""
        from model.metrics import UNITS

        return [
            (task, metric, UNITS[metric], *(self.metrics[name][task][metric] for name in self.columns()))
            for task in network.task_names
            if task in self.metrics["float"]
            for metric in self.metrics["float"][task]
        ]

    def columns(self) -> tuple[str, ...]:
        """``trivial``, if it was measured, then the stages."""
        return tuple(name for name in ("trivial", "float", "qat", "twin") if name in self.metrics)


def checkpoint_file(run_dir: Path, stage: str) -> Path:
    """Where the trained weights of a stage end up."""
    return run_dir / f"{stage}.safetensors"


def start_run(plan: Plan, resume: bool) -> None:
    """Claim the run folder for this plan; refuse one that holds another plan's run."""
    path = plan.run_dir / RUN_FILE
    wanted = plan.identity()
    if path.exists() and resume:
        try:
            found = parse_json(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot read: {error}") from error
        refuse_other(path, found if isinstance(found, dict) else {}, wanted)
        return
    if plan.run_dir.exists() and not plan.run_dir.is_dir():
        raise ConfigError(f"{plan.run_dir}: expected a directory, found a file")
    if not resume:
        try:
            for stage in ("float", "qat", "twin"):
                for name in (f"{stage}.safetensors", f"checkpoint-{stage}.safetensors", f"{stage}.csv"):
                    (plan.run_dir / name).unlink(missing_ok=True)
            (plan.run_dir / METRICS_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise M3vitError(f"{plan.run_dir}: cannot remove the old run: {error.strerror or error}") from error
    write_json(path, wanted)


def refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> None:
    for name in dict.fromkeys((*wanted, *found)):
        was, value = found.get(name), wanted.get(name)
        if was == value:
            continue
        if isinstance(value, dict) and isinstance(was, dict):
            refuse_other(path, was, value, f"{prefix}{name}.")
        raise ConfigError(
            f"{path}: {prefix}{name}: this run was made with {was!r}, asked for {value!r}: "
            "use another folder, or --no-resume to start anew"
        )


def write_json(path: Path, data: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_scene_tasks(network: Network) -> None:
    """The scenes have targets for some tasks; those must mean the same in the network."""
    from model.data import SCENE_TASKS
    from model.scenes import CLASSES

    kinds = {"semseg": ("labels",), "depth": ("depth", "log_depth"), "normals": ("normals",), "edge": ("binary",)}
    for task in network.tasks:
        if task.name not in SCENE_TASKS:
            continue
        if task.kind not in kinds[task.name]:
            expected = " or ".join(kinds[task.name])
            raise ConfigError(f"network {network.name!r}: task {task.name!r}: kind: expected {expected} for the "
                              f"rendered scenes, found {task.kind!r}")  # fmt: skip
        if task.name == "semseg" and task.channels < len(CLASSES):
            raise ConfigError(f"network {network.name!r}: task 'semseg': channels: expected at least {len(CLASSES)} "
                              f"for the rendered scenes, found {task.channels}")  # fmt: skip
    if not set(network.task_names) & set(SCENE_TASKS):
        raise ConfigError(
            f"network {network.name!r}: tasks: expected one of {', '.join(SCENE_TASKS)} for the rendered scenes, "
            f"found {', '.join(network.task_names)}"
        )


def scene_sets(plan: TrainPlan, data_dir: Path | None = None, quiet: bool = False) -> tuple[Dataset, Dataset]:
    """Training and held-out scenes of a plan, rendered once and kept in ``data_dir`` (run_dir/data by default)."""
    from model.data import scene_dataset

    net, cache = plan.network, data_dir or plan.run_dir / "data"
    hidden = bars_hidden(quiet)
    size = {"height": net.image_height, "width": net.image_width, "seed": plan.seed}
    return (
        scene_dataset("train", plan.scenes, cache_dir=cache, quiet=hidden, **size),
        scene_dataset("val", plan.val_scenes, cache_dir=cache, quiet=hidden, **size),
    )


def train(
    plan: TrainPlan,
    *,
    initial: Initial | None = None,
    data_dir: Path | None = None,
    resume: bool = True,
    device: str | None = None,
    tensorboard: bool = True,
    checkpoint_every: int = 100,
    quiet: bool = False,
) -> RunSummary | None:
    """Train, fine-tune, measure. A run that was interrupted continues; one that is complete returns at once.

    Works in one process or in several under torchrun; the first returns the summary, the others None.

    Args:
        initial: the weights whose digest ``plan.init`` is; of the plan's network.

    Raises:
        ConfigError: the folder holds a run with other options, or the network does not fit the scenes.
        M3vitError: the loss diverged, or the file system refused.
    """
    from model import distributed
    from model.evaluate import evaluate
    from model.metrics import trivial_metrics
    from model.train import TrainOptions, fit
    from model.vit import MultiTaskViT
    from quant.finetune import finetune, qat_options

    check_scene_tasks(plan.network)
    place = distributed.resolve_device(device)
    common: dict[str, Any] = {
        "batch_size": plan.batch,
        "seed": plan.seed,
        "precision": plan.precision,
        "quiet": bars_hidden(quiet),
        "tensorboard": tensorboard,
        "checkpoint_every": checkpoint_every,
    }
    warmup = min(50, plan.steps // 4)
    float_options = TrainOptions(steps=plan.steps, lr=plan.lr, warmup=warmup, **common) if plan.steps else None
    tuning = qat_options(plan.qat_steps, lr=plan.qat_lr, **common) if plan.qat_steps else None
    distributed.join(place)
    chief = distributed.rank() == 0
    hush = quiet or not chief
    if chief:
        start_run(plan, resume)
        scene_sets(plan, data_dir, hush)
    distributed.barrier()  # the others find the scenes rendered
    train_set, val_set = scene_sets(plan, data_dir, quiet=True)

    model = initial.model if initial is not None else MultiTaskViT(plan.network, plan.seed)
    fits: dict[str, FitResult | None] = {}
    models: dict[str, nn.Module] = {"float": model.to(place)}
    fits["float"] = None
    if float_options is not None:
        fits["float"] = fit(
            model, train_set, float_options, plan.run_dir, "float", device=place, resume=resume,
            on_step=step_lines("float", plan.steps, hush),
        )  # fmt: skip
    note(progress_note("float", fits["float"]), hush)

    quantized = finetune(
        model, train_set, plan.run_dir, tuning, plan.formats, device=place, resume=resume,
        on_step=step_lines("qat", plan.qat_steps, hush),
    )  # fmt: skip
    models["qat"], fits["qat"] = quantized.model, quantized.fit
    note(progress_note("qat", quantized.fit), hush)

    if plan.twin and tuning is not None:
        twin = copy.deepcopy(model)  # with its expert windows
        fits["twin"] = fit(
            twin, train_set, tuning, plan.run_dir, "twin", device=place, resume=resume,
            on_step=step_lines("twin", plan.qat_steps, hush),
        )  # fmt: skip
        models["twin"] = twin
        note(progress_note("twin", fits["twin"]), hush)

    metrics = {"trivial": trivial_metrics(plan.network, train_set, val_set)}
    metrics |= measure_stages(plan, models, val_set, lambda trained: evaluate(trained, val_set), hush)
    summary = RunSummary(
        checkpoints={stage: checkpoint_file(plan.run_dir, stage) for stage in models},
        metrics=metrics,
        resumed={stage: result.resumed_at if result else 0 for stage, result in fits.items()},
        seconds={stage: result.seconds if result else 0.0 for stage, result in fits.items()},
    )
    if not chief:
        return None
    write_json(plan.run_dir / METRICS_FILE, _document(plan, summary))
    return summary


def progress_note(stage: str, result: FitResult | None) -> str:
    if result is None:
        return f"{stage}: {'as given' if stage == 'float' else 'calibrated'}, no training"
    if result.resumed_at == result.steps:
        return f"{stage}: {result.steps} steps were done already"
    start = f" from step {result.resumed_at}" if result.resumed_at else ""
    return f"{stage}: trained{start} to step {result.steps} in {result.seconds:.0f} s"


def measure_stages(
    plan: Plan,
    models: Mapping[str, nn.Module],
    val_set: Dataset | FolderDataset,
    evaluate: Callable[[nn.Module], dict[str, Any]],
    quiet: bool,
) -> dict[str, Any]:
    """Metrics of every stage, which the first process keeps beside the weights.

    All processes measure alike, because a forward pass waits for the other processes; what was measured before is
    for the first one to say.
    """
    import torch

    from model import distributed

    chief = distributed.rank() == 0
    metrics: dict[str, Any] = {}
    for stage, model in models.items():
        path = checkpoint_file(plan.run_dir, stage)
        known = measured_before(path, model, val_set) if chief else None
        device = next(model.parameters()).device
        missing = torch.tensor(float(chief and known is None), device=device)
        if distributed.all_reduce_sum(missing) > 0:
            note(f"{stage}: measuring on {len(val_set)} held-out images", quiet)
            known = evaluate(model)
            if chief:
                save_measured(plan, path, stage, model, known, val_set)
        metrics[stage] = known
    return metrics


def _document(plan: TrainPlan, summary: RunSummary) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        "network": plan.network.name,
        "network_hash": digest(to_dict(plan.network))[:16],
        "routing": plan.network.routing,
        "options": plan.options(),
        "formats": to_dict(plan.formats),
        "metrics": summary.metrics,
        "checkpoints": {stage: path.name for stage, path in summary.checkpoints.items()},
    }


def measured_before(path: Path, model: nn.Module, val_set: Dataset | FolderDataset) -> dict[str, Any] | None:
    """Metrics in ``path`` if they are of exactly these weights on exactly this data."""
    import torch

    from accel.errors import CheckpointError
    from model.checkpoint import load_checkpoint

    if not path.exists():
        return None
    try:
        found = load_checkpoint(path)
    except CheckpointError:
        return None  # it is only a copy: made anew
    state = model.state_dict()
    same = found.weights.keys() == state.keys() and all(
        torch.equal(found.weights[name], value.cpu()) for name, value in state.items()
    )
    return found.metrics if same and found.extra.get("validation") == val_set.key else None


def save_measured(
    plan: Plan,
    path: Path,
    stage: str,
    model: nn.Module,
    metrics: Mapping[str, Any],
    val_set: Dataset | FolderDataset,
) -> None:
    """Weights without optimizer state, with their metrics in the header."""
    from model.checkpoint import Checkpoint, save_checkpoint
    from model.windows import windows_metadata
    from quant.checkpoint import formats_metadata

    extra: dict[str, Any] = {"validation": val_set.key, **windows_metadata(model)}
    if stage == "qat":
        extra |= formats_metadata(plan.formats)
    steps = plan.steps if stage == "float" else plan.steps + plan.qat_steps
    weights, network = dict(model.state_dict()), to_dict(plan.network)
    save_checkpoint(path, Checkpoint(weights, stage, steps, network, plan.options(), dict(metrics), extra))
