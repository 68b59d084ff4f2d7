"""How good an order of experts can be: the two-machine flow shop with limited buffer, solved exactly while it is small.

Memory loads experts one after the other, the array computes their queues in the same order, and a weight slot is taken
from the start of an expert's load to the end of its work. With ``slots`` of them, job j of an order π (0-based) has

    S_j = max(S_{j−1} + load_{j−1}, E_{j−slots})      start of its load
    E_j = max(E_{j−1}, S_j + lag_j) + work_j          end of its work

and the makespan is the last E. ``lag`` is what the array must wait after the load has begun.

* With slots enough, Mitten's extension of Johnson's rule is optimal among orders that are the same on both machines:
  order by Johnson on (lag, lag − load + work) (L. G. Mitten, "Sequencing n jobs on two machines with arbitrary time
  lags", Management Science 5, 1959; S. M. Johnson, "Optimal two- and three-stage production schedules with setup times
  included", Naval Research Logistics Quarterly 1, 1954). With few slots it bounds the makespan from below.
* With few slots the problem is NP-hard (C. H. Papadimitriou, P. C. Kanellakis, "Flowshop scheduling with limited
  temporary storage", Journal of the ACM 27, 1980): dynamic programming over sets of jobs, keeping of each set every
  state that no other dominates, finds the optimum; :func:`brute_force` is its referee.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from accel.errors import ConfigError

EXACT_JOBS = 12
"""Jobs up to which :func:`optimum` searches where Johnson's order does not reach the bound."""
_SMALL = 1e-6


@dataclass(frozen=True)
class Stage:
    """A job, in cycles: its load, what the array waits at least from the load's start, its work."""

    load: float
    lag: float
    work: float


@dataclass(frozen=True)
class Optimum:
    """The least makespan, or a bound of it.

    Attributes:
        cycles: least makespan, or a lower bound if not ``exact``.
        exact: whether an order reaches it; then ``order`` does.
        order: the best order known.
    """

    cycles: float
    exact: bool
    order: tuple[int, ...]


def makespan(jobs: Sequence[Stage], order: Sequence[int], slots: int) -> float:
    """Cycles from the start of the first load to the end of the last work."""
    if slots < 1:
        raise ConfigError(f"flow shop: slots = {slots}: expected at least 1")
    loaded = done = 0.0
    ends: list[float] = []
    for position, number in enumerate(order):
        job = jobs[number]
        start = loaded
        if position >= slots and ends[position - slots] > start:
            start = ends[position - slots]
        loaded = start + job.load
        done = max(done, start + job.lag) + job.work
        ends.append(done)
    return done


def johnson_order(jobs: Sequence[Stage]) -> list[int]:
    """Johnson's rule with time lags: those whose first time is the shorter by it, then the others by their second,
    longest first; ties in index order."""
    first, second = [], []
    for number, job in enumerate(jobs):
        a, b = job.lag, job.lag - job.load + job.work
        if a <= b:
            first.append((a, number))
        else:
            second.append((-b, number))
    return [number for _, number in sorted(first)] + [number for _, number in sorted(second)]


def brute_force(jobs: Sequence[Stage], slots: int) -> Optimum:
    """Every order, for at most 9 jobs."""
    if len(jobs) > 9:
        raise ConfigError(f"flow shop: {len(jobs)} jobs: expected at most 9 for all orders")
    best = min(itertools.permutations(range(len(jobs))), key=lambda order: makespan(jobs, order, slots))
    return Optimum(makespan(jobs, best, slots), True, best)


def optimum(jobs: Sequence[Stage], slots: int, limit: int = EXACT_JOBS) -> Optimum:
    """The least makespan of any order; for more than ``limit`` jobs only a bound where no simple order reaches it.

    Tried first: Johnson's order, in index order and with the longest first among equals. Where it meets the bound of
    unlimited slots, it is the optimum, however many jobs there are.
    """
    johnson = tuple(johnson_order(jobs))
    longest = tuple(sorted(range(len(jobs)), key=lambda number: (jobs[number].load > 0, -jobs[number].work, number)))
    best = min((johnson, longest), key=lambda order: makespan(jobs, order, slots))
    reached = makespan(jobs, best, slots)
    bound = makespan(jobs, johnson, max(1, len(jobs)))
    if reached <= bound + _SMALL:
        return Optimum(reached, True, best)
    if len(jobs) > limit:
        return Optimum(bound, False, best)
    return _search(jobs, slots, Optimum(reached, True, best))


def _search(jobs: Sequence[Stage], slots: int, known: Optimum) -> Optimum:
    """Dynamic programming over sets of jobs, from smaller to larger.

    A state of a set is when the memory is free and when the last ``slots`` jobs end: no later in every part is no
    worse, whatever follows.
    """
    count = len(jobs)
    State = tuple[float, ...]
    start: State = (0.0,) * (slots + 1)
    layer: dict[int, dict[State, tuple[int, ...]]] = {0: {start: ()}}
    best, order = known.cycles, known.order
    total = sum(job.work for job in jobs)
    for _ in range(count):
        following: dict[int, dict[State, tuple[int, ...]]] = {}
        for members, states in layer.items():
            rest = total - sum(jobs[number].work for number in range(count) if members >> number & 1)
            tried = set()
            for number, job in enumerate(jobs):
                if members >> number & 1 or job in tried:
                    continue  # equal jobs: in index order
                tried.add(job)
                for state, path in states.items():
                    begin = max(state[0], state[1])
                    done = max(state[-1], begin + job.lag) + job.work
                    if done + rest - job.work >= best - _SMALL:
                        continue
                    found: State = (begin + job.load, *state[2:], done)
                    following.setdefault(members | 1 << number, {}).setdefault(found, (*path, number))
        layer = {members: _undominated(states) for members, states in following.items()}
    for states in layer.values():
        for state, path in states.items():
            if state[-1] < best - _SMALL:
                best, order = state[-1], path
    return Optimum(best, True, order)


def _undominated(states: dict[tuple[float, ...], tuple[int, ...]]) -> dict[tuple[float, ...], tuple[int, ...]]:
    kept: dict[tuple[float, ...], tuple[int, ...]] = {}
    for state in sorted(states):
        if not any(all(a <= b for a, b in zip(other, state, strict=True)) for other in kept):
            kept[state] = states[state]
    return kept
