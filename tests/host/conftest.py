"""A small bundle and frames that the host tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from host_networks import TINY

from accel.bundle import Bundle, write_bundle
from accel.config import hardware
from accel.random_params import random_encoder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return write_bundle(path, random_encoder(TINY, seed=1), hardware("ci"))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Same engine, other routing, other weights."""
    net = dataclasses.replace(TINY, name="other", routing="task_conditioned", task_embed_dim=8)
    path = tmp_path_factory.mktemp("bundles") / "other"
    return write_bundle(path, random_encoder(net, seed=2), hardware("ci"))


@pytest.fixture
def image() -> np.ndarray:
    shape = (TINY.image_height, TINY.image_width, 3)
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    pixels = np.random.default_rng(4).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photos") / "street.png"
    Image.fromarray(pixels).save(path)
    return path
