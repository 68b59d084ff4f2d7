"""The training loop, for the float model and for quantization-aware training alike.

Runs on the CPU, one GPU, or several processes under ``torchrun``. Everything that is random depends
on (seed, step) only, so a run that was killed and resumed ends, on the CPU, with the same bits as
one that was not, and the number of processes changes results by rounding only.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel.errors import ConfigError, M3vitError
from model import distributed
from model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from model.data import Dataset
from model.logs import TrainingLog
from model.losses import LOSS_WEIGHTS, multi_task_loss
from model.moe import GateNoise, full_precision
from model.samples import FolderDataset
from model.vit import ForwardResult
from model.windows import WINDOWS, windows_metadata

if TYPE_CHECKING:
    from accel.config import Network


OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "poly")
PRECISIONS = ("auto", "float32")


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are the recipe for the rendered scenes.

    Attributes:
        steps: optimizer steps in all.
        batch_size: images per step over all processes.
        lr, final_lr: peak learning rate, and the fraction of it where the cosine ends.
        warmup: steps of linear warm-up.
        optimizer: ``adamw`` or ``sgd``.
        weight_decay: of either optimizer (decoupled from the gradient in AdamW, part of it in SGD).
        beta1, beta2: of AdamW; momentum: of SGD.
        schedule: ``cosine``, or ``poly``: (1 - epoch / epochs) ** power, the same within an epoch.
        power, epoch_steps: of ``poly``; epoch_steps is the number of steps of an epoch.
        clip: largest norm of the gradient; 0 = no limit.
        balance_weight: weight of the balance loss.
        gate_noise: gate noise has standard deviation gate_noise / experts; 0 = none.
        mirror: flip images left to right at random.
        loss_weights: task -> weight.
        loss_names: task -> loss (`model.losses.LOSSES`), where it is not the one of its kind.
        precision: ``auto`` is float32 on the CPU and mixed precision on a GPU (bfloat16, or float16 with loss scaling
            where the GPU has no bfloat16); ``float32`` is float32 everywhere.
        seed: of batches, mirroring and gate noise.
        checkpoint_every, log_every: steps.
        quiet: no progress bar.
        tensorboard: write event files too, if tensorboard is installed.
    """

    steps: int = 500
    batch_size: int = 16
    lr: float = 1.5e-3
    final_lr: float = 0.1
    warmup: int = 50
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0
    balance_weight: float = 0.01
    gate_noise: float = 1.0
    mirror: bool = True
    loss_weights: Mapping[str, float] = field(default_factory=lambda: dict(LOSS_WEIGHTS["scenes"]))
    seed: int = 0
    checkpoint_every: int = 100
    log_every: int = 10
    quiet: bool = False
    tensorboard: bool = True
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    power: float = 0.9
    epoch_steps: int = 1
    loss_names: Mapping[str, str] = field(default_factory=dict)
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                expected = " or ".join(known)
                raise ConfigError(f"training: {name} = {getattr(self, name)!r}: expected {expected}")
        for name in ("steps", "batch_size", "checkpoint_every", "log_every", "epoch_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training: {name} = {getattr(self, name)}: expected at least 1")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"training: lr = {self.lr}: expected more than 0")
        for name in ("warmup", "weight_decay", "balance_weight", "gate_noise", "final_lr", "seed", "clip", "power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"training: {name} = {getattr(self, name)}: expected at least 0")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"training: {name} = {getattr(self, name)}: expected at least 0 and less than 1")

    def learning_rate(self, step: int) -> float:
        """Learning rate of ``step`` (from 0): warm-up times the schedule, a cosine from 1 to ``final_lr`` or poly."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "poly":
            epochs = math.ceil(self.steps / self.epoch_steps)
            return self.lr * warm * (1 - step // self.epoch_steps / epochs) ** self.power
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * warm * (self.final_lr + (1 - self.final_lr) * cosine)


# Options that change how a run is watched, not what it computes.
_COSMETIC = {"checkpoint_every", "log_every", "quiet", "tensorboard"}


@dataclass(frozen=True)
class FitResult:
    """Outcome of `fit`: the checkpoint, the CSV log, and how much this call did.

    steps: optimizer steps in all; resumed_at: step at which this call began (0 for a new run,
    ``steps`` when there was nothing left to do); seconds: time this call took; losses: step ->
    total loss, as logged by this call.
    """

    checkpoint: Path
    log: Path
    steps: int
    resumed_at: int
    seconds: float
    losses: dict[int, float]


def checkpoint_path(run_dir: str | os.PathLike[str], stage: str) -> Path:
    """Where `fit` keeps the checkpoint of a stage."""
    return Path(run_dir) / f"checkpoint-{stage}.safetensors"


def fit(
    model: nn.Module,
    train_set: Dataset | FolderDataset,
    options: TrainOptions,
    run_dir: str | os.PathLike[str],
    stage: str = "float",
    *,
    device: torch.device | str | None = None,
    resume: bool = True,
    extra: Mapping[str, Any] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> FitResult:
    """Train ``model`` in place and leave ``checkpoint-<stage>.safetensors`` and ``<stage>.csv``.

    Args:
        model: has an attribute ``network`` (`accel.config.Network`) and returns a `ForwardResult`. Its expert windows
            (`model.windows.restrict`) are kept in the checkpoint.
        train_set: must have targets for the network's tasks; tasks without targets are not trained.
        run_dir: made if missing. With ``resume`` (default) a checkpoint of the same stage found
            there is continued, or returned as it is if it is complete.
        device: this process' GPU if there is one, else the CPU, by default.
        extra: JSON values to keep in the checkpoint.
        on_step: called with the number of finished steps after each (and its checkpoint, if any).

    Raises:
        ConfigError: a checkpoint in ``run_dir`` was made with other options, data or network.
        M3vitError: the loss is not finite.
    """
    place = distributed.resolve_device(device)
    distributed.join(place)
    run = _Run(model, train_set, options, Path(run_dir), stage, place, extra or {})
    return run.train(resume, on_step)


def _make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    if options.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=options.momentum, **common)
    return torch.optim.AdamW(model.parameters(), betas=(options.beta1, options.beta2), **common)


class _Run:
    """One call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        train_set: Dataset | FolderDataset,
        options: TrainOptions,
        run_dir: Path,
        stage: str,
        device: torch.device,
        extra: Mapping[str, Any],
    ) -> None:
        network: Network = model.network  # type: ignore[assignment]
        self.network, self.options, self.stage, self.device = network, options, stage, device
        self.run_dir, self.data_key = run_dir, train_set.key
        self.extra = {**extra, **windows_metadata(model)}
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.tasks = [task for task in network.tasks if task.name in train_set.task_names]
        if not self.tasks:
            names = ", ".join(network.task_names)
            raise ConfigError(f"training: the data set has targets for none of the tasks {names}")
        self.batches = train_set.batches(options.batch_size, options.seed, options.mirror, self.rank, self.world)
        self.model = model.to(device).train()
        self.optimizer = _make_optimizer(model, options)
        # bfloat16 needs no loss scaling; older GPUs have float16 only, which does.
        self.half = torch.float32
        if device.type == "cuda" and options.precision == "auto":
            self.half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)

    @property
    def path(self) -> Path:
        return checkpoint_path(self.run_dir, self.stage)

    def train(self, resume: bool, on_step: Callable[[int], None] | None) -> FitResult:
        start = self._restore() if resume and self.path.exists() else 0
        began, losses = time.perf_counter(), {}
        names = [task.name for task in self.tasks]
        log_path = self.run_dir / f"{self.stage}.csv"
        columns = ["loss", *(f"loss_{name}" for name in names), "balance", "lr"]
        forward = self._parallel(names)
        chief = self.rank == 0
        if start < self.options.steps:
            with (
                TrainingLog(log_path, columns, start, chief, self.options.tensorboard, self.stage) as log,
                self._progress(start, chief) as bar,
            ):
                for step in range(start, self.options.steps):
                    values = self._step(forward, names, step)
                    done = step + 1
                    if done % self.options.log_every == 0 or done == self.options.steps:
                        row = self._global_mean(values, names, done)
                        losses[done] = row["loss"]
                        log.write(done, row)
                        bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
                    bar.update()
                    if done % self.options.checkpoint_every == 0 or done == self.options.steps:
                        self._save(done)
                    if on_step is not None:
                        on_step(done)
        distributed.barrier()  # the checkpoint is there when any process returns
        seconds = time.perf_counter() - began
        return FitResult(self.path, log_path, self.options.steps, start, seconds, losses)

    def _parallel(self, names: list[str]) -> nn.Module:
        if self.world == 1:
            return self.model
        incomplete = len(names) < len(self.network.tasks) or self.stage != "float"
        return DistributedDataParallel(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=incomplete,
        )

    def _step(self, forward: nn.Module, names: list[str], step: int) -> dict[str, Tensor]:
        """One optimizer step; returns this process' share of each loss, detached."""
        options = self.options
        images, targets = self.batches.batch(step)
        images = images.to(self.device, non_blocking=True)
        targets = {k: v.to(self.device, non_blocking=True) for k, v in targets.items()}
        noise = GateNoise(options.seed, step, options.gate_noise, self.rank, self.world)
        with torch.autocast(self.device.type, self.half, enabled=self.half != torch.float32):
            result: ForwardResult = forward(images, names, noise=noise)
        loss, parts = multi_task_loss(result.outputs, targets, self.tasks, options.loss_weights, options.loss_names)
        total = loss + options.balance_weight * result.balance_loss

        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        if options.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        values = {f"loss_{name}": value for name, value in parts.items()}
        return {**values, "loss": total.detach(), "balance": result.balance_loss.detach()}

    def _global_mean(self, values: dict[str, Tensor], names: list[str], done: int) -> dict[str, float]:
        """Losses of the global batch as numbers; every process must call this."""
        keys = ["loss", *(f"loss_{name}" for name in names), "balance"]
        stacked = torch.stack([full_precision(values[key]) for key in keys])
        means = (distributed.all_reduce_sum(stacked) / self.world).tolist()
        row = dict(zip(keys, means, strict=True))
        if not all(math.isfinite(value) for value in means):
            bad = next(key for key in keys if not math.isfinite(row[key]))
            raise M3vitError(
                f"training: step {done}: {bad} = {row[bad]}: expected a finite loss; "
                f"try a learning rate below {self.options.lr}"
            )
        return {**row, "lr": self.options.learning_rate(done - 1)}

    @contextmanager
    def _progress(self, start: int, chief: bool) -> Iterator[Any]:
        from tqdm import tqdm

        with tqdm(
            total=self.options.steps,
            initial=start,
            desc=f"training ({self.stage})",
            unit="step",
            disable=self.options.quiet or not chief,
        ) as bar:
            yield bar

    def _identity(self) -> dict[str, Any]:
        """Options and data that a resumed run must share with the checkpoint."""
        options = dataclasses.asdict(self.options)
        return {**{k: v for k, v in options.items() if k not in _COSMETIC}, "data": self.data_key}

    def _save(self, step: int) -> None:
        if self.rank == 0:
            save_checkpoint(
                self.path,
                Checkpoint(
                    weights=self.model.state_dict(),
                    stage=self.stage,
                    step=step,
                    network=dataclasses.asdict(self.network),
                    options={**self._identity(), "scaler": self.scaler.state_dict()},
                    extra=self.extra,
                    optimizer=optimizer_tensors(self.model, self.optimizer),
                ),
            )

    def _restore(self) -> int:
        """Continue from the checkpoint in the run folder; returns the number of finished steps."""
        checkpoint = load_checkpoint(self.path)
        found, advice = checkpoint.options, "use another folder or start anew without resuming"
        absent = {item.name: item.default for item in dataclasses.fields(TrainOptions)}
        absent["loss_names"] = {}
        for name, value in self._identity().items():
            was = found.get(name, absent.get(name))  # an option that is newer than the checkpoint
            if was != value:
                raise ConfigError(f"{self.path}: {name}: made with {was!r}, asked for {value!r}: {advice}")
        here = dataclasses.asdict(self.network)
        here["tasks"] = list(here["tasks"])
        for name, value in here.items():
            if checkpoint.network.get(name) != value:
                was = checkpoint.network.get(name)
                raise ConfigError(f"{self.path}: network {name}: made with {was!r}, asked for {value!r}: {advice}")
        windows, before = self.extra.get(WINDOWS), checkpoint.extra.get(WINDOWS)
        if before != windows:
            raise ConfigError(f"{self.path}: {WINDOWS}: made with {before!r}, asked for {windows!r}: {advice}")
        load_weights(self.model, checkpoint)
        restore_optimizer(self.model, self.optimizer, checkpoint)
        if found.get("scaler"):
            self.scaler.load_state_dict(found["scaler"])
        return min(checkpoint.step, self.options.steps)
