"""Gates, balance loss and grouped experts against references written as plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.moe import (
    Experts,
    GateNoise,
    MoE,
    balance_loss,
    build_queues,
    cv_squared,
    smooth_load,
    top_k,
)


def make_moe(experts: int = 5, k: int = 2, task_dim: int = 0) -> MoE:
    torch.manual_seed(0)
    moe = MoE(8, 12, experts, k, 0 if task_dim else 3, task_dim, block=1)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe


def expert_by_hand(experts: Experts, e: int, token: torch.Tensor) -> torch.Tensor:
    h = F.gelu(experts.htoh4.weight[e] @ token + experts.htoh4.bias[e])
    return experts.h4toh.weight[e] @ h + experts.h4toh.bias[e]


def test_grouped_experts_equal_token_by_token() -> None:
    moe = make_moe()
    tokens = torch.randn(17, 8)
    # Expert 3 gets no token at all.
    indices = torch.stack([torch.tensor([0, 1, 2, 4])[torch.randperm(4)[:2]] for _ in range(17)])
    weights = torch.rand(17, 2)
    expected = torch.stack(
        [
            sum(
                w * expert_by_hand(moe.experts, int(e), t)
                for e, w in zip(es, ws, strict=True)
            )
            for t, es, ws in zip(tokens, indices, weights, strict=True)
        ]
    )  # fmt: skip
    torch.testing.assert_close(moe.experts(tokens, indices, weights), expected)
    grad = torch.autograd.grad(
        moe.experts(tokens, indices, weights).sum(), moe.experts.htoh4.weight
    )[0]
    assert grad[3].abs().max() == 0 and grad[0].abs().max() > 0


def test_queues_keep_token_order_and_hold_every_pair_once() -> None:
    indices = torch.tensor([[2, 0], [0, 2], [2, 1]])
    order, counts = build_queues(indices, 4)
    assert counts == [2, 1, 3, 0]
    assert (order // 2).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("task_dim", [0, 4])
def test_gate_formula(task_dim: int) -> None:
    moe = make_moe(task_dim=task_dim).eval()
    x = torch.randn(2, 3, 6, 8)
    vectors = torch.randn(2, task_dim) if task_dim else None
    routing, _ = moe.route(x, [2, 0], vectors, GateNoise(0, 0))
    for t, gate_id in enumerate([2, 0]):
        for b in range(3):
            for n in range(6):
                v = x[t, b, n].double().numpy()
                if vectors is None:
                    w = moe.gate[gate_id].w_gate
                else:
                    v = np.concatenate([v, vectors[t].double().numpy()])
                    w = moe.gate.w_gate
                logits = v @ w.detach().double().numpy()
                scores = np.exp(logits) / np.exp(logits).sum()
                best = sorted(range(5), key=lambda e: (-logits[e], e))[:2]
                assert routing.indices[t, b, n].tolist() == best
                np.testing.assert_allclose(
                    routing.weights[t, b, n].detach().numpy(), scores[best], rtol=1e-4
                )
                assert routing.weights[t, b, n].sum() < 1


def test_ties_go_to_the_lower_index() -> None:
    values, indices = top_k(torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]]), 2)
    assert indices.tolist() == [[1, 2]] and values.tolist() == [[3.0, 3.0]]
    assert top_k(torch.zeros(1, 64), 4)[1].tolist() == [[0, 1, 2, 3]]


def test_smooth_load_is_the_probability_to_be_chosen() -> None:
    torch.manual_seed(2)
    clean = torch.randn(1, 9, 5, dtype=torch.float64)
    noisy, std, k = clean + 0.3 * torch.randn_like(clean), 0.3, 2
    expected = np.zeros(5)
    for s in range(9):
        for e in range(5):
            others = sorted(noisy[0, s, [i for i in range(5) if i != e]].tolist(), reverse=True)
            z = (clean[0, s, e].item() - others[k - 1]) / std
            expected[e] += 0.5 * (1 + math.erf(z / math.sqrt(2)))
    np.testing.assert_allclose(smooth_load(clean, noisy, k, std)[0].numpy(), expected, rtol=1e-12)


def test_balance_loss_values() -> None:
    even = torch.full((2, 4), 3.0)
    assert balance_loss(even, even) == 0
    skewed = torch.tensor([[4.0, 0.0, 0.0, 0.0]])
    assert balance_loss(skewed, skewed[:1] * 7).item() == pytest.approx(8.0)  # var 4 / mean^2 1
    assert cv_squared(torch.tensor([[5.0]])).item() == 0


@pytest.mark.parametrize("scale, training", [(1.0, True), (0.0, True), (1.0, False)])
def test_balance_loss_is_finite_and_pushes_the_gate_in_every_mode(
    scale: float, training: bool
) -> None:
    moe = make_moe().train(training)
    x = torch.randn(3, 2, 9, 8)
    _, loss = moe.route(x, [0, 1, 2], None, GateNoise(1, 4, scale))
    loss.backward()
    for gate in moe.gate:
        assert torch.isfinite(gate.w_gate.grad).all() and gate.w_gate.grad.abs().max() > 0
    assert torch.isfinite(loss) and loss > 0


def test_balance_loss_gradient_reduces_it() -> None:
    moe = make_moe().train()
    x = torch.randn(3, 4, 16, 8)
    optimizer = torch.optim.SGD([p for n, p in moe.named_parameters() if "gate" in n], lr=0.05)
    losses = []
    for _ in range(30):
        loss = moe.route(x, [0, 1, 2], None, GateNoise(0, 0))[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_one_expert_has_no_balance_loss() -> None:
    moe = make_moe(experts=1, k=1).train()
    _, loss = moe.route(torch.randn(3, 2, 4, 8), [0, 1, 2], None, GateNoise(0, 0))
    assert loss.item() == 0


def test_all_experts_chosen() -> None:
    moe = make_moe(experts=3, k=3).train()
    routing, loss = moe.route(torch.randn(3, 2, 4, 8), [0, 1, 2], None, GateNoise(0, 0))
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(3, 2, 4))
    assert torch.isfinite(loss)


def test_noise_is_reproducible_and_sliced_by_rank() -> None:
    whole = GateNoise(7, 3).draw(1, [0, 2], (4, 5, 6))
    parts = [GateNoise(7, 3, rank=r, world=2).draw(1, [0, 2], (2, 5, 6)) for r in range(2)]
    assert torch.equal(whole, torch.cat(parts, 1))
    assert torch.equal(whole[1], GateNoise(7, 3).draw(1, [2], (4, 5, 6))[0])
    for other in (GateNoise(8, 3).draw(1, [0, 2], (4, 5, 6)),
                  GateNoise(7, 4).draw(1, [0, 2], (4, 5, 6)),
                  GateNoise(7, 3).draw(3, [0, 2], (4, 5, 6))):  # fmt: skip
        assert not torch.equal(whole, other)
    many = GateNoise(0, 0).draw(1, [0], (64, 65, 8))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


def test_noise_only_in_training() -> None:
    moe = make_moe()
    x = torch.randn(3, 2, 9, 8)
    quiet = moe.eval().route(x, [0, 1, 2])[0]
    assert torch.equal(quiet.indices, moe.route(x, [0, 1, 2], None, GateNoise(0, 0, 50.0))[0][0])
    noisy = moe.train().route(x, [0, 1, 2], None, GateNoise(0, 0, 50.0))[0]
    assert not torch.equal(quiet.indices, noisy.indices)
