"""dispatch, gather, issue and operand: every tile, beat and operand byte of layers at any pace around them."""

from __future__ import annotations

import dataclasses
import itertools
import random

import cocotb
from array_side import ONE, Bench, E, Pace, T, Work

from accel.commands import Flag
from accel.layers import Kind
from rtl_tb.command_cases import HARDWARE as HW
from rtl_tb.command_cases import small_layer

TOPLEVEL = "dispatch_bench"
SOURCES = ("dispatch_bench.sv",)
PRESETS = ("ci", "zcu104")

STEP = HW.tile_inputs
NONE = Flag(0)
PARTS = [item.name for item in dataclasses.fields(Pace)]
FAST = Pace(*(1.0 for _ in PARTS))


def some(kind: Kind, job_tag: int = 0, flags: Flag = NONE, loads: list[int] | None = None, **shape: int) -> Work:
    """A layer with a queue per non-empty expert; ``loads`` sets their lengths."""
    shape = {"tokens": random.choice((1, T - 1, T, T + 1, random.randint(1, 4 * T)))} | shape
    layer, command = small_layer(kind, **shape)
    queues: list[list[tuple[int, int]]] = [[] for _ in range(layer.experts)]
    if kind is Kind.MOE:
        if loads:
            dealt = itertools.cycle(range(layer.tokens))  # no token without an expert, none twice in a queue
            assert sum(loads) >= layer.tokens >= max(loads)
            chosen = [sorted(itertools.islice(dealt, length)) for length in loads]
            queues = [[(token, random.randrange(ONE)) for token in tokens] for tokens in chosen]
        else:
            for token in range(layer.tokens):
                for expert in random.sample(range(layer.experts), layer.top_k):
                    queues[expert].append((token, random.choice((0, ONE - 1, random.randrange(ONE)))))
        queues = [queue for queue in queues if queue]
        random.shuffle(queues)
    return Work(layer, dataclasses.replace(command, flags=flags), queues, job_tag)


def job_end() -> Work:
    return Work(None)


async def begin(dut) -> Bench:
    bench = Bench(dut)
    await bench.start()
    return bench


@cocotb.test()
async def random_layers(dut):
    """Every kind and neighbour, every part around the units at a pace of its own."""
    bench = await begin(dut)
    for _ in range(4):
        bench.pace = Pace(*(random.choice((0.2, 0.6, 1.0, 1.0)) for _ in PARTS))
        for tag in range(6):
            flags = random.choice((NONE, NONE, Flag.NO_PREFETCH, Flag.NARROW))
            bench.add(
                some(random.choice(list(Kind)), tag % E.ENTRIES, flags), *[job_end()] * random.choice((0, 0, 1, 2))
            )
        await bench.run()
    dut._log.info("compared: %s, stalls: %s", dict(bench.counts), dict(bench.stalls))
    for name in ("tiles", "odd tiles", "units", "beats", "operand bytes"):
        assert bench.counts[name] > 20, f"{name}: {bench.counts[name]}"


@cocotb.test()
async def one_token(dut):
    """Layers of a single token, which is a tile of its own in every unit."""
    bench = await begin(dut)
    bench.add(*(some(kind, tokens=1) for kind in (*Kind, *Kind)))
    await bench.run()
    assert bench.counts["odd tiles"] == bench.counts["tiles"]


@cocotb.test()
async def queues(dut):
    """All tokens to one expert, an expert of one token, queues one around a tile; a second expert adds to rows that the
    first has begun, unit by unit."""
    bench = await begin(dut)
    bench.pace = FAST
    tokens = 2 * T + 1
    for loads in ([tokens], [1, tokens], [tokens, tokens], [T, T + 1, tokens], [tokens, T - 1 or 1, 1]):
        bench.add(some(Kind.MOE, loads=loads, tokens=tokens, experts=len(loads), top_k=1, units=2))
    await bench.run()


@cocotb.test()
async def wide_rows(dut):
    """Rows wider than the store is made for stream through, tile by tile; the widest operand lines."""
    bench = await begin(dut)
    for inputs in (HW.max_inputs, HW.max_width + STEP, HW.max_width):
        bench.add(some(Kind.ACCUMULATE, tokens=3 * T + 1, inputs=inputs, outputs=1, units=1), some(Kind.LINEAR))
    await bench.run()


@cocotb.test()
async def rings_wrap(dut):
    """More lines and more accumulator rows than the rings hold: layers wait for what is freed, addresses wrap."""
    bench = await begin(dut)
    bench.pace = dataclasses.replace(FAST)
    tokens = HW.max_tokens
    layers = [
        some(Kind.ACCUMULATE, tokens=tokens, inputs=STEP, outputs=HW.max_width, units=1),
        some(Kind.LINEAR, tokens=tokens, inputs=HW.max_width, outputs=1, units=1),
        some(Kind.MOE, tokens=T + 2, outputs=HW.max_width, inputs=HW.max_width // 2, hidden=STEP, experts=2, units=1),
        some(Kind.ACCUMULATE, tokens=2 * T, inputs=HW.max_width, outputs=40, units=1),
    ]
    lines = sum(work.layer.tokens * work.fields["input_lines"] for work in layers)
    assert lines > E.STORE_LINES and sum(work.fields["wide_rows"] for work in layers) > E.WIDE_ROWS
    bench.held = {"wide"}
    bench.add(*layers)
    await bench.run(until=lambda: bench.idle > 200, limit=40000)
    assert bench.stall == "store" and bench.golden.wide_base > E.WIDE_ROWS - E.O * T
    bench.held = set()
    await bench.run()


@cocotb.test()
async def every_stall(dut):
    """What an idle array waits for is named: each cause once, all else there (accumulator rows: rings_wrap)."""
    bench = await begin(dut)
    mlp = {"tokens": 3 * T, "units": 2, "outputs": 40}
    for held, kind, cause, shape in (
        ("slot", Kind.LINEAR, "weights", {}), ("rows", Kind.LINEAR, "weights", {}), ("gelu", Kind.MLP, "weights", {}),
        ("lines", Kind.LINEAR, "input", {}), ("gate", Kind.MOE, "route", {}), ("order", Kind.MOE, "route", {}),
        ("walk", Kind.MOE, "route", {}), ("append", Kind.MOE, "route", {}), ("drain", Kind.ACCUMULATE, "drain", {}),
        ("hidden", Kind.MLP, "drain", mlp), ("linear", Kind.LINEAR, "store", {}),
    ):  # fmt: skip
        bench.pace = dataclasses.replace(FAST)
        bench.held = {held}
        bench.add(some(kind, **shape))
        await bench.run(until=lambda: bench.idle > 400, limit=4000)
        for _ in range(20):
            await bench.step()
            assert bench.stall == cause, f"without {held}: {bench.stall or 'none'}, expected {cause}"
        bench.held = set()
        await bench.run()


@cocotb.test()
async def no_prefetch(dut):
    """`computed` holds exactly when every beat before the loader's layer has been sent."""
    bench = await begin(dut)
    for kind in Kind:
        bench.add(some(Kind.LINEAR), some(kind, flags=Flag.NO_PREFETCH), job_end(), some(kind, flags=Flag.NO_PREFETCH))
    await bench.run()


@cocotb.test()
async def a_beat_per_cycle(dut):
    """With everything there the array does not wait: not between tiles, units or layers, nor for scattered tokens."""
    bench = await begin(dut)
    bench.pace = FAST
    inputs = HW.max_width
    outputs = HW.slot_rows * STEP // inputs * HW.tile_outputs
    dense = [some(Kind.LINEAR, tokens=4 * T, inputs=inputs, outputs=min(outputs, 96), units=1) for _ in range(5)]
    bench.add(dense[0])
    await bench.run(until=lambda: bench.counts["beats"] > 0)
    bench.add(*dense[1:])
    start, before = bench.cycle, bench.counts["beats"]
    total = sum(item.total_rows * -(-len(item.queue) // T) for work in dense for item in work.items)
    await bench.run(until=lambda: bench.counts["beats"] == total)
    assert bench.counts["beats"] - before >= 0.98 * (bench.cycle - start), bench.stalls
    bench.stalls.clear()
    loads, shape = [2 * T, 3 * T, 2 * T + 1], {"inputs": HW.max_width // 2, "hidden": HW.max_hidden, "outputs": 64}
    moe = some(Kind.MOE, loads=loads, tokens=4 * T, experts=3, top_k=2, units=1, **shape)
    bench.add(moe)
    await bench.run()
    beats = sum(item.total_rows * -(-len(item.queue) // T) for item in moe.items)
    waited = sum(count for cause, count in bench.stalls.items() if cause)
    dut._log.info("an MoE layer of %d beats: idle %s", beats, dict(bench.stalls))
    assert waited < 0.02 * beats + 200  # once per layer: the first rows, the order, the first queue


@cocotb.test()
async def reset_in_the_middle(dut):
    """A reset at any time leaves nothing behind."""
    bench = await begin(dut)
    for stop in (5, 23, 60, 150, 420):
        bench.add(*(some(random.choice(list(Kind))) for _ in range(4)))
        for _ in range(stop):
            await bench.step()
        await bench.reset_unit()
        bench.add(some(Kind.MOE), some(Kind.MLP), job_end())
        await bench.run()
