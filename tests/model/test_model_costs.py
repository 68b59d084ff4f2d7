"""Costs by formula: against torch's counter on the real module, against parameters counted, against known figures."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from accel import params
from accel.config import Network, network
from model import costs
from model.vit import MultiTaskViT


def counted(model: MultiTaskViT, task: str) -> int:
    """MACs that torch counts for one task of one frame."""
    net = model.network
    image = torch.zeros(1, net.image_height, net.image_width, 3, dtype=torch.uint8)
    # The math backend consists of the two products; the fused CPU kernel has no counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image, [task])
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def test_pup_head_is_the_one_that_bundles_hold() -> None:
    """`model` imports nothing of `accel` but its errors, so the numbers are written down twice."""
    expected = (params.PUP_CHANNELS, params.PUP_CONVOLUTIONS)
    assert (costs.PUP_CHANNELS, costs.PUP_CONVOLUTIONS) == expected


@pytest.mark.parametrize("head", ["light", "pup"])
@pytest.mark.parametrize("routing", ["multi_gate", "task_conditioned"])
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_formula_equals_the_library_counter(tiny: Network, head: str, routing: str, patch: int) -> None:
    width = 6 if routing == "task_conditioned" else 0
    net = dataclasses.replace(tiny, head=head, routing=routing, task_embed_dim=width, patch=patch,
                              image_height=32, image_width=48, expert_hidden=32)  # fmt: skip
    model = MultiTaskViT(net)
    for task in net.task_names:
        mine = costs.encoder_cost(net).macs + costs.head_cost(net, task).macs
        # The module multiplies the task vector with each gate once per task: part of the formula, too.
        assert counted(model, task) == mine


@pytest.mark.parametrize("head", ["light", "pup"])
def test_parameters_equal_those_of_the_module(routed: Network, head: str) -> None:
    net = dataclasses.replace(routed, head=head)
    model = MultiTaskViT(net)
    assert costs.model_parameters(net) == sum(p.numel() for p in model.parameters())
    one = dataclasses.replace(net, tasks=net.tasks[:1])
    parameters = costs.encoder_cost(one).parameters + costs.head_cost(one, "semseg").parameters
    assert parameters == sum(p.numel() for p in MultiTaskViT(one).parameters())


def test_activated_parameters_leave_out_experts_not_chosen(tiny: Network) -> None:
    cost, expert = costs.encoder_cost(tiny), costs.expert_cost(tiny)
    idle = (tiny.experts - tiny.top_k) * len(tiny.moe_blocks)
    assert cost.parameters - cost.activated == idle * expert.parameters
    assert expert.parameters == 2 * 16 * 16 + 16 + 16
    assert expert.weight_bytes == 2 * 16 * 16 + 4 * (16 + 16)


@pytest.mark.parametrize(
    ("name", "encoder", "with_head"),
    [
        ("m3vit-small-pascal", 31.8, 84),
        ("m3vit-small-nyud", 39.2, 100),
        ("m3vit-tiny-cityscapes", 0.783, 7.2),
    ],
)
def test_known_figures(name: str, encoder: float, with_head: float) -> None:
    net = network(name)
    cost = costs.encoder_cost(net)
    digits = 3 if encoder < 1 else 1
    assert round(cost.macs / 1e9, digits) == encoder
    total = (cost.macs + costs.head_cost(net, "semseg", "pup").macs) / 1e9
    assert round(total, 1 if with_head < 10 else 0) == with_head


def test_published_sizes() -> None:
    """Expert sizes that follow from Linear(D, H) and Linear(H, D) with biases."""
    assert costs.expert_cost(network("m3vit-tiny-cityscapes")).parameters == 148_032
    assert costs.expert_cost(network("m3vit-small-pascal")).parameters == 295_680


def test_streamed_bytes_skip_experts_without_tokens(tiny: Network) -> None:
    everything = costs.encoder_cost(tiny).weight_bytes
    expert = costs.expert_cost(tiny).weight_bytes
    assert costs.streamed_bytes(tiny) == everything
    assert costs.streamed_bytes(tiny, {1: 4, 3: 4}) == everything
    assert costs.streamed_bytes(tiny, {1: 3, 3: 2}) == everything - 3 * expert


def test_where_the_claim_holds() -> None:
    net = network("m3vit-small-pascal")
    rows = {item.baseline: item for item in costs.savings(net, "semseg")}
    assert [name for name, item in rows.items() if item.holds] == ["NDDR-CNN, ResNet-18"]
    assert round(rows["NDDR-CNN, ResNet-18"].saving, 3) == 0.888
    assert round(rows["Cross-Stitch, ResNet-18"].saving, 3) == 0.871
    assert 0.79 < rows["5 entangled encoders with heads"].saving < 0.80
    assert -0.01 < rows["dense ViT of these dimensions"].saving < 0  # gates: the experts are as wide as the MLP
    needed = costs.needed_baseline(net, "semseg")
    assert 647e9 < needed < 747e9
    other = costs.savings(network("m3vit-small-nyud"), "semseg")
    assert all(item.source == "formula" and not item.holds for item in other)
    # The paper's rows are for its ViT-small: not for another width, size or number of tasks.
    for change in ({"embed_dim": 768}, {"image_height": 480}, {"tasks": net.tasks[:4]}, {"depth": 6}):
        rest = costs.savings(dataclasses.replace(net, **change), "semseg")
        assert {item.source for item in rest} == {"formula"}
    wider = dataclasses.replace(net, expert_hidden=net.expert_hidden * 2)
    assert {item.source for item in costs.savings(wider, "semseg")} == {"formula", costs.PAPER}


@pytest.mark.parametrize("routing", ["multi_gate", "task_conditioned"])
def test_dense_baseline_is_a_vit_without_experts(tiny: Network, routing: str) -> None:
    """Counted by torch on a module whose odd blocks have the even blocks' MLP."""
    from torch import nn

    net = dataclasses.replace(tiny, head="pup", routing=routing, task_embed_dim=6 * (routing != "multi_gate"),
                              expert_hidden=32)  # fmt: skip
    model = MultiTaskViT(net).eval()
    row = next(item for item in costs.savings(net, "depth") if item.baseline == "dense ViT of these dimensions")
    plain = model.backbone.blocks[0].mlp
    difference = 0
    for block in net.moe_blocks:
        assert isinstance(model.backbone.blocks[block].mlp, nn.Module)
        tokens = torch.zeros(1, net.tokens, net.embed_dim)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain(tokens)
        difference += counter.get_total_flops() // 2
    parts = costs.encoder_parts(net)
    removed = parts["experts"].macs + parts["gate"].macs + parts["task"].macs
    assert row.baseline_macs == counted(model, "depth") - removed + difference


def test_report_adds_up(tiny: Network) -> None:
    data = costs.report(tiny, "pup")
    for field in ("macs", "parameters", "activated", "weight_bytes"):
        assert sum(part[field] for part in data["parts"].values()) == data["encoder"][field]
    assert set(data["tasks"]) == set(tiny.task_names)
    for name, task in data["tasks"].items():
        assert task["macs"] == data["encoder"]["macs"] + costs.head_cost(tiny, name, "pup").macs


def test_library_counter_on_a_preset() -> None:
    net = network("m3vit-tiny-cityscapes")
    task = net.task_names[0]
    assert counted(MultiTaskViT(net), task) == costs.encoder_cost(net).macs + costs.head_cost(net, task).macs
