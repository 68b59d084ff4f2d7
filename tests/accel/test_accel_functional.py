"""The functional engine, layer by layer, against numerics alone: bits, counters, errors, and what it may write."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import numerics, pack, tables
from accel.commands import COMMAND_BYTES, FIELDS, Command, Flag, Opcode
from accel.config import Formats, Hardware, build_hash, engine_hash, hardware
from accel.errors import BundleError
from accel.functional import FunctionalEngine
from accel.layers import Kind, Layer
from accel.params import Gate, Linear, Unit
from accel.record import ErrorCode, Record, record_bytes
from accel.routing import Schedule

CI, ZCU104 = hardware("ci"), hardware("zcu104")
ONE_PORT = dataclasses.replace(CI, name="one-port", ports=1, write_ports=1)
OPCODES = {Kind.LINEAR: Opcode.LINEAR, Kind.ACCUMULATE: Opcode.ACCUMULATE, Kind.MLP: Opcode.MLP, Kind.MOE: Opcode.MOE}
GUARD = 4096
FIELD = {item.name: index for index, item in enumerate(FIELDS)}
Array = np.ndarray[Any, Any]


# ---- random layers --------------------------------------------------------------------


def random_linear(rng: np.random.Generator, outputs: int, inputs: int, shift: int = 8) -> Linear:
    return Linear(
        rng.integers(-127, 128, (outputs, inputs), dtype=np.int8),
        rng.integers(-20_000, 20_000, outputs, dtype=np.int32),
        rng.integers(shift - 2, shift + 3, outputs, dtype=np.int8),
    )


def random_unit(rng: np.random.Generator, width: int, hidden: int) -> Unit:
    return Unit(random_linear(rng, hidden, width), tables.gelu(-5, -5, 8), random_linear(rng, width, hidden, 4))


@dataclasses.dataclass
class Case:
    """One layer with its weights and operands."""

    layer: Layer
    x: Array
    residual: Array | None = None
    linear: Linear | None = None
    experts: Sequence[Sequence[Unit]] = ()
    gate: Gate | None = None
    schedule: Schedule = Schedule.INDEX
    flags: Flag = Flag(0)
    bits: int = 8

    def weight_bytes(self) -> Array:
        if self.linear is not None:
            return pack.pack_plain(self.linear, self.layer)
        return np.concatenate([pack.pack_unit(unit, self.layer) for units in self.experts for unit in units])

    def routing(self) -> tuple[Array, Array]:
        """Chosen experts and combine weights, both [tokens, k]."""
        if self.gate is None:
            tokens = len(self.x)
            return np.zeros((tokens, 1), int), np.full((tokens, 1), numerics.COMBINE_ONE)
        logits = numerics.linear(self.x, self.gate.weight, self.gate.bias)
        chosen = numerics.top_k(logits, self.layer.top_k)
        return chosen, numerics.gate_weights(logits, chosen, self.gate.shift)

    def expected(self) -> Array:
        """The layer token by token, from the contract's functions."""
        if self.layer.kind is Kind.LINEAR:
            assert self.linear is not None
            accumulator = numerics.linear(self.x, self.linear.weight, self.linear.bias)
            return numerics.requantize(accumulator, self.linear.shift, self.bits, bool(self.flags & Flag.NARROW))
        assert self.residual is not None
        wide = numerics.combine_start(self.residual)
        if self.linear is not None:
            accumulator = numerics.linear(self.x, self.linear.weight, self.linear.bias)
            return numerics.combine_finish(
                wide + numerics.COMBINE_ONE * numerics.requantize(accumulator, self.linear.shift, 16)
            )
        chosen, weights = self.routing()
        for token, x in enumerate(self.x):
            for expert, weight in zip(chosen[token], weights[token], strict=True):
                for unit in self.experts[expert]:
                    first = numerics.linear(x, unit.first.weight, unit.first.bias)
                    hidden = numerics.gelu(numerics.requantize(first, unit.first.shift, self.bits), unit.gelu)
                    second = numerics.linear(hidden, unit.second.weight, unit.second.bias)
                    wide[token] += weight * numerics.requantize(second, unit.second.shift, 16)
        return numerics.combine_finish(wide)

    def entry(self) -> dict[str, int]:
        """The job's entry in the record, counted from the routing."""
        layer, tokens = self.layer, len(self.x)
        chosen, weights = self.routing()
        per_pair = layer.inputs * layer.outputs
        if self.experts:
            per_pair = layer.units * (layer.inputs * layer.hidden + layer.hidden * layer.outputs)
        crc = 0
        if self.gate is not None:
            for token in range(tokens):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    entry = int(expert).to_bytes(2, "little") + token.to_bytes(2, "little")
                    crc = zlib.crc32(entry + int(weight).to_bytes(4, "little"), crc)
        gate = tokens * layer.inputs * layer.experts if self.gate is not None else 0
        return {
            "pairs": chosen.size,
            "experts": len(np.unique(chosen)),
            "macs": chosen.size * per_pair + gate,
            "queue_crc": crc,
        }

    def counters(self) -> dict[str, int]:
        """Bytes and units, counted from the tile geometry on paper (docs/formats.md §2)."""
        layer, hw, entry = self.layer, self.layer.hardware, self.entry()
        line, stripe = hw.ports * hw.port_bytes, hw.ports * hw.port_bytes * hw.burst_beats

        def up(value: int, step: int) -> int:
            return -(-value // step) * step

        def tiles(outputs: int, inputs: int) -> int:
            group, row = up(5 * hw.tile_outputs, line), hw.tile_outputs * hw.tile_inputs
            return -(-outputs // hw.tile_outputs) * (group + inputs // hw.tile_inputs * row)

        def rows(width: int, itemsize: int) -> int:
            return up(len(self.x) * up(width * itemsize, line), stripe)

        units = layer.units * entry["experts"]
        if self.experts:
            unit = up(up(256, line) + tiles(layer.hidden, layer.inputs) + tiles(layer.outputs, layer.hidden), stripe)
        else:
            per_unit = tiles_of_a_unit(layer.kind, hw, layer.outputs, layer.units) * hw.tile_outputs
            unit = up(tiles(min(per_unit, layer.outputs), layer.inputs), stripe)
        weight_bytes = units * unit
        if self.gate is not None:
            weight_bytes += up(tiles(layer.experts, layer.inputs), stripe)
        linear = layer.kind is Kind.LINEAR
        output = rows(layer.outputs, 1 if linear else 2)
        return {
            "bytes_read": weight_bytes + rows(layer.inputs, 1) + (0 if linear else output) + COMMAND_BYTES,
            "bytes_written": output,
            "weight_bytes": weight_bytes,
            "units": units,
        } | {name: entry[name] for name in ("pairs", "experts", "macs")}


def tiles_of_a_unit(kind: Kind, hw: Hardware, outputs: int, units: int) -> int:
    """Output tiles of every plain unit but the last: whole lines of the output rows where there are several."""
    tiles = -(-outputs // hw.tile_outputs)
    if units == 1:
        return tiles
    size = hw.tile_outputs * (1 if kind is Kind.LINEAR else 2)
    count = -(-tiles // units)
    while count * size % (hw.ports * hw.port_bytes):
        count += 1
    return count


# ---- memory with guards ---------------------------------------------------------------


class Bench:
    """A memory full of garbage with the operands of some commands in it, guard bytes around each."""

    def __init__(self, cases: Sequence[Case], tail: Sequence[Command] | None = None) -> None:
        self.cases, self.hardware = cases, cases[0].layer.hardware
        self.pieces: list[tuple[int, Array]] = []
        self.end = GUARD
        self.commands: list[Command] = []
        self.outputs: list[tuple[int, int]] = []
        shared: dict[int, int] = {}
        for job, case in enumerate(cases):
            if id(case.experts or case.linear) not in shared:  # two jobs on the same experts share them in memory
                shared[id(case.experts or case.linear)] = self.place(case.weight_bytes())
            self.commands.append(self.command(case, job, shared[id(case.experts or case.linear)]))
            self.commands.append(Command(Opcode.JOB_END, job=job))
        self.commands += [Command(Opcode.END)] if tail is None else tail
        self.record = self.reserve(record_bytes(len(cases)))
        self.program = self.reserve(len(self.commands) * COMMAND_BYTES)
        self.memory = np.random.default_rng(0).integers(0, 256, self.end, dtype=np.uint8)
        for offset, data in self.pieces:
            self.memory[offset : offset + len(data)] = data
        self.write_program(self.commands)

    def reserve(self, size: int) -> int:
        offset = self.end
        self.end += -(-(size + GUARD) // GUARD) * GUARD
        return offset

    def place(self, data: Array) -> int:
        offset = self.reserve(len(data))
        self.pieces.append((offset, data))
        return offset

    def command(self, case: Case, job: int, weights: int) -> Command:
        layer = case.layer
        size = pack.token_bytes(layer.tokens, layer.outputs, layer.output_bytes_per_value, self.hardware)
        gate = self.place(pack.pack_gate(case.gate, layer)) if case.gate is not None else 0
        residual = self.place(pack.pack_tokens(case.residual, self.hardware)) if case.residual is not None else 0
        source = self.place(pack.pack_tokens(case.x, self.hardware))
        output = self.reserve(size)
        self.outputs.append((output, size))
        gated = case.gate is not None
        return Command(
            OPCODES[layer.kind], case.flags, case.schedule, layer.top_k if gated else 0,
            case.gate.shift if case.gate else 0, job, 0, layer.tokens, layer.experts if gated else 0, layer.inputs,
            layer.outputs, layer.hidden, layer.units, layer.tiles_per_unit, layer.unit_bytes, weights, gate, source,
            residual, output,
        )  # fmt: skip

    def write_program(self, commands: Sequence[Command]) -> None:
        image = np.frombuffer(b"".join(command.encode() for command in commands), np.uint8)
        self.memory[self.program : self.program + len(image)] = image

    def output(self, index: int = 0) -> Array:
        (offset, size), case = self.outputs[index], self.cases[index]
        dtype = np.int8 if case.layer.kind is Kind.LINEAR else np.int16
        data = self.memory[offset : offset + size]
        return pack.unpack_tokens(data, case.layer.tokens, case.layer.outputs, dtype, self.hardware)

    def run(self, engine: FunctionalEngine | None = None, commands: int | None = None) -> Record:
        """Execute; nothing but outputs and record may have changed, and the record must be what was returned."""
        engine = engine or FunctionalEngine(self.hardware, Formats(activation_bits=self.cases[0].bits))
        before = self.memory.copy()
        record = engine.execute(self.memory, self.program, commands or len(self.commands), self.record)
        outside = np.ones(len(self.memory), bool)
        for offset, size in [*self.outputs, (self.record, record_bytes(len(record.jobs)))]:
            outside[offset : offset + size] = False
        assert np.array_equal(self.memory[outside], before[outside]), "written outside outputs and record"
        written = self.memory[self.record :][: record_bytes(len(record.jobs))].tobytes()
        assert written == record.encode() and Record.decode(written).error is record.error
        return record

    def check(self, engine: FunctionalEngine | None = None) -> Record:
        """Bits and every counter of a program that must succeed."""
        record = self.run(engine)
        assert record.error is ErrorCode.NONE and record.header["commands"] == len(self.commands)
        total = dict.fromkeys(record.counters, 0)
        for index, case in enumerate(self.cases):
            assert np.array_equal(self.output(index), case.expected()), f"job {index}"
            assert record.jobs[index] == {"job": index, **case.entry()}
            for name, value in case.counters().items():
                total[name] += value
        total["bytes_read"] += COMMAND_BYTES * (len(self.cases) + 1)
        assert record.counters == total
        return record


def rows(rng: np.random.Generator, tokens: int, width: int) -> tuple[Array, Array]:
    x = rng.integers(-128, 128, (tokens, width)).astype(np.int8)
    return x, rng.integers(-32768, 32768, (tokens, width)).astype(np.int16)


def plain(
    kind: Kind, tokens: int, inputs: int, outputs: int, *, units: int = 1, hw: Hardware = CI, seed: int = 0,
    bits: int = 8, narrow: bool = False,
) -> Case:  # fmt: skip
    rng = np.random.default_rng(seed)
    x, _ = rows(rng, tokens, inputs)
    _, residual = rows(rng, tokens, outputs)
    layer = Layer("plain", kind, tokens, inputs, outputs, 0, 1, units, 1, hw)
    linear = random_linear(rng, outputs, inputs, 8 if kind is Kind.LINEAR else 4)
    flags = Flag.NARROW if narrow else Flag(0)
    return Case(layer, x, None if kind is Kind.LINEAR else residual, linear, flags=flags, bits=bits)


def mixture(
    tokens: int, width: int, hidden: int, *, experts: int = 1, units: int = 1, top_k: int = 0, hw: Hardware = CI,
    seed: int = 0, bits: int = 8, schedule: Schedule = Schedule.INDEX,
) -> Case:  # fmt: skip
    """A dense MLP, or experts behind a random gate if top_k is not 0."""
    rng = np.random.default_rng(seed)
    x, residual = rows(rng, tokens, width)
    kind = Kind.MOE if top_k else Kind.MLP
    layer = Layer("mixture", kind, tokens, width, width, hidden, experts, units, max(top_k, 1), hw)
    parts = [[random_unit(rng, width, hidden) for _ in range(units)] for _ in range(experts)]
    gate = None
    if top_k:
        weight = rng.integers(-127, 128, (experts, width), dtype=np.int8)
        gate = Gate(weight, rng.integers(-9000, 9000, experts, dtype=np.int32), 5)
    return Case(layer, x, residual, experts=parts, gate=gate, schedule=schedule, bits=bits)


def biased(case: Case, bias: Sequence[int], shift: int = 0) -> Case:
    """The same layer behind a gate that ignores its input."""
    weight = np.zeros((case.layer.experts, case.layer.inputs), np.int8)
    return dataclasses.replace(case, gate=Gate(weight, np.array(bias, np.int32), shift))


# ---- bits and counters ----------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from([Kind.LINEAR, Kind.ACCUMULATE]), hw=st.sampled_from([CI, ZCU104, ONE_PORT]),
    tokens=st.integers(1, 20), inputs=st.integers(1, 8), outputs=st.integers(1, 300), units=st.integers(1, 3),
    bits=st.integers(2, 8), narrow=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_plain_layers(
    kind: Kind, hw: Hardware, tokens: int, inputs: int, outputs: int, units: int, bits: int, narrow: bool, seed: int
) -> None:
    while (units - 1) * tiles_of_a_unit(kind, hw, outputs, units) * hw.tile_outputs >= outputs:
        units -= 1  # no unit without a tile
    case = plain(kind, tokens, 8 * inputs, outputs, units=units, hw=hw, seed=seed, bits=bits, narrow=narrow)
    Bench([case]).check()


@settings(deadline=None, max_examples=40)
@given(
    hw=st.sampled_from([CI, ZCU104, ONE_PORT]), tokens=st.integers(1, 20), width=st.integers(1, 7),
    hidden=st.integers(1, 5), units=st.integers(1, 3), experts=st.integers(1, 9), top_k=st.integers(0, 4),
    bits=st.integers(2, 8), schedule=st.sampled_from(list(Schedule)), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_mixtures(
    hw: Hardware, tokens: int, width: int, hidden: int, units: int, experts: int, top_k: int, bits: int,
    schedule: Schedule, seed: int,
) -> None:  # fmt: skip
    experts = experts if top_k else 1
    case = mixture(tokens, 8 * width, 8 * hidden, experts=experts, units=units, top_k=min(top_k, experts), hw=hw,
                   seed=seed, bits=bits, schedule=schedule if top_k else Schedule.INDEX)  # fmt: skip
    Bench([case]).check()


@pytest.mark.parametrize("hw", [CI, ZCU104], ids=lambda hw: hw.name)
def test_one_expert_gets_every_token_and_the_others_none(hw: Hardware) -> None:
    case = biased(mixture(13, 16, 8, experts=6, units=2, top_k=1, hw=hw), [0, 0, 0, 0, 5, 0])
    assert case.routing()[0].tolist() == [[4]] * 13
    record = Bench([case]).check()
    assert record.counters["experts"] == 1 and record.counters["units"] == 2 and record.counters["pairs"] == 13


def test_one_token() -> None:
    for case in (plain(Kind.LINEAR, 1, 16, 48), plain(Kind.ACCUMULATE, 1, 8, 16), mixture(1, 16, 8),
                 mixture(1, 16, 8, experts=7, top_k=3)):  # fmt: skip
        Bench([case]).check()


def test_odd_queue_lengths() -> None:
    """1, 3 and 5 tokens: none fills a tile of four."""
    case = mixture(9, 16, 8, experts=3, units=2, top_k=1)
    weight = np.zeros((3, 16), np.int8)
    weight[0, 0], weight[1, 0] = 1, -1
    x = case.x.copy()
    x[:, 0] = [9, -9, 0, 0, -9, 0, 0, -9, 0]
    case = dataclasses.replace(case, x=x, gate=Gate(weight, np.array([0, 0, 5], np.int32), 0))
    assert np.bincount(case.routing()[0][:, 0]).tolist() == [1, 3, 5]
    for schedule in Schedule:
        Bench([dataclasses.replace(case, schedule=schedule)]).check()


def test_ties_go_to_the_lower_index() -> None:
    case = biased(mixture(5, 16, 8, experts=6, top_k=3), [1, 7, 7, 1, 7, 7])
    assert case.routing()[0].tolist() == [[1, 2, 4]] * 5
    Bench([case]).check()
    case = biased(mixture(5, 16, 8, experts=6, top_k=2), [-3] * 6)
    assert case.routing()[0].tolist() == [[0, 1]] * 5
    Bench([case]).check()


def test_combine_weights_of_0_and_almost_1() -> None:
    case = biased(mixture(4, 16, 8, experts=3, top_k=2), [1 << 20, 0, 0])
    assert case.routing()[1].tolist() == [[65535, 0]] * 4
    record = Bench([case]).check()
    assert record.counters["experts"] == 2, "an expert of weight 0 is computed like any other"


@pytest.mark.parametrize("kind", list(Kind))
def test_saturation_on_both_sides(kind: Kind) -> None:
    """Outputs, hidden values and residuals all at their limits."""
    outputs = 16
    if kind in (Kind.LINEAR, Kind.ACCUMULATE):
        case = plain(kind, 6, 16, outputs)
        assert case.linear is not None
        case.linear = dataclasses.replace(case.linear, shift=np.full(outputs, -8, np.int8))
    else:
        case = mixture(6, outputs, 16, experts=1 + 3 * (kind is Kind.MOE), units=2, top_k=2 * (kind is Kind.MOE))
        case.experts = [
            [
                Unit(dataclasses.replace(u.first, shift=np.zeros(16, np.int8)), u.gelu,
                     dataclasses.replace(u.second, shift=np.full(16, -8, np.int8)))
                for u in units
            ]
            for units in case.experts
        ]  # fmt: skip
        assert case.gate is not None or kind is Kind.MLP
    if case.residual is not None:
        case.residual = np.where(np.arange(case.residual.size).reshape(case.residual.shape) % 2, 32767, -32768).astype(
            np.int16
        )
    low, high = (-128, 127) if kind is Kind.LINEAR else (-32768, 32767)
    bench = Bench([case])
    bench.check()
    counts = [int((bench.output() == limit).sum()) for limit in (low, high)]
    assert min(counts) > 5, counts
    if kind is Kind.LINEAR:
        narrow = Bench([dataclasses.replace(case, flags=Flag.NARROW)])
        narrow.check()
        assert narrow.output().min() == -127 and (narrow.output() == -127).sum() == counts[0]


def test_the_same_expert_twice_in_a_row() -> None:
    first = biased(mixture(7, 16, 8, experts=4, units=2, top_k=1, seed=1), [0, 0, 9, 0])
    x, residual = rows(np.random.default_rng(9), 7, 16)
    second = dataclasses.replace(first, x=x, residual=residual)
    for cases in ([first, second], [first, first], [second, first, second]):
        bench = Bench(cases)
        assert len({command.weights for command in bench.commands[::2][:-1]}) == 1
        bench.check()


def test_256_experts_top_8() -> None:
    case = mixture(40, 16, 8, experts=256, top_k=8, hw=CI, seed=3)
    assert len(np.unique(case.routing()[0])) > 50
    Bench([case]).check()
    all_tie = biased(case, [1] * 256)
    assert all_tie.routing()[0].tolist() == [list(range(8))] * 40
    Bench([all_tie]).check()
    last = biased(case, list(range(256)))
    assert last.routing()[0].tolist() == [list(range(255, 247, -1))] * 40
    Bench([last]).check()


def test_jobs_of_every_kind_in_one_program() -> None:
    cases = [plain(Kind.LINEAR, 5, 16, 150, units=3), mixture(5, 16, 8, experts=3, top_k=2), mixture(5, 16, 8, units=2),
             plain(Kind.ACCUMULATE, 4, 24, 16), mixture(5, 16, 8, experts=3, top_k=2, seed=5)]  # fmt: skip
    Bench(cases).check()


def test_output_in_place_of_the_residual() -> None:
    bench = Bench([mixture(5, 16, 8, experts=3, top_k=2)])
    expected = bench.cases[0].expected()
    command = dataclasses.replace(bench.commands[0], output=bench.commands[0].residual)
    bench.outputs = [(command.output, bench.outputs[0][1])]
    bench.write_program([command, *bench.commands[1:]])
    assert bench.run().error is ErrorCode.NONE
    assert np.array_equal(bench.output(), expected)


# ---- nothing is remembered that memory no longer says ---------------------------------


@pytest.mark.parametrize("hw", [CI, ONE_PORT], ids=lambda hw: hw.name)
def test_rewritten_memory_is_never_read_stale(hw: Hardware) -> None:
    engine = FunctionalEngine(hw)
    case = mixture(9, 8, 8, experts=3, top_k=2, hw=hw)
    bench = Bench([case])
    bench.check(engine)
    for seed in (1, 2, 0):  # and back to what the engine has seen
        other = mixture(9, 8, 8, experts=3, top_k=2, hw=hw, seed=seed)
        for changes in (
            {"experts": other.experts}, {"gate": other.gate}, {"x": other.x}, {"residual": other.residual},
        ):  # fmt: skip
            case = dataclasses.replace(case, **changes)
            fresh = Bench([case])
            bench.cases, bench.memory[:] = [case], fresh.memory
            bench.check(engine)
    table = dataclasses.replace(case, experts=[
        [dataclasses.replace(unit, gelu=unit.gelu[::-1].copy()) for unit in units] for units in case.experts
    ])  # fmt: skip
    assert not np.array_equal(table.expected(), case.expected())
    bench.cases, bench.memory[:] = [table], Bench([table]).memory
    bench.check(engine)


@pytest.mark.parametrize("hw", [CI, ONE_PORT], ids=lambda hw: hw.name)
def test_rewritten_plain_weights(hw: Hardware) -> None:
    engine = FunctionalEngine(hw)
    for inputs in (8, 16):
        bench = Bench([plain(Kind.LINEAR, 6, inputs, 16, hw=hw)])
        for seed in (0, 1, 0, 2):
            case = plain(Kind.LINEAR, 6, inputs, 16, hw=hw, seed=seed)
            bench.cases, bench.memory[:] = [case], Bench([case]).memory
            bench.check(engine)


def test_same_bytes_in_another_shape_are_another_layer() -> None:
    engine = FunctionalEngine(CI)
    contents = set()
    for inputs in (8, 16, 8):
        case = plain(Kind.LINEAR, 3, inputs, 16)
        zeros = Linear(np.zeros((16, inputs), np.int8), np.zeros(16, np.int32), np.zeros(16, np.int8))
        case = dataclasses.replace(case, linear=zeros)
        contents.add(case.weight_bytes().tobytes())
        Bench([case]).check(engine)
    assert len(contents) == 1


def test_shift_of_the_gate_comes_from_the_command() -> None:
    engine = FunctionalEngine(CI)
    outputs = []
    for shift in (0, 3, 9):
        case = mixture(9, 16, 8, experts=4, top_k=2)
        assert case.gate is not None
        bench = Bench([dataclasses.replace(case, gate=dataclasses.replace(case.gate, shift=shift))])
        bench.check(engine)
        outputs.append(bench.output().tobytes())
    assert len(set(outputs)) == 3


# ---- errors ---------------------------------------------------------------------------


def failing(bench: Bench, command: Command, *, index: int = 2) -> Record:
    """A correct command, its JOB_END, then ``command``: the first is done, nothing after the failure is."""
    commands = list(bench.commands)
    commands[index] = command
    bench.write_program(commands)
    untouched = bench.memory[bench.outputs[1][0] :][: bench.outputs[1][1]].copy()
    record = bench.run()
    assert np.array_equal(bench.output(0), bench.cases[0].expected())
    assert np.array_equal(bench.memory[bench.outputs[1][0] :][: bench.outputs[1][1]], untouched)
    assert record.header["commands"] == record.header["error_command"] == index
    assert len(record.jobs) == 1
    return record


def at(command: Command, name: str, offset: int) -> Command:
    """The command with one operand elsewhere."""
    changes: dict[str, Any] = {name: offset}
    return dataclasses.replace(command, **changes)


def two(kind: Kind, **changes: Any) -> Bench:
    first = mixture(5, 16, 8, experts=3, top_k=2, seed=4, hw=changes.get("hw", CI))
    if kind is Kind.MOE:
        return Bench([first, mixture(6, 16, 8, experts=4, top_k=2, **changes)])
    if kind is Kind.MLP:
        return Bench([first, mixture(6, 16, 8, units=2, **changes)])
    return Bench([first, plain(kind, 6, 16, 32, **changes)])


FAR = 0xFFFFFC00
"""A stripe at the end of what 32 bits can address."""
ERRORS: list[tuple[Kind, dict[str, Any], ErrorCode, str]] = [
    (Kind.LINEAR, {"tokens": 0}, ErrorCode.SHAPE, "tokens"),
    (Kind.MOE, {"tokens": 0}, ErrorCode.SHAPE, "tokens"),
    (Kind.LINEAR, {"tokens": CI.max_tokens + 1}, ErrorCode.SHAPE, "tokens"),
    (Kind.MLP, {"tokens": 65535}, ErrorCode.SHAPE, "tokens"),
    (Kind.LINEAR, {"inputs": 0}, ErrorCode.SHAPE, "inputs"),
    (Kind.ACCUMULATE, {"inputs": 12}, ErrorCode.SHAPE, "inputs"),
    (Kind.LINEAR, {"outputs": 0}, ErrorCode.SHAPE, "outputs"),
    (Kind.ACCUMULATE, {"outputs": CI.max_width + 1}, ErrorCode.SHAPE, "outputs"),
    (Kind.LINEAR, {"units": 0}, ErrorCode.SHAPE, "units"),
    (Kind.LINEAR, {"inputs": CI.max_inputs + 8}, ErrorCode.SHAPE, "inputs"),
    (Kind.LINEAR, {"inputs": 65528}, ErrorCode.SHAPE, "inputs"),
    (Kind.MLP, {"inputs": CI.max_width + 8}, ErrorCode.SHAPE, "inputs"),
    (Kind.MOE, {"outputs": 0}, ErrorCode.SHAPE, "outputs"),
    (Kind.MOE, {"outputs": CI.max_width + 1}, ErrorCode.SHAPE, "outputs"),
    (Kind.LINEAR, {"units": 2, "tiles_per_unit": 4}, ErrorCode.SHAPE, "units"),
    (Kind.ACCUMULATE, {"units": 2, "tiles_per_unit": 2}, ErrorCode.SHAPE, "units"),
    (Kind.LINEAR, {"units": 255, "tiles_per_unit": 4}, ErrorCode.SHAPE, "units"),
    (Kind.LINEAR, {"units": 2, "tiles_per_unit": 1}, ErrorCode.SHAPE, "tiles_per_unit"),
    (Kind.MLP, {"units": 0}, ErrorCode.SHAPE, "units"),
    (Kind.MLP, {"units": 16}, ErrorCode.SHAPE, "units"),
    (Kind.MOE, {"units": 15}, ErrorCode.SHAPE, "units"),
    (Kind.MLP, {"hidden": 0}, ErrorCode.SHAPE, "hidden"),
    (Kind.MOE, {"hidden": 12}, ErrorCode.SHAPE, "hidden"),
    (Kind.LINEAR, {"hidden": 8}, ErrorCode.SHAPE, "hidden"),
    (Kind.MLP, {"hidden": CI.max_hidden + 8}, ErrorCode.SHAPE, "hidden"),
    (Kind.MLP, {"hidden": 65528}, ErrorCode.SHAPE, "hidden"),
    (Kind.MOE, {"experts": 0}, ErrorCode.SHAPE, "experts"),
    (Kind.MOE, {"experts": CI.max_experts + 1}, ErrorCode.SHAPE, "experts"),
    (Kind.MOE, {"top_k": 0}, ErrorCode.SHAPE, "top_k"),
    (Kind.MOE, {"top_k": 5}, ErrorCode.SHAPE, "top_k"),
    (Kind.MOE, {"experts": 20, "top_k": CI.max_top_k + 1}, ErrorCode.SHAPE, "top_k"),
    (Kind.MOE, {"schedule": 3}, ErrorCode.SHAPE, "schedule"),
    (Kind.MOE, {"gate_shift": -17}, ErrorCode.SHAPE, "gate_shift"),
    (Kind.MOE, {"gate_shift": 32}, ErrorCode.SHAPE, "gate_shift"),
    *[(kind, {"weight_source": source}, ErrorCode.OPCODE, "weight_source")
      for kind, source in ((Kind.LINEAR, 1), (Kind.ACCUMULATE, 1), (Kind.MLP, 8), (Kind.MOE, 15))],
    (Kind.LINEAR, {"tiles_per_unit": 1}, ErrorCode.SHAPE, "tiles_per_unit"),
    (Kind.MOE, {"tiles_per_unit": 2}, ErrorCode.SHAPE, "tiles_per_unit"),
    (Kind.LINEAR, {"unit_bytes": 3072}, ErrorCode.ADDRESS, "unit_bytes"),
    (Kind.MOE, {"unit_bytes": 0}, ErrorCode.ADDRESS, "unit_bytes"),
    *[(Kind.MOE, {name: 4096 + 64}, ErrorCode.ADDRESS, name)
      for name in ("weights", "gate", "input", "residual", "output")],
    *[(Kind.MOE, {name: FAR}, ErrorCode.READ, "") for name in ("weights", "gate", "input", "residual")],
    (Kind.LINEAR, {"weights": FAR}, ErrorCode.READ, ""),
    (Kind.LINEAR, {"output": FAR}, ErrorCode.WRITE, ""),
    (Kind.MOE, {"output": FAR}, ErrorCode.WRITE, ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "code", "name"), ERRORS)
def test_commands_the_engine_refuses(kind: Kind, fields: dict[str, Any], code: ErrorCode, name: str) -> None:
    bench = two(kind)
    record = failing(bench, dataclasses.replace(bench.commands[2], **fields))
    assert record.error is code
    assert record.header["error_detail"] == (FIELD[name] if name else 0)


@pytest.mark.parametrize("name", ["weights", "gate", "input", "residual", "output"])
def test_operands_may_end_with_the_memory_and_not_after(name: str) -> None:
    bench = two(Kind.MOE)
    case, command = bench.cases[1], bench.commands[2]
    layer = case.layer
    sizes = {"weights": layer.experts * layer.expert_bytes, "gate": layer.gate_bytes,
             "input": pack.token_bytes(6, 16, 1, CI), "residual": pack.token_bytes(6, 16, 2, CI),
             "output": pack.token_bytes(6, 16, 2, CI)}  # fmt: skip
    start = getattr(command, name)
    data = bench.memory[start : start + sizes[name]].copy()
    space = -(-sizes[name] // GUARD) * GUARD
    offset = len(bench.memory) + space - sizes[name]
    bench.memory = np.concatenate([bench.memory, np.zeros(space, np.uint8)])
    bench.memory[offset:] = data
    moved = at(command, name, offset)
    if name == "output":
        bench.outputs[1] = (offset, sizes[name])
    bench.write_program([*bench.commands[:2], moved, *bench.commands[3:]])
    assert bench.run().error is ErrorCode.NONE
    assert np.array_equal(bench.output(1), case.expected())
    bench.outputs[1] = (command.output, 0)
    beyond = at(command, name, offset + CI.stripe_bytes)
    assert failing(bench, beyond).error is (ErrorCode.WRITE if name == "output" else ErrorCode.READ)


def test_gate_tables_that_do_not_fit_a_slot() -> None:
    """The shape is one that the engine holds but for the gate: what is refused is the number of experts."""
    small = dataclasses.replace(CI, name="small", slot_rows=6)  # 2 + 4 rows: a unit of 16 × 16 and 16 × 16
    bench = two(Kind.MOE, hw=small)
    fits = dataclasses.replace(bench.commands[2], experts=48, weights=FAR)  # 3 tiles of 2 rows
    assert failing(bench, fits).error is ErrorCode.READ, "48 experts fit exactly, so the next check is reached"
    record = failing(bench, dataclasses.replace(fits, experts=49))
    assert record.error is ErrorCode.SHAPE and record.header["error_detail"] == FIELD["experts"]


# ---- what the engine does not look at -------------------------------------------------

UNUSED = {
    Kind.LINEAR: ("schedule", "top_k", "gate_shift", "experts", "gate", "residual"),
    Kind.ACCUMULATE: ("schedule", "top_k", "gate_shift", "experts", "gate"),
    Kind.MLP: ("schedule", "top_k", "gate_shift", "experts", "gate"),
}
"""Fields that mean nothing to an opcode."""


@pytest.mark.parametrize("kind", list(UNUSED))
def test_fields_that_an_opcode_does_not_use_are_ignored(kind: Kind) -> None:
    bench = two(kind)
    command = bench.commands[2]
    assert not any(getattr(command, name) for name in UNUSED[kind])
    most = {name: (1 << (FIELDS[FIELD[name]].bits - FIELDS[FIELD[name]].signed)) - 1 for name in UNUSED[kind]}
    for changes in (dict.fromkeys(UNUSED[kind], 1), most):
        bench.commands[2] = dataclasses.replace(command, **changes)  # type: ignore[arg-type]
        bench.write_program(bench.commands)
        bench.check()


def test_fields_of_commands_without_a_layer_are_ignored() -> None:
    fields: dict[str, Any] = {item.name: (1 << (item.bits - item.signed)) - 1 for item in FIELDS[2:]}
    bench = Bench([mixture(5, 16, 8)])
    bench.commands[1:] = [Command(Opcode.JOB_END, **(fields | {"job": 0})), Command(Opcode.END, **fields)]
    bench.write_program(bench.commands)
    bench.check()


def padding(data: Array, used: Array) -> Array:
    """``data`` with garbage in every byte that ``used``, the same layout full of ones, leaves zero."""
    assert len(data) == len(used) and set(np.unique(used)) <= {0, 0xFF} and not data[used == 0].any()
    garbage = np.random.default_rng(1).integers(1, 256, len(data), dtype=np.uint8)
    return np.where(used == 0, garbage, data)


def ones(linear: Linear) -> Linear:
    """All bits of all parameters set."""
    return Linear(*(np.full_like(part, -1) for part in (linear.weight, linear.bias, linear.shift)))


CASES = {
    "linear": lambda hw: plain(Kind.LINEAR, 5, 16, 2 * 4 * hw.tile_outputs + 1, units=3, hw=hw, narrow=True),
    "accumulate": lambda hw: plain(Kind.ACCUMULATE, 5, 24, 20, hw=hw),
    "mlp": lambda hw: mixture(5, 24, 8, units=2, hw=hw),
    "moe": lambda hw: mixture(5, 24, 8, experts=5, units=2, top_k=2, hw=hw),
}


@pytest.mark.parametrize("hw", [CI, ZCU104, ONE_PORT], ids=lambda hw: hw.name)
@pytest.mark.parametrize("name", list(CASES))
def test_padding_is_ignored(name: str, hw: Hardware) -> None:
    """Lanes past the last output, bytes between tensors and ends of rows: whatever they hold, nothing changes."""
    case = CASES[name](hw)
    bench, layer = Bench([case]), case.layer
    command = bench.commands[0]
    places = [(command.input, pack.pack_tokens(case.x, hw), pack.pack_tokens(np.full_like(case.x, -1), hw))]
    if case.residual is not None:
        full = pack.pack_tokens(np.full_like(case.residual, -1), hw)
        places.append((command.residual, pack.pack_tokens(case.residual, hw), full))
    if case.linear is not None:
        full = pack.pack_plain(ones(case.linear), layer)
    else:
        unit = case.experts[0][0]
        one = pack.pack_unit(Unit(ones(unit.first), np.full(256, -1, np.int8), ones(unit.second)), layer)
        full = np.tile(one, layer.experts * layer.units)
    places.append((command.weights, case.weight_bytes(), full))
    if case.gate is not None:
        # The shifts of its lanes are padding too: the logits are the accumulators.
        table = pack.pack_gate(Gate(np.full_like(case.gate.weight, -1), np.full_like(case.gate.bias, -1), 0), layer)
        places.append((command.gate, pack.pack_gate(case.gate, layer), table))
    for offset, data, used in places:
        dirty = padding(data, used)
        assert not np.array_equal(dirty, data), "there is padding"
        bench.memory[offset : offset + len(data)] = dirty
    bench.check()


def test_a_gate_and_a_bundle_treat_padding_differently() -> None:
    """The very bytes that the engine ignores are refused where a bundle is read."""
    case = mixture(6, 16, 8, experts=4, top_k=2)
    assert case.gate is not None
    table = pack.pack_gate(case.gate, case.layer)
    table[CI.burst_bytes] = 1  # 4 of 16 lanes are used: bias of lane 4 is byte 16 of line 0, byte 0 of port 1
    with pytest.raises(BundleError, match="expected zero padding lanes"):
        pack.unpack_gate(table, case.layer, 0)
    bench = Bench([case])
    bench.memory[bench.commands[0].gate + CI.burst_bytes] = 1
    bench.check()


@pytest.mark.parametrize("opcode", [Opcode.NORM, Opcode.ATTENTION, Opcode.CONV3X3])
def test_reserved_opcodes(opcode: Opcode) -> None:
    bench = two(Kind.LINEAR)
    assert failing(bench, dataclasses.replace(bench.commands[2], opcode=opcode)).error is ErrorCode.OPCODE


@pytest.mark.parametrize(
    ("byte", "value"),
    [(0, 0x03), (0, 0x14), (0, 0x7F), (0, 0xFF), (1, 0x04), (1, 0x80), (44, 0x10), (47, 0x80), (48, 1), (50, 0x10),
     (63, 0x80)],
)  # fmt: skip
def test_unknown_opcodes_flags_and_reserved_bits(byte: int, value: int) -> None:
    bench = two(Kind.LINEAR)
    bench.memory[bench.program + 2 * COMMAND_BYTES + byte] = value
    untouched = bench.memory[bench.outputs[1][0] :][: bench.outputs[1][1]].copy()
    record = bench.run()
    assert record.error is ErrorCode.OPCODE and record.header["error_command"] == 2 == record.header["commands"]
    assert np.array_equal(bench.memory[bench.outputs[1][0] :][: bench.outputs[1][1]], untouched)


def test_program_without_end() -> None:
    for tail in ([], [Command(Opcode.BARRIER)] * 3):
        bench = Bench([mixture(5, 16, 8)], tail=tail)
        record = bench.run()
        assert record.error is ErrorCode.PROGRAM
        assert record.header["error_command"] == record.header["commands"] == 2 + len(tail)
        assert np.array_equal(bench.output(), bench.cases[0].expected()), "what precedes is done"
        assert len(record.jobs) == 1


def test_program_shorter_than_its_commands() -> None:
    bench = Bench([mixture(5, 16, 8)])
    for length in (1, 2):
        assert bench.run(commands=length).error is ErrorCode.PROGRAM
    assert bench.run(commands=3).error is ErrorCode.NONE


def test_program_that_leaves_the_memory() -> None:
    bench = Bench([mixture(5, 16, 8)], tail=[])
    room = bench.memory[: bench.program + 2 * COMMAND_BYTES].copy()
    bench.memory = room
    record = bench.run(commands=100)
    assert record.error is ErrorCode.READ and record.header["error_command"] == 2
    record = FunctionalEngine(CI).execute(room, 1 << 30, 1, bench.record)
    assert record.error is ErrorCode.READ and record.header["error_command"] == 0


def test_nothing_after_end_is_executed() -> None:
    bench = Bench([mixture(5, 16, 8)])
    end = [Command(Opcode.END), bench.commands[0], Command(Opcode.JOB_END), Command(Opcode.END)]
    after = Bench([mixture(5, 16, 8)], tail=end)
    record = after.run()
    assert record.error is ErrorCode.NONE and record.header["commands"] == 3 and len(record.jobs) == 1
    assert record.counters["experts"] == 1


def test_records_that_have_no_place_are_not_written() -> None:
    bench = Bench([mixture(5, 16, 8)])
    for place in (len(bench.memory) - 64, bench.record + 8, 1 << 31):
        before = bench.memory.copy()
        record = FunctionalEngine(CI).execute(bench.memory, bench.program, len(bench.commands), place)
        assert record.error is ErrorCode.NONE
        offset, size = bench.outputs[0]
        before[offset : offset + size] = bench.memory[offset : offset + size]
        assert np.array_equal(bench.memory, before)


def test_identity() -> None:
    for hw in (CI, ZCU104, ONE_PORT):
        for formats in (Formats(), Formats(4, 6)):
            memory = np.zeros(8192, np.uint8)
            record = FunctionalEngine(hw, formats).execute(memory, 0, 1, 4096)  # zeros are END
            assert record.header["engine_hash"] == engine_hash(formats, hw)
            assert record.header["build_hash"] == build_hash(formats, hw)
            assert Record.decode(memory[4096:].tobytes()).header["commands"] == 1
