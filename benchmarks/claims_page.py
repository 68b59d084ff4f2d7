"""The page of ``benchmarks.paper_claims``: a table of claims, then what is behind each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accel.config import Config


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: what is claimed.
        paper: the paper's figure, as text.
        ours: ours, as text.
        goal: what was to be shown, or None if it is only reported.
        holds: whether the goal is reached; with no goal, whether the paper's figure is; None where the two cannot be
            compared.
        why: what the figure rests on, and where it does not hold, why.
        data: everything behind it, ready for JSON.
    """

    name: str
    paper: str
    ours: str
    goal: str | None
    holds: bool | None
    why: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> bool:
        """A goal that is not reached."""
        return self.goal is not None and self.holds is not True


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Table of Markdown, ending with an empty line."""
    lines = [headers, ["---"] * len(headers), *([_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _experts(data: Mapping[str, Any]) -> str:
    header = ["routing", "experts loaded", "dense", "+ gate", "+ padding", "+ bubbles", "largest bubbles",
              "of the layer", "of the encoder", "single frame, of the encoder"]  # fmt: skip
    rows = []
    for found in data["experts"].values():
        layers = found["moe_layers"]
        causes = sorted(found["bubbles_by_cause"].items(), key=lambda item: -item[1])[:2]
        rows.append([
            found["routing"], _LOADED[found["schedule"]],
            *(round(found[name] / layers) for name in ("dense_cycles", "gate", "padding", "bubbles")),
            ", ".join(f"{_named(name)} {value / layers:,.0f}" for name, value in causes),
            f"+{found['layer_share']:.2%}", f"+{found['encoder_share']:.2%}", f"+{found['alone']['encoder_share']:.2%}",
        ])  # fmt: skip
    return (
        "## What experts cost\n\nCycles per layer, mean of the MoE layers of a frame, against the same frame with a "
        "dense MLP of equal\nwork in the place of each; another frame follows. A single frame ends with an MoE layer, "
        "whose rows leave when\nits last expert is done: that is what the last column has more.\n\n"
        + markdown_table(header, rows)
    )  # fmt: skip


_LOADED = {"index": "when the gate has decided", "one guess": "one before"}


def _named(counter: str) -> str:
    return counter.removeprefix("stall_").removesuffix("_cycles")


def _reordering(data: Mapping[str, Any]) -> str:
    header = ["routing", "pool, experts", "hits", "encoder", "engine's layers", "MoE layers",
              "baseline's loads, M cycles", "its array, M cycles", "so"]  # fmt: skip
    frames = [("uniform", frame) for frame in data["uniform"].values()]
    frames += [(f"locality {name}", frame) for name, frame in data["locality"].items()]
    rows = [
        [name, frame["pool"], f"{frame['hit_rate']:.1%}", *(f"{frame[key]:.1f}×" for key in
                                                           ("encoder_ratio", "ratio", "moe_ratio")),
         f"{frame['load_mcycles']:.1f}", f"{frame['array_mcycles']:.1f}", frame["bound"]]
        for name, frame in frames
    ]  # fmt: skip
    return (
        "## Reordering\n\nCycles without reordering (token order, LRU cache of the same pool, `sim/baseline.py`) over "
        "cycles with. Locality\n*p*: a token keeps each expert of a neighbour with probability *p*; every expert stays "
        "as likely as any other.\nLoads and array: MoE layers without "
        "reordering; they overlap, and the larger bounds.\n\n" + markdown_table(header, rows)
    )  # fmt: skip


def _scaling(data: Mapping[str, Any]) -> str:
    header = ["experts", "cycles", "ms", "ideal without gates", "gates", "padding", "stalls", "MB moved",
              "mJ, estimate"]  # fmt: skip
    rows = [
        [row["experts"], row["cycles"], f"{row['milliseconds']:.2f}", row["ideal_experts"], row["gate_cycles"],
         row["breakdown"]["padding"], row["stall_cycles"], round(row["ddr_bytes"] / 1e6),
         "{:.0f} to {:.0f}".format(*(1e3 * value for value in row["joules"]))]
        for row in data["frame"]
    ]  # fmt: skip
    sizes = {(row["bram"], row["uram"]) for row in data["max_experts"]}
    built = " or ".join(f"{bram:g} RAMB36 and {uram:g} URAM" for bram, uram in sorted(sizes))
    counts = [row["max_experts"] for row in data["max_experts"]]
    return (
        "## 4 to 256 experts\n\nOne frame at constant activated work (top-k and expert width as they are), uniform "
        f"routing. An engine built for at\nmost {counts[0]} to {counts[-1]} experts (`max_experts`) takes {built}: "
        "modelled.\n\n"
        + markdown_table(header, rows)
    )  # fmt: skip


def _systems(data: Mapping[str, Any]) -> str:
    header = ["published", "as", "ms", "J", "ours", "engine's share, ms", "with attention at the array's peak, ms",
              "engine's share, J, estimate"]  # fmt: skip
    rows = [
        [row["name"], row["kind"], row["milliseconds"], row["joules"], row["network"],
         f"{row['engine_milliseconds']:.2f}", f"{row['with_attention_milliseconds']:.2f}",
         "{:.3f} to {:.3f}".format(*row["engine_joules"])]
        for row in data["systems"]
    ]  # fmt: skip
    return (
        "## Latency and energy\n\n**Not the whole encoder.** The engine computes linear layers, experts and gates; "
        "LayerNorm, attention and heads are\ncomputed by the host and are in none of these figures, except that one "
        "column adds attention's multiply-accumulates\nas if the array did them at its peak. Published figures are "
        "whole encoders. The tiny networks of the three ZCU102\nsystems are of the same class, not the same.\n\n"
        + markdown_table(header, rows)
    )  # fmt: skip


_SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "experts": _experts, "locality": _reordering, "frame": _scaling, "systems": _systems,
}  # fmt: skip
"""Key in a claim's data → the section that shows it; the last one that is there counts."""


_HOLDS = {True: "yes", False: "**no**", None: "not comparable"}


def page(config: Config, claims: Sequence[Claim]) -> str:
    """Everything as Markdown."""
    net, engine = config.network, config.hardware
    text = (
        "# The paper's claims, recomputed\n\nWritten by `python -m benchmarks.paper_claims --report`. Everything here "
        "is **simulated** ([simulator.md](simulator.md), within\n2 % of the RTL on its test programs) at "
        f"{engine.clock_mhz} MHz; energy is **estimated**; nothing was measured on a board.\n`{net.name}`, "
        f"{net.experts} experts, top-{net.top_k}, engine `{engine.name}`. The paper: M³ViT, NeurIPS 2022, "
        "arXiv 2210.14793, itself\nan estimate for a ZCU104.\n\n"
    )  # fmt: skip
    rows = [[claim.name, claim.paper, claim.ours, claim.goal or "–", _HOLDS[claim.holds], claim.why]
            for claim in claims]  # fmt: skip
    text += markdown_table(["claim", "paper", "ours", "goal", "holds", "why"], rows)
    for claim in claims:
        sections = [section for key, section in _SECTIONS.items() if key in claim.data]
        text += sections[-1](claim.data) if sections else ""
    return text.rstrip("\n") + "\n"
