"""Queues: order, schedules, and the checksum that fixes them."""

from __future__ import annotations

import struct

import numpy as np

from accel.routing import Routing, Schedule, schedule

CHOSEN = np.array([[3, 1], [0, 3]])
WEIGHTS = np.array([[40000, 20000], [65535, 0]])


def crc32(data: bytes) -> int:
    """CRC-32 of IEEE 802.3, bit by bit: an implementation of its own."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_checksum_is_that_of_the_documented_bytes() -> None:
    entries = [(3, 0, 40000), (1, 0, 20000), (0, 1, 65535), (3, 1, 0)]
    data = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    assert Routing(CHOSEN, WEIGHTS).crc() == crc32(data) == 0x68B944CE  # the example of docs/formats.md


def test_checksum_continues_over_layers() -> None:
    one, two = Routing(CHOSEN, WEIGHTS), Routing(CHOSEN[::-1], WEIGHTS[::-1])
    both = Routing(np.concatenate([CHOSEN, CHOSEN[::-1]]), np.concatenate([WEIGHTS, WEIGHTS[::-1]]))
    assert two.crc(one.crc()) != one.crc(two.crc())
    assert two.crc(one.crc()) != both.crc()  # token numbers start anew in every layer


def test_queues_hold_tokens_in_order_and_skip_empty_experts() -> None:
    queues = Routing(CHOSEN, WEIGHTS).queues(experts=5)
    assert [(q.expert, q.tokens.tolist(), q.weights.tolist()) for q in queues] == [
        (0, [1], [65535]),
        (1, [0], [20000]),
        (3, [0, 1], [40000, 0]),
    ]


def test_schedules() -> None:
    queues = Routing(CHOSEN, WEIGHTS).queues(experts=5)
    assert [q.expert for q in schedule(queues, Schedule.INDEX)] == [0, 1, 3]
    assert [q.expert for q in schedule(queues, Schedule.LONGEST_FIRST)] == [3, 0, 1]
    assert [q.expert for q in schedule(queues, Schedule.RESIDENT_FIRST, resident=[3, 2])] == [3, 0, 1]
