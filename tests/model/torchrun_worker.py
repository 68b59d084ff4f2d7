"""Trains a small network: started by tests as one process, as several, or to be killed.

Arguments: folder, cases (of CASES, separated by commas), steps, and optionally the step after which to die by SIGKILL.
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

from accel.config import network as preset  # noqa: E402
from model.data import scene_dataset  # noqa: E402
from model.train import TrainOptions, fit  # noqa: E402
from model.vit import MultiTaskViT  # noqa: E402

CASES = {
    "light": (dataclasses.replace(TINY, head="light"), torch.float32),
    "light64": (dataclasses.replace(TINY, head="light"), torch.float64),
    "pup64": (dataclasses.replace(TINY, head="pup"), torch.float64),
    "demo": (preset("m3vit-demo"), torch.float32),
}
"""Name -> network and type of its weights."""


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


def train(folder: Path, case: str, steps: int, die_after: int | None = None) -> None:
    """Train in ``folder``; SIGKILL this process after step ``die_after``."""
    network, dtype = CASES[case]
    size = network.image_height, network.image_width
    data = scene_dataset("train", 40, *size, seed=3, workers=1, quiet=True)

    def on_step(done: int) -> None:
        if done == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    model = MultiTaskViT(network).to(dtype)
    fit(model, data, options(steps), folder, device="cpu", on_step=on_step)


if __name__ == "__main__":
    for name in sys.argv[2].split(","):
        death = int(sys.argv[4]) if len(sys.argv) > 4 else None
        train(Path(sys.argv[1]) / name, name, int(sys.argv[3]), death)
