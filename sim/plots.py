"""Plots of a result as SVG: roofline, cycles per layer, expert load. Written by hand: nothing to install."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from accel.atomic import atomic_write
from sim.results import STALLS, LayerResult, Result

COLOURS = {
    "ideal": "#4e79a7", "padding": "#a0cbe8", "stall_weights_cycles": "#e15759", "stall_input_cycles": "#f28e2b",
    "stall_route_cycles": "#edc948", "stall_drain_cycles": "#b07aa1", "stall_store_cycles": "#9c755f",
    "idle": "#bab0ac",
}  # fmt: skip
_KINDS = {"linear": "#4e79a7", "accumulate": "#59a14f", "mlp": "#f28e2b", "moe": "#e15759"}
_FONT = "font-family='system-ui,sans-serif' font-size='11'"


def _svg(width: float, height: float, body: Sequence[str], title: str) -> str:
    head = (f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}' "
            f"height='{height:.0f}' {_FONT}>")  # fmt: skip
    back = f"<rect width='{width:.0f}' height='{height:.0f}' fill='white'/>"
    name = f"<text x='10' y='18' font-size='13' font-weight='600'>{escape(title)}</text>"
    return "\n".join([head, back, name, *body, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {extra}>{escape(text)}</text>"


def _rect(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (f"<rect x='{x:.1f}' y='{y:.1f}' width='{max(width, 0):.2f}' height='{height:.1f}' fill='{colour}'>"
            f"{inner}</rect>")  # fmt: skip


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#888", width: float = 1) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' stroke-width='{width}'/>"


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
        body.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{_KINDS[layer.kind]}' fill-opacity='0.6'>"
                    f"<title>{escape(layer.name)}: {speed:.0f} MAC/cycle</title></circle>")  # fmt: skip
    for row, (kind, colour) in enumerate(_KINDS.items()):
        body += [_rect(width - right + 12, top + 18 * row, 10, 10, colour),
                 _text(width - right + 28, top + 9 + 18 * row, kind)]  # fmt: skip
    body.append(_text((left + width - right) / 2, height - 8, "MAC per byte of memory", "middle"))
    body.append(_text(14, height / 2, "MAC per cycle", "middle", f"transform='rotate(-90 14 {height / 2:.0f})'"))
    return _svg(width, height, body, f"Roofline: {peak:,} MAC/cycle, {rate} bytes/cycle")


def parts_of(layer: LayerResult) -> dict[str, float]:
    """Where the cycles of a layer went, by the names of :data:`COLOURS`."""
    parts = {"ideal": min(layer.ideal, layer.array_cycles)}
    parts["padding"] = layer.array_cycles - parts["ideal"]
    parts |= layer.stalls
    parts["idle"] = max(0.0, layer.idle)
    return parts


def layer_cycles(result: Result, job: int = 0) -> str:
    """A bar per layer of one job, stacked by where its cycles went."""
    layers = [layer for layer in result.layers if layer.job == job]
    width, left, right, bar = 860.0, 120.0, 90.0, 13.0
    height = 70.0 + bar * len(layers)
    longest = max((sum(parts_of(layer).values()) for layer in layers), default=1.0) or 1.0
    body = []
    for row, layer in enumerate(layers):
        y, x = 50.0 + bar * row, left
        body.append(_text(left - 6, y + bar - 3, layer.name, "end"))
        for name, cycles in parts_of(layer).items():
            span = cycles / longest * (width - left - right)
            if span > 0:
                body.append(_rect(x, y, span, bar - 2, COLOURS[name], f"{layer.name}: {name} {cycles:,.0f}"))
            x += span
        body.append(_text(x + 4, y + bar - 3, f"{layer.cycles:,.0f}"))
    x = left
    for name, colour in COLOURS.items():
        label = name.removeprefix("stall_").removesuffix("_cycles")
        body += [_rect(x, 28, 10, 10, colour), _text(x + 14, 37, label)]
        x += 26 + 7 * len(label)
    return _svg(width, height, body, f"Cycles per layer of job {job}: {result.cycles:,} in all")


def expert_load(result: Result) -> str:
    """Tokens of every expert, a row per MoE layer of every job."""
    layers = [layer for layer in result.layers if layer.loads]
    experts = max((len(layer.loads) for layer in layers), default=0)
    cell, left = 22.0, 150.0
    body = []
    for row, layer in enumerate(layers):
        y = 45.0 + row * 16
        body.append(_text(left - 6, y + 12, f"job {layer.job} {layer.name}", "end"))
        most = max(layer.loads) or 1
        for expert, load in enumerate(layer.loads):
            shade = 255 - round(190 * load / most)
            colour = f"rgb({shade},{shade},255)" if load else "#f4f4f4"
            body.append(_rect(left + expert * cell, y, cell - 1, 15, colour, f"expert {expert}: {load} tokens"))
            if experts <= 32:
                body.append(_text(left + expert * cell + cell / 2, y + 11, str(load), "middle", "font-size='8'"))
    size = left + cell * max(experts, 12) + 20
    return _svg(size, 65.0 + 16 * len(layers), body, "Tokens per expert")


def save_plots(folder: str | os.PathLike[str], result: Result) -> list[Path]:
    """Write all plots to ``folder``; returns the files."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    texts = {"roofline": roofline(result), "layers": layer_cycles(result), "experts": expert_load(result)}
    for name, text in texts.items():
        files.append(target / f"{name}.svg")
        with atomic_write(files[-1]) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    return files


assert set(STALLS) <= set(COLOURS)
