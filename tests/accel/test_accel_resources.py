"""The resource model against what synthesis counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from accel.config import HARDWARE, Hardware, hardware, hardware_from_dict
from accel.resources import LIMITS, ZCU104, Resources, faults, luts, resources, to_dict

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


def changed(**changes: Any) -> Hardware:
    return dataclasses.replace(hardware("zcu104"), **{"name": "other", **changes})


def synthesized() -> list[Any]:
    """Hardware, what synthesis counted, and by how much the LUTs may be off: less where they were fitted."""
    found = []
    for preset in HARDWARE:
        data = json.loads((FIGURES / f"synth-{preset}.json").read_text(encoding="utf-8"))
        units = {name: unit["lut"] for name, unit in data["units"].items()}
        found.append(pytest.param(hardware(preset), data["total"], units, 0.02, id=preset))
    for data in json.loads((FIGURES / "synth-engines.json").read_text(encoding="utf-8"))["engines"]:
        engine = hardware_from_dict(data["hardware"])
        found.append(pytest.param(engine, data["total"], data["lut"], 0.02 if data["fitted"] else 0.06, id=engine.name))
    return found


@pytest.mark.parametrize(("engine", "total", "units", "near"), synthesized())
def test_what_synthesis_counted(engine: Hardware, total: dict[str, int], units: dict[str, int], near: float) -> None:
    """DSPs exactly, block RAM but for one RAMB18, UltraRAM never less and more only for a column folded by Yosys."""
    model = resources(engine)
    assert model.dsp == total["dsp"]
    assert abs(model.bram - (total["ramb36"] + total["ramb18"] / 2)) <= 0.5
    deep = -(-engine.weight_slots * engine.slot_rows // 4096)
    assert total["uram"] <= model.uram < total["uram"] + deep
    assert model.lut == pytest.approx(total["lut"], rel=near)
    assert model.lut_in_dsp == pytest.approx(total["dsp_lut"], rel=0.03)
    small = sum(units[name] for name in ("input_rows", "residual_rows", "issue", "engine"))
    counted = {**units, "dispatch": units["dispatch"] + units["tiles"] + units["gather"], "engine": small}
    for name, value in luts(engine).items():
        assert abs(value - counted[name]) <= max(0.17 * counted[name], 700), name


def test_a_configuration_that_nothing_was_fitted_to() -> None:
    """8 × 32 × 8: Yosys counted 1,067 DSPs, 217 RAMB36, 61 RAMB18, 77 URAM288 and 96,053 LUTs for its units."""
    model = resources(changed(tile_outputs=32, weight_slots=4, slot_groups=24))
    assert (model.dsp, model.bram, model.uram) == (1067, 247.5, 77)
    assert model.lut == pytest.approx(96_053, rel=0.02)
    assert model.lut_in_dsp == pytest.approx(33_508, rel=0.01)


def test_zcu104_fits() -> None:
    model = resources(hardware("zcu104"))
    assert not faults(hardware("zcu104"))
    assert model.shares(ZCU104).keys() == LIMITS.keys() <= to_dict(model).keys()
    assert model.shares(ZCU104)["uram"] == 91 / 96


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_slots": 6}, "uram = 134: expected at most 95% of 96"),
        ({"max_tokens": 1537}, "uram = 115: expected at most 95% of 96"),
        ({"max_tokens": 1472}, "bram = "),
        ({"tile_tokens": 16}, "dsp = 3,133: expected at most 98% of 1,728"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    found = faults(changed(**changes))
    assert any(line.startswith(f"hardware 'other': {message}") for line in found), found
    assert not any("\n" in line for line in found)


def test_luts_are_bounded_too() -> None:
    device = dataclasses.replace(ZCU104, lut=100_000)
    (found,) = faults(hardware("zcu104"), device)
    assert "lut = " in found and found.endswith("expected at most 85% of 100,000")


@pytest.mark.parametrize(
    ("changes", "grows"),
    [
        ({"tile_tokens": 16}, {"dsp", "lut", "lut_in_dsp"}),
        ({"tile_outputs": 64}, {"dsp", "lut", "lut_in_dsp", "bram"}),
        ({"max_tokens": 1300}, {"bram"}),
        ({"weight_slots": 6}, {"uram"}),
        ({"weight_slots": 9}, {"uram", "bram"}),
        ({"clock_mhz": 200}, set()),
    ],
)
def test_what_grows(changes: dict[str, Any], grows: set[str]) -> None:
    before, after = to_dict(resources(hardware("zcu104"))), to_dict(resources(changed(**changes)))
    assert grows <= {name for name in before if after[name] > before[name]}
    if not grows:
        assert before == after


def test_a_memory_of_whole_ultra_rams_has_no_tail() -> None:
    """1,024 tokens × 8 rows are two UltraRAMs deep; one token more goes to block RAM, 512 more to a third."""
    exact, more, third = (resources(changed(max_tokens=tokens)) for tokens in (1024, 1025, 1536))
    assert exact.uram == more.uram == third.uram - 24 and more.bram - exact.bram >= 24
    assert exact.lut < more.lut


def test_resources_are_plain_numbers() -> None:
    assert isinstance(resources(hardware("ci")), Resources)
    json.dumps(to_dict(resources(hardware("ci"))))
