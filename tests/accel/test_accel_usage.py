"""Expert usage files: what is measured, what is written, and everything the reader refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accel_cases import CONDITIONED, NETWORK, image_of, one_line

from accel.errors import ConfigError, DataError
from accel.golden import GoldenEngine, run_frame
from accel.random_params import random_encoder
from accel.usage import ExpertUsage, golden_usage, load_usage, save_usage

USAGE = ExpertUsage(
    "net", images=2, tokens_per_image=5, top_k=2, experts=3,
    tokens={"a": {1: [10, 10, 0], 3: [4, 6, 10]}, "b": {1: [0, 10, 10], 3: [7, 6, 7]}},
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "usage.json"
    save_usage(file, USAGE)
    return file


def test_round_trip(path: Path) -> None:
    found = load_usage(path)
    assert found == USAGE and found.blocks == (1, 3)
    assert found.counts("b").tolist() == [[0, 10, 10], [7, 6, 7]] and found.counts("b").dtype == np.int64
    assert found.used("a") == {1: 2, 3: 3}
    with pytest.raises(ConfigError, match="task 'c': expected one of a, b"):
        found.counts("c")


@pytest.mark.parametrize("network", [NETWORK, CONDITIONED], ids=["multi_gate", "task_conditioned"])
def test_golden_usage_counts_what_the_golden_model_routes(network: Any, tmp_path: Path) -> None:
    encoder = random_encoder(network, seed=4)
    images = [image_of(network, seed) for seed in range(3)]
    done: list[int] = []
    usage = golden_usage(encoder, iter(images), done.append)
    assert done == [1, 1, 1] and usage.images == 3 and usage.network == network.name
    engine = GoldenEngine(encoder)
    for task in network.task_names:
        for row, block in zip(usage.counts(task), network.moe_blocks, strict=True):
            expected = [0] * network.experts
            for image in images:
                for chosen in run_frame(encoder, image, task, engine, record=True).trace[f"blocks.{block}.topk"]:
                    for expert in chosen:
                        expected[expert] += 1
            assert row.tolist() == expected and sum(expected) == 3 * network.tokens * network.top_k
    usage.check_network(network)
    save_usage(tmp_path / "u.json", usage)
    assert load_usage(tmp_path / "u.json") == usage
    with pytest.raises(DataError, match="at least one image, found none"):
        golden_usage(encoder, [])


def test_usage_of_another_network_is_refused() -> None:
    usage = golden_usage(random_encoder(NETWORK), [image_of(NETWORK, 0)])
    tasks = NETWORK.tasks
    others = [
        ({"experts": 6}, "experts: expected 6 as in cases, found 5"),
        ({"top_k": 3}, "top_k: expected 3 as in cases, found 2"),
        ({"image_width": 32}, "tokens_per_image: expected 9 as in cases, found 7"),
        ({"depth": 2}, "blocks: expected 1 as in cases, found 1, 3"),
        ({"tasks": tasks[:2]}, "tasks: expected depth, semseg as in cases, found depth, edge, semseg"),
    ]
    for change, message in others:
        with pytest.raises(DataError) as error:
            usage.check_network(dataclasses.replace(NETWORK, **change), "u.json")
        assert one_line(error.value) == f"u.json: {message}"


BLOCKS = {"1": [10, 10, 0], "3": [4, 6, 10]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "format: expected 'm3vit-expert-usage', found 'x'"),
        ({"version": 2}, "version: expected 1, found 2"),
        ({"version": True}, "version: expected 1, found True"),
        ({"network": None}, "network: missing"),
        ({"tokens": None}, "tokens: missing"),
        ({"note": "x"}, "note: unknown field: expected only format, version, network, images"),
        ({"network": 3}, "network: expected text, found 3"),
        ({"images": 0}, "images: expected an integer of at least 1, found 0"),
        ({"images": 2.0}, "images: expected an integer of at least 1, found 2.0"),
        ({"images": 3}, "tokens.a.1: expected 3 counts that add up to 30, found 3 that add up to 20"),
        ({"experts": True}, "experts: expected an integer of at least 1, found True"),
        ({"experts": 4}, "tokens.a.1: expected 4 counts that add up to 20, found 3"),
        ({"top_k": 4}, "top_k: expected at most 3 experts, found 4"),
        ({"tokens": {}}, "tokens: expected a table with at least one entry, found {}"),
        ({"tokens": [1]}, "tokens: expected a table with at least one entry, found [1]"),
        ({"tokens": {"a": {}}}, "tokens.a: expected a table with at least one entry, found {}"),
        ({"tokens": {"a": {"x": [10, 10, 0]}}}, "tokens.a.x: expected the number of a block, found 'x'"),
        ({"tokens": {"a": {"01": [10, 10, 0]}}}, "tokens.a.01: expected the number of a block, found '01'"),
        ({"tokens": {"a": {"1": 3}}}, "tokens.a.1: expected a list of 3 counts, found 3"),
        ({"tokens": {"a": {"1": [10, 10.0, 0]}}}, "tokens.a.1[1]: expected an integer of at least 0, found 10.0"),
        ({"tokens": {"a": {"1": [10, 11, -1]}}}, "tokens.a.1[2]: expected an integer of at least 0, found -1"),
        ({"tokens": {"a": {"1": [11, 9, 0]}}}, "tokens.a.1: expected at most 10 tokens per expert, found 11"),
        ({"tokens": {"a": BLOCKS, "b": {"1": [10, 10, 0]}}}, "tokens.b: expected blocks [1, 3] as in a, found [1]"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:40],
)
def test_damage(path: Path, change: dict[str, Any], message: str) -> None:
    data = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))
    with pytest.raises(DataError) as error:
        load_usage(path)
    line = one_line(error.value)
    assert line.startswith(f"{path}: ") and message in line


def test_unreadable_files(path: Path, tmp_path: Path) -> None:
    for content, message in (
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "cannot read"),
        (b"[]", "format: expected 'm3vit-expert-usage', found None"),
        (path.read_bytes().replace(b'"images": 2,', b'"images": 2, "images": 2,'), "field 'images' is given twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            load_usage(path)
        assert one_line(error.value).startswith(str(path))
    with pytest.raises(DataError, match="none.json: cannot read: No such file"):
        load_usage(tmp_path / "none.json")
