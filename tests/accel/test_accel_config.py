"""Configuration: everything wrong is refused by name, value and limit; presets and hashes are stable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from accel.config import (
    HARDWARE,
    NETWORKS,
    Config,
    Formats,
    Hardware,
    Network,
    Task,
    config_from_dict,
    demands,
    engine_hash,
    hardware,
    load_config,
    network,
    parse_json,
    to_dict,
)
from accel.errors import ConfigError

DEMO = network("m3vit-demo")
CI = hardware("ci")


def plain() -> dict[str, Any]:
    return to_dict(Config(DEMO, Formats(), CI))


# ---- values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 7}, "image_height = 64: expected a multiple of patch = 7"),
        ({"heads": 3}, "heads = 3: expected a divisor of 64"),
        ({"embed_dim": 2048}, "embed_dim = 2048: expected at most 1024"),
        ({"embed_dim": 1024, "heads": 1}, "head_dim = 1024: expected at most 512"),
        ({"experts": 257}, "experts = 257: expected at most 256"),
        ({"experts": 0}, "experts = 0: expected an integer of at least 1"),
        ({"top_k": 9}, "top_k = 9: expected 1 to 8"),
        ({"experts": 4, "top_k": 5}, "top_k = 5: expected 1 to 4"),
        ({"unit_hidden": 48}, "dense_hidden = 256: expected a multiple of 48"),
        ({"unit_hidden": 16}, "dense_hidden = 256: expected at most 15 units"),
        ({"dense_hidden": 16, "expert_hidden": 240, "unit_hidden": 16}, "expert_hidden = 240: expected at most 14"),
        ({"depth": True}, "depth = True: expected an integer"),
        ({"image_width": 64.0}, "image_width = 64.0: expected an integer"),
        ({"tasks": ()}, "tasks = []: expected at least one task"),
        ({"tasks": (DEMO.tasks[0],) * 2}, "expected distinct names"),
        ({"routing": "random"}, "routing = 'random': expected one of multi_gate, task_conditioned"),
        ({"task_embed_dim": 4}, "task_embed_dim = 4: expected 0 for multi_gate"),
        ({"routing": "task_conditioned"}, "task_embed_dim = 0: expected at least 1"),
        ({"head": "big"}, "head = 'big': expected one of light, pup"),
    ],
)
def test_network_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(DEMO, **changes)
    assert message in str(error.value) and "m3vit-demo" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("seg ment", 3, "labels"), "name = 'seg ment': expected an identifier"),
        (("depth", 2, "depth"), "channels = 2: expected 1 for depth"),
        (("normals", 1, "normals"), "channels = 1: expected 3 for normals"),
        (("x", 0, "labels"), "channels = 0"),
        (("x", 1, "flow"), "kind = 'flow': expected one of labels"),
    ],
)
def test_task_refuses(arguments: tuple[str, int, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task(*arguments)


@pytest.mark.parametrize("bits", [1, 9, 0, True, 4.0])
def test_formats_refuse(bits: Any) -> None:
    for name in ("weight_bits", "activation_bits"):
        with pytest.raises(ConfigError, match=f"formats: {name} = {bits}: expected an integer from 2 to 8"):
            Formats(**{name: bits})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_tokens": 6}, "tile_tokens = 6: expected a power of two"),
        ({"tile_tokens": 1}, "tile_tokens = 1: expected at least 2"),
        ({"tile_inputs": 16}, "tile_inputs = 16: expected at most 8"),
        ({"tile_outputs": 12}, "tile_outputs = 12: expected rows of 8"),
        ({"burst_beats": 32}, "burst_beats = 32: expected at most 16"),
        ({"weight_slots": 1}, "weight_slots = 1: expected at least 2"),
        ({"ports": 8}, "ports = 8: expected at most 4"),
        ({"ports": 3}, "ports = 3: expected a power of two"),
        ({"write_ports": 5}, "write_ports = 5: expected at most 4"),
        ({"max_width": 380}, "max_width = 380: expected a multiple of tile_outputs = 16"),
        ({"max_experts": 512}, "max_experts = 512: expected at most 256"),
        ({"max_top_k": 9}, "max_top_k = 9: expected at most 8"),
        ({"clock_mhz": 0}, "clock_mhz = 0: expected an integer of at least 1"),
        *[({name: 0}, f"{name} = 0: expected an integer of at least 1")
          for name in ("slot_rows", "slot_groups", "max_inputs", "max_hidden")],
    ],
)  # fmt: skip
def test_hardware_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(CI, **changes)
    assert f"hardware 'ci': {message}" in str(error.value)


@pytest.mark.parametrize("part", [DEMO, CI], ids=["network", "hardware"])
def test_names_are_safe_in_file_names_and_identifiers(part: Network | Hardware) -> None:
    for name in ("", "-x", ".hidden", "_x", "a b", "a/b", "../x", "a\nb", "café", "a\0", "x;", 7, None):
        with pytest.raises(ConfigError) as error:
            dataclasses.replace(part, name=name)  # type: ignore[arg-type]
        assert f"name = {name!r}: expected letters, digits, '.', '_' and '-'" in str(error.value)
        assert "\n" not in str(error.value)
    for name in ("a", "7", "m3vit-demo_v1.2", "X" * 100):
        assert dataclasses.replace(part, name=name).name == name


@pytest.mark.parametrize(
    ("net", "changes", "message"),
    [
        ("m3vit-small-pascal", {}, "tokens = 1025: expected at most max_tokens = 256"),
        ("m3vit-demo", {"max_width": 32}, "embed_dim = 64: expected at most max_width = 32"),
        ("m3vit-demo", {"max_experts": 4}, "experts = 8: expected at most max_experts = 4"),
        ("m3vit-demo", {"max_top_k": 1}, "top_k = 2: expected at most max_top_k = 1"),
        ("m3vit-demo", {"slot_rows": 127}, "unit rows = 128: expected at most slot_rows = 127"),
        ("m3vit-tiny-cityscapes", {}, "unit rows = 1152: expected at most slot_rows = 768"),
        ("m3vit-demo", {"max_inputs": 191}, "patch_dim = 192: expected at most max_inputs = 191"),
        ("m3vit-demo", {"max_inputs": 63}, "embed_dim = 64: expected at most max_inputs = 63"),
        ("m3vit-demo", {"max_hidden": 127}, "unit_hidden = 128: expected at most max_hidden = 127"),
        ("m3vit-demo", {"slot_groups": 11}, "unit parameter groups = 12: expected at most slot_groups = 11"),
    ],
)
def test_network_that_does_not_fit_is_refused(net: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(network(net), Formats(), dataclasses.replace(CI, **changes))
    assert message in str(error.value) and net in str(error.value)


def test_network_that_fits_exactly() -> None:
    exact = {"max_width": 64, "max_experts": 8, "max_top_k": 2, "slot_rows": 128, "max_inputs": 192, "max_hidden": 128,
             "slot_groups": 12, "max_tokens": 65}  # fmt: skip
    config = Config(DEMO, Formats(), dataclasses.replace(CI, **exact))
    assert max(value for _, value, limit in demands(DEMO, CI) if limit == "slot_rows") == 128
    for name, value in exact.items():
        step = CI.tile_outputs if name == "max_width" else 1
        with pytest.raises(ConfigError, match=f"expected at most {name} = {value - step}"):
            Config(DEMO, Formats(), dataclasses.replace(config.hardware, **{name: value - step}))


def test_folds_that_do_not_divide_are_refused() -> None:
    net = dataclasses.replace(DEMO, embed_dim=60, heads=2)
    with pytest.raises(ConfigError, match="embed_dim = 60: expected a multiple of tile_inputs = 8"):
        Config(net, Formats(), CI)
    net = dataclasses.replace(DEMO, unit_hidden=4, dense_hidden=4, expert_hidden=4)
    with pytest.raises(ConfigError, match="unit_hidden = 4: expected a multiple of tile_inputs = 8"):
        Config(net, Formats(), CI)


def test_gate_and_widest_tile_must_fit_a_slot() -> None:
    net = dataclasses.replace(DEMO, experts=256, unit_hidden=16, dense_hidden=16, expert_hidden=16)
    small = dataclasses.replace(CI, slot_rows=100)
    with pytest.raises(ConfigError, match="gate rows = 128: expected at most slot_rows = 100"):
        Config(net, Formats(), small)
    groups = dataclasses.replace(CI, slot_groups=15)
    with pytest.raises(ConfigError, match="gate parameter groups = 16: expected at most slot_groups = 15"):
        Config(net, Formats(), groups)
    Config(net, Formats(), dataclasses.replace(groups, slot_groups=16))
    net = dataclasses.replace(net, experts=8, patch=16)
    with pytest.raises(ConfigError, match="rows of one output tile = 96: expected at most slot_rows = 90"):
        Config(net, Formats(), dataclasses.replace(CI, slot_rows=90, max_width=768))


def test_patch_rows_wider_than_the_store_need_all_their_weights_on_chip() -> None:
    """16 × 16 patches are 768 inputs, twice max_width: 4 output tiles of 96 rows must fit one slot."""
    net = dataclasses.replace(DEMO, patch=16)
    with pytest.raises(ConfigError, match="patch embedding rows = 384: expected at most slot_rows = 383"):
        Config(net, Formats(), dataclasses.replace(CI, slot_rows=383))
    Config(net, Formats(), dataclasses.replace(CI, slot_rows=384))
    Config(net, Formats(), dataclasses.replace(CI, slot_rows=383, max_width=768))  # kept, so it may be cut


# ---- documents ------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["network", "formats", "hardware"])
def test_unknown_key(section: str) -> None:
    data = plain()
    data[section]["speed"] = 3
    with pytest.raises(ConfigError, match=f"config.{section}: unknown field 'speed': expected only"):
        config_from_dict(data)


def test_unknown_section_and_missing_network() -> None:
    with pytest.raises(ConfigError, match="unknown field 'engine'"):
        config_from_dict(plain() | {"engine": {}})
    with pytest.raises(ConfigError, match="missing field 'network'"):
        config_from_dict({"hardware": "ci"})
    with pytest.raises(ConfigError, match="expected a table of fields, found list"):
        config_from_dict([])


@pytest.mark.parametrize(("section", "name"), [("network", "depth"), ("hardware", "slot_rows")])
def test_missing_key(section: str, name: str) -> None:
    data = plain()
    del data[section][name]
    with pytest.raises(ConfigError, match=f"config.{section}: missing field '{name}'"):
        config_from_dict(data)


@pytest.mark.parametrize(
    ("section", "name", "value", "found"),
    [
        ("network", "depth", "six", "expected int, found str"),
        ("network", "depth", 6.0, "expected int, found float"),
        ("network", "name", 6, "expected str, found int"),
        ("hardware", "ports", True, "expected int, found bool"),
        ("formats", "weight_bits", None, "expected int, found NoneType"),
    ],
)
def test_wrong_type(section: str, name: str, value: Any, found: str) -> None:
    data = plain()
    data[section][name] = value
    with pytest.raises(ConfigError, match=f"config.{section}: {name} = {value!r}: {found}"):
        config_from_dict(data)


def test_wrong_tasks() -> None:
    data = plain()
    data["network"]["tasks"] = "semseg"
    with pytest.raises(ConfigError, match="expected a list of tasks"):
        config_from_dict(data)
    data["network"]["tasks"] = [{"name": "depth", "channels": 1}]
    with pytest.raises(ConfigError, match=r"config.network.tasks\[0\]: missing field 'kind'"):
        config_from_dict(data)


def test_duplicate_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="x.json: field 'ports' is given twice"):
        parse_json('{"ports": 4, "ports": 2}', "x.json")
    file = tmp_path / "twice.json"
    file.write_text('{"network": "m3vit-demo", "formats": {"weight_bits": 8, "weight_bits": 4}}')
    with pytest.raises(ConfigError, match="twice.json: field 'weight_bits' is given twice"):
        load_config(file)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"network": "m3vit-demo"} extra'])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="broken.json: "):
        load_config(file)
    with pytest.raises(ConfigError, match="none.json: cannot read"):
        load_config(tmp_path / "none.json")


def test_documents_round_trip(tmp_path: Path) -> None:
    for net in NETWORKS.values():
        config = Config(net, Formats(weight_bits=4), hardware("zcu104"))
        file = tmp_path / "config.json"
        file.write_text(json.dumps(to_dict(config)))
        assert load_config(file) == config
        assert load_config(file).hash == config.hash
    file.write_text('{"network": "m3vit-demo", "hardware": "ci"}')
    assert load_config(file) == Config(DEMO, Formats(), CI)


# ---- presets and identity -------------------------------------------------------------


def test_presets_are_the_workloads() -> None:
    assert {name: net.tokens for name, net in NETWORKS.items()} == {
        "m3vit-demo": 65, "m3vit-tiny-cityscapes": 129, "m3vit-small-pascal": 1025, "m3vit-small-nyud": 1201,
    }  # fmt: skip
    assert all(net.moe_blocks == tuple(range(1, net.depth, 2)) for net in NETWORKS.values())
    assert HARDWARE["zcu104"].macs_per_cycle == 3072 and HARDWARE["zcu104"].stripe_bytes == 1024
    assert DEMO.task("normals").channels == 3 and DEMO.task_index("edge") == 3


@pytest.mark.parametrize(("lookup", "what"), [(network, "network"), (hardware, "hardware")])
def test_unknown_preset(lookup: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what} preset 'vit': expected one of"):
        lookup("vit")
    with pytest.raises(ConfigError, match="task 'pose': expected one of semseg"):
        DEMO.task("pose")


def test_hashes_are_stable() -> None:
    """A changed hash invalidates bundles and bitstreams: change these only together with presets or contract."""
    assert Config(DEMO, Formats(), CI).hash == "4bd130e7f36265fe"
    assert Config(network("m3vit-small-pascal")).hash == "25620b6514606dc5"
    assert f"{engine_hash(Formats(), CI):08x}" == "e1bc79e1"
    assert f"{engine_hash(Formats(), hardware('zcu104')):08x}" == "a07934ef"


@pytest.mark.parametrize("item", ["name", "clock_mhz", "slot_rows", "max_inputs", "weight_bits"])
def test_everything_changes_the_hash_of_a_configuration(item: str) -> None:
    """Whether it changes the engine's identity too: test_accel_identity.py."""
    base = Config(DEMO, Formats(), CI)
    formats, hw = base.formats, base.hardware
    if item == "weight_bits":
        formats = Formats(weight_bits=7)
    else:
        value = "other" if item == "name" else getattr(hw, item) + 8
        hw = dataclasses.replace(hw, **{item: value})
    changed = Config(DEMO, formats, hw)
    assert changed.hash != base.hash
    assert changed.engine_hash == engine_hash(formats, hw)
    assert (changed.engine_hash == base.engine_hash) == (item in ("name", "clock_mhz"))


def test_network_changes_the_hash_but_not_the_engine() -> None:
    base = Config(DEMO, Formats(), CI)
    for changes in ({"top_k": 1}, {"name": "x"}, {"tasks": DEMO.tasks[:2]}, {"head": "pup"}):
        changed = Config(dataclasses.replace(DEMO, **changes), Formats(), CI)
        assert changed.hash != base.hash and changed.engine_hash == base.engine_hash


def test_configurations_are_frozen() -> None:
    for part in (DEMO, Formats(), CI, Config(DEMO, Formats(), CI)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.name = "other"  # type: ignore[misc,union-attr]


def test_unit_hidden_is_part_of_the_network() -> None:
    """Cutting an MLP elsewhere changes its rounding, so two engines must agree on it through the bundle."""
    assert "unit_hidden" in {item.name for item in dataclasses.fields(Network)}
