"""Expert windows, pruning with index mapping, usage statistics."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from accel.config import Network, network_from_dict
from accel.errors import CheckpointError, ConfigError, DataError
from model import experts
from model.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from model.data import Dataset
from model.moe import GateNoise
from model.train import TrainOptions, fit
from model.vit import MultiTaskViT


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize(("count", "per_task"), [(16, 4), (16, 16), (8, 3), (5, 1)])
def test_windows_lie_inside_for_any_number_of_tasks(tasks: int, count: int, per_task: int) -> None:
    table = experts.expert_windows(tasks, count, per_task)
    assert table.shape == (tasks, count) and table.dtype == torch.bool
    assert (table.sum(-1) == per_task).all()
    starts = [row.nonzero().min().item() for row in table]
    assert all(row.nonzero().max().item() - start == per_task - 1 for row, start in zip(table, starts, strict=True))
    assert starts[0] == 0 and starts == sorted(starts)
    if tasks > 1:
        assert starts[-1] + per_task == count


def test_windows_of_five_tasks() -> None:
    starts = [row.nonzero().min().item() for row in experts.expert_windows(5, 16, 4)]
    assert starts == [0, 3, 6, 9, 12]  # M³ViT's sums of these run to 30
    with pytest.raises(ConfigError, match="per_task = 17"):
        experts.expert_windows(2, 16, 17)


def chosen(model: MultiTaskViT, images: torch.Tensor) -> list[torch.Tensor]:
    return [stats.indices for stats in model(images).routing.values()]


def test_restriction_keeps_tasks_to_their_windows(routed: Network, images: torch.Tensor) -> None:
    model = MultiTaskViT(routed).eval()
    windows = experts.expert_windows(4, routed.experts, 2)
    before, state = model(images).outputs, set(model.state_dict())
    free = chosen(model, images)
    experts.restrict(model, windows)
    assert set(model.state_dict()) == state
    for indices in chosen(model, images):
        for task in range(4):
            assert set(indices[task].unique().tolist()) == set(windows[task].nonzero().flatten().tolist())
    assert any(set(i[0].unique().tolist()) != {0, 1} for i in free)  # without, tasks go elsewhere
    # Single-task inference and gate override take the same window.
    one = model(images, ["edge"]).routing[1].indices
    assert set(one.unique().tolist()) == {2, 3}
    borrowed = model(images, ["edge"], gate_override={"edge": "semseg"}).routing[1].indices
    assert set(borrowed.unique().tolist()) == {0, 1}
    experts.restrict(model, None)
    assert all(torch.equal(before[t], after) for t, after in model(images).outputs.items())


def test_window_over_all_experts_changes_nothing(routed: Network, images: torch.Tensor) -> None:
    model = MultiTaskViT(routed).train()
    noise = GateNoise(0, 0)
    plain = model(images, noise=noise)
    experts.restrict(model, experts.expert_windows(4, routed.experts, routed.experts))
    masked = model(images, noise=noise)
    assert torch.equal(plain.balance_loss, masked.balance_loss)
    assert all(torch.equal(plain.outputs[t], masked.outputs[t]) for t in plain.outputs)


def test_training_with_windows(tiny: Network, scenes_train: Dataset, tmp_path: Path) -> None:
    """Gradients stay finite although windows hold exactly top-k experts, and forbidden experts learn nothing."""
    tiny = dataclasses.replace(tiny, tasks=tiny.tasks[:1])
    model = MultiTaskViT(tiny)
    experts.restrict(model, experts.expert_windows(1, 4, 2))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    options = TrainOptions(steps=3, batch_size=4, weight_decay=0, quiet=True, tensorboard=False)
    fit(model, scenes_train, options, tmp_path)
    moved = model.state_dict()["backbone.blocks.1.mlp.experts.htoh4.weight"]
    unmoved = start["backbone.blocks.1.mlp.experts.htoh4.weight"]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert torch.equal(moved[2:], unmoved[2:]) and not torch.equal(moved[:2], unmoved[:2])


def test_restriction_errors(tiny: Network) -> None:
    model = MultiTaskViT(tiny)
    with pytest.raises(ConfigError, match=r"block 1: expert windows: expected shape \(4, 4\), found \(2, 4\)"):
        experts.restrict(model, experts.expert_windows(2, 4, 2))
    with pytest.raises(ConfigError, match="task 'semseg': expected at least 2 experts, found 1"):
        experts.restrict(model, experts.expert_windows(4, 4, 1))


def test_gate_activity_is_the_mean_softmax(routed: Network, scenes_train: Dataset) -> None:
    model = MultiTaskViT(routed).eval()
    activity = experts.gate_activity(model, scenes_train, batch=16)
    layer = experts.moe_layers(model)[3]
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(
        lambda module, inputs: seen.append(module.logits(inputs[0].flatten(1, 2), *inputs[1:3]).softmax(-1))
    )
    with torch.no_grad():
        model(torch.from_numpy(scenes_train.images))
    hook.remove()
    for index, task in enumerate(routed.task_names):
        np.testing.assert_allclose(activity[task][3], seen[0][index].mean(0).numpy(), atol=1e-6)
        assert abs(sum(activity[task][1]) - 1) < 1e-9
    model(torch.from_numpy(scenes_train.images[:1]))
    assert len(seen) == 1  # no hook stays behind


def test_union_rule_and_index_map() -> None:
    activity = {
        "a": {1: [0.5, 0.1, 0.3, 0.1], 3: [0.4, 0.3, 0.2, 0.1]},
        "b": {1: [0.1, 0.1, 0.2, 0.6], 3: [0.45, 0.35, 0.1, 0.1]},
    }
    plan = experts.plan_pruning(activity, 2)
    assert plan.wanted == {"a": {1: [0, 2], 3: [0, 1]}, "b": {1: [3, 2], 3: [0, 1]}}
    # Block 1 needs 0, 2 and 3; block 3 only 0 and 1, and is filled with 2, the next by summed activity.
    assert plan.kept == {1: [0, 2, 3], 3: [0, 1, 2]} and plan.experts == 3
    assert plan.index_map(1) == {0: 0, 2: 1, 3: 2}
    assert plan.activity_kept["a"][1] == pytest.approx(0.9) and plan.activity_kept["b"][3] == pytest.approx(0.9)
    with pytest.raises(ConfigError, match="keep = 5"):
        experts.plan_pruning(activity, 5)


def checkpoint_of(model: MultiTaskViT) -> Checkpoint:
    return Checkpoint(dict(model.state_dict()), "float", 3, json.loads(json.dumps(dataclasses.asdict(model.network))))


def test_pruned_network_equals_the_masked_one(routed: Network, images: torch.Tensor, tmp_path: Path) -> None:
    """Removing experts is the same function as forbidding them to every task."""
    model = MultiTaskViT(routed, seed=2).eval()
    plan = experts.PruningPlan(2, {}, {1: [0, 1, 3], 3: [1, 2, 3]}, {})
    path = tmp_path / "pruned.safetensors"
    save_checkpoint(path, experts.prune_checkpoint(checkpoint_of(model), plan))
    pruned = load_checkpoint(path)
    small = network_from_dict(pruned.network)
    assert small.experts == 3 and pruned.extra["pruned"]["experts"] == {"1": [0, 1, 3], "3": [1, 2, 3]}
    smaller = MultiTaskViT(small)
    load_weights(smaller, pruned)
    masks = {block: torch.zeros(4, 4, dtype=torch.bool) for block in plan.kept}
    for block, kept in plan.kept.items():
        masks[block][:, kept] = True
    experts.restrict(model, masks)
    with torch.no_grad():
        expected, found = model(images), smaller.eval()(images)
    for task in routed.task_names:
        torch.testing.assert_close(found.outputs[task], expected.outputs[task], rtol=0, atol=1e-5)
    for block, kept in plan.kept.items():
        mapped = torch.tensor(kept)[found.routing[block].indices]
        assert torch.equal(mapped, expected.routing[block].indices)


def test_pruning_twice_keeps_the_original_indices(tiny: Network) -> None:
    once = experts.prune_checkpoint(checkpoint_of(MultiTaskViT(tiny)), experts.PruningPlan(
        2, {}, {1: [0, 2, 3], 3: [1, 2, 3]}, {}))  # fmt: skip
    twice = experts.prune_checkpoint(once, experts.PruningPlan(2, {}, {1: [1, 2], 3: [0, 2]}, {}))
    assert twice.extra["pruned"]["experts"] == {"1": [2, 3], "3": [1, 3]}
    full = MultiTaskViT(tiny).state_dict()["backbone.blocks.3.mlp.experts.h4toh.bias"]
    assert torch.equal(twice.weights["backbone.blocks.3.mlp.experts.h4toh.bias"], full[[1, 3]])
    with pytest.raises(ConfigError, match="1 experts left: expected at least top_k = 2"):
        experts.prune_checkpoint(twice, experts.PruningPlan(1, {}, {1: [0], 3: [0]}, {}))
    with pytest.raises(CheckpointError, match=r"expected MoE blocks \[1\], found \[1, 3\]"):
        experts.prune_checkpoint(twice, experts.PruningPlan(2, {}, {1: [0, 1]}, {}))


def test_pruning_keeps_what_is_left_of_windows(tiny: Network, tmp_path: Path) -> None:
    rows = {task: [1, 2, 3] for task in tiny.task_names}
    base = dataclasses.replace(checkpoint_of(MultiTaskViT(tiny)), extra={"expert_windows": {"1": rows, "3": rows}})
    plan = experts.PruningPlan(2, {}, {1: [0, 2, 3], 3: [1, 2, 3]}, {})
    pruned = experts.prune_checkpoint(base, plan)
    assert pruned.extra["expert_windows"]["1"]["edge"] == [1, 2]
    assert pruned.extra["expert_windows"]["3"]["edge"] == [0, 1, 2]
    assert base.extra["expert_windows"]["1"]["edge"] == [1, 2, 3]
    with pytest.raises(ConfigError, match="block 3: 1 experts left in the window of 'semseg': expected at least top_k"):
        experts.prune_checkpoint(base, experts.PruningPlan(2, {}, {1: [1, 2], 3: [0, 1]}, {}))


def test_usage_round_trip_and_damage(tiny: Network, scenes_train: Dataset, tmp_path: Path) -> None:
    usage = experts.measure_usage(MultiTaskViT(tiny), scenes_train)
    assert usage.images == 40 and usage.tokens_per_image == 7 and set(usage.tokens) == set(tiny.task_names)
    assert all(sum(row) == 40 * 7 * 2 for rows in usage.tokens.values() for row in rows.values())
    path = tmp_path / "usage.json"
    experts.save_usage(path, usage)
    assert experts.load_usage(path) == usage
    data = json.loads(path.read_text())
    assert data["format"] == "m3vit-expert-usage" and list(data["tokens"]["edge"]) == ["1", "3"]
    used = usage.used("edge")
    assert used == {b: sum(1 for n in row if n) for b, row in usage.tokens["edge"].items()}
    damaged = [
        ({"format": "x"}, "format: expected 'm3vit-expert-usage', found 'x'"),
        ({"version": 2}, "version: expected 1, found 2"),
        ({"images": 41}, "tokens.semseg.1: expected 4 counts that add up to 574"),
        ({"tokens": 3}, "damaged"),
    ]
    for change, message in damaged:
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(DataError, match=message):
            experts.load_usage(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        experts.load_usage(path)
    with pytest.raises(DataError, match="cannot read"):
        experts.load_usage(tmp_path / "none.json")
