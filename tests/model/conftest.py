"""A network and a data set small enough to train in a blink."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from model_tiny import TINY

from accel.config import Network
from model.data import Dataset, scene_dataset

torch.set_num_threads(1)  # these tensors are tiny: threads would only wait for each other


@pytest.fixture
def tiny() -> Network:
    return TINY


@pytest.fixture(params=["multi_gate", "task_conditioned"])
def routed(request: pytest.FixtureRequest) -> Network:
    """The tiny network with each routing."""
    width = 6 if request.param == "task_conditioned" else 0
    return dataclasses.replace(TINY, routing=request.param, task_embed_dim=width)


@pytest.fixture(scope="session")
def scenes_train() -> Dataset:
    return scene_dataset("train", 40, 16, 24, seed=3, workers=1, quiet=True)


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8, generator=generator)
