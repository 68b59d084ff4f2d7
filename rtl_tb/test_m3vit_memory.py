"""The memory model, cycle by cycle at its pins: what accel/memory_model.py promises, and what it complains about."""

from __future__ import annotations

import functools
import random
from collections import Counter, deque
from dataclasses import dataclass, field

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from accel.memory_model import CHANNELS, IDEAL, MAX_PORTS, MemoryModel
from host.backends.rtl_library import EVENT_KINDS, SimulatedMemory

SOURCES = ("board/memory_model.cpp", "board/memory_dpi.cpp")

BASE, SIZE = 0x1000_0000, 1 << 20
PORTS, WRITE_PORTS, BYTES = 4, 2, 16
OKAY, SLVERR, DECERR = 0, 2, 3


@dataclass
class Read:
    """A burst to read; what came of it is filled in."""

    address: int
    beats: int = 16
    accepted: int = -1
    cycles: list[int] = field(default_factory=list)
    data: bytes = b""
    responses: list[int] = field(default_factory=list)


@dataclass
class Write:
    """A burst to write."""

    address: int
    data: bytes
    strobes: list[int] | None = None
    accepted: int = -1
    last_beat: int = -1
    responded: int = -1
    response: int = -1

    @property
    def beats(self) -> int:
        return len(self.data) // BYTES


class Master:
    """Drives all ports from queues of bursts; addresses and data as fast as the memory takes them."""

    def __init__(self, dut, memory: SimulatedMemory) -> None:
        self.dut, self.memory, self.cycle = dut, memory, 0
        self.reads: list[deque[Read]] = [deque() for _ in range(PORTS)]
        self.reading: list[deque[Read]] = [deque() for _ in range(PORTS)]
        self.writes: list[deque[Write]] = [deque() for _ in range(WRITE_PORTS)]
        self.beats: list[deque[tuple[Write, int]]] = [deque() for _ in range(WRITE_PORTS)]
        self.responding: list[deque[Write]] = [deque() for _ in range(WRITE_PORTS)]
        self.ready_share = 1.0
        self.pins: dict[str, int] = {}

    def read(self, port: int, burst: Read) -> Read:
        self.reads[port].append(burst)
        return burst

    def write(self, port: int, burst: Write) -> Write:
        self.writes[port].append(burst)
        self.beats[port].extend((burst, index) for index in range(burst.beats))
        return burst

    @property
    def busy(self) -> bool:
        return any(map(any, (self.reads, self.reading, self.writes, self.beats, self.responding)))

    def _drive(self) -> None:
        pins: Counter[str] = Counter()
        for port in range(PORTS):
            if self.reads[port]:
                burst = self.reads[port][0]
                pins["araddr"] |= burst.address << 64 * port
                pins["arlen"] |= burst.beats - 1 << 8 * port
                pins["arvalid"] |= 1 << port
            pins["arsize"] |= 4 << 3 * port
            pins["arburst"] |= 1 << 2 * port
            pins["rready"] |= (random.random() < self.ready_share) << port
        for port in range(WRITE_PORTS):
            if self.writes[port]:
                head = self.writes[port][0]
                pins["awaddr"] |= head.address << 64 * port
                pins["awlen"] |= head.beats - 1 << 8 * port
                pins["awvalid"] |= 1 << port
            pins["awsize"] |= 4 << 3 * port
            pins["awburst"] |= 1 << 2 * port
            if self.beats[port]:
                whole, index = self.beats[port][0]
                data = int.from_bytes(whole.data[BYTES * index : BYTES * (index + 1)], "little")
                pins["wdata"] |= data << 128 * port
                pins["wstrb"] |= (0xFFFF if whole.strobes is None else whole.strobes[index]) << 16 * port
                pins["wlast"] |= (index == whole.beats - 1) << port
                pins["wvalid"] |= 1 << port
            pins["bready"] |= (random.random() < self.ready_share) << port
        self.pins = {name: pins[name] for name in _INPUTS}

    def drive(self) -> None:
        for name, value in self.pins.items():
            getattr(self.dut, f"s_axi_{name}").value = value

    async def step(self, cycles: int = 1) -> None:
        """Clock cycles; handshakes of each are carried out."""
        for _ in range(cycles):
            self._drive()
            self.drive()
            await ReadOnly()
            out = {name: int(getattr(self.dut, f"s_axi_{name}").value) for name in _OUTPUTS}
            await RisingEdge(self.dut.clk)
            self._transfer(out)
            self.cycle += 1

    def _transfer(self, out: dict[str, int]) -> None:
        pins = self.pins
        for port in range(PORTS):
            if pins["arvalid"] & out["arready"] & 1 << port:
                burst = self.reads[port].popleft()
                burst.accepted = self.cycle
                self.reading[port].append(burst)
            if out["rvalid"] & pins["rready"] & 1 << port:
                burst = self.reading[port][0]
                burst.cycles.append(self.cycle)
                burst.data += (out["rdata"] >> 128 * port & (1 << 128) - 1).to_bytes(16, "little")
                burst.responses.append(out["rresp"] >> 2 * port & 3)
                last = bool(out["rlast"] & 1 << port)
                assert last == (len(burst.cycles) == burst.beats)
                if last:
                    self.reading[port].popleft()
        for port in range(WRITE_PORTS):
            if pins["awvalid"] & out["awready"] & 1 << port:
                head = self.writes[port].popleft()
                head.accepted = self.cycle
                self.responding[port].append(head)
            if pins["wvalid"] & out["wready"] & 1 << port:
                whole, index = self.beats[port].popleft()
                if index == whole.beats - 1:
                    whole.last_beat = self.cycle
            if out["bvalid"] & pins["bready"] & 1 << port:
                done = self.responding[port].popleft()
                done.responded, done.response = self.cycle, out["bresp"] >> 2 * port & 3

    async def finish(self, limit: int = 20_000) -> None:
        end = self.cycle + limit
        while self.busy:
            assert self.cycle < end, "the memory does not answer"
            await self.step()
        assert self.memory.violation() == ""


_INPUTS = (
    "araddr", "arlen", "arsize", "arburst", "arvalid", "rready", "awaddr", "awlen", "awsize", "awburst", "awvalid",
    "wdata", "wstrb", "wlast", "wvalid", "bready",
)  # fmt: skip
_OUTPUTS = ("arready", "rdata", "rresp", "rlast", "rvalid", "awready", "wready", "bresp", "bvalid")


def clocked(test):
    """A test whose clock runs."""

    @functools.wraps(test)
    async def run(dut):
        cocotb.start_soon(Clock(dut.clk, 10, "ns").start())
        await test(dut)

    return cocotb.test()(run)


async def start(dut, model: MemoryModel) -> Master:
    """Reset, a memory of random bytes; cycle 0 is the first in which the model's clock runs."""
    memory = SimulatedMemory.of_running_program(model, BASE, SIZE)
    memory.array[:] = np.random.default_rng(random.getrandbits(32)).integers(0, 256, SIZE, np.uint8)
    memory.log(False)
    master = Master(dut, memory)
    dut.rst_n.value = 0
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst_n.value = 1
    memory.restart_clock()
    master.cycle = 0
    await master.step()
    return master


def content(memory: SimulatedMemory, address: int, size: int) -> bytes:
    return memory.array[address - BASE : address - BASE + size].tobytes()


@clocked
async def latency(dut):
    for cycles in (1, 2, 37, 100):
        model = MemoryModel(latency=cycles, bytes_per_cycle=256, refresh_cycles=0)
        master = await start(dut, model)
        bursts = [master.read(port, Read(BASE + 4096 * port + 256 * i)) for port in range(PORTS) for i in range(3)]
        await master.finish()
        for burst in bursts:
            assert burst.data == content(master.memory, burst.address, 256)
        for port in range(PORTS):
            first, *rest = bursts[3 * port : 3 * port + 3]
            assert first.cycles[0] - first.accepted == cycles
            flat = [cycle for burst in (first, *rest) for cycle in burst.cycles]
            assert flat == list(range(flat[0], flat[0] + 48)), "a beat per cycle"


@clocked
async def rate_and_refresh(dut):
    model = MemoryModel()
    master = await start(dut, model)
    periods = 3
    for port in range(PORTS):
        for i in range(periods * 200):
            master.read(port, Read(BASE + 1024 * (i % 512) + 256 * port))
    finished = [list(queue) for queue in master.reads]
    await master.step(periods * model.refresh_period)
    beats = Counter(cycle for queue in finished for burst in queue for cycle in burst.cycles)
    for period in range(1, periods):
        lo = period * model.refresh_period
        moved = BYTES * sum(beats[cycle] for cycle in range(lo, lo + model.refresh_period))
        assert abs(moved - 48 * model.refresh_period) <= model.bucket_bytes, moved
        # Beats are seen one cycle after they move.
        quiet = range(lo + 1 + model.refresh_period - model.refresh_cycles, lo + 1 + model.refresh_period)
        assert not any(beats[cycle] for cycle in quiet)
    shares = [sum(len(burst.cycles) for burst in queue) for queue in finished]
    assert max(shares) - min(shares) <= 2, "ports take turns"


@clocked
async def outstanding(dut):
    for limit in (1, 8):
        master = await start(dut, MemoryModel(latency=500, outstanding=limit))
        for i in range(12):
            master.read(1, Read(BASE + 256 * i))
            master.write(1, Write(BASE + 65536 + 256 * i, bytes(256)))
        await master.step(60)
        assert len(master.reads[1]) == 12 - limit
        await master.finish()
        assert not content(master.memory, BASE + 65536, 12 * 256).strip(b"\0")


@clocked
async def write_latency_and_turnaround(dut):
    for turnaround, wait in ((16, 60), (5, 1)):
        master = await start(dut, MemoryModel(turnaround=turnaround, write_latency=wait, bytes_per_cycle=64))
        burst = master.write(0, Write(BASE, random.randbytes(256)))
        await master.finish()
        # The complete burst waits for the bus to turn, then moves 16 beats.
        assert burst.responded - burst.last_beat == turnaround + 16 - 1 + wait
        again = master.write(0, Write(BASE + 256, random.randbytes(256)))
        await master.finish()
        assert again.responded - again.last_beat == 16 - 1 + wait, "the bus still writes"
        # The bus has turned back long before a read with this latency.
        read = master.read(0, Read(BASE))
        await master.finish()
        assert read.cycles[0] - read.accepted == 100 + turnaround, "it turns when the beat is there"


@clocked
async def writes_wait_for_reads_but_not_for_ever(dut):
    model = MemoryModel(refresh_cycles=0, write_batch=8)
    master = await start(dut, model)
    for port in range(PORTS):
        for i in range(100):
            master.read(port, Read(BASE + 256 * i))
    await master.step(200)
    burst = master.write(0, Write(BASE, random.randbytes(256)))
    await master.step(600)
    waited = burst.responded - burst.last_beat
    assert waited - model.write_wait - model.turnaround - 16 - model.write_latency in range(-1, 8)
    many = [master.write(port, Write(BASE + 256 * i, random.randbytes(256))) for i in range(4) for port in (0, 1)]
    await master.step(400)
    waited = max(item.responded for item in many) - max(item.last_beat for item in many)
    assert 0 < waited < model.turnaround + 8 * 16 + model.write_latency, "a full batch interrupts the reads"
    await master.finish()


@clocked
async def random_traffic(dut):
    """Data, strobes and order under every kind of back-pressure, against a plain array."""
    models = (
        MemoryModel(), IDEAL, MemoryModel(turnaround=0, latency=7),
        MemoryModel(stall_percent=40, stall_run=3, stall_seed=random.getrandbits(31)),
    )  # fmt: skip
    checked = 0
    for model in models:
        for share in (1.0, 0.5):
            master = await start(dut, model)
            master.ready_share = share
            expected = master.memory.array.copy()
            reads, writes = [], []
            for _ in range(60):
                port, beats = random.randrange(WRITE_PORTS), random.randint(1, 16)
                # Writes of a port stay in its half, reads in what is never written, so order does not matter.
                address = BASE + 262144 * port + 256 * random.randrange(1000)
                strobes = [random.choice((0xFFFF, random.getrandbits(16))) for _ in range(beats)]
                burst = Write(address, random.randbytes(BYTES * beats), strobes)
                writes.append(master.write(port, burst))
                for i, strobe in enumerate(strobes):
                    for j in range(BYTES):
                        if strobe >> j & 1:
                            expected[address - BASE + BYTES * i + j] = burst.data[BYTES * i + j]
            for _ in range(100):
                beats = random.randint(1, 16)
                address = BASE + 524288 + 256 * random.randrange(2000) + BYTES * random.randrange(17 - beats)
                reads.append(master.read(random.randrange(PORTS), Read(address, beats)))
            await master.finish()
            assert (master.memory.array == expected).all()
            assert {burst.response for burst in writes} == {OKAY}
            for burst in reads:
                assert burst.data == expected[burst.address - BASE :][: len(burst.data)].tobytes()
                assert set(burst.responses) == {OKAY}
                checked += burst.beats
    assert checked > 4000


@clocked
async def errors(dut):
    reads, writes = ((BASE + 1024, BASE + 1040),), ((BASE + 8192, BASE + 8193),)
    master = await start(dut, MemoryModel(read_errors=reads, write_errors=writes))
    before = master.memory.array.copy()
    inside, outside = master.read(0, Read(BASE + 1008, 4)), master.read(1, Read(BASE + SIZE - 32 + 4096, 2))
    below, fine = master.read(2, Read(BASE - 256)), master.read(3, Read(BASE + 8192))
    bad = master.write(0, Write(BASE + 8192, bytes(range(32))))
    gone = master.write(1, Write(BASE + SIZE, bytes(32)))
    good = master.write(1, Write(BASE + 1024, bytes(range(16))))
    await master.finish()
    assert inside.responses == [OKAY, SLVERR, OKAY, OKAY]
    assert set(outside.responses) == set(below.responses) == {DECERR} and set(fine.responses) == {OKAY}
    assert (bad.response, gone.response, good.response) == (SLVERR, DECERR, OKAY)
    changed = np.flatnonzero(master.memory.array != before)
    assert set(changed) <= {*range(1024, 1040), *range(8208, 8224)}
    master.memory.inject()
    again = master.read(0, Read(BASE + 1008, 4))
    await master.finish()
    assert set(again.responses) == {OKAY}


@clocked
async def stalls_are_the_recorded_ones(dut):
    model = MemoryModel(stall_percent=35, stall_run=4, stall_period=512, stall_seed=11)
    master = await start(dut, model)
    pattern = model.stalls()
    for cycle in range(1, 1200):
        await ReadOnly()
        held = int(pattern[cycle % 512])
        for name, ports in (("arready", PORTS), ("awready", WRITE_PORTS), ("wready", WRITE_PORTS)):
            bits = held >> MAX_PORTS * CHANNELS.index(name.removesuffix("ready")) & (1 << ports) - 1
            assert int(getattr(dut, f"s_axi_{name}").value) == ~bits & (1 << ports) - 1, (cycle, name)
        await RisingEdge(dut.clk)
    assert master.memory.violation() == ""


@clocked
async def the_same_again(dut):
    """After the model's clock was restarted, the same traffic takes the same cycles."""
    model = MemoryModel(stall_percent=10, stall_seed=3)
    master = await start(dut, model)
    seen = []
    for pause in (0, 777):
        await master.step(pause)
        master.memory.restart_clock()
        began = master.cycle
        bursts = [master.read(i % PORTS, Read(BASE + 256 * i)) for i in range(300)]
        written = [master.write(i % WRITE_PORTS, Write(BASE + 256 * i, bytes(256))) for i in range(40)]
        await master.finish()
        seen.append([burst.cycles[-1] - began for burst in bursts] + [burst.responded - began for burst in written])
    assert seen[0] == seen[1]


@clocked
async def log_and_totals(dut):
    master = await start(dut, MemoryModel())
    totals = [(master.memory.moved(port), master.memory.moved(port, write=True)) for port in range(2)]
    master.memory.log()
    read = master.read(1, Read(BASE + 512, 7))
    write = master.write(0, Write(BASE + 256, bytes(48)))
    await master.finish()
    await master.step()  # the last handshake is over only after its edge
    names = ("port", "address", "beats")
    events = [(EVENT_KINDS[e["kind"]], *(int(e[name]) for name in names)) for e in master.memory.events()]
    assert sorted(events) == [
        ("read_address", 1, BASE + 512, 7), ("read_last", 1, BASE + 512, 7),
        ("write_address", 0, BASE + 256, 3), ("write_response", 0, BASE + 256, 3),
    ]  # fmt: skip
    times = {EVENT_KINDS[e["kind"]]: int(e["cycle"]) for e in master.memory.events()}
    assert times["read_last"] - times["read_address"] == read.cycles[-1] - read.accepted
    assert times["write_response"] - times["write_address"] == write.responded - write.accepted
    assert master.memory.moved(1) - totals[1][0] == 112 and master.memory.moved(0, write=True) - totals[0][1] == 48


@clocked
async def freeze(dut):
    master = await start(dut, MemoryModel())
    master.read(0, Read(BASE))
    await master.step(50)
    master.memory.freeze()
    master.read(1, Read(BASE))
    master.write(0, Write(BASE, bytes(16)))
    await master.step(500)
    assert len(master.reading[0]) == 1 and not master.reading[0][0].cycles
    master.memory.freeze(False)
    await master.finish()


BREACHES = {
    "valid fell": [{"arvalid": 1, "araddr": BASE}, {}],
    "address or length changed": [{"arvalid": 1, "araddr": BASE}, {"arvalid": 1, "araddr": BASE + 256}],
    "17 beats": [{"arvalid": 1, "araddr": BASE, "arlen": 16}],
    "INCR": [{"arvalid": 1, "araddr": BASE, "arburst": 0}],
    "full beats": [{"awvalid": 1, "awaddr": BASE, "awsize": 3}],
    "4 KiB": [{"awvalid": 1, "awaddr": BASE + 4080, "awlen": 1}],
    "not aligned": [{"arvalid": 1, "araddr": BASE + 8}],
    "before ready": [{"wvalid": 1, "wdata": 1}, {"wvalid": 1, "wdata": 2}],
    "last": [{"awvalid": 1, "awaddr": BASE, "awlen": 1, "wvalid": 1, "wlast": 1}, {"wvalid": 1, "wlast": 1}],
}
"""What the complaint says → what the master drives, cycle by cycle."""


@clocked
async def breaches_of_the_protocol(dut):
    for text, cycles in BREACHES.items():
        held = len(cycles) > 1 and text != "last"
        master = await start(dut, MemoryModel())
        if held:
            master.memory.freeze()
            await master.step(2)
        plain = {"arsize": 4, "arburst": 1, "awsize": 4, "awburst": 1, "rready": 0xF, "bready": 3, "wstrb": 0xFFFF}
        for pins in [*cycles, {}, {}]:
            master.pins = {name: {**plain, **pins}.get(name, 0) for name in _INPUTS}
            master.drive()
            await RisingEdge(dut.clk)
        complaint = master.memory.violation()
        assert text in complaint, (text, complaint)
        master.memory.freeze(False)
