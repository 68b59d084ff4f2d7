"""Programs on which the simulator is compared with the RTL: both presets, real layer sizes, unkind memories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accel.commands import Flag
from accel.config import Hardware, hardware
from accel.layers import Kind
from accel.memory_model import IDEAL, MemoryModel
from accel.routing import Schedule
from accel.synthetic import (
    SyntheticLayer,
    SyntheticProgram,
    build_program,
    routing_of_loads,
    skewed_loads,
    synthetic_layer,
    uniform_loads,
)

Routing = dict[tuple[int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Case:
    """A program on an engine with a memory.

    Attributes:
        jobs: names of :data:`LAYERS`, job by job.
        changes: to the preset.
    """

    name: str
    preset: str
    jobs: tuple[tuple[str, ...], ...]
    memory: MemoryModel = MemoryModel()
    slow: bool = False
    barrier: bool = False
    prefetch: bool = True
    changes: tuple[tuple[str, int], ...] = ()

    @property
    def hardware(self) -> Hardware:
        return dataclasses.replace(hardware(self.preset), **dict(self.changes))


def _moe(
    tokens: int, width: int, hidden: int, experts: int, top_k: int, loads: Sequence[int] | str = "uniform",
    schedule: Schedule = Schedule.INDEX,
) -> Callable[[Hardware, int], tuple[SyntheticLayer, NDArray[np.int64]]]:  # fmt: skip
    def make(engine: Hardware, seed: int) -> tuple[SyntheticLayer, NDArray[np.int64]]:
        if isinstance(loads, str):
            counts = (skewed_loads if loads == "skewed" else uniform_loads)(experts, tokens, top_k)
        else:
            counts = list(loads)
        chosen = routing_of_loads(counts, tokens, top_k, seed)
        layer = synthetic_layer(
            Kind.MOE, tokens, width, width, engine, seed, hidden=hidden, experts=experts, top_k=top_k, chosen=chosen,
            schedule=schedule,
        )  # fmt: skip
        return layer, chosen

    return make


def _dense(kind: Kind, tokens: int, inputs: int, outputs: int, hidden: int = 0, units: int | None = None):  # type: ignore[no-untyped-def]
    flags = Flag.NARROW if kind is Kind.LINEAR else Flag(0)

    def make(engine: Hardware, seed: int) -> tuple[SyntheticLayer, None]:
        layer = synthetic_layer(kind, tokens, inputs, outputs, engine, seed, hidden=hidden, units=units, flags=flags)
        return layer, None

    return make


LAYERS = {
    # m3vit-demo
    "demo.patch": _dense(Kind.ACCUMULATE, 64, 192, 64),
    "demo.qkv": _dense(Kind.LINEAR, 65, 64, 192),
    "demo.proj": _dense(Kind.ACCUMULATE, 65, 64, 64),
    "demo.mlp": _dense(Kind.MLP, 65, 64, 64, 128, 2),
    "demo.moe": _moe(65, 64, 128, 8, 2),
    "demo.skewed": _moe(65, 64, 128, 8, 2, "skewed", Schedule.LONGEST_FIRST),
    "demo.one": _moe(65, 64, 128, 8, 1, [0, 0, 0, 65, 0, 0, 0, 0]),
    "demo.resident": _moe(65, 64, 128, 8, 2, "skewed", Schedule.RESIDENT_FIRST),
    "wide.moe": _moe(65, 64, 64, 64, 4),
    "few.moe": _moe(3, 64, 128, 8, 2),
    "single": _dense(Kind.LINEAR, 1, 64, 64),
    # m3vit-tiny-cityscapes
    "tiny.patch": _dense(Kind.ACCUMULATE, 128, 768, 192),
    "tiny.qkv": _dense(Kind.LINEAR, 129, 192, 576),
    "tiny.proj": _dense(Kind.ACCUMULATE, 129, 192, 192),
    "tiny.mlp": _dense(Kind.MLP, 129, 192, 192, 384, 2),
    "tiny.moe": _moe(129, 192, 384, 16, 2),
    "tiny.skewed": _moe(129, 192, 384, 16, 2, "skewed", Schedule.LONGEST_FIRST),
    "tiny.resident": _moe(129, 192, 384, 16, 2, "skewed", Schedule.RESIDENT_FIRST),
    # m3vit-small
    "small.patch": _dense(Kind.ACCUMULATE, 1024, 768, 384),
    "small.qkv": _dense(Kind.LINEAR, 1025, 384, 1152),
    "small.proj": _dense(Kind.ACCUMULATE, 1025, 384, 384),
    "small.mlp": _dense(Kind.MLP, 1025, 384, 384, 384, 4),
    "small.moe": _moe(1025, 384, 384, 16, 4),
    "small.skewed": _moe(1025, 384, 384, 16, 4, "skewed", Schedule.LONGEST_FIRST),
    # m3vit-small-nyud
    "nyud.qkv": _dense(Kind.LINEAR, 1201, 384, 1152),
    "nyud.moe": _moe(1201, 384, 384, 16, 4),
}

_DEMO = ("demo.qkv", "demo.proj", "demo.mlp", "demo.qkv", "demo.proj", "demo.moe")
_DEMO_PAIR = tuple(name for name in ("demo.qkv", "demo.proj", "demo.resident", "demo.qkv") for _ in range(2))
"""Two tasks layer by layer: the second finds experts of the first on chip."""
_TINY_PAIR = tuple(name for name in ("tiny.mlp", "tiny.qkv", "tiny.proj", "tiny.resident") for _ in range(2))
_TINY = ("tiny.qkv", "tiny.proj", "tiny.mlp", "tiny.qkv", "tiny.proj", "tiny.skewed")


def _memory(**changes: int) -> MemoryModel:
    return dataclasses.replace(MemoryModel(), **changes)


def _all() -> list[Case]:
    ci = [
        Case(f"ci-{name}", "ci", ((name,),))
        for name in (
            "demo.patch", "demo.qkv", "demo.proj", "demo.mlp", "demo.moe", "demo.skewed", "demo.one", "wide.moe",
            "few.moe", "single", "tiny.proj",
        )
    ]  # fmt: skip
    ci += [
        Case("ci-chain", "ci", (_DEMO, _DEMO)),
        Case("ci-chain-barrier", "ci", (_DEMO, _DEMO), barrier=True),
        Case("ci-chain-no-prefetch", "ci", (_DEMO, _DEMO), prefetch=False),
        Case("ci-chain-ideal", "ci", (_DEMO, _DEMO), IDEAL),
        Case("ci-chain-60", "ci", (_DEMO,), _memory(latency=60)),
        Case("ci-chain-200", "ci", (_DEMO,), _memory(latency=200)),
        Case("ci-chain-held", "ci", (_DEMO,), _memory(stall_percent=30)),
        Case("ci-chain-far", "ci", (_DEMO,), _memory(latency=300, write_latency=500, outstanding=2, write_batch=1,
                                                     turnaround=40)),
        Case("ci-chain-choppy", "ci", (_DEMO,), _memory(stall_percent=70, stall_run=4, latency=60)),
        Case("ci-chain-narrow", "ci", (_DEMO,), _memory(bytes_per_cycle=8, bucket_bytes=64, refresh_period=300,
                                                        refresh_cycles=60)),
        Case("ci-chain-4-write-ports", "ci", (_DEMO, _DEMO), slow=True, changes=(("write_ports", 4),)),
        Case("ci-interleaved", "ci", (_DEMO_PAIR,)),
        Case("ci-resident", "ci", (("demo.resident", "demo.proj"), ("demo.resident", "demo.proj"))),
    ]  # fmt: skip
    zcu = [
        Case(f"zcu104-{name}", "zcu104", ((name,),))
        for name in (
            "demo.qkv", "demo.moe", "tiny.patch", "tiny.qkv", "tiny.proj", "tiny.mlp", "tiny.moe", "tiny.skewed",
            "demo.one",
        )
    ]  # fmt: skip
    zcu += [
        Case("zcu104-chain", "zcu104", (_TINY, _TINY)),
        Case("zcu104-interleaved", "zcu104", (_TINY_PAIR,)),
        Case("zcu104-tiny.moe-60", "zcu104", (("tiny.moe",),), _memory(latency=60)),
        Case("zcu104-tiny.moe-150", "zcu104", (("tiny.moe",),), _memory(latency=150)),
        Case("zcu104-tiny.moe-200", "zcu104", (("tiny.moe",),), _memory(latency=200)),
        Case("zcu104-tiny.moe-held", "zcu104", (("tiny.moe",),), _memory(stall_percent=25, stall_run=8)),
        Case("zcu104-tiny.moe-slow", "zcu104", (("tiny.moe",),), _memory(bytes_per_cycle=24)),
        Case("zcu104-tiny.proj-held", "zcu104", (("tiny.proj",),), _memory(stall_percent=40, stall_run=3)),
        Case("zcu104-chain-200", "zcu104", (_TINY,), _memory(latency=200)),
    ]
    zcu += [
        Case(f"zcu104-{name}", "zcu104", ((name,),), slow=True)
        for name in (
            "small.patch", "small.qkv", "small.proj", "small.mlp", "small.moe", "small.skewed", "nyud.qkv", "nyud.moe",
        )
    ]  # fmt: skip
    return ci + zcu


CASES = _all()


def build_case(case: Case) -> tuple[SyntheticProgram, Routing]:
    """Program and memory image of ``case``, and the experts chosen in each MoE layer, by (job, layer)."""
    made: dict[str, tuple[SyntheticLayer, NDArray[np.int64] | None]] = {}
    jobs, routing = [], {}
    for job, names in enumerate(case.jobs):
        layers = []
        for index, name in enumerate(names):
            if name not in made:
                made[name] = LAYERS[name](case.hardware, 7 + len(made))
            layer, chosen = made[name]
            layers.append(layer)
            if chosen is not None:
                routing[job, index] = chosen
        jobs.append(layers)
    program = build_program(
        jobs, case.hardware, barrier_between_jobs=case.barrier, prefetch_across_jobs=case.prefetch
    )  # fmt: skip
    return program, routing
