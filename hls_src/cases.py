"""Records cases for the C++ test bench: a memory image with a program, and what the golden model makes of it::

    python -m hls_src.cases --hardware ci --out build/hls/cases              # one small program of every kind of layer
    python -m hls_src.cases --bundle B --image P --task T --out build/hls/cases   # all engine layers of a frame

A case is a folder with ``before.bin`` and ``after.bin``, the arena, and ``case.txt``, three registers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from accel.bundle import open_bundle
from accel.commands import Flag
from accel.compiler import RecordedFrame, compile_replay, place_weights
from accel.config import Hardware, hardware
from accel.functional import FunctionalEngine
from accel.golden import GoldenEngine, run_frame
from accel.layers import Kind
from accel.synthetic import SyntheticProgram, build_program, synthetic_layer
from host.images import load_image


def write_case(
    folder: Path, engine: Hardware, memory: NDArray[np.uint8], program: int, commands: int, record: int
) -> None:
    """Run a program on the functional engine and write the memory before and after it."""
    folder.mkdir(parents=True, exist_ok=True)
    after = memory.copy()
    FunctionalEngine(engine).execute(after, program, commands, record)
    (folder / "before.bin").write_bytes(memory.tobytes())
    (folder / "after.bin").write_bytes(after.tobytes())
    (folder / "case.txt").write_text(f"program {program}\ncommands {commands}\nrecord {record}\n", encoding="ascii")


def write_synthetic(folder: Path, engine: Hardware, program: SyntheticProgram) -> None:
    """The same for a synthetic program."""
    count = len(program.commands)
    write_case(folder, engine, program.memory, program.program_offset, count, program.record_offset)


def small_program(engine: Hardware, seed: int = 1) -> SyntheticProgram:
    """Every kind of layer in two jobs; a memory that co-simulation can hold."""
    layers = [
        synthetic_layer(Kind.LINEAR, 9, 64, 64, engine, seed, flags=Flag.NARROW),
        synthetic_layer(Kind.ACCUMULATE, 9, 64, 64, engine, seed + 1),
        synthetic_layer(Kind.MLP, 9, 64, 64, engine, seed + 2, hidden=32, units=2),
        synthetic_layer(Kind.MOE, 9, 64, 64, engine, seed + 3, hidden=32, experts=6, top_k=2),
    ]
    return build_program([layers, layers[-1:]], engine)


def write_frame(folder: Path, bundle_path: str, image_path: str, task: str) -> None:
    """All engine layers of one frame, inputs recorded from the golden model."""
    bundle = open_bundle(bundle_path)
    image = load_image(image_path, bundle.config.network)
    traced = run_frame(bundle.encoder, image, task, GoldenEngine(bundle.encoder), record=True)
    program = compile_replay(bundle, [RecordedFrame(task, image, traced.trace)])
    memory = np.zeros(program.arena.bytes, np.uint8)

    def put(offset: int, data: bytes | NDArray[np.uint8]) -> None:
        memory[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    for name, offset in place_weights(bundle.config)[0].items():
        put(offset, bundle.blob(name))
    for offset, data in program.placements:
        put(offset, data)
    offsets = program.arena.offsets
    put(offsets["program"], program.image)
    write_case(
        folder, bundle.config.hardware, memory, offsets["program"], len(program.commands), offsets["record"]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hls_src.cases", description="Record cases for the C++ test bench.")
    parser.add_argument("--hardware", default="ci", help="preset of the engine, for the small cases")
    parser.add_argument("--bundle", help="record a frame of this bundle instead")
    parser.add_argument("--image", help="its picture")
    parser.add_argument("--task", help="its task")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cases")
    chosen = parser.parse_args()
    if chosen.bundle:
        write_frame(chosen.out / "frame", chosen.bundle, chosen.image, chosen.task)
        print(f"{chosen.out}: 1 case")
        return
    engine = hardware(chosen.hardware)
    write_synthetic(chosen.out / "small", engine, small_program(engine))
    write_synthetic(chosen.out / "identify", engine, build_program([], engine))
    print(f"{chosen.out}: 2 cases for {engine.name}")


if __name__ == "__main__":
    main()
