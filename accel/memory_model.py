"""Behaviour of the memory behind the engine's ports: one table for the RTL bench and for the simulator.

The memory of a ZCU104 is one DDR4-2400 channel of 64 bits: 19.2 GB/s at its pins, and the figures below are what is
left of it for an engine that streams in long bursts through four HP ports at 300 MHz. They are assumptions that stand
for a measurement, except where a source is named: no cycle count made with them is a claim about a board.

How a cycle goes, in this order:

1. Refresh. During the last ``refresh_cycles`` of every ``refresh_period`` no beat moves.
2. Budget. In every other cycle the bucket gets its share of ``bytes_per_cycle``, at most until it holds
   ``bucket_bytes``. The share is larger by period / (period - cycles), so that ``bytes_per_cycle`` is the average
   *with* refresh. A beat moves only if the bucket holds its bytes, and takes them out.
3. Direction. The bus reads or writes; turning round costs ``turnaround`` cycles in which nothing moves. It turns to
   writes when a complete burst waits to be written and no beat waits to be read, or ``write_batch`` complete bursts
   wait, or one has waited ``write_wait`` cycles. It turns to reads when a beat waits to be read and no complete burst
   to be written, or ``write_batch`` bursts have been written. Without a turnaround (0) it does both at once.
4. Ports. Each moves at most one beat per cycle; who is first rotates by one port with every beat.

A burst that is read moves its first beat ``latency`` cycles after its address was accepted at the earliest, bursts of a
port in order. A burst that is written waits in a queue of its port until it is complete, and its response comes
``write_latency`` cycles after its last beat moved. Stalls hold back handshakes, whatever the memory does.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.config import to_dict
from accel.errors import ConfigError
from accel.identity import digest

READ_ADDRESS, READ_DATA, WRITE_ADDRESS, WRITE_DATA, WRITE_RESPONSE = CHANNELS = ("ar", "r", "aw", "w", "b")
"""AXI channels, in the order of their bits in :meth:`MemoryModel.stalls`."""
MAX_PORTS = 4
CLOCK_MHZ = 300
"""Clock of the engine whose cycles the figures below count."""


def _require(condition: bool, field_name: str, found: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"memory model: {field_name} = {found!r}: expected {expected}")


_MOST = 1 << 20
_LIMITS = {
    "bytes_per_cycle": (1, 4096),
    "bucket_bytes": (16, _MOST),
    "refresh_cycles": (0, _MOST),
    "turnaround": (0, _MOST),
    "outstanding": (1, 64),
    "burst_beats": (1, 256),
    "stall_percent": (0, 95),
    "stall_seed": (0, (1 << 32) - 1),
}
"""Least and largest value where they are not 1 and 2^20."""


@dataclass(frozen=True)
class MemoryModel:
    """Parameters of the memory, in cycles of the engine's clock and bytes.

    Attributes:
        latency: cycles from an accepted read address to its first beat. Assumed; 60 to 200 is worth sweeping.
        bytes_per_cycle: sustained rate of all ports together, both directions, refresh included. 48 bytes at 300 MHz
            are 14.4 GB/s, three quarters of DDR4-2400 on 64 bits.
        bucket_bytes: what may move at once after a pause.
        refresh_period, refresh_cycles: DDR4 refreshes every 7.8 us for 260 ns (JESD79-4: tREFI, tRFC of 4-Gbit parts),
            at 300 MHz 2340 and 78 cycles. 0 cycles: never.
        turnaround: cycles lost when the bus changes between reading and writing. Assumed.
        write_batch: complete bursts that are worth interrupting reads for. Assumed: all that two write ports have in
            flight (UG1085: 8 each), at most 4 KiB.
        write_wait: cycles after which a complete burst is written even so. Assumed.
        write_latency: cycles from a burst's last beat to its response. Assumed.
        outstanding: bursts per port and direction that are accepted before the first is finished; 8 in the AXI FIFO
            interface of the PS (UG1085, "AFI").
        burst_beats: longest burst; the AFI ends every burst at 16 beats (UG1085).
        stall_percent: share of cycles in which a channel holds back its handshake; 0: none.
        stall_run: cycles that a stall lasts at least.
        stall_period: cycles after which the pattern of stalls repeats.
        stall_seed: selects the pattern.
        read_errors, write_errors: address ranges (first, past the last) that answer with SLVERR. What is outside the
            memory answers with DECERR.
    """

    latency: int = 100
    bytes_per_cycle: int = 48
    bucket_bytes: int = 256
    refresh_period: int = 2340
    refresh_cycles: int = 78
    turnaround: int = 16
    write_batch: int = 16
    write_wait: int = 256
    write_latency: int = 60
    outstanding: int = 8
    burst_beats: int = 16
    stall_percent: int = 0
    stall_run: int = 1
    stall_period: int = 8192
    stall_seed: int = 0
    read_errors: tuple[tuple[int, int], ...] = ()
    write_errors: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.type == "int":
                least, most = _LIMITS.get(item.name, (1, _MOST))
                ok = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
                _require(ok, item.name, value, f"an integer from {least} to {most}")
            else:
                _require(_are_ranges(value), item.name, value, "pairs of addresses (first, past the last)")
        _require(self.refresh_cycles < self.refresh_period, "refresh_cycles", self.refresh_cycles,
                 f"less than refresh_period = {self.refresh_period}")  # fmt: skip
        _require(self.bucket_bytes >= self.bytes_per_cycle, "bucket_bytes", self.bucket_bytes,
                 f"at least bytes_per_cycle = {self.bytes_per_cycle}")  # fmt: skip

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of everything in this model."""
        return digest(self.to_dict())[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON."""
        return to_dict(self)

    def at_clock(self, clock_mhz: int) -> MemoryModel:
        """The same memory in cycles of an engine at another clock than :data:`CLOCK_MHZ`.

        Times and rates of the DRAM stay as they are in ns and bytes per ns: a slower engine sees fewer cycles of it
        and more bytes in each (rounded against it). Its own limit, a beat per port and cycle, is not in here.
        """
        if clock_mhz == CLOCK_MHZ:
            return self

        def cycles(count: int) -> int:
            return -(-count * clock_mhz // CLOCK_MHZ)

        rate = min(max(1, self.bytes_per_cycle * CLOCK_MHZ // clock_mhz), _LIMITS["bytes_per_cycle"][1])
        return dataclasses.replace(
            self, latency=cycles(self.latency), bytes_per_cycle=rate, bucket_bytes=max(rate, self.bucket_bytes),
            refresh_period=cycles(self.refresh_period), refresh_cycles=cycles(self.refresh_cycles),
            turnaround=cycles(self.turnaround), write_wait=cycles(self.write_wait),
            write_latency=cycles(self.write_latency),
        )  # fmt: skip

    def stalls(self) -> NDArray[np.uint32]:
        """The recorded pattern: for every cycle of the period, which handshakes are held back.

        Bit 4·c + p is channel c (in the order of :data:`CHANNELS`) of port p. The pattern comes from SHAKE-256 of seed,
        channel and port, so it is the same everywhere and for ever.
        """
        pattern = np.zeros(self.stall_period, np.uint32)
        draws = -(-self.stall_period // self.stall_run)
        for channel, name in enumerate(CHANNELS):
            for port in range(MAX_PORTS):
                stream = hashlib.shake_256(f"{self.stall_seed}/{name}{port}".encode()).digest(2 * draws)
                held = np.frombuffer(stream, "<u2").astype(np.uint32) * 100 < self.stall_percent << 16
                held = np.repeat(held, self.stall_run)[: self.stall_period]
                pattern |= held.astype(np.uint32) << np.uint32(MAX_PORTS * channel + port)
        return pattern


def _are_ranges(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, tuple)
        and len(item) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) for end in item)
        and 0 <= item[0] < item[1] <= 1 << 64
        for item in value
    )


IDEAL = MemoryModel(
    latency=1, bytes_per_cycle=1024, bucket_bytes=1024, refresh_cycles=0, turnaround=0, write_latency=1, outstanding=64
)
"""No memory is like this: whatever a cycle count with it shows is the engine's own."""
