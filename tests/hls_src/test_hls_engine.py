"""What is the HLS engine's alone: the types that synthesis sees. Its cases are those of every engine."""

from __future__ import annotations

import pytest
from engine_backends import hls_bench

from accel.config import Formats, hardware
from accel.errors import DeviceError
from host.backends.hls_build import BIT_TRUE, ap_types, build
from rtl_tb.engine_cases import CASES, random_program

CI = hardware("ci")
CHOSEN = (
    "one_token_of_every_kind", "odd_shapes", "random_logits", "fourteen_and_fifteen_units", "queues_of_every_length",
    "jobs_with_and_without_layers", "nothing_prefetched", "ties", "saturation",
)  # fmt: skip
"""Cases that reach every width; ``ap_int`` is slow in C simulation."""


def test_widths_of_the_hardware_give_the_same_bits(compiler: str) -> None:
    """With ``ap_int`` wherever widths matter and the packed multiplier."""
    try:
        ap_types()
    except DeviceError as error:
        pytest.skip(str(error))
    for bench in hls_bench("ci", build(CI, Formats(), flags=BIT_TRUE)):
        for name in CHOSEN:
            bench.run(CASES[name](CI))
        for seed in range(5):
            bench.run(random_program(77_000 + seed, CI))
