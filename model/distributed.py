"""The little that training needs from torch.distributed; everything works without it, too."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from accel.errors import ConfigError


def world_size() -> int:
    """Number of processes that train together, 1 when there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 when there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes. All of them use the sum, so the gradient is a sum over them, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum of ``values`` over all processes, differentiable; ``values`` itself in a single process.

    A loss computed from the result has, after DistributedDataParallel averages the gradients, the
    same gradient as in one process that holds the global batch.
    """
    return values if world_size() == 1 else _AllReduceSum.apply(values)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def join(device: torch.device) -> None:
    """Join the processes that torchrun started (NCCL on GPU, gloo on CPU).

    Does nothing outside torchrun or when a process group exists already. The group lasts until the
    process ends: making a second one from the same rendezvous can find stale keys and hang.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone or not dist.is_available() or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)


def resolve_device(name: torch.device | str | None) -> torch.device:
    """The device called ``name``, known to work; `default_device` for None.

    ``cuda`` without a number is this process' GPU, as under torchrun.

    Raises:
        ConfigError: no such device, or this machine or this build of torch lacks it.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {str(name)!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index is None and count:
            device = default_device()
        if not count or (device.index or 0) >= count:
            found = f"cpu or cuda:0 to cuda:{count - 1}" if count else "cpu: PyTorch finds no CUDA GPU here"
            raise ConfigError(f"device {str(name)!r}: expected {found}")
    try:
        torch.zeros(1, device=device).tolist()  # meta tensors, for one, exist but hold nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {str(name)!r}: expected cpu, cuda or cuda:N, which can compute here") from error
    return device


def default_device() -> torch.device:
    """This process' GPU (by LOCAL_RANK) if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
