"""Compiler: a bundle and a list of jobs become commands and a map of the arena they run in.

*Live* programs run one layer while the host computes what lies between (LayerNorm, attention). *Replay* programs
chain every engine layer of many jobs, with inputs recorded from the golden model and placed beforehand, so that
nothing but the engine determines their timing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from accel import pack
from accel.bundle import Bundle
from accel.commands import COMMAND_BYTES, Command, Flag, Opcode, encode_program
from accel.config import Config
from accel.errors import ProgramError
from accel.golden import Trace, patches
from accel.layers import Kind, Layer, engine_layers
from accel.limits import OPCODES
from accel.memory_map import ArenaMap
from accel.params import Encoder
from accel.record import record_bytes
from accel.routing import Schedule

Array = NDArray[Any]


class Job(NamedTuple):
    """One task on one frame."""

    task: str
    frame: int


def place_weights(config: Config, base: int = 0) -> tuple[dict[str, int], int]:
    """Arena offset of every engine blob, and the end of the last one."""
    offsets: dict[str, int] = {}
    end = base
    for layer in engine_layers(config):
        for name in layer.weight_blobs():
            offsets[name] = end
            end += layer.expert_bytes
        if layer.kind is Kind.MOE:
            for task in config.network.task_names:
                offsets[layer.gate_blob(task)] = end
                end += layer.gate_bytes
    return offsets, end


def layer_bytes(layer: Layer) -> dict[str, int]:
    """Bytes in memory of a layer's ``input``, ``residual`` and ``output`` rows; no residual for LINEAR."""
    hw = layer.hardware
    sizes = {
        "input": pack.token_bytes(layer.tokens, layer.inputs, 1, hw),
        "output": pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, hw),
    }
    if layer.kind is not Kind.LINEAR:
        sizes["residual"] = pack.token_bytes(layer.tokens, layer.outputs, 2, hw)
    return sizes


def layer_command(
    bundle: Bundle,
    layer: Layer,
    weights: Mapping[str, int],
    operands: Mapping[str, int],
    task: str,
    *,
    job: int = 0,
    index: int = 0,
    schedule: Schedule = Schedule.INDEX,
    flags: int = 0,
) -> Command:
    """Command of one layer.

    Args:
        weights: blob name → arena offset.
        operands: ``input``, ``output`` and (but for LINEAR) ``residual`` → arena offset.
        task: selects the gate table of a MoE layer.
    """
    gated = layer.kind is Kind.MOE
    return Command(
        opcode=OPCODES[layer.kind],
        flags=Flag(flags) | (Flag.NARROW if layer.kind is Kind.LINEAR else Flag(0)),
        schedule=int(schedule) if gated else 0,
        top_k=layer.top_k if gated else 0,
        gate_shift=bundle.manifest["gates"][layer.gate_blob(task)]["shift"] if gated else 0,
        job=job,
        layer=index,
        tokens=layer.tokens,
        experts=layer.experts if gated else 0,
        inputs=layer.inputs,
        outputs=layer.outputs,
        hidden=layer.hidden,
        units=layer.units,
        tiles_per_unit=layer.tiles_per_unit,
        unit_bytes=layer.unit_bytes,
        weights=weights[layer.weight_blobs()[0]],
        gate=weights[layer.gate_blob(task)] if gated else 0,
        input=operands["input"],
        residual=operands.get("residual", 0),
        output=operands["output"],
    )


def layer_tensors(encoder: Encoder, layer: str, image: Array, trace: Trace) -> dict[str, Array]:
    """``input``, ``residual`` (if any) and expected ``output`` of an engine layer, from a golden trace."""
    if layer == "patch":
        return {
            "input": patches(image, encoder.network),
            "residual": encoder.position[1:],
            "output": trace["embed"][1:],
        }
    _, number, part = layer.split(".")
    block = f"blocks.{number}"
    previous = "embed" if number == "0" else f"blocks.{int(number) - 1}.residual"
    names = {
        "qkv": ("norm1", None, "qkv"),
        "proj": ("attention", previous, "attn_residual"),
        "mlp": ("norm2", f"{block}.attn_residual", "residual"),
    }[part]
    tensors = {"input": trace[f"{block}.{names[0]}"], "output": trace[f"{block}.{names[2]}"]}
    if names[1] is not None:
        tensors["residual"] = trace[names[1]]
    return tensors


@dataclass(frozen=True, eq=False)
class Expected:
    """An output of a program: where it will lie, and what the golden model says it will be."""

    job: int
    layer: str
    offset: int
    values: Array


@dataclass(frozen=True, eq=False)
class Program:
    """Commands with the arena they run in.

    Attributes:
        commands: ending with END.
        arena: regions.
        jobs: one per JOB_END.
        placements: (offset, memory bytes) to write before the start, weights excluded.
        expected: outputs to compare afterwards.
    """

    commands: tuple[Command, ...]
    arena: ArenaMap
    jobs: tuple[Job, ...]
    placements: Sequence[tuple[int, Array]] = ()
    expected: Sequence[Expected] = ()
    image: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", encode_program(self.commands))


class RecordedFrame(NamedTuple):
    """A frame with its golden trace for one task."""

    task: str
    image: Array
    trace: Trace


def compile_replay(
    bundle: Bundle,
    frames: Sequence[RecordedFrame],
    *,
    schedule: Schedule = Schedule.INDEX,
    barrier_between_jobs: bool = False,
    prefetch_across_jobs: bool = True,
    weights_bytes: int | None = None,
) -> Program:
    """Chain every engine layer of every frame into one program.

    Args:
        frames: one job each, in order.
        schedule: order of the experts in MoE layers.
        barrier_between_jobs: put a BARRIER before every job but the first (negative control for switching).
        prefetch_across_jobs: if False, the first layer of every job but the first has NO_PREFETCH (the same).
        weights_bytes: size of the weights region if it is larger than this bundle needs.

    Raises:
        ProgramError: no frames, or the arena exceeds 32-bit offsets.
    """
    if not frames:
        raise ProgramError("replay program: expected at least one frame, found none")
    for frame in frames:
        bundle.config.network.task_index(frame.task)
    layers = engine_layers(bundle.config)
    weights, end = place_weights(bundle.config)
    activations = len(frames) * sum(sum(layer_bytes(layer).values()) for layer in layers)
    barriers = len(frames) - 1 if barrier_between_jobs else 0
    count = len(frames) * (len(layers) + 1) + barriers + 1  # layers and JOB_END per job, END
    if weights_bytes is not None and weights_bytes < end:
        raise ProgramError(f"replay: weights region: expected at least {end} bytes, found {weights_bytes}")
    arena = ArenaMap.layout(
        weights=weights_bytes or end,
        activations=activations,
        record=record_bytes(len(frames)),
        program=count * COMMAND_BYTES,
    )
    if arena.bytes >= 1 << 32:
        raise ProgramError(f"replay: expected an arena below 4 GiB, found {arena.bytes} bytes: use fewer frames")
    commands: list[Command] = []
    placements: list[tuple[int, Array]] = []
    expected: list[Expected] = []
    cursor = arena.offsets["activations"]
    for job, frame in enumerate(frames):
        if job and barrier_between_jobs:
            commands.append(Command(Opcode.BARRIER, job=job))
        for index, layer in enumerate(layers):
            tensors = layer_tensors(bundle.encoder, layer.name, frame.image, frame.trace)
            operands = {}
            for name, size in layer_bytes(layer).items():
                operands[name] = cursor
                if name == "output":
                    expected.append(Expected(job, layer.name, cursor, tensors[name]))
                else:
                    placements.append((cursor, pack.pack_tokens(tensors[name], layer.hardware)))
                cursor += size
            first_of_later_job = job > 0 and index == 0
            commands.append(
                layer_command(
                    bundle, layer, weights, operands, frame.task, job=job, index=index, schedule=schedule,
                    flags=Flag.NO_PREFETCH if first_of_later_job and not prefetch_across_jobs else 0,
                )  # fmt: skip
            )
        commands.append(Command(Opcode.JOB_END, job=job))
    commands.append(Command(Opcode.END))
    jobs = tuple(Job(frame.task, job) for job, frame in enumerate(frames))
    return Program(tuple(commands), arena, jobs, placements, expected)


def live_arena(config: Config, max_commands: int = 4) -> ArenaMap:
    """Arena for running layer by layer: room for the largest operands of any layer."""
    _, end = place_weights(config)
    largest: dict[str, int] = {}
    for layer in engine_layers(config):
        for name, size in layer_bytes(layer).items():
            largest[name] = max(largest.get(name, 0), size)
    return ArenaMap.layout(
        weights=end, activations=sum(largest.values()), record=record_bytes(1), program=max_commands * COMMAND_BYTES
    )


def live_program(
    bundle: Bundle, layer: Layer, task: str, arena: ArenaMap, *, schedule: Schedule = Schedule.INDEX, index: int = 0
) -> tuple[Program, dict[str, int]]:
    """One layer as a program of its own, and the arena offsets of its operands."""
    weights, _ = place_weights(bundle.config)
    operands, cursor = {}, arena.offsets["activations"]
    for name, size in layer_bytes(layer).items():
        operands[name] = cursor
        cursor += size
    command = layer_command(bundle, layer, weights, operands, task, index=index, schedule=schedule)
    program = Program((command, Command(Opcode.JOB_END), Command(Opcode.END)), arena, (Job(task, 0),))
    return program, operands


def identify_program() -> Program:
    """END alone: the engine writes its identity to the record and does nothing else."""
    arena = ArenaMap.layout(record=record_bytes(0), program=COMMAND_BYTES)
    return Program((Command(Opcode.END),), arena, ())
