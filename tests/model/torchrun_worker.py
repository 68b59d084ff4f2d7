"""Trains the tiny network: started by tests as one process, as several, or to be killed.

Arguments: folder, heads, steps, dtype, and optionally the step after which to die by SIGKILL.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402
from model_tiny import TINY  # noqa: E402

from model.data import scene_dataset  # noqa: E402
from model.train import TrainOptions, fit  # noqa: E402
from model.vit import MultiTaskViT  # noqa: E402


def options(steps: int) -> TrainOptions:
    """Ten steps' options: every step logged, a checkpoint after every third."""
    return TrainOptions(
        steps=steps,
        batch_size=4,
        warmup=2,
        log_every=1,
        checkpoint_every=3,
        quiet=True,
        tensorboard=False,
    )


def train(
    folder: Path, head: str, steps: int, dtype: str = "float32", die_after: int | None = None
) -> None:
    """Train in ``folder``; SIGKILL this process after step ``die_after``."""
    network = dataclasses.replace(TINY, head=head)
    data = scene_dataset("train", 40, 16, 24, seed=3, workers=1, quiet=True)

    def on_step(done: int) -> None:
        if done == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    model = MultiTaskViT(network).to(getattr(torch, dtype))
    fit(model, data, options(steps), folder, device="cpu", on_step=on_step)


if __name__ == "__main__":
    where, *heads = sys.argv[1], *sys.argv[2].split(",")
    for name in heads:
        death = int(sys.argv[5]) if len(sys.argv) > 5 else None
        train(Path(where) / name, name, int(sys.argv[3]), sys.argv[4], death)
