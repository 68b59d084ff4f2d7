"""Elements of SVG plots, as text. Written by hand: nothing to install."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_FONT = "font-family='system-ui,sans-serif' font-size='11'"


def document(width: float, height: float, body: Sequence[str], title: str) -> str:
    """A whole file: white, with a title at the top left."""
    head = (f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}' "
            f"height='{height:.0f}' {_FONT}>")  # fmt: skip
    back = f"<rect width='{width:.0f}' height='{height:.0f}' fill='white'/>"
    name = f"<text x='10' y='18' font-size='13' font-weight='600'>{escape(title)}</text>"
    return "\n".join([head, back, name, *body, "</svg>", ""])


def text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {extra}>{escape(text)}</text>"


def rect(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (f"<rect x='{x:.1f}' y='{y:.1f}' width='{max(width, 0):.2f}' height='{height:.1f}' fill='{colour}'>"
            f"{inner}</rect>")  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#888", width: float = 1) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' stroke-width='{width}'/>"


def circle(x: float, y: float, radius: float, colour: str, title: str, opacity: float = 1) -> str:
    return (f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:g}' fill='{colour}' fill-opacity='{opacity:g}'>"
            f"<title>{escape(title)}</title></circle>")  # fmt: skip
