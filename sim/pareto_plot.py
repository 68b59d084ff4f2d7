"""Plot of an exploration as SVG: every configuration, the front of every clock, the base engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sim import svg
from sim.pareto import OBJECTIVES, Point

CLOCK_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f")
"""From the slowest clock up; more clocks than colours share them."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720.0, 440.0, 64.0, 130.0, 40.0, 48.0
_SHARES = {"resources", "dsp", "bram", "uram", "lut"}


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about six of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    first = math.ceil(low / step)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From zero to a little more than the largest."""
    return 0.0, 1.06 * max(values) or 1.0


def _hover(point: Point) -> str:
    engine = point.candidate.hardware
    largest = max(point.shares, key=lambda name: point.shares[name])
    return (f"{point.name}: {point.figures['milliseconds']:.3f} ms at {engine.clock_mhz} MHz, "
            f"{engine.weight_slots} slots, {engine.ports} ports, {point.candidate.schedule}; "
            f"{largest.upper()} {point.shares[largest]:.1%}"
            f"{'' if point.rtl_refusal is None else '; not for the RTL'}")  # fmt: skip


def pareto_plot(
    points: Sequence[Point], front: Sequence[Point], objectives: Sequence[str], reference: Point | None, title: str
) -> str:
    """Second objective over the first. Pale: simulated; bold: on the front, ringed where the RTL cannot be built so."""
    across, up = objectives[1 if len(objectives) > 1 else 0], objectives[0]
    shown = [*points, *([reference] if reference else [])]
    x_low, x_high = _range([OBJECTIVES[across].of(point) for point in shown])
    # A few very slow engines would press all others against the axis.
    slowest = max(OBJECTIVES[up].of(point) for point in [*front, *([reference] if reference else [])])
    y_low, y_high = _range([slowest])

    def place(point: Point) -> tuple[float, float]:
        x = (OBJECTIVES[across].of(point) - x_low) / (x_high - x_low)
        y = (OBJECTIVES[up].of(point) - y_low) / (y_high - y_low)
        return _LEFT + x * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)

    body = []
    for value in _ticks(x_low, x_high):
        x = _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        label = f"{value:.0%}" if across in _SHARES else f"{value:g}"
        body += [svg.line(x, _TOP, x, _HEIGHT - _BOTTOM, "#eee"), svg.text(x, _HEIGHT - _BOTTOM + 16, label, "middle")]
    for value in _ticks(y_low, y_high):
        y = _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        label = f"{value:.0%}" if up in _SHARES else f"{value:g}"
        body += [svg.line(_LEFT, y, _WIDTH - _RIGHT, y, "#eee"), svg.text(_LEFT - 6, y + 4, label, "end")]
    clocks = sorted({point.candidate.hardware.clock_mhz for point in points})
    colours = {clock: CLOCK_COLOURS[index % len(CLOCK_COLOURS)] for index, clock in enumerate(clocks)}
    bold = {point.candidate.key for point in front}
    for point in points:
        if point.candidate.key not in bold and OBJECTIVES[up].of(point) <= y_high:
            colour = colours[point.candidate.hardware.clock_mhz]
            body.append(svg.circle(*place(point), 2.5, colour, _hover(point), 0.25))
    for clock, colour in colours.items():
        chain = sorted(place(point) for point in front if point.candidate.hardware.clock_mhz == clock)
        for (x1, y1), (x2, y2) in zip(chain, chain[1:], strict=False):
            if y2 > y1:  # with two objectives a front is a staircase; with more it folds
                body += [svg.line(x1, y1, x2, y1, colour), svg.line(x2, y1, x2, y2, colour)]
    for point in front:
        x, y = place(point)
        colour = colours[point.candidate.hardware.clock_mhz]
        if point.rtl_refusal is not None:
            body.append(svg.circle(x, y, 5.5, "#222", _hover(point)))
            body.append(svg.circle(x, y, 4.3, "white", _hover(point)))
        body.append(svg.circle(x, y, 4 if point.rtl_refusal is None else 2.6, colour, _hover(point)))
    legend = [(colour, f"{clock} MHz") for clock, colour in colours.items()]
    for row, (colour, label) in enumerate(legend):
        body += [svg.circle(_WIDTH - _RIGHT + 17, _TOP + 5 + 18 * row, 4, colour, label),
                 svg.text(_WIDTH - _RIGHT + 28, _TOP + 9 + 18 * row, label)]  # fmt: skip
    if reference is not None:
        x, y = place(reference)
        for dx, dy in ((5, 5), (5, -5)):
            body.append(svg.line(x - dx, y - dy, x + dx, y + dy, "#222", 2))
        body.append(svg.text(x + 9, y - 6, f"{reference.name}, {reference.candidate.hardware.clock_mhz} MHz"))
    if any(point.rtl_refusal is not None for point in front):
        body.append(svg.text(_WIDTH - _RIGHT + 12, _TOP + 14 + 18 * len(legend), "ring: not for the RTL"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    body.append(svg.text(middle, _HEIGHT - 10, OBJECTIVES[across].label, "middle"))
    turned = f"transform='rotate(-90 16 {_HEIGHT / 2:.0f})'"
    body.append(svg.text(16, _HEIGHT / 2, OBJECTIVES[up].label, "middle", turned))
    return svg.document(_WIDTH, _HEIGHT, body, title)
