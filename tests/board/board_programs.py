"""The engine and the network of the board tests; a program of one layer with random input, and what it must give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from accel import pack
from accel.compiler import Program, layer_bytes, live_program
from accel.config import Formats, Network, Task, hardware
from accel.golden import GoldenEngine
from accel.layers import engine_layers
from host.driver import LoadedBundle

CI = hardware("ci")
FORMATS = Formats()
NETWORK = Network(
    "board", 16, 24, patch=8, embed_dim=16, depth=4, heads=2, dense_hidden=32, experts=4, top_k=2, expert_hidden=32,
    unit_hidden=16, tasks=(Task("semseg", 5, "labels"), Task("depth", 1, "log_depth")), head_hidden=24,
)  # fmt: skip
LAYER = "blocks.1.qkv"


def one_layer(loaded: LoadedBundle, seed: int = 0) -> tuple[Program, Callable[[], bool]]:
    """The program, its input in place, and a function that says whether the output is right."""
    layer = next(layer for layer in engine_layers(loaded.bundle.config) if layer.name == LAYER)
    task = loaded.bundle.config.network.task_names[0]
    program, offsets = live_program(loaded.bundle, layer, task, loaded.arena)
    x = np.random.default_rng(seed).integers(-128, 128, (layer.tokens, layer.inputs)).astype(np.int8)
    loaded.write(offsets["input"], pack.pack_tokens(x, CI))
    expected = GoldenEngine(loaded.bundle.encoder).linear(layer.name, x)
    size = layer_bytes(layer)["output"]
    loaded.write(offsets["output"], np.full(size, 0x5A, np.uint8))

    def right() -> bool:
        data = loaded.read(offsets["output"], size)
        found = pack.unpack_tokens(data, layer.tokens, layer.outputs, np.int8, CI)
        return bool((found == expected).all())

    return program, right


def runs_correctly(loaded: LoadedBundle) -> bool:
    """Run the layer once."""
    program, right = one_layer(loaded)
    loaded.run(program, 60)
    return right()
