"""load and load_decode: slots, stripes in order, and every row, group and GELU entry as accel.pack takes them apart."""

from __future__ import annotations

import dataclasses
import random

import cocotb
from load_side import Bench, E, Pace, Work

from accel.commands import Flag
from accel.layers import Kind
from accel.routing import Schedule
from rtl_tb.command_cases import HARDWARE as HW
from rtl_tb.command_cases import small_layer

PRESETS = ("ci", "zcu104")

STEP = HW.tile_inputs


def some(kind: Kind, schedule: Schedule = Schedule.INDEX, **shape: int) -> Work:
    """A layer of small units, its experts in some order."""
    layer, command = small_layer(kind, **shape)
    order = random.sample(range(layer.experts), random.randint(1, layer.experts))
    return Work(layer, dataclasses.replace(command, schedule=int(schedule)), order)


def again(work: Work, **changes: object) -> Work:
    """The same layer once more, its command changed."""
    return Work(work.layer, dataclasses.replace(work.command, **changes), list(work.order))


def job_end() -> Work:
    return Work(None)


async def begin(dut) -> Bench:
    bench = Bench(dut)
    await bench.start()
    return bench


@cocotb.test()
async def random_layers(dut):
    """Every kind at random paces, some again right away or later, some that must not run ahead."""
    bench = await begin(dut)
    for _ in range(3):
        bench.pace = Pace(*(random.choice((0.15, 0.5, 1.0)) for _ in dataclasses.fields(Pace)))
        recent: list[Work] = []
        for kind in random.sample([*Kind, random.choice(list(Kind))], len(Kind) + 1):
            works = [some(kind, random.choice(list(Schedule)))]
            if recent and random.random() < 0.4:
                works.append(again(random.choice(recent)))
            for work in works:
                recent.append(again(work, flags=Flag.NO_PREFETCH) if random.random() < 0.2 else work)
                bench.add(recent[-1], *[job_end()] * random.choice((0, 0, 1, 2)))
        await bench.run()
        if random.random() < 0.5:
            await bench.forget()
    dut._log.info("compared: %s", dict(bench.counts))
    for name in ("units", "gates", "rows", "groups", "table entries", "hits", "misses", "ahead of a layer"):
        assert bench.counts[name], f"{name}: none"


@cocotb.test()
async def same_experts_again(dut):
    """RESIDENT_FIRST: what is on chip is used without a load, in use or not; after forget it is loaded again."""
    bench = await begin(dut)
    experts = E.WEIGHT_SLOTS - 1
    first = some(Kind.MOE, Schedule.RESIDENT_FIRST, experts=experts, units=1)
    first.order = list(range(experts))
    bench.add(first, job_end(), again(first))
    await bench.run()
    assert bench.counts["units"] == bench.counts["resident"] == experts
    await bench.forget()
    misses = bench.counts["misses"]
    while bench.counts["misses"] < misses + 10:  # whatever is asked for
        await bench.step()
    bench.add(again(first))
    await bench.run()
    assert bench.counts["units"] == 2 * experts and bench.counts["resident"] == experts
    # The same bytes as units of another shape are other units.
    shape = dataclasses.replace(first.layer, inputs=first.layer.inputs + STEP)
    command = dataclasses.replace(first.command, inputs=shape.inputs, unit_bytes=shape.unit_bytes)
    bench.add(Work(shape, command, list(first.order)))
    await bench.run()
    assert bench.counts["units"] == 3 * experts and bench.counts["resident"] == experts
    if E.WEIGHT_SLOTS > 2:  # experts of two units, all on chip
        pair = some(Kind.MOE, Schedule.RESIDENT_FIRST, experts=experts // 2, units=2)
        pair.order = list(range(experts // 2))
        before = bench.counts["resident"]
        await bench.forget()
        bench.add(pair, again(pair))
        await bench.run()
        assert bench.counts["resident"] > before
        bench.counts["resident"] = before
    # An expert counts only if all its units are there.
    split = some(Kind.MOE, Schedule.RESIDENT_FIRST, experts=2, units=E.WEIGHT_SLOTS)
    split.order = [1, 0]
    bench.add(split, again(split))
    await bench.run()
    assert bench.counts["resident"] == experts


@cocotb.test()
async def same_unit_twice(dut):
    """INDEX asks nobody: a layer again is loaded again, into another slot, and freed slot by slot."""
    bench = await begin(dut)
    work = some(Kind.MLP, units=1)
    bench.add(work, again(work), again(work), again(work))
    await bench.run()
    assert bench.counts["units"] == 4 and not bench.counts["resident"]
    assert {unit.slot for unit in bench.units} == set(range(min(4, E.WEIGHT_SLOTS)))


@cocotb.test()
async def all_slots_taken(dut):
    """As long as no slot is freed nothing is requested beyond them; nobody waits for units that are not used yet."""
    bench = await begin(dut)
    for hold in ("hold_pop", "hold_done"):
        bench.pace = Pace(layer=1, request=1, line=1, pop=1, done=1)
        before = bench.counts["units"]
        setattr(bench, hold, True)
        bench.add(*(some(Kind.LINEAR, units=1, inputs=STEP) for _ in range(E.WEIGHT_SLOTS + 3)))
        for _ in range(1500):
            await bench.step()
        assert bench.counts["units"] == before + E.WEIGHT_SLOTS and not bench.flight
        setattr(bench, hold, False)
        await bench.run()
        assert bench.counts["units"] == before + E.WEIGHT_SLOTS + 3


@cocotb.test()
async def no_prefetch(dut):
    """Such a layer's first stripe is asked for after everything before it is computed; its own units run ahead."""
    bench = await begin(dut)
    for kind in Kind:
        bench.pace = Pace(layer=1, request=1, line=1, pop=1, done=0.05, order=1)
        bench.add(some(Kind.LINEAR), again(some(kind, units=2), flags=Flag.NO_PREFETCH), some(Kind.ACCUMULATE))
    await bench.run()
    assert bench.counts["held back"] == len(Kind)


@cocotb.test()
async def a_line_per_cycle(dut):
    """Lines of plain units and gates never wait; only a GELU table right behind another does, 256 cycles at most."""
    bench = await begin(dut)
    fast = Pace(1, 1, 1, 1, 1, 1, 1)
    bench.pace = fast
    rows = min(HW.slot_rows, 40)
    bench.add(*(some(Kind.LINEAR, inputs=STEP * rows, outputs=HW.tile_outputs, units=1) for _ in range(4)))
    await bench.run()
    assert bench.counts["lines held"] <= 4 * 2  # one cycle between units
    small = [some(Kind.MLP, inputs=STEP, hidden=STEP, outputs=1, units=2) for _ in range(3)]
    bench.add(*small)
    held = bench.counts["lines held"]
    await bench.run()
    held = bench.counts["lines held"] - held
    assert 200 < held <= 6 * 256, held


@cocotb.test()
async def widest_units(dut):
    """A slot filled to its last row, the widest input row, and a unit that ends exactly with its stripe."""
    bench = await begin(dut)
    bench.pace = Pace(1, 1, 1, 1, 1, 1, 1)
    line, lanes = HW.line_bytes, HW.tile_outputs
    tiles = HW.slot_rows * STEP // HW.max_width
    bench.add(some(Kind.LINEAR, inputs=HW.max_width, outputs=min(tiles, HW.slot_groups) * lanes, units=1))
    bench.add(some(Kind.ACCUMULATE, inputs=HW.max_inputs, outputs=1, units=1))
    exact = [
        steps for steps in range(1, 200)
        if (E.GROUP_BYTES + steps * HW.row_bytes) % HW.stripe_bytes == 0 and steps * STEP <= HW.max_inputs
    ]  # fmt: skip
    if exact:
        bench.add(some(Kind.LINEAR, inputs=exact[0] * STEP, outputs=1, units=1))
    bench.add(some(Kind.LINEAR, inputs=STEP, outputs=line, units=1))
    await bench.run()
    assert bench.counts["units"] == 3 + bool(exact)
    assert max(unit.rows for unit in bench.units) == HW.slot_rows // (HW.max_width // STEP) * (HW.max_width // STEP)


@cocotb.test()
async def reset_in_the_middle(dut):
    """A reset at any time leaves nothing behind."""
    bench = await begin(dut)
    for stop in (5, 30, 77, 150):
        bench.add(*(some(random.choice(list(Kind))) for _ in range(4)))
        for _ in range(stop):
            await bench.step()
        await bench.reset_unit()
        bench.add(some(Kind.MOE, Schedule.RESIDENT_FIRST), some(Kind.MLP), job_end())
        await bench.run()
