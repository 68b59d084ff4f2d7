"""What the parts of the machine share: units, slots, commands in flight, and everything that is known so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from accel.commands import Command
from accel.config import Hardware
from accel.memory_model import MemoryModel
from sim import latencies as c
from sim.bus import INFINITY, Budget, Held
from sim.shapes import Shape, input_store_lines

WEIGHTS, INPUT, ROUTE, DRAIN, STORE = range(5)
"""Causes of stalls, in the order in which they are looked at."""
COMMAND, LOAD, ROWS, RESIDUAL = range(4)
"""What a burst reads."""

FETCHER, LOADER, COMPUTER, FINISHER, PACKER, ROWER, RESIDUALER = (1 << bit for bit in range(7))
WRITERS = FINISHER | PACKER
EVERYBODY = 127
"""Who may go on after an event."""

BULK, STREAM_MARGIN = 16, 400.0
"""Stripes that are worth streaming at once, and how long before somebody else's request that has to end, in cycles, at
least: what is in flight and queued then must have been read, which takes longer where memory is slow."""

Chosen = NDArray[Any]
Process = Generator[None, None, None]
"""Pauses where it depends on what has not happened yet."""
Timed = Generator[None, None, float]
"""The same; returns when it was done."""


@dataclass(frozen=True)
class Leap:
    """At a time of the machine's own clock, ``cycles`` pass that are like the ``span`` before.

    ``busy`` is the share of them in which the array works.
    """

    time: float
    span: float
    cycles: float
    busy: float


class Unit:
    """A set of weights in a slot."""

    __slots__ = ("acquired", "begin", "end", "expert", "first", "gelu", "index", "last", "last_time", "slot", "spots")

    def __init__(self, slot: int, index: int, expert: int, acquired: float, spots: tuple[int, int, int]) -> None:
        self.slot, self.index, self.expert, self.acquired = slot, index, expert, acquired
        self.spots = spots  # lines of: the GELU table's end (−1: none), first row's end, last row's end
        self.gelu = self.first = self.last = INFINITY  # table written, first and last row usable
        self.last_time = INFINITY
        self.begin = self.end = 0.0  # of its reading, for timelines


class Slot:
    """A weight slot: what it holds and who still needs it."""

    __slots__ = ("free", "held", "tag", "users")

    def __init__(self) -> None:
        self.tag = -1
        self.held: Unit | None = None
        self.users = 0  # claims whose release is not known yet
        self.free = 0.0  # latest known release


class Entry:
    """A command in flight."""

    __slots__ = (
        "chosen", "command", "completes", "computed", "experts", "finished", "first_beat", "frees", "gate_beats",
        "index", "input_lines", "input_times", "is_job_end", "job", "last_beat", "loads", "orders", "orders_known",
        "pushed", "residual_times", "retired", "row_base", "shape", "stalls", "units", "wide_before", "written",
        "array_beats", "store_first", "route_end", "loaded",
    )  # fmt: skip

    def __init__(self, index: int, command: Command, shape: Shape | None, job: int) -> None:
        self.index, self.command, self.shape, self.job = index, command, shape, job
        self.is_job_end = shape is None
        self.pushed = INFINITY
        self.units: list[Unit] = []  # in the order of use
        self.input_times: list[tuple[float, float]] = []  # per stripe: first line at the sink, cycles per line
        self.residual_times: list[tuple[float, float]] = []
        self.completes: list[float] = []  # per tile of the last pass: its rows are complete (MoE: one for all)
        self.finished: list[float] = []  # per 16 lines: used
        self.orders: list[tuple[int, int, float, bool]] = []  # expert, tokens, time known, resident
        self.orders_known = False
        self.chosen: Chosen | None = None
        self.loads: list[int] = []
        self.experts = 1
        self.computed = INFINITY
        self.written = self.retired = INFINITY
        self.first_beat = self.last_beat = self.store_first = self.route_end = -1.0
        self.stalls = [0.0] * 5
        self.array_beats = self.gate_beats = 0
        self.row_base = self.wide_before = 0
        self.loaded = 0


class State:
    """Everything that is known. Attributes that end up in results are the last ones."""

    fetcher: Process
    loader: Process
    rower: Process
    residualer: Process
    computer: Process
    finisher: Process
    packer: Process

    def __init__(
        self,
        commands: Sequence[Command],
        routing: Mapping[tuple[int, int], NDArray[Any]],
        hardware: Hardware,
        memory: MemoryModel,
        timeline: bool = False,
    ) -> None:
        self.hw, self.memory = hardware, memory
        self.commands, self.routing = commands, routing
        self.timeline = timeline
        self.stripe_lines = hardware.burst_beats
        self.stripe_bytes = hardware.stripe_bytes
        self.latency = memory.latency - 1
        self.turnaround = memory.turnaround
        self.in_flight = min(hardware.outstanding, memory.outstanding)
        self.budget = Budget(memory)
        self.stripe_time = self.stripe_bytes / self.budget.rate  # cycles
        under_way = self.in_flight + c.REQUESTS_PER_PORT + 1
        self.stream_margin = max(STREAM_MARGIN, memory.latency + under_way * self.stripe_time)
        self.held: dict[str, list[Held]] | None = None
        self.wide_capacity = hardware.max_tokens * -(-hardware.max_width // hardware.tile_outputs)
        self.line_capacity = input_store_lines(hardware)
        lines = -(-hardware.max_inputs // hardware.line_bytes)
        self.group_capacity = 1 << (2 * lines).bit_length()
        self.line_beats = hardware.line_bytes // hardware.tile_inputs

        # entry table and fetch
        self.entries: list[Entry] = []
        self.asked = 0
        self.pops: list[float] = []
        self.seen: dict[int, float] = {}
        self.next_ask = float(c.START_TO_FETCH)
        self.retired = 0
        self.end_time = INFINITY

        # reader: rings of the last stripes; times of take, push, issue and end
        self.takes = 0
        self.issued = 0  # stripes whose issue is known
        self.served = 0
        self.take_time = [0.0] * 64
        self.push_time = [-1.0] * 64
        self.issue_time = [-1.0] * 64
        self.end_ring = [-10.0] * 64
        self.favour_rows = False
        self.ready = [INFINITY, INFINITY, INFINITY, INFINITY]  # per source, when its next stripe may be taken
        self.source_entry = [0, 0, 0, 0]
        self.reads: deque[tuple[int, Any, int, int, float]] = deque()  # source, object, stripe of it, number, ask time

        self.requested = [0, 0, 0, 0]  # lines that ROWS and RESIDUAL have asked for, of all commands ...
        self.remaining = [0, 0, 0, 0]  # ... and have yet to ask for, of the one at hand

        # bus
        self.bus_free, self.read_due = 0.0, INFINITY
        self.writing = False
        self.batch = 0
        self.writes: deque[tuple[float, float, float, int, int]] = deque()
        """First and last burst complete, beats of each, number of the last, bursts per port."""
        self.blocks = max(1, hardware.ports // hardware.write_ports)  # bursts of a segment per write port
        self.write_free = 0.0

        self.table_free = self.decoder_late = 0.0

        self.load_left = 0  # stripes of the unit at hand
        self.load_item: tuple[Unit, int] = (Unit(0, 0, 0, 0.0, (-1, 0, 0)), 0)
        self.taken_at = self.rows_taken = self.residual_taken = -1.0

        # slots
        self.slots = [Slot() for _ in range(hardware.weight_slots)]
        self.candidate = 0

        # store unit
        self.linear_lines: deque[tuple[float, float, int, Entry, bool, int]] = deque()
        self.finish_lines: deque[tuple[float, float, int, Entry, bool, int]] = deque()
        self.store_free, self.store_at = 0.0, INFINITY
        self.buffer_free: deque[float] = deque([0.0, 0.0])  # of the segments before the last two
        self.finish_entry, self.finish_group = -1, 0  # what is being finished, 16 lines at a time
        self.finish_fills, self.finish_filled = [0.0] * 64, 0  # rings of the last segments, and how many there were
        self.linear_closes, self.linear_closed = [0.0] * 64, 0
        self.unlaunched: deque[tuple[float, int, Entry, bool, int]] = deque()
        self.bursts = 0
        self.launch_before = self.sent_before = -1.0
        self.landed = [0.0] * 32  # ring: responses of the last bursts
        self.last_landed = -1
        self.final_burst: dict[int, Entry] = {}

        # accumulator rows, input lines
        self.wide_layers: list[Entry] = []
        self.wide_rows = 0  # of all of them
        self.wide_pointer = 0
        self.line_frees: deque[tuple[float, int]] = deque()  # time, lines freed in all
        self.lines_freed = 0
        self.residual_frees: deque[tuple[float, int]] = deque()
        self.residuals_freed = 0

        self.first_queue: tuple[Entry | None, list[int]] = (None, [])

        # tiles of LINEAR layers
        self.pack_queue: deque[tuple[float, Entry, int, int, int, bool]] = deque()
        self.pack_ends, self.packed = [0.0] * 64, 0

        # the clock: event at hand; when the array wants to go on; leaps (sim/leaping.py)
        self.now, self.compute_at, self.last_event = 0.0, INFINITY, 0.0
        self.leaps: list[Leap] = []
        self.history: deque[tuple[int, int, int, int]] = deque(maxlen=64)
        self.situation: tuple[int, ...] = ()

        # results
        self.gaps = [0.0] * 5
        self.busy: list[list[float]] = []  # begin, end, beats
        self.reading: list[list[float]] = []  # begin, end
        self.array_cycles = 0
        self.gate_cycles = 0
        self.weight_stripes = 0
        self.jobs_over = 0
        self.job_arrivals: dict[int, list[float]] = {}  # of jobs behind the one at hand
        self.job_last_beat: dict[int, float] = {}
        self.job_first_beat: dict[int, float] = {}
        self.job_idle: dict[int, list[float]] = {}
        self.ahead: dict[int, int] = {}
        self.passes: list[tuple[float, float, int, int, int]] = []  # begin, end, entry, expert, unit
        self.loads: list[tuple[float, float, int, int, int]] = []
        self.stores: list[tuple[float, float, int]] = []

        self.wake = EVERYBODY
