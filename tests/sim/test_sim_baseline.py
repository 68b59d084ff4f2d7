"""The baseline without reordering, routing with locality, and the flow shop's optimum, each against a referee."""

from __future__ import annotations

import random

import numpy as np
import pytest

from accel.commands import Opcode
from accel.config import Config, network
from accel.errors import ConfigError
from accel.memory_model import MemoryModel
from sim import latencies as c
from sim.baseline import attention_cycles, cached_frame, cached_layer, lru_requests
from sim.bus import INFINITY
from sim.costs import expert_load, expert_work
from sim.locality import local_experts, neighbour_overlap, parse_locality
from sim.machine import Machine
from sim.optimum import Stage, brute_force, johnson_order, makespan, optimum
from sim.policies import PLANS, Policy
from sim.results import collect
from sim.shapes import shape_of
from sim.state import COMPUTER, LOAD, Entry, Timed
from sim.workload import workload

DEMO, TINY, SMALL = (Config(network(f"m3vit-{name}")) for name in ("demo", "tiny-cityscapes", "small-pascal"))
MEMORY = MemoryModel()


# ---- the cache


def naive_hits(chosen: np.ndarray, pool: int, hits_first: bool) -> list[bool]:
    """Ages by the book: the expert whose last use is farthest back leaves."""
    last_use: dict[int, int] = {}
    hits = []
    for token in chosen:
        wanted = sorted(token, key=lambda expert: expert not in last_use) if hits_first else list(token)
        for expert in wanted:
            hits.append(expert in last_use)
            if expert not in last_use and len(last_use) == pool:
                del last_use[min(last_use, key=lambda other: last_use[other])]
            last_use[expert] = len(hits)
    return hits


@pytest.mark.parametrize("hits_first", [False, True])
@pytest.mark.parametrize("pool", [2, 3, 5, 16])
def test_lru_hits(pool: int, hits_first: bool):
    rng = np.random.default_rng(pool)
    for locality in (0.0, 0.6, 1.0):
        chosen = local_experts(SMALL.network, locality, rng)[:200]
        requests = lru_requests(chosen, pool, hits_first)
        assert [room == -2 for _, room in requests] == naive_hits(chosen, pool, hits_first)
        assert sorted(expert for expert, _ in requests) == sorted(chosen.reshape(-1).tolist())


def test_lru_by_hand():
    """Pool of 2: 0 1 | 0 2 | 2 1: 0, 1 missed, 0 hit, 2 takes the place of 1, 2 hit, 1 takes that of 0."""
    chosen = np.array([[0, 1], [0, 2], [2, 1]])
    assert lru_requests(chosen, 2) == [(0, -1), (1, -1), (0, -2), (2, 1), (2, -2), (1, 2)]
    assert lru_requests(np.array([[0, 1], [2, 1]]), 2) == [(0, -1), (1, -1), (2, 0), (1, -2)]
    assert lru_requests(np.array([[0, 1], [2, 0]]), 2, True) == [(0, -1), (1, -1), (0, -2), (2, 1)]


def test_cached_layer_by_hand():
    """One token, two experts: two loads behind the gate, and the first tile of each ends with its last row."""
    net = TINY.network
    work = workload(TINY, ["semseg"])
    command = next(command for command in work.commands if command.opcode is Opcode.MOE)
    shape = shape_of(command, TINY.hardware)
    load = shape.unit_stripes * 1024 / 48
    assert expert_load(shape, TINY.hardware, MEMORY) == pytest.approx(load)
    assert expert_work(shape, 1, TINY.hardware) == shape.tile_cycles(0, 1, TINY.hardware) >= 384
    everybody = np.tile([[3, 7]], (net.tokens, 1))
    layer = cached_layer(everybody, command, TINY.hardware, MEMORY, 2)
    assert (layer.pairs, layer.misses) == (2 * net.tokens, 2) and layer.hit_rate == 1 - 1 / net.tokens
    registers = 11  # order, slot, request; line, row
    hits = (layer.pairs - 2) * shape.tile_cycles(0, 1, TINY.hardware)
    assert layer.cycles == pytest.approx(layer.gate_cycles + MEMORY.latency + registers + 2 * load + hits)
    alternating = np.stack([np.arange(net.tokens) * 2 % 16, np.arange(net.tokens) * 2 % 16 + 1], axis=1)
    missed = cached_layer(alternating, command, TINY.hardware, MEMORY, 2)
    assert missed.hit_rate == 0 and missed.load_cycles == pytest.approx(missed.pairs * load)
    assert missed.load_cycles < missed.cycles < 1.3 * missed.load_cycles


class TokenOrder(Machine):
    """The whole simulator on the baseline's requests: one token per visit, slots chosen by LRU."""

    pool = 2

    def _load_policy(self, entry: Entry, policy: Policy, time: float) -> Timed:
        shape = entry.shape
        assert shape is not None and entry.chosen is not None
        while entry.route_end < 0:
            self.ready[LOAD] = INFINITY
            yield
        time = max(time, entry.route_end)
        requests = lru_requests(entry.chosen, self.pool)
        entry.orders = [(expert, 1, entry.route_end, False) for expert, _ in requests]
        entry.orders_known = True
        self.wake |= COMPUTER
        base = entry.command.weights // self.stripe_bytes
        places: dict[int, int] = {}
        for expert, room in requests:
            if room != -2:
                if room >= 0:
                    place = places.pop(requests[room][0])
                else:
                    place = next(number for number in range(self.pool) if number not in places.values())
                slot = self.slots[place]
                while slot.users:
                    self.ready[LOAD] = INFINITY
                    yield
                time = max(time, slot.free) + c.ORDER_TO_ACQUIRE
                tag = base + expert * shape.unit_stripes
                spots = (shape.gelu_line, shape.first_line, shape.last_line[0])
                item = self._fill_slot(entry, place, tag, expert, 0, time, spots)
                places[expert] = place
                self.load_item = (item, 0)
                entry.units.append(item)
                self.wake |= COMPUTER
                time = yield from self._read_stripes(shape.unit_stripes, time + c.ACQUIRE_TO_REQUEST)
                self.ready[LOAD] = INFINITY
            else:
                slot = self.slots[places[expert]]
                slot.users += 1
                assert slot.held is not None
                entry.units.append(slot.held)
                self.wake |= COMPUTER
        return time


@pytest.mark.parametrize(("config", "pool", "routing", "worst"), [
    (DEMO, 2, "uniform", 0.05), (DEMO, 4, "uniform", 0.05), (DEMO, 5, "local:0.8", 0.05), (TINY, 2, "uniform", 0.02),
    (TINY, 5, "local:0.9", 0.05),
])  # fmt: skip
def test_closed_form_against_the_whole_simulator(config: Config, pool: int, routing: str, worst: float):
    """A layer from its first gate beat to its last beat. A longer closed form would flatter reordering."""
    work = workload(config, ["semseg"], routing, seed=pool)
    plan = PLANS["index"]
    for command in [command for command in work.commands if command.opcode is Opcode.MOE][:1]:
        machine = TokenOrder([command, work.commands[-2], work.commands[-1]], work.routing, config.hardware, MEMORY)
        machine.policy, machine.pool = Policy(plan, config.hardware, MEMORY), pool
        machine.run()
        found = collect(machine).layers[0]
        window = found.last_beat + 1 - found.first_beat
        closed = cached_layer(work.routing[0, command.layer], command, config.hardware, MEMORY, pool)
        assert closed.cycles == pytest.approx(window, rel=worst)
        assert closed.cycles <= 1.01 * window


def test_reordering_against_the_cache():
    """Hit rates at uniform routing, pool 2: (2/16 + 1/15) / 4 for top-4 of 16; ratios of the encoder as the paper's."""
    frame = cached_frame(SMALL, ["semseg"], "uniform", pool=2)
    assert frame.hit_rate == pytest.approx((2 / 16 + 1 / 15) / 4, abs=0.004)
    assert frame.moe_ratio > frame.ratio > frame.encoder_ratio >= 9.2
    attention = 12 * 2 * 1025**2 * 384 / 3072
    assert frame.attention_cycles == attention_cycles(SMALL.network, SMALL.hardware) == pytest.approx(attention)
    assert frame.encoder_ratio == pytest.approx((frame.cycles + attention) / (frame.reordered_cycles + attention))
    assert frame.to_dict()["misses"] == frame.misses
    with pytest.raises(ConfigError, match="pool = 1: expected at least 2"):
        cached_frame(TINY, ["semseg"], pool=1)


def test_kinder_caches_are_faster():
    frames = [cached_frame(TINY, ["semseg"], "local:0.5", pool=pool) for pool in (2, 4, 8)]
    assert sorted((frame.cycles for frame in frames), reverse=True) == [frame.cycles for frame in frames]
    local = cached_frame(TINY, ["semseg"], "local:0.9", pool=4)
    assert local.cycles < frames[1].cycles and local.hit_rate > frames[1].hit_rate
    assert cached_frame(TINY, ["semseg"], "local:0.5", pool=4, hits_first=True).cycles < frames[1].cycles


# ---- locality


def test_locality():
    net = SMALL.network
    overlaps = []
    for locality in (0.0, 0.5, 0.9, 1.0):
        chosen = local_experts(net, locality, np.random.default_rng(1))
        assert chosen.shape == (1025, 4) and (np.diff(np.sort(chosen)) > 0).all()
        assert chosen.min() >= 0 and chosen.max() < 16
        overlaps.append(neighbour_overlap(net, chosen))
    assert overlaps == sorted(overlaps) and overlaps[0] == pytest.approx(0.25, abs=0.03) and overlaps[-1] == 1
    shares = np.mean([np.bincount(local_experts(net, 0.5, np.random.default_rng(seed)).reshape(-1), minlength=16)
                      for seed in range(40)], axis=0)  # fmt: skip
    assert np.abs(shares / shares.mean() - 1).max() < 0.1
    assert parse_locality("local:0.25") == 0.25
    for text in ("local:", "local:2", "local:-0.1", "local:much", "local:nan", "elsewhere:1"):
        with pytest.raises(ConfigError, match="a number from 0 to 1"):
            parse_locality(text)
    assert set(workload(DEMO, ["semseg"], "local:0.5").routing) == set(workload(DEMO, ["semseg"]).routing)


# ---- the optimum


def test_makespan_by_hand():
    """Loads 4, 2, computes 3, 5, nothing streams: 0–4 load, 4–7 compute, 4–6 load, 7–12 compute."""
    jobs = [Stage(4, 4, 3), Stage(2, 2, 5)]
    assert makespan(jobs, [0, 1], 2) == 12 and makespan(jobs, [1, 0], 2) == 10
    assert makespan(jobs, [1, 0], 1) == 14, "one slot: the second load waits for the first computation"
    assert johnson_order(jobs) == [1, 0] and optimum(jobs, 2).cycles == 10
    assert makespan([Stage(4, 1, 3)], [0], 1) == 4, "work may begin before the load has ended"
    assert optimum([], 2).cycles == 0
    with pytest.raises(ConfigError, match="slots = 0"):
        makespan(jobs, [0, 1], 0)
    with pytest.raises(ConfigError, match="10 jobs: expected at most 9"):
        brute_force([Stage(1, 1, 1)] * 10, 2)


def test_optimum_equals_brute_force():
    rng = random.Random(0)
    harder = 0
    for _ in range(150):
        jobs = []
        for _ in range(rng.randint(1, 6)):
            load, work = rng.choice([0.0, 6.0, float(rng.randint(0, 20))]), float(rng.randint(1, 20))
            jobs.append(Stage(load, max(load - work, rng.random() * load), work))
        slots = rng.randint(1, 4)
        best, found = brute_force(jobs, slots), optimum(jobs, slots)
        assert found.exact and found.cycles == pytest.approx(best.cycles)
        assert makespan(jobs, found.order, slots) == pytest.approx(best.cycles)
        johnson = johnson_order(jobs)
        assert makespan(jobs, johnson, len(jobs)) == pytest.approx(brute_force(jobs, len(jobs)).cycles)
        harder += makespan(jobs, johnson, slots) > best.cycles + 1e-6
        bound = optimum(jobs, slots, limit=0)
        assert bound.cycles <= best.cycles + 1e-6
        assert not bound.exact or bound.cycles == pytest.approx(best.cycles)
    assert harder > 5, "the search was never needed"
