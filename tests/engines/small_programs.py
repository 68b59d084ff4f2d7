"""Small programs that many tests run, and how to read what a program computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel import pack
from accel.commands import Flag, Opcode
from accel.config import Hardware
from accel.layers import Kind
from accel.limits import KINDS
from accel.synthetic import SyntheticProgram, build_program
from rtl_tb.engine_cases import dense, moe

Array = NDArray[Any]


def every_kind(engine: Hardware, seed: int = 1) -> SyntheticProgram:
    """Two jobs with a layer of every kind; small."""
    jobs = [
        [
            dense(Kind.LINEAR, 19, 64, 100, engine, seed, flags=Flag.NARROW),
            moe([9, 0, 13, 4], 13, 2, engine, units=2, seed=seed),
        ],
        [
            dense(Kind.ACCUMULATE, 11, 96, 64, engine, seed),
            dense(Kind.MLP, 17, 32, 48, engine, seed, hidden=64, units=2),
        ],
    ]
    return build_program(jobs, engine)


def operands_program(engine: Hardware) -> SyntheticProgram:
    """Every kind of layer, in two jobs; expert 1 of the MoE layer is empty."""
    jobs = [
        [dense(Kind.LINEAR, 19, 64, 200, engine, units=4), moe([19, 0, 23, 14], 28, 2, engine, units=2)],
        [dense(Kind.ACCUMULATE, 21, 96, 80, engine), dense(Kind.MLP, 27, 64, 48, engine, hidden=64, units=2)],
    ]
    return build_program(jobs, engine)


def output_values(program: SyntheticProgram, memory: Array, index: int, engine: Hardware) -> Array:
    """Output of the program's layer command ``index``, as integers."""
    command = [item for item in program.commands if item.opcode in KINDS][index]
    offset, size = program.outputs[index]
    dtype = np.int8 if command.opcode is Opcode.LINEAR else np.int16
    return pack.unpack_tokens(memory[offset : offset + size], command.tokens, command.outputs, dtype, engine)

