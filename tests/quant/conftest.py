"""Fixtures of the quantization tests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from quant_cases import calibrated, small_network

from accel.config import Formats, Network
from quant.qat import QuantMultiTaskViT


@pytest.fixture(params=["multi_gate", "task_conditioned"])
def routing(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are too small for two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_quantized() -> Callable[..., QuantMultiTaskViT]:
    """Function (network, formats) -> calibrated quantized network, the test's own copy."""

    def make(network: Network | None = None, formats: Formats | None = None) -> QuantMultiTaskViT:
        return copy.deepcopy(calibrated(network or small_network(), formats or Formats()))

    return make
