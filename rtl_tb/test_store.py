"""Output side (combine, wide store, finish, linear_pack, store, write ports): memory bytes against the golden model."""

from __future__ import annotations

import os
import random

import cocotb
import numpy as np
from output_layers import ACCUMULATE, LINEAR, MLP, MOE, hw_rows, job_end, linear_layer, wide_layer
from output_side import GUARD, Bench, Pace

from accel.config import hardware

TOPLEVEL = "store_bench"
SOURCES = ("store_bench.sv",)
PRESETS = ("ci", "zcu104")

HARDWARE = hardware(os.environ.get("M3VIT_HARDWARE", "ci"))


def generator():
    return np.random.default_rng(random.getrandbits(32))


def shapes(rng):
    """Every kind, output widths around line, chunk and tile boundaries, tokens around tiles and stripes."""
    hw = HARDWARE
    layers = []
    for outputs in (64, 8, 1, 16, 33, 48, 100, hw.max_width):
        layers.append(wide_layer(hw, rng, ACCUMULATE, int(rng.integers(1, 20)), outputs))
        layers.append(linear_layer(hw, rng, int(rng.integers(1, 20)), outputs))
    layers.append(job_end(hw))
    layers.append(linear_layer(hw, rng, 17, 576, 2 if hw.slot_groups * hw.tile_outputs < 1152 else 1))
    layers.append(linear_layer(hw, rng, 11, 576, 3))
    layers.append(wide_layer(hw, rng, MLP, 9, 192, passes=3))
    layers.append(wide_layer(hw, rng, MOE, 21, 64, top_k=2))
    layers.append(job_end(hw))
    layers.append(linear_layer(hw, rng, 5, 1100, 2))  # the second unit is narrower and ends within a line
    layers.append(wide_layer(hw, rng, MOE, 13, 192, passes=2, top_k=3))
    layers.append(job_end(hw))
    return layers


@cocotb.test()
async def all_kinds_and_shapes(dut):
    layers = shapes(generator())
    random.shuffle(layers)
    bench = Bench(dut, HARDWARE, layers, Pace())
    for index in range(12):
        bench.records.append((bench.record_offset + 64 * index, random.randbytes(64)))
    await bench.start()
    await bench.run_all(60000)
    assert bench.parts[4].written == 12


@cocotb.test()
async def every_channel_slow_once(dut):
    """One slow part at a time, everything else as fast as it can."""
    for name in ("drain", "residual", "address", "data", "answer"):
        rng = generator()
        pace = Pace(1, 1, 1, 1, 1, 0.1)
        setattr(pace, name, 0.08)
        layers = [
            wide_layer(HARDWARE, rng, ACCUMULATE, 10, 64),
            linear_layer(HARDWARE, rng, 10, 192),
            wide_layer(HARDWARE, rng, MLP, 6, 100, passes=2),
            linear_layer(HARDWARE, rng, 9, 80),
        ]
        bench = Bench(dut, HARDWARE, layers, pace)
        bench.records.extend((bench.record_offset + 64 * index, random.randbytes(64)) for index in range(3))
        await bench.start()
        await bench.run_all(60000)


@cocotb.test()
async def ring_wraps(dut):
    """More accumulator rows than there are: the drain waits for rows to be freed, and addresses start again at 0."""
    rng = generator()
    tokens = HARDWARE.max_tokens - 3
    layers = [
        wide_layer(HARDWARE, rng, ACCUMULATE, tokens, HARDWARE.max_width),
        wide_layer(HARDWARE, rng, MLP, 40, HARDWARE.max_width, passes=2),
        wide_layer(HARDWARE, rng, ACCUMULATE, 30, 64),
    ]
    rows = sum(case.tokens * case.output_tiles for case in layers)
    assert rows > hw_rows(HARDWARE)
    bench = Bench(dut, HARDWARE, layers, Pace(1, 1, 1, 1, 1, 1))
    await bench.start()
    await bench.run_all(80000)


@cocotb.test()
async def full_rate(dut):
    """With memory that never waits the busiest port moves a beat per cycle, or finish half a line."""
    rng = generator()
    bench = Bench(dut, HARDWARE, [wide_layer(HARDWARE, rng, ACCUMULATE, 128, 192)], Pace(1, 1, 1, 1, 1, 1))
    await bench.start()
    await bench.run_all(20000)
    size = len(bench.layers[0].expected)
    assert sum(port.beat_count for port in bench.ports) * HARDWARE.port_bytes == size
    least = max(max(port.beat_count for port in bench.ports), 2 * size // HARDWARE.line_bytes)
    taken = max(port.last_beat for port in bench.ports) - min(port.first_beat for port in bench.ports) + 1
    assert least / taken > 0.95


@cocotb.test()
async def write_error(dut):
    """An error is reported once per burst with entry and port; the layer is never written, those before it are."""
    rng = generator()
    layers = [
        wide_layer(HARDWARE, rng, ACCUMULATE, 20, 64),
        linear_layer(HARDWARE, rng, 20, 192),
        wide_layer(HARDWARE, rng, ACCUMULATE, 20, 64),
    ]
    bench = Bench(dut, HARDWARE, layers, Pace())
    port = random.randrange(HARDWARE.write_ports)
    victim = random.randrange(1, 3)
    start = layers[victim].offset + HARDWARE.burst_bytes * port
    bench.bad = range(start, start + 1)
    await bench.start()
    await bench.run(lambda: bool(bench.errors), 20000)
    assert bench.errors == [(victim, port)]
    for _ in range(3000):
        await bench.step()
    assert bench.feed.retired == victim
    assert bench.errors == [(victim, port)]


@cocotb.test()
async def halt(dut):
    """No segment begins after halt, those begun end, then everything is idle and a record can still be written."""
    for delay in random.sample(range(20, 400), 3):
        rng = generator()
        layers = [wide_layer(HARDWARE, rng, ACCUMULATE, 40, 192), linear_layer(HARDWARE, rng, 40, 192)]
        bench = Bench(dut, HARDWARE, layers, Pace(1, 1))
        await bench.start()
        for _ in range(delay):
            await bench.step()
        dut.halt.value = 1
        await bench.run(lambda: bool(int(dut.writes_idle.value)), 500)
        assert all(port.flight == 0 and not port.beats for port in bench.ports)
        counts = [port.address_count for port in bench.ports]
        for _ in range(100):
            await bench.step()
            assert int(dut.writes_idle.value)
        assert counts == [port.address_count for port in bench.ports]
        bench.records.append((bench.record_offset, random.randbytes(64)))
        await bench.run(lambda records=bench.records: not records, 2000)
        # What is there is right or untouched.
        for case in layers:
            found = bench.memory[case.offset : case.offset + len(case.expected)]
            assert ((found == case.expected) | (found == GUARD)).all()


@cocotb.test()
async def linear_goes_first(dut):
    """While both kinds wait, the LINEAR layer behind a long finish is written before the finish ends."""
    rng = generator()
    layers = [wide_layer(HARDWARE, rng, ACCUMULATE, 128, 192), linear_layer(HARDWARE, rng, 8, 64)]
    assert layers[1].kind == LINEAR
    bench = Bench(dut, HARDWARE, layers, Pace(1, 1, 1, 0.5, 1))
    await bench.start()
    await bench.run(lambda: bool(bench.feed.written & 2), 20000)
    assert not bench.feed.written & 1 and bench.feed.retired == 0
    await bench.run_all(20000)
