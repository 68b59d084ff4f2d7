"""check against accel/limits.py: the same verdict for every command, and every field of what is accepted."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge

from accel import pack
from accel.commands import FIELDS, Command
from accel.config import Config, Formats, network
from accel.layers import Kind, Layer, engine_layers
from accel.limits import KINDS, MAX_UNITS, EngineError, Limits
from rtl_tb import structs
from rtl_tb.command_cases import HARDWARE, MEMORY, command_of, entry_fields, some_layer

PRESETS = ("ci", "zcu104")

MOST_CYCLES = 100
BITS = {item.name: item.bits for item in FIELDS}
NAMES = [item.name for item in FIELDS if item.name not in ("opcode", "flags")]


class Bench:
    def __init__(self, dut) -> None:
        self.dut, self.engine = dut, structs.load()
        self.limits = Limits(HARDWARE)
        self.verdicts: Counter = Counter()

    async def begin(self) -> None:
        cocotb.start_soon(Clock(self.dut.clk, 10, "ns").start(start_high=False))
        self.dut.rst.value, self.dut.start.value = 1, 0
        for _ in range(3):
            await FallingEdge(self.dut.clk)
        self.dut.rst.value = 0

    async def check(self, command: Command) -> None:
        """Run one command through the unit and compare with the model."""
        index, tag = random.getrandbits(32), random.randrange(self.engine.ENTRIES)
        self.dut.command.value = int.from_bytes(command.encode(), "little")
        self.dut.index.value, self.dut.job_tag.value = index, tag
        self.dut.start.value = 1
        await FallingEdge(self.dut.clk)
        self.dut.start.value = 0
        cycles = 0
        while not self.dut.done.value:
            await FallingEdge(self.dut.clk)
            cycles += 1
            assert cycles <= MOST_CYCLES, command
        found = int(self.dut.code.value), int(self.dut.detail.value)
        try:
            layer = self.limits.check(command, MEMORY)
        except EngineError as error:
            assert found == (int(error.code), error.detail), (command, error.code, error.detail)
            self.verdicts[error.code.name, FIELDS[error.detail].name] += 1
            return
        assert found == (0, 0), command
        self.verdicts[command.opcode.name] += 1
        fields = self.engine.unpack("layer_t", int(self.dut.layer.value))
        wanted = entry_fields(command, layer) | {"index": index, "job_tag": tag}
        assert {name: fields[name] for name in wanted} == wanted, command
        ignored = {"gate"} if layer.kind is not Kind.MOE else set()
        ignored |= {"residual"} if layer.kind is Kind.LINEAR else set()
        assert set(fields) - ignored == set(wanted) - ignored


# ---- commands -------------------------------------------------------------------------


def disturbed(command: Command) -> Command:
    """The command with a field or two changed: by little, to a limit, to anything."""
    changes: dict[str, int] = {}
    for name in random.sample(NAMES, random.choice((1, 1, 2))):
        value, bits = getattr(command, name), BITS[name]
        value = random.choice((
            0, value + 1, value - 1, value + HARDWARE.tile_inputs, value ^ 1 << random.randrange(bits),
            value + HARDWARE.stripe_bytes, HARDWARE.max_width, HARDWARE.max_width + HARDWARE.tile_inputs,
            HARDWARE.max_inputs + HARDWARE.tile_inputs, (1 << bits) - 1, random.getrandbits(bits),
        )) & ((1 << bits) - 1)  # fmt: skip
        if name == "gate_shift" and value >= 128:
            value -= 256
        changes[name] = value
    return dataclasses.replace(command, **changes)


def rows_of(base: Layer, rows: int) -> Layer:
    """A layer whose unit has exactly this many weight rows, if its kind can."""
    hw, step = base.hardware, base.hardware.tile_inputs
    if base.first is None:
        return dataclasses.replace(base, inputs=step, outputs=min(hw.max_width, rows * hw.tile_outputs))
    for _ in range(20000):
        inputs, hidden = (random.randint(1, most // step) for most in (hw.max_width, hw.max_hidden))
        first = -(-hidden * step // hw.tile_outputs) * inputs
        if first < rows and (rows - first) % hidden == 0 and (rows - first) // hidden * hw.tile_outputs <= hw.max_width:
            outputs = (rows - first) // hidden * hw.tile_outputs
            return dataclasses.replace(base, inputs=inputs * step, hidden=hidden * step, outputs=outputs)
    return base


# ---- tests ----------------------------------------------------------------------------


@cocotb.test()
async def layers_of_networks(dut):
    bench = Bench(dut)
    await bench.begin()
    names = ("m3vit-demo",) if HARDWARE.name == "ci" else ("m3vit-demo", "m3vit-tiny-cityscapes", "m3vit-small-nyud")
    for name in names:
        for layer in engine_layers(Config(network(name), Formats(), HARDWARE)):
            await bench.check(command_of(layer))
    assert set(bench.verdicts) == {opcode.name for opcode in KINDS}


@cocotb.test()
async def random_commands(dut):
    bench = Bench(dut)
    await bench.begin()
    for _ in range(1500):
        command = command_of(some_layer())
        await bench.check(command)
        await bench.check(disturbed(command))
    for _ in range(300):
        values = {name: random.getrandbits(BITS[name]) for name in NAMES}
        values["gate_shift"] -= 128
        await bench.check(Command(random.choice(list(KINDS)), **values))
    dut._log.info("%s", dict(bench.verdicts))
    for opcode in KINDS:
        assert bench.verdicts[opcode.name] > 50, bench.verdicts
    fields = {name for key in bench.verdicts if isinstance(key, tuple) for name in key[1:]}
    assert fields >= set(NAMES) - {"job", "layer"}, fields


@cocotb.test()
async def limits_from_both_sides(dut):
    """Each limit met exactly and passed by the smallest step, one at a time."""
    bench = Bench(dut)
    await bench.begin()
    hw, step = HARDWARE, HARDWARE.tile_inputs
    for _ in range(20):
        for kind in Kind:
            hidden, gated = kind in (Kind.MLP, Kind.MOE), kind is Kind.MOE
            base = Layer("", kind, 1 + random.randrange(9), step * random.randint(1, 4), random.randint(1, 100),
                         step * random.randint(1, 4) if hidden else 0, 9 if gated else 1, 1, 2 if gated else 1,
                         hw)  # fmt: skip
            shapes = [
                base, *(dataclasses.replace(base, tokens=n) for n in (hw.max_tokens, hw.max_tokens + 1)),
                *(dataclasses.replace(base, inputs=n, outputs=8)
                  for n in (hw.max_width, hw.max_width + step, hw.max_inputs, hw.max_inputs + step)),
                *(dataclasses.replace(base, outputs=n) for n in (hw.max_width, hw.max_width + 1)),
            ]  # fmt: skip
            if hidden:
                shapes += [dataclasses.replace(base, hidden=n, inputs=step, outputs=1)
                           for n in (hw.max_hidden, hw.max_hidden + step)]  # fmt: skip
                shapes += [dataclasses.replace(base, units=MAX_UNITS[kind] + n) for n in (0, 1)]
            if gated:
                shapes += [dataclasses.replace(base, experts=n) for n in (hw.max_experts, hw.max_experts + 1)]
                shapes += [dataclasses.replace(base, top_k=n) for n in (hw.max_top_k, hw.max_top_k + 1, 9)]
            for tiles in range(1, 2 * hw.slot_groups, 5):
                wide = dataclasses.replace(base, outputs=min(hw.max_width, tiles * hw.tile_outputs))
                shapes.append(dataclasses.replace(wide, inputs=step * max(1, hw.slot_rows // wide.second.tiles)))
                shapes.append(dataclasses.replace(wide, inputs=step * (hw.slot_rows // wide.second.tiles + 1)))
            for layer in shapes:
                await bench.check(command_of(layer))
            await bench.check(command_of(rows_of(base, hw.slot_rows)))
            await bench.check(command_of(rows_of(base, hw.slot_rows + 1)))
    for units in range(2, 9):
        # Every unit full: one line of tiles more per unit would leave the last without any
        for lines in range(1, 5):
            outputs = units * lines * math.lcm(hw.tile_outputs, hw.line_bytes)
            command = command_of(Layer("", Kind.LINEAR, 3, step, outputs, 0, 1, units, 1, hw))
            for more in range(-9, 10):
                changed = command.tiles_per_unit + more
                await bench.check(dataclasses.replace(command, tiles_per_unit=max(0, changed)))
    refused = {key[1] for key in bench.verdicts if key[0] == "SHAPE"}
    assert refused >= {"tokens", "inputs", "outputs", "experts", "top_k"}


@cocotb.test()
async def ends_of_the_arena(dut):
    """Every operand as its last byte leaves the 32 bits of an arena offset."""
    bench = Bench(dut)
    await bench.begin()
    hw = HARDWARE
    for _ in range(40):
        layer = some_layer()
        command = command_of(layer)
        output = pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, hw)
        sizes = {"weights": layer.experts * layer.expert_bytes, "gate": layer.gate_bytes, "residual": output,
                 "input": pack.token_bytes(layer.tokens, layer.inputs, 1, hw), "output": output}  # fmt: skip
        for name, size in sizes.items():
            if 0 < size <= MEMORY:
                last = MEMORY - size
                await bench.check(dataclasses.replace(command, **{name: last}))
                if last + hw.stripe_bytes < MEMORY:
                    await bench.check(dataclasses.replace(command, **{name: last + hw.stripe_bytes}))


@cocotb.test()
async def restarted(dut):
    """A start while another command is looked at: only the second counts (the first one's program has ended)."""
    bench = Bench(dut)
    await bench.begin()
    for wait in range(1, 40):
        dut.command.value = random.getrandbits(352)
        dut.start.value = 1
        await RisingEdge(dut.clk)
        await FallingEdge(dut.clk)
        dut.start.value = 0
        for _ in range(wait % 34):
            await FallingEdge(dut.clk)
        await bench.check(command_of(some_layer()))
