"""reader, its ports and the row sources: who is served, every line and every event, with memory of any speed."""

from __future__ import annotations

import dataclasses
import random

import cocotb
from read_side import CAPACITY, DECERR, INPUT, INPUT_RING, RESIDUAL, SLVERR, WEIGHTS, Bench, Pace, Work

from rtl_tb.command_cases import HARDWARE as HW

TOPLEVEL = "reader_bench"
SOURCES = ("reader_bench.sv",)

STRIPE = HW.burst_beats


def rows(lines: int = 80) -> tuple[int, int]:
    """Tokens and lines per row: anything, whole stripes, a line, one more or less than a stripe."""
    return random.choice(
        ((random.randint(1, lines // 3), random.randint(1, 3)), (1, 1), (STRIPE, 1), (STRIPE + 1, 1), (STRIPE - 1, 1),
         (3, 6), (1, 12), (STRIPE, 2))
    )  # fmt: skip


def some(job_tag: int = 0) -> Work:
    """A layer, or what passes without reading (JOB_END)."""
    if random.random() < 0.15:
        return Work(job_tag=job_tag)
    return Work(random.randint(1, 7), rows(), rows() if random.random() < 0.6 else None, job_tag)


async def begin(dut) -> Bench:
    bench = Bench(dut)
    await bench.start()
    return bench


@cocotb.test()
async def random_layers(dut):
    """Three sources and commands at random paces, on memory whose ports answer at different times."""
    bench = await begin(dut)
    for _ in range(4):
        chances = [random.choice((0.4, 0.7, 1.0)) for _ in range(7)]
        chances[2] = random.choice((0.01, 0.1, 0.5))
        bench.pace = Pace(
            *chances, random.choice(((1, 1), (1, 90), (30, 40))), random.choice((None, None, 0, HW.ports - 1))
        )
        bench.add(*(some(tag // 3 % 8) for tag in range(12)))
        await bench.run()
    dut._log.info("compared: %s", dict(bench.counts))
    for name in ("weights", "input", "residual", "choices", "rows kept", "lines", "commands"):
        assert bench.counts[name] > 20, f"{name}: {bench.counts[name]}"
    assert bench.command_errors and not bench.errors


@cocotb.test()
async def a_line_per_cycle(dut):
    """Memory that never waits is used in every cycle, whatever the mix of sources; commands cost their four beats."""
    bench = await begin(dut)
    fast = Pace(1, 1, 0, 1, 1, 1, 1, (12, 12))
    bench.pace = fast
    bench.add(*(Work(24, (STRIPE, 5), (STRIPE, 3)) for _ in range(4)))
    start = bench.cycle
    await bench.run()
    lines = bench.counts["lines"]
    assert lines == 4 * 32 * STRIPE
    assert lines / (bench.cycle - start) > 0.93, bench.cycle - start


@cocotb.test()
async def every_program_starts_alike(dut):
    """Once the reader has been idle, weights go first again where ages are equal, whoever was served last."""
    bench = await begin(dut)
    fast = Pace(1, 1, 0, 1, 1, 1, 1, (1, 1))
    ties = 0
    for delay in range(7):  # cycles until the first weights are asked for: some make both requests appear at once
        bench.pace = fast
        bench.add(Work(3, (4, 1)))  # weights are served last
        await bench.run()
        bench.pace = dataclasses.replace(fast, weights=0)
        bench.add(Work(3, (4, 1)))
        for _ in range(delay):
            await bench.step()
        bench.pace, before = fast, bench.counts["choices"]
        await bench.step()
        ties += bench.counts["choices"] > before
        await bench.run()
    assert ties, "no two requests at once"


@cocotb.test()
async def rings_full(dut):
    """A source whose ring is full asks for no more, to the line; the others go on."""
    bench = await begin(dut)
    for source in (INPUT, RESIDUAL):
        bench.pace = Pace(1, 1, 0, 1, 1, 1, 1)
        bench.hold_free = True
        stripes = CAPACITY[source] // STRIPE
        tensor = (stripes * STRIPE + 5, 1)
        bench.add(Work(40, tensor if source == INPUT else (1, 1), tensor if source == RESIDUAL else None))
        for _ in range(2500):
            await bench.step()
        assert bench.held[source] == CAPACITY[source] and bench.asked[source] == stripes
        assert bench.at[WEIGHTS] > bench.at[source]
        bench.hold_free = False
        await bench.run()


@cocotb.test()
async def smallest_room_is_enough(dut):
    """The last stripe of a tensor asks for room for its rows only, not for its padding."""
    bench = await begin(dut)
    bench.pace = Pace(1, 1, 0, 1, 1, 1, 1)
    bench.hold_free = True
    bench.add(Work(1, (INPUT_RING - 3, 1)), Work(1, (3, 1)), Work(1, (1, 1)))
    for _ in range(1500):
        await bench.step()
    assert bench.held[INPUT] == INPUT_RING and bench.at[INPUT] == 2
    bench.hold_free = False
    await bench.run()


@cocotb.test()
async def weights_wait(dut):
    """The weight decoder lets a line wait: nothing passes it, beats pile up in every FIFO, nothing is lost."""
    bench = await begin(dut)
    bench.pace = Pace(1, 1, 0, 1, 1, 1, 1, (1, 4))
    bench.add(*(Work(12, (STRIPE, 4), (20, 2)) for _ in range(3)))
    for hold in (400, 30, 900):
        target = bench.counts["lines"] + random.randint(20, 60)
        await bench.run(until=lambda target=target: bench.counts["lines"] >= target)
        bench.hold_lines = True
        for _ in range(hold):
            await bench.step()
        before = bench.counts["lines"]
        if hold > 300:
            assert bench.waiting_line and all(port.waited > 50 for port in bench.ports), "FIFOs never filled"
            assert bench.stripes_open > 12
            for _ in range(20):
                await bench.step()
            assert bench.counts["lines"] == before
        bench.hold_lines = False
    await bench.run()


@cocotb.test()
async def one_slow_port(dut):
    """Each port slow once: the others run ahead as far as their FIFOs go, lines stay whole."""
    bench = await begin(dut)
    for port in range(HW.ports):
        bench.pace = Pace(1, 1, 0.02, 1, 1, 1, 1, (1, 3), port)
        before = [item.waited for item in bench.ports]
        bench.add(Work(20, (STRIPE, 2), (9, 1)))
        await bench.run()
        waited = [item.waited > count for item, count in zip(bench.ports, before, strict=True)]
        assert all(waited[:port] + waited[port + 1 :]), "a port that did not run ahead"


@cocotb.test()
async def bus_errors(dut):
    """An error in the middle of a burst is reported with the line it spoils, its entry and the lowest port; the stripe
    ends as any other, and so do those behind it."""
    bench = await begin(dut)
    for round_ in range(6):
        bench.pace = Pace(*(random.choice((0.5, 1.0)) for _ in range(7)))
        victims = [Work(2, (STRIPE, 2)), *(some() for _ in range(4)), Work(3, (5, 1), (3, 6))]
        bench.add(*victims)
        wanted = {}
        for work in random.sample([work for work in victims if work.weights], 2 if round_ else 1):
            source = random.choice([WEIGHTS, INPUT, *([RESIDUAL] if work.residual else [])])
            stripes = work.weights if source == WEIGHTS else work.stripes(work.rows[source - 1])
            beat = random.choice((0, 7, STRIPE - 1, random.randrange(STRIPE)))
            number = random.randrange(stripes)
            bad = random.sample(range(HW.ports), random.choice((1, 1, 2, HW.ports)))
            for port in bad:
                offset = work.offsets[source] + number * HW.stripe_bytes + port * HW.burst_bytes + beat * HW.port_bytes
                bench.bad[port, offset] = random.choice((SLVERR, DECERR))
            wanted[len(bench.works) - len(victims) + victims.index(work)] = min(bad)
        before = len(bench.errors)
        await bench.run()
        found = sorted(bench.errors[before:])
        assert found == sorted((at % 8, port) for at, port in wanted.items()), (found, wanted)
    assert bench.command_errors


@cocotb.test()
async def halt(dut):
    """Nothing new after halt; what is on its way comes back, then the reader is idle and stays so."""
    bench = await begin(dut)
    for delay in (3, 17, 60, 140, 250):
        bench.pace = dataclasses.replace(Pace(), command=0.2)
        bench.add(*(some() for _ in range(12)))
        for _ in range(delay):
            await bench.step()
        bench.halt = True
        before = sum(bench.asked) + sum(bench.counts[name] for name in ("weights", "input", "residual"))
        await bench.run(until=lambda: bench.quiet() and not bench.coming, limit=4000)
        assert not bench.commands and not any(port.flight for port in bench.ports)
        for cycle in range(60):
            await bench.step()
            assert cycle == 0 or bench.pins["idle"] and not bench.pins["arvalid"]
        assert before == sum(bench.asked) + sum(bench.counts[name] for name in ("weights", "input", "residual"))
        await bench.reset_unit()
        bench.add(some(), some())
        await bench.run()


@cocotb.test()
async def reset_in_the_middle(dut):
    """A reset at any time leaves nothing behind."""
    bench = await begin(dut)
    for stop in (4, 9, 33, 80, 200):
        bench.add(*(some() for _ in range(8)))
        for _ in range(stop):
            await bench.step()
        await bench.reset_unit()
        bench.add(some(), some(1))
        await bench.run()
