"""``benchmarks.paper_claims`` on a small network: what it compares is comparable, and a missed goal shows."""

from __future__ import annotations

import dataclasses
import json

import pytest

from accel.commands import Opcode
from accel.config import Config, hardware, network
from benchmarks import paper_claims
from benchmarks.claims_page import Claim, markdown_table, page
from benchmarks.paper_claims import Published, all_claims
from sim.expert_cost import dense_twin, experts_over_dense
from sim.model import simulate_workload
from sim.workload import workload

DEMO = Config(network("m3vit-demo"), hardware=hardware("ci"))
PUBLISHED = (Published("somebody", "m3vit-demo", 5.0, 0.05, "measured"),)


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return all_claims(DEMO, 0, PUBLISHED)


def test_a_twin_does_equal_work():
    work = workload(DEMO, ["semseg", "depth"])
    twin = dense_twin(work)
    assert [command.opcode for command in twin.commands].count(Opcode.MOE) == 0 and not twin.routing
    first, second = (simulate_workload(item, DEMO.hardware) for item in (work, twin))
    net = DEMO.network
    gates = 2 * len(net.moe_blocks) * net.tokens * net.embed_dim * net.experts
    assert first.counters["macs"] - gates == second.counters["macs"]
    assert first.counters["pairs"] > second.counters["pairs"], "a dense layer has one pair per token"


@pytest.mark.parametrize("guess", [False, True])
def test_items_add_up(guess: bool):
    found = experts_over_dense(DEMO, "uniform", guess=guess)
    parts = found["gate"] + found["padding"] + found["bubbles"]
    assert parts == pytest.approx(found["cycles"] - found["dense_cycles"], abs=1e-6)
    assert sum(found["bubbles_by_cause"].values()) == pytest.approx(found["bubbles"])
    assert found["moe_layers"] == 3 and found["gate"] > 0 and found["padding"] >= 0
    assert found["layer_share"] == pytest.approx(parts / found["dense_cycles"])
    assert found["encoder_share"] < found["layer_share"] and found["encoder_cycles"] > found["dense_cycles"]
    assert found["array_share"] < found["layer_share"]


def test_every_claim_has_its_figures(claims: list[Claim]):
    assert len(claims) == 11 and len({claim.name for claim in claims}) == 11
    for claim in claims:
        assert claim.paper and claim.ours and claim.why
        assert claim.goal is None or claim.holds is not None
    switch = next(claim for claim in claims if "switch" in claim.name)
    assert switch.holds and switch.data["switch_extra_cycles"] == 0 and len(switch.data["tasks"]) == 8
    assert switch.data["with_barrier"] > 0 and f"barrier between jobs {switch.data['with_barrier']:+,}" in switch.ours
    assert "by construction" in switch.why, "gate addresses are not timing here"
    memory = next(claim for claim in claims if "on-chip memory" in claim.name)
    assert memory.holds and memory.data["frame"][-1]["experts"] == 256
    json.dumps([dataclasses.asdict(claim) for claim in claims], allow_nan=False)


def test_locality_narrows_the_gap(claims: list[Claim]):
    data = next(claim.data for claim in claims if "LRU" in claim.name)
    frames = [data["locality"][name] for name in data["locality"]]
    ratios = [frame["ratio"] for frame in frames]
    for frame in frames:
        assert (frame["load_mcycles"] > frame["array_mcycles"]) == (frame["bound"] == "loads bound")
    assert frames[0]["load_mcycles"] > frames[-1]["load_mcycles"]
    assert ratios[0] > ratios[-1] and frames[0]["hit_rate"] < frames[-1]["hit_rate"]


def test_the_page_shows_them_all(claims: list[Claim]):
    text = page(DEMO, claims)
    for claim in claims:
        assert f"| {claim.name} | {claim.paper} | {claim.ours} |" in text
    for title in ("What experts cost", "Reordering", "4 to 256 experts", "Latency and energy"):
        assert text.count(f"## {title}\n") == 1
    assert "Not the whole encoder" in text and "| somebody | measured | 5 |" in text
    for line in text.splitlines():
        assert line.startswith("|") or len(line) <= 130


def test_tables():
    assert markdown_table(["a", "b"], [[1234, 1.5]]) == "| a | b |\n| --- | --- |\n| 1,234 | 1.5 |\n\n"


@pytest.mark.parametrize(("holds", "goal", "code"), [(True, "x", 0), (False, "x", 1), (False, None, 0)])
def test_exit_code(holds: bool, goal: str | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys):
    claim = Claim("a claim", "1", "2", goal, holds, "because")
    monkeypatch.setattr(paper_claims, "all_claims", lambda *_: [claim])
    monkeypatch.setattr("sys.argv", ["paper_claims", "--report"])
    assert paper_claims.main() == code
    said = capsys.readouterr()
    assert "| a claim | 1 | 2 |" in said.out
    assert said.err == ("paper_claims: a claim: 2, expected x\n" if code else "")
