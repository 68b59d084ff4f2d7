"""The demo's report: one self-contained HTML page with pictures, tables and heat maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from accel.atomic import atomic_write

Array = NDArray[Any]
Row = Sequence[object]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #2a8a4a; --bad: #c43c3c; --ink: #3b6ea8; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); } h3 { margin-bottom: .3rem; }
table { border-collapse: collapse; margin: .6rem 0; } caption { text-align: left; opacity: .75; padding-bottom: .2rem; }
th, td { padding: .22rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { background: var(--soft); font-weight: 600; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.pictures { display: grid; gap: .35rem; align-items: center; overflow-x: auto; }
.pictures img, .grid img { image-rendering: pixelated; width: 100%; max-width: 128px; border-radius: 3px; }
.pictures span { font-size: .8rem; opacity: .8; text-align: center; }
.heat td { min-width: 2.6rem; text-align: center; border: 1px solid var(--line); padding: .15rem .3rem; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem; } .grid figure { margin: 0; }
.grid figcaption { font-size: .8rem; opacity: .8; }
svg { background: var(--soft); border-radius: 4px; } svg text { font: 10px system-ui; fill: currentColor; }
.note { opacity: .8; max-width: 60rem; }
"""

_EXPERT_COLOURS = [
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f",
    "#1f77b4", "#ff9da7", "#8cd17d", "#d37295", "#499894", "#b6992d", "#79706e", "#bab0ac",
]  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Header, rows and caption; cells ``True``/``False`` are shown as pass or fail."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class SceneRow:
    """One held-out scene: its input, and per task prediction and truth."""

    name: str
    image: Image.Image
    predictions: Mapping[str, Image.Image]
    truths: Mapping[str, Image.Image]


@dataclass(frozen=True)
class BlockRouting:
    """Routing of one MoE block: task → share of tokens per expert over all frames [E], and for one frame the queue
    lengths [E] and the best expert of every patch [grid_h, grid_w].
    """

    block: int
    share: Mapping[str, Array]
    queues: Mapping[str, Array]
    best: Mapping[str, Array]


@dataclass(frozen=True)
class Report:
    """Everything the page shows, in order."""

    title: str
    subtitle: str
    tables: Sequence[Table]
    scenes: Sequence[SceneRow]
    routing: Sequence[BlockRouting]
    notes: Sequence[str] = field(default_factory=tuple)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f'<td class="{"good" if value else "bad"}">{"pass" if value else "FAIL"}</td>'
    if isinstance(value, float):
        return f"<td>{value:.2f}</td>"
    if isinstance(value, int):
        return f"<td>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in table.rows)
    return f"<table><caption>{escape(table.caption)}</caption><tr>{head}</tr>{rows}</table>"


def _picture(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" title="{escape(alt)}" src="data:image/png;base64,{data}">'


def _scenes(scenes: Sequence[SceneRow]) -> str:
    if not scenes:
        return ""
    tasks = list(scenes[0].predictions)
    columns = ["input", *(f"{task}: {what}" for task in tasks for what in ("engine", "truth"))]
    cells = [f"<span>{escape(name)}</span>" for name in columns]
    for scene in scenes:
        cells.append(_picture(scene.image, f"{scene.name}, input"))
        for task in tasks:
            cells.append(_picture(scene.predictions[task], f"{scene.name}, {task}, engine"))
            cells.append(_picture(scene.truths[task], f"{scene.name}, {task}, truth"))
    style = f"grid-template-columns: repeat({len(columns)}, minmax(72px, 1fr))"
    return f'<div class="pictures" style="{style}">{"".join(cells)}</div>'


def sheet(scenes: Sequence[SceneRow], scale: int = 2, gap: int = 4) -> Image.Image:
    """All scenes as one picture: a row each, with input, then prediction and truth per task."""
    rows = []
    for scene in scenes:
        pairs = [(scene.predictions[task], scene.truths[task]) for task in scene.predictions]
        rows.append([scene.image, *(image for pair in pairs for image in pair)])
    width, height = scale * rows[0][0].width, scale * rows[0][0].height
    size = (len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap)
    picture = Image.new("RGB", size, (255, 255, 255))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            scaled = image.resize((width, height), Image.Resampling.NEAREST)
            picture.paste(scaled, (x * (width + gap), y * (height + gap)))
    return picture


def _heat(block: BlockRouting) -> str:
    experts = len(next(iter(block.share.values())))
    head = "".join(f"<th>{expert}</th>" for expert in range(experts))
    rows = []
    for task, share in block.share.items():
        top = max(float(share.max()), 1e-9)
        cells = "".join(
            f'<td style="background: rgba(59, 110, 168, {0.85 * float(value) / top:.2f})">{100 * float(value):.0f}</td>'
            for value in share
        )
        rows.append(f"<tr><td>{escape(task)}</td>{cells}</tr>")
    caption = f"block {block.block}: percent of routed tokens per expert, all frames"
    return f'<table class="heat"><caption>{caption}</caption><tr><th>task</th>{head}</tr>{"".join(rows)}</table>'


def _bars(task: str, block: int, queue: Array) -> str:
    """Queue lengths of one frame as bars; the line is the mean."""
    width, height, gap = 14, 70, 3
    top = max(int(queue.max()), 1)
    total = len(queue) * (width + gap) + gap
    bars = []
    for expert, length in enumerate(queue):
        size = round(height * int(length) / top)
        x, y = gap + expert * (width + gap), height - size + 14
        colour = _EXPERT_COLOURS[expert % len(_EXPERT_COLOURS)]
        title = f"<title>expert {expert}: {int(length)} tokens</title>"
        bars.append(f'<rect x="{x}" y="{y}" width="{width}" height="{size}" fill="{colour}">{title}</rect>')
        bars.append(f'<text x="{x + width / 2}" y="{height + 26}" text-anchor="middle">{expert}</text>')
    mean = height - height * float(queue.mean()) / top + 14
    line = f'<line x1="0" x2="{total}" y1="{mean:.1f}" y2="{mean:.1f}" stroke="currentColor" stroke-dasharray="4 3"/>'
    facts = f"longest {int(queue.max())}, mean {queue.mean():.1f}, empty {int((queue == 0).sum())}"
    label = f'<text x="4" y="11">{facts}</text>'
    svg = f'<svg width="{max(total, 190)}" height="{height + 30}">{"".join(bars)}{line}{label}</svg>'
    return f"<figure>{svg}<figcaption>{escape(task)}, block {block}: tokens per queue</figcaption></figure>"


def _patches(task: str, block: int, best: Array) -> str:
    """Best expert of every patch as coloured squares."""
    colours = np.array(
        [[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in _EXPERT_COLOURS], dtype=np.uint8
    )
    image = Image.fromarray(colours[best % len(colours)])
    picture = _picture(image.resize((best.shape[1] * 12, best.shape[0] * 12), Image.Resampling.NEAREST), task)
    return f"<figure>{picture}<figcaption>{escape(task)}, block {block}: best expert per patch</figcaption></figure>"


def _routing(routing: Sequence[BlockRouting]) -> str:
    parts = []
    for block in routing:
        parts.append(f"<h3>Block {block.block}</h3>{_heat(block)}")
        bars = "".join(_bars(task, block.block, queue) for task, queue in block.queues.items())
        patches = "".join(_patches(task, block.block, best) for task, best in block.best.items())
        parts.append(f'<div class="grid">{bars}</div><div class="grid">{patches}</div>')
    return "".join(parts)


def render(report: Report) -> str:
    """The page as HTML text."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes)
    tables = "".join(_table(table) for table in report.tables)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(report.title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(report.title)}</h1><p>{escape(report.subtitle)}</p>{notes}<h2>Results</h2>{tables}"
        f"<h2>Held-out scenes</h2>{_scenes(report.scenes)}"
        f"<h2>Routing</h2>{_routing(report.routing)}</body></html>\n"
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")
