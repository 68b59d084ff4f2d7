"""Plots of a result as SVG: roofline, cycles per layer, expert load."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel.atomic import atomic_write
from accel.errors import M3vitError
from sim.results import STALLS, LayerResult, Result
from sim.svg import circle as _circle
from sim.svg import document as _svg
from sim.svg import line as _line
from sim.svg import rect as _rect
from sim.svg import text as _text

if TYPE_CHECKING:
    from sim.comparing import PolicyRow
    from sim.scaling import ScalingRow

COLOURS = {
    "ideal": "#4e79a7", "padding": "#a0cbe8", "stall_weights_cycles": "#e15759", "stall_input_cycles": "#f28e2b",
    "stall_route_cycles": "#edc948", "stall_drain_cycles": "#b07aa1", "stall_store_cycles": "#9c755f",
    "idle": "#bab0ac",
}  # fmt: skip
_KINDS = {"linear": "#4e79a7", "accumulate": "#59a14f", "mlp": "#f28e2b", "moe": "#e15759"}


def roofline(result: Result) -> str:
    """Multiply-accumulates per cycle over multiply-accumulates per byte of memory, a point per layer."""
    width, height, left, right, top, bottom = 640.0, 400.0, 60.0, 110.0, 40.0, 45.0
    peak, rate = result.hardware.macs_per_cycle, result.memory.bytes_per_cycle
    points = []
    for layer in result.layers:
        moved = layer.read_bytes + layer.written_bytes
        macs = layer.ideal * peak
        if moved and macs and layer.cycles > 0:
            points.append((macs / moved, macs / layer.cycles, layer))
    ridge = peak / rate
    x_low = math.floor(math.log10(min([ridge / 10, *(x for x, _, _ in points)])))
    x_high = math.ceil(math.log10(max([ridge * 10, *(x for x, _, _ in points)])))
    y_low = math.floor(math.log10(min([peak / 10, *(y for _, y, _ in points)])))
    y_high = math.ceil(math.log10(peak * 1.01))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(y) - y_low) / (y_high - y_low)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    body = []
    for power in range(x_low, x_high + 1):
        x, y = place(10.0**power, 10.0**y_low)
        body += [_line(x, top, x, y, "#eee"), _text(x, y + 16, f"{10.0**power:g}", "middle")]
    for power in range(y_low, y_high + 1):
        x, y = place(10.0**x_low, 10.0**power)
        body += [_line(x, y, width - right, y, "#eee"), _text(x - 6, y + 4, f"{10.0**power:g}", "end")]
    slope_low = max(10.0**x_low, 10.0**y_low / rate)
    for start, end in (((slope_low, slope_low * rate), (ridge, peak)), ((ridge, peak), (10.0**x_high, peak))):
        body.append(_line(*place(*start), *place(*end), "#222", 2))
    for intensity, speed, layer in points:
        x, y = place(intensity, speed)
        body.append(_circle(x, y, 4, _KINDS[layer.kind], f"{layer.name}: {speed:.0f} MAC/cycle", 0.6))
    for row, (kind, colour) in enumerate(_KINDS.items()):
        body += [_rect(width - right + 12, top + 18 * row, 10, 10, colour),
                 _text(width - right + 28, top + 9 + 18 * row, kind)]  # fmt: skip
    body.append(_text((left + width - right) / 2, height - 8, "MAC per byte of memory", "middle"))
    # A layer's bytes may move while its neighbours compute.
    body.append(_text(left, 34, "a layer that was loaded under the one before may lie above its roof"))
    body.append(_text(14, height / 2, "MAC per cycle", "middle", f"transform='rotate(-90 14 {height / 2:.0f})'"))
    return _svg(width, height, body, f"Roofline: {peak:,} MAC/cycle, {rate} bytes/cycle")


def parts_of(layer: LayerResult) -> dict[str, float]:
    """Where the cycles of a layer went, by the names of :data:`COLOURS`."""
    parts = {"ideal": min(layer.ideal, layer.array_cycles)}
    parts["padding"] = layer.array_cycles - parts["ideal"]
    parts |= layer.stalls
    parts["idle"] = max(0.0, layer.idle)
    return parts


def _stacked(rows: Sequence[tuple[str, dict[str, float], str]], title: str, right: float = 90.0) -> str:
    """A bar per row, stacked by parts named as in :data:`COLOURS`: its label, its parts, what stands behind it."""
    width, left, bar = 770.0 + right, 120.0, 13.0
    height = 70.0 + bar * len(rows)
    longest = max((sum(parts.values()) for _, parts, _ in rows), default=1.0) or 1.0
    body = []
    for row, (label, parts, behind) in enumerate(rows):
        y, x = 50.0 + bar * row, left
        body.append(_text(left - 6, y + bar - 3, label, "end"))
        for name, cycles in parts.items():
            span = cycles / longest * (width - left - right)
            if span > 0:
                body.append(_rect(x, y, span, bar - 2, COLOURS[name], f"{label}: {name} {cycles:,.0f}"))
            x += span
        body.append(_text(x + 4, y + bar - 3, behind))
    x = left
    for name, colour in COLOURS.items():
        label = name.removeprefix("stall_").removesuffix("_cycles")
        body += [_rect(x, 28, 10, 10, colour), _text(x + 14, 37, label)]
        x += 26 + 7 * len(label)
    return _svg(width, height, body, title)


def layer_cycles(result: Result, job: int = 0) -> str:
    """A bar per layer of one job, stacked by where its cycles went."""
    layers = [layer for layer in result.layers if layer.job == job]
    rows = [(layer.name + " moe" * (layer.kind == "moe"), parts_of(layer), f"{layer.cycles:,.0f}") for layer in layers]
    return _stacked(rows, f"Cycles per layer of job {job}: {sum(layer.cycles for layer in layers):,.0f} in all")


def scaling_cycles(rows: Sequence[ScalingRow], title: str) -> str:
    """A bar per number of experts, stacked by where the frame's cycles went."""
    bars = []
    for row in rows:
        parts: dict[str, float] = dict.fromkeys(COLOURS, 0.0)
        for name, cycles in row.breakdown.items():
            parts[name if name in parts else "idle"] += cycles
        bars.append((f"{row.experts} experts", parts, f"{row.cycles:,} cycles"))
    return _stacked(bars, title, right=280.0)


def expert_load(result: Result) -> str:
    """Tokens of every expert, a row per MoE layer of every job."""
    layers = [layer for layer in result.layers if layer.loads]
    experts = max((len(layer.loads) for layer in layers), default=0)
    cell, left = 22.0, 150.0
    body = [_text(left - 6, 40, "expert", "end")]
    step = 1 if experts <= 32 else 16
    body += [_text(left + expert * cell + cell / 2, 40, str(expert), "middle") for expert in range(0, experts, step)]
    for row, layer in enumerate(layers):
        y = 45.0 + row * 16
        body.append(_text(left - 6, y + 12, f"job {layer.job} {layer.name}", "end"))
        most = max(layer.loads) or 1
        for expert, load in enumerate(layer.loads):
            shade = 255 - round(190 * load / most)
            colour = f"rgb({shade},{shade},255)" if load else "#f4f4f4"
            body.append(_rect(left + expert * cell, y, cell - 1, 15, colour, f"expert {expert}: {load} tokens"))
            if experts <= 32:
                ink = "white" if load and shade < 140 else "black"
                style = f"font-size='8' fill='{ink}'"
                body.append(_text(left + expert * cell + cell / 2, y + 11, str(load), "middle", style))
    size = left + cell * max(experts, 12) + 20
    title = "Tokens per expert; the darker, the nearer to the longest queue of the layer"
    return _svg(max(size, 560.0), 65.0 + 16 * len(layers), body, title)


def policy_cycles(rows: Sequence[PolicyRow]) -> str:
    """A bar per policy; the part that its roofline allows is dark, a mark stands at that of the jobs one by one."""
    left, span, bar = 100.0, 560.0, 18.0
    longest = max(row.cycles for row in rows)
    body = []
    for number, row in enumerate(rows):
        y, size = 50.0 + bar * number, row.cycles / longest * span
        bound = min(row.cycles, row.roofline_cycles) / longest * span
        jobs = row.cycles / (1 + row.over_jobs_roofline) / longest * span
        body += [
            _text(left - 6, y + 12, row.name, "end"),
            _rect(left, y, size, bar - 4, COLOURS["padding"], f"{row.description}: {row.cycles:,} cycles"),
            _rect(left, y, bound, bar - 4, COLOURS["ideal"], f"roofline: {row.roofline_cycles:,} cycles"),
            _line(left + jobs, y - 2, left + jobs, y + bar - 2, COLOURS["stall_weights_cycles"], 1.5),
            _text(left + max(size, jobs) + 6, y + 12, f"{row.cycles:,} ({row.ratio:.3f} × index), "
                  f"{row.over_roofline:+.1%} over its roofline"),
        ]  # fmt: skip
    legend = "dark: roofline of the program; red: roofline of the jobs one by one"
    body.append(_text(left, 40, legend))
    return _svg(1000.0, 70.0 + bar * len(rows), body, "Cycles by policy")


def save_plots(
    folder: str | os.PathLike[str], result: Result, scaling: Sequence[ScalingRow] | None = None,
    policies: Sequence[PolicyRow] | None = None,
) -> list[Path]:  # fmt: skip
    """Write all plots to ``folder``; returns the files. M3vitError if the file system refuses."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M3vitError(f"{target}: cannot write: {error.strerror or error}") from error
    files = []
    texts = {"roofline": roofline(result), "layers": layer_cycles(result), "experts": expert_load(result)}
    if scaling is not None:
        texts["scaling"] = scaling_cycles(scaling, "One frame at constant activated work")
    if policies is not None:
        texts["policies"] = policy_cycles(policies)
    for name, text in texts.items():
        files.append(target / f"{name}.svg")
        with atomic_write(files[-1]) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    return files


assert set(STALLS) <= set(COLOURS)
