"""The search behind ``m3vit explore``: Optuna proposes, joblib spreads the simulations, a journal keeps them.

A killed run goes on where it was: the search starts anew with the same seed, and what it asks for is in the journal.
So the journal holds no state of the search, and the outcome depends neither on the kill nor on the number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from accel.config import Hardware
from accel.errors import ConfigError, M3vitError
from accel.resources import LIMITS
from cli.exploring_journal import Figures, Journal
from host.backends.rtl_build import check_hardware
from sim.explore import MOST_ENGINES, NUMBERS, Candidate, Choice, Engines, Problem, Space, engines
from sim.pareto import Point, pareto_front

POPULATION = 24
"""Candidates per generation, whatever the number of processes: results must not depend on it."""
PROMISING = 3 * POPULATION
"""Candidates that a search begins with."""
ATTEMPTS = 2_000
"""Random candidates looked at for one that fits and is new, where a space is too large to be listed."""

T = TypeVar("T")
Progress = Callable[[int], object]


def rtl_refusal(engine: Hardware) -> str | None:
    """Why the RTL cannot be built so, or None."""
    try:
        check_hardware(engine)
    except ConfigError as error:
        return str(error).partition(": ")[2]
    return None


@functools.cache
def _end_with(parent: int) -> None:
    """End this process soon after ``parent``, its parent, has been killed; joblib's would wait for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, daemon=True).start()


def _simulate(problem: Problem, candidate: Candidate, parent: int) -> tuple[str, Figures | None, str]:
    """What a process does: key, figures, and why there are none."""
    _end_with(parent)
    try:
        return candidate.key, problem.evaluate(candidate), ""
    except (AssertionError, M3vitError) as error:  # one configuration that cannot be simulated must not cost the others
        fields = {name: getattr(candidate.hardware, name) for name in NUMBERS}
        named = ", ".join(f"{name} {value}" for name, value in fields.items())
        reason = " ".join(str(error).split()) or type(error).__name__
        return candidate.key, None, f"{candidate.hardware.name}, {candidate.schedule} ({named}): {reason}"


@dataclass
class Exploration:
    """What a search found.

    Attributes:
        points: simulated, in the order of their keys.
        front: those of ``points`` that no other beats.
        objectives: what was minimized.
        exhaustive: whether every configuration that fits was simulated, those in ``failed`` apart.
        engines: what the space holds; None if it is too large to be listed.
        simulated: simulations of this call; the others were in the journal.
        reference: the base engine at its own clock, if the network runs on it.
        failed: configurations that the simulator could not simulate, one line each, by key.
    """

    problem: Problem
    space: Space
    objectives: tuple[str, ...]
    points: list[Point] = field(default_factory=list)
    front: list[Point] = field(default_factory=list)
    exhaustive: bool = False
    engines: Engines | None = None
    simulated: int = 0
    reference: Point | None = None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Point:
        """The fastest of the front."""
        return min(self.front, key=lambda point: point.values(("ms", "resources")))


class Search:
    """One search; :meth:`run` does it.

    Args:
        trials: configurations to simulate at most, those in the journal and the base included.
        seed: of the search (routing has its own).
        rtl_only: leave out engines that the RTL cannot be built for.
        processes: that simulate at the same time.
        progress: called with 1 for every configuration that was wanted.
    """

    def __init__(
        self, problem: Problem, space: Space, journal: Journal, objectives: Sequence[str], *, trials: int = 200,
        seed: int = 0, rtl_only: bool = True, processes: int = 1, progress: Progress = lambda count: None,
    ) -> None:  # fmt: skip
        self.problem, self.space, self.journal, self.trials, self.seed = problem, space, journal, trials, seed
        self.processes, self.progress, self.simulated = processes, progress, 0
        self.refuses = (lambda engine: "rtl" if rtl_refusal(engine) else None) if rtl_only else (lambda engine: None)
        # The resource model knows nothing of timing, so what needs a slower clock is not beaten by what needs a faster.
        clocks = len(space.values.get("clock_mhz", ())) > 1 and "clock" not in objectives
        self.objectives = (*objectives, "clock") if clocks else tuple(objectives)
        self.points: dict[str, Point] = {}
        self.failed: dict[str, str] = {}
        self._random = np.random.default_rng(seed)
        self._pool: Any = None

    def look(self) -> Engines | None:
        """What the space holds; None if it is too large to be listed. ConfigError if nothing of it fits."""
        if self.space.engines > MOST_ENGINES:
            return None
        found = engines(self.problem, self.space, self.refuses)
        if not found.fitting:
            reasons = ", ".join(f"{count} {name}" for name, count in found.refused.items())
            raise ConfigError(f"space: none of its {found.looked_at} engines is possible ({reasons})")
        return found

    def expected(self, listed: Engines | None) -> int:
        """Configurations that :meth:`run` will want, at most."""
        every = self._every(listed)
        return self.trials if every is None else len(every)

    def _base(self) -> Candidate | None:
        """The base engine as a configuration of this search: at a clock and in an order of the space; None if it is
        not possible. A search that begins with it can find nothing worse."""
        values, choice = self.space.values, dict[str, int | str]()
        if self.problem.base.clock_mhz not in values.get("clock_mhz", (self.problem.base.clock_mhz,)):
            choice["clock_mhz"] = max(int(clock) for clock in values["clock_mhz"])
        if "schedule" in values:
            choice["schedule"] = "index" if "index" in values["schedule"] else values["schedule"][0]
        return self._propose(choice)[0]

    def _every(self, listed: Engines | None) -> list[Candidate] | None:
        """All that is possible, the base first; None if that is more than ``trials``."""
        free = list(self.space.part(free=True))
        if listed is None or len(listed.fitting) * len(free) > self.trials:
            return None
        base = self._base()
        every = {base.key: base} if base is not None else {}
        for choice in listed.fitting:
            for rest in free:
                candidate = self.problem.candidate({**choice, **rest})
                every.setdefault(candidate.key, candidate)
        return list(every.values()) if len(every) <= self.trials else None

    def run(self, listed: Engines | None) -> Exploration:
        """Search. ``listed``: what :meth:`look` found."""
        from joblib import Parallel

        base, every, first = self.problem.base, self._every(listed), self._base()
        found = Exploration(self.problem, self.space, self.objectives, engines=listed)
        with Parallel(n_jobs=self.processes, return_as="generator_unordered") as self._pool:
            if every is not None:
                self._evaluate(every)
                found.exhaustive = True
            else:
                self._evaluate([first] if first is not None else [])
                self._sample(listed, list(self.space.part(free=True)))
            if not self.points and self.failed:
                raise M3vitError(f"none of {len(self.failed)} configurations could be simulated; the first: "
                                 f"{next(iter(self.failed.values()))}")  # fmt: skip
            others = {*self.points, *self.failed} - {first.key if first is not None else ""}
            if not others and listed is None and self.trials > 1:
                raise ConfigError(f"space: none of {ATTEMPTS} random configurations of {self.space.size:,} is possible")
            with contextlib.suppress(ConfigError):  # the network may need another engine than the base
                self.problem.check(base)
                (figures,) = self._figures([Candidate(base, "index")])
                found.reference = self._point(Candidate(base, "index"), figures) if figures is not None else None
        found.points = [self.points[key] for key in sorted(self.points)]
        found.front = pareto_front(found.points, self.objectives)
        found.simulated, found.failed = self.simulated, dict(sorted(self.failed.items()))
        return found

    # ---- simulating

    def _figures(self, candidates: Sequence[Candidate], wanted: bool = False) -> list[Figures | None]:
        """Figures of candidates, from the journal or simulated; None for one that could not be simulated."""
        from joblib import delayed

        known = self.journal.figures
        missing = {item.key: item for item in candidates if item.key not in known}
        if wanted:
            self.progress(len(candidates) - len(missing))
        jobs = (delayed(_simulate)(self.problem, item, os.getpid()) for item in missing.values())
        for key, figures, reason in self._pool(jobs) if missing else ():
            if figures is None:
                self.failed[key] = reason
            else:
                self.journal.add(key, figures)
            self.simulated += 1
            if wanted:
                self.progress(1)
        return [known.get(item.key) for item in candidates]

    def _point(self, candidate: Candidate, figures: Figures) -> Point:
        return Point(candidate, figures, self.problem.device, rtl_refusal(candidate.hardware))

    def _evaluate(self, candidates: Sequence[Candidate]) -> None:
        """Make points of new candidates."""
        for candidate, figures in zip(candidates, self._figures(candidates, wanted=True), strict=True):
            if figures is not None:
                self.points[candidate.key] = self._point(candidate, figures)

    def _new(self, candidate: Candidate) -> bool:
        return candidate.key not in self.points and candidate.key not in self.failed

    # ---- choosing

    def _propose(self, choice: Choice) -> tuple[Candidate | None, dict[str, float]]:
        """The candidate of a choice, if it is possible, and by how much it breaks each rule (0 or less: keeps it)."""
        try:
            candidate = self.problem.candidate(choice)
        except ConfigError:
            return None, {name: 1.0 for name in (*LIMITS, "refused")}
        refused = self.problem.refusal(candidate.hardware, self.refuses) is not None
        return (None if refused else candidate), {**self.problem.excess(candidate.hardware), "refused": float(refused)}

    def _one(self, items: Sequence[T]) -> T:
        return items[int(self._random.integers(len(items)))]

    def _unseen(self, listed: Engines | None, free: Sequence[Choice], count: int) -> Iterator[Choice]:
        """Random choices that are possible and have not been simulated, at most ``count``."""
        found: set[str] = set()
        for _ in range(ATTEMPTS):
            if len(found) == count:
                return
            if listed is not None:
                choice = {**self._one(listed.fitting), **self._one(free)}
            else:
                choice = {name: self._one(values) for name, values in self.space.values.items()}
            candidate, _ = self._propose(choice)
            if candidate is not None and self._new(candidate) and candidate.key not in found:
                found.add(candidate.key)
                yield choice

    def _promising(self, listed: Engines | None) -> list[Choice]:
        """Engines that no other beats by an estimate, not simulated, at every clock, in random order.

        Estimated is the fastest clock: it decides little about which engines are promising. The estimate does not see
        what buffers do, so of engines equal in all objectives the largest is as promising as the smallest.
        """
        clocks: list[Choice] = [{"clock_mhz": clock} for clock in self.space.values.get("clock_mhz", ())] or [{}]
        fastest = max(clocks, key=lambda choice: int(choice.get("clock_mhz", 0)))
        schedule: Choice = {name: values[0] for name, values in self.space.values.items() if name == "schedule"}
        choices, points = {}, []
        for choice in listed.fitting if listed is not None else self._unseen(None, (), ATTEMPTS):
            candidate = self.problem.candidate({**choice, **fastest, **schedule})
            time = self.problem.estimate(candidate.hardware)
            points.append(self._point(candidate, {"milliseconds": time, "millijoules": [time, time]}))
            choices[candidate.key] = {**choice, **schedule}
        equals: dict[tuple[float, ...], list[Point]] = {}
        for point in points:
            equals.setdefault(point.values(self.objectives), []).append(point)
        front = []
        for point in pareto_front(points, self.objectives):
            largest = max(equals[point.values(self.objectives)], key=lambda other: sum(other.shares.values()))
            front += [point, largest] if largest.candidate.key != point.candidate.key else [point]
        found = [{**choices[point.candidate.key], **clock} for point in front for clock in clocks]
        return [found[index] for index in self._random.permutation(len(found))[:PROMISING]]

    def _sample(self, listed: Engines | None, free: Sequence[Choice]) -> None:
        """Generations of NSGA-II, from what is promising; random configurations wherever it finds little new."""
        study = _study(len(self.objectives), self.seed)
        waiting = [*self._promising(listed), *self._unseen(listed, free, POPULATION)]
        while len(self.points) < self.trials:
            for choice in waiting[:POPULATION]:
                study.enqueue_trial(choice)
            enqueued, waiting = len(waiting[:POPULATION]), waiting[POPULATION:]
            asked = []
            for _ in range(POPULATION):
                trial = study.ask()
                choice = {name: trial.suggest_categorical(name, values) for name, values in self.space.values.items()}
                asked.append((trial, *self._propose(choice)))
            new = {candidate.key: candidate for _, candidate, _ in asked
                   if candidate is not None and self._new(candidate)}  # fmt: skip
            self._evaluate(list(new.values())[: self.trials - len(self.points)])
            if not waiting and len(new) <= POPULATION // 4:
                if not new and enqueued:
                    return  # chance found nothing either
                waiting = list(self._unseen(listed, free, POPULATION // 2))
                if not waiting and not new:
                    return
            for trial, candidate, violation in asked:
                for rule, value in violation.items():
                    trial.set_constraint(rule, value)
                point = self.points.get(candidate.key) if candidate is not None else None
                # Values of what is impossible are never compared: constraints come first.
                study.tell(trial, list(point.values(self.objectives)) if point else [1e9] * len(self.objectives))


def _study(objectives: int, seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    return optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
