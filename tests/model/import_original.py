"""M³ViT checkpoints made up from their key table, and M³ViT's formulas token by token in NumPy, for the import tests.

Nothing here uses the package's model: keys, shapes and arithmetic are written down a second time.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict

import numpy as np
import torch

from accel.config import Network, Task

D, H, E, K, DEPTH, HEADS, G, PUP = 24, 16, 8, 3, 4, 2, 5, 256
IMAGE_H, IMAGE_W, P = 32, 48, 16
# Not M³ViT's order (semseg, human_parts, sal, normals, edge, depth): gates must be matched by task, not by position.
NETWORK = Network(
    name="original", image_height=IMAGE_H, image_width=IMAGE_W, patch=P, embed_dim=D, depth=DEPTH, heads=HEADS,
    dense_hidden=4 * D, experts=E, top_k=K, expert_hidden=H, unit_hidden=16, head="light",
    tasks=(Task("semseg", 5, "labels"), Task("depth", 1, "depth"), Task("normals", 3, "normals"),
           Task("edge", 1, "binary")),
)  # fmt: skip
GATE_ORDER = ("semseg", "normals", "edge", "depth")
CHANNELS = {"semseg": 5, "depth": 1, "normals": 3, "edge": 1}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def shapes(routing: str) -> dict[str, tuple[int, ...]]:
    """Every key of a checkpoint and its shape, without ``module.``."""
    table: dict[str, tuple[int, ...]] = {
        "backbone.cls_token": (1, 1, D),
        "backbone.pos_embed": (1, (IMAGE_H // P) * (IMAGE_W // P) + 1, D),
        "backbone.patch_embed.proj.weight": (D, 3, P, P),
        "backbone.patch_embed.proj.bias": (D,),
    }
    for i in range(DEPTH):
        block = f"backbone.blocks.{i}"
        for norm in ("norm1", "norm2"):
            table[f"{block}.{norm}.weight"] = table[f"{block}.{norm}.bias"] = (D,)
        table[f"{block}.attn.qkv.weight"], table[f"{block}.attn.qkv.bias"] = (3 * D, D), (3 * D,)
        table[f"{block}.attn.proj.weight"], table[f"{block}.attn.proj.bias"] = (D, D), (D,)
        if i % 2 == 0:
            table[f"{block}.mlp.fc1.weight"], table[f"{block}.mlp.fc1.bias"] = (4 * D, D), (4 * D,)
            table[f"{block}.mlp.fc2.weight"], table[f"{block}.mlp.fc2.bias"] = (D, 4 * D), (D,)
            continue
        experts = f"{block}.mlp.experts"
        table[f"{experts}.htoh4.weight"], table[f"{experts}.htoh4.bias"] = (E, H, D), (E, H)
        table[f"{experts}.h4toh.weight"], table[f"{experts}.h4toh.bias"] = (E, D, H), (E, D)
        if routing == "multi_gate":
            for t in range(len(GATE_ORDER)):
                table[f"{block}.mlp.gate.{t}.w_gate"] = (D, E)
        else:
            table[f"{block}.mlp.gate.w_gate"] = (D + G, E)
    if routing == "task_conditioned":
        embedding = "backbone.gate_task_represent"
        table[f"{embedding}.fc1.weight"], table[f"{embedding}.fc1.bias"] = (G, len(GATE_ORDER)), (G,)
        table[f"{embedding}.fc2.weight"], table[f"{embedding}.fc2.bias"] = (G, G), (G,)
        table[f"{embedding}.norm.weight"] = table[f"{embedding}.norm.bias"] = (G,)
    for task, channels in CHANNELS.items():
        head = f"decoders.{task}"
        table[f"{head}.norm.weight"] = table[f"{head}.norm.bias"] = (D,)
        for i in range(4):
            table[f"{head}.conv_{i}.weight"], table[f"{head}.conv_{i}.bias"] = (PUP, PUP if i else D, 3, 3), (PUP,)
            for name in ("weight", "bias", "running_mean", "running_var"):
                table[f"{head}.syncbn_fc_{i}.{name}"] = (PUP,)
            table[f"{head}.syncbn_fc_{i}.num_batches_tracked"] = ()
        table[f"{head}.conv_4.weight"], table[f"{head}.conv_4.bias"] = (channels, PUP, 1, 1), (channels,)
    return table


def state_dict(routing: str, seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    """Random weights of sizes as trained ones have: outputs near 1, gates that decide."""
    rng, state = np.random.default_rng(seed), OrderedDict()
    for key, shape in shapes(routing).items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
            continue
        fan_in = shape[-1] if ".experts." in key else math.prod(shape[1:])
        values = rng.normal(size=shape)
        if key.endswith("running_var"):
            values = 0.5 + rng.random(shape)
        elif re.search(r"\.(norm\d?|syncbn_fc_\d)\.", key):
            values = 0.1 * values + key.endswith(".weight")
        elif key.endswith("w_gate"):
            values /= math.sqrt(D) / 2
        elif key.endswith("weight"):
            values /= math.sqrt(fan_in)
        else:
            values *= 0.3
        state[key] = torch.tensor(values, dtype=torch.float32)
    return state


def checkpoint(state: dict[str, torch.Tensor], prefix: str = "module.") -> dict[str, object]:
    """The fields that M³ViT's training writes."""
    weights = OrderedDict((prefix + key, value) for key, value in state.items())
    best = {"multi_task_performance": np.float64(0.3), "semseg": {"mIoU": 0.5, "jaccards_all_categs": [np.float32(1)]}}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.002, "params": [0]}]}
    return {"epoch": 99, "backbone": "VisionTransformer_moe", "state_dict": weights, "best_result": best,
            "optimizer": optimizer}  # fmt: skip


def _norm(x: np.ndarray, state: dict[str, np.ndarray], key: str) -> np.ndarray:
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    return (x - mean) / math.sqrt(variance + 1e-6) * state[f"{key}.weight"] + state[f"{key}.bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _affine(x: np.ndarray, state: dict[str, np.ndarray], key: str) -> np.ndarray:
    return state[f"{key}.weight"] @ x + state[f"{key}.bias"]


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.array([math.exp(v - max(x)) for v in x])
    return powers / sum(powers)


def _attention(tokens: list[np.ndarray], state: dict[str, np.ndarray], key: str) -> list[np.ndarray]:
    width = D // HEADS
    parts = [_affine(x, state, f"{key}.qkv").reshape(3, HEADS, width) for x in tokens]
    outputs = []
    for query in parts:
        heads = []
        for h in range(HEADS):
            weights = _softmax(np.array([query[0, h] @ other[1, h] / math.sqrt(width) for other in parts]))
            heads.append(sum(w * other[2, h] for w, other in zip(weights, parts, strict=True)))
        outputs.append(_affine(np.concatenate(heads), state, f"{key}.proj"))
    return outputs


def _task_vector(state: dict[str, np.ndarray], task: str) -> np.ndarray:
    one_hot = np.zeros(len(GATE_ORDER))
    one_hot[GATE_ORDER.index(task)] = 1
    key = "backbone.gate_task_represent"
    return _norm(_affine(_gelu(_affine(one_hot, state, f"{key}.fc1")), state, f"{key}.fc2"), state, f"{key}.norm")


def _experts(x: np.ndarray, state: dict[str, np.ndarray], key: str, task: str) -> np.ndarray:
    """One token: softmax over all experts, the K best scores as they are, times each expert's output."""
    if f"{key}.gate.w_gate" in state:
        scores = _softmax(np.concatenate([x, _task_vector(state, task)]) @ state[f"{key}.gate.w_gate"])
    else:
        scores = _softmax(x @ state[f"{key}.gate.{GATE_ORDER.index(task)}.w_gate"])
    best = sorted(range(E), key=lambda e: (-scores[e], e))[:K]
    total = np.zeros(D)
    for e in best:
        hidden = _gelu(state[f"{key}.experts.htoh4.weight"][e] @ x + state[f"{key}.experts.htoh4.bias"][e])
        output = state[f"{key}.experts.h4toh.weight"][e] @ hidden + state[f"{key}.experts.h4toh.bias"][e]
        total += scores[e] * output
    return total


def encoder(weights: dict[str, torch.Tensor], pixels: np.ndarray, task: str) -> list[np.ndarray]:
    """Tokens after the last block for one normalized image [H, W, 3] of float64."""
    state = {key: value.double().numpy() for key, value in weights.items()}
    tokens = [state["backbone.cls_token"][0, 0]]
    for y in range(0, IMAGE_H, P):
        for x in range(0, IMAGE_W, P):
            patch = pixels[y : y + P, x : x + P].transpose(2, 0, 1)
            kernels = state["backbone.patch_embed.proj.weight"]
            tokens.append(np.array([(kernel * patch).sum() for kernel in kernels])
                          + state["backbone.patch_embed.proj.bias"])  # fmt: skip
    tokens = [token + position for token, position in zip(tokens, state["backbone.pos_embed"][0], strict=True)]
    for i in range(DEPTH):
        key = f"backbone.blocks.{i}"
        mixed = _attention([_norm(x, state, f"{key}.norm1") for x in tokens], state, f"{key}.attn")
        tokens = [x + y for x, y in zip(tokens, mixed, strict=True)]
        for n, x in enumerate(tokens):
            y = _norm(x, state, f"{key}.norm2")
            if i % 2:
                tokens[n] = x + _experts(y, state, f"{key}.mlp", task)
            else:
                tokens[n] = x + _affine(_gelu(_affine(y, state, f"{key}.mlp.fc1")), state, f"{key}.mlp.fc2")
    return tokens


def _convolve(maps: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[C, h, w] with kernel [O, C, s, s], zero padding of (s − 1) / 2."""
    _, height, width = maps.shape
    reach = kernel.shape[-1] // 2
    padded = np.pad(maps, ((0, 0), (reach, reach), (reach, reach)))
    out = np.zeros((len(kernel), height, width)) + bias[:, None, None]
    for dy in range(kernel.shape[2]):
        for dx in range(kernel.shape[3]):
            out += np.tensordot(kernel[:, :, dy, dx], padded[:, dy : dy + height, dx : dx + width], 1)
    return out


def _double(maps: np.ndarray) -> np.ndarray:
    """Bilinear ×2, pixel centres aligned as in OpenCV (align_corners = False), edges repeated."""

    def axis(values: np.ndarray) -> np.ndarray:
        before = np.concatenate([values[:1], values[:-1]])
        after = np.concatenate([values[1:], values[-1:]])
        out = np.empty((2 * len(values), *values.shape[1:]))
        out[0::2] = 0.75 * values + 0.25 * before
        out[1::2] = 0.75 * values + 0.25 * after
        return out

    return axis(axis(maps.transpose(1, 2, 0)).transpose(1, 0, 2)).transpose(2, 1, 0)


def head(weights: dict[str, torch.Tensor], tokens: list[np.ndarray], task: str) -> np.ndarray:
    """SETR-PUP head: [C, H, W]."""
    state = {key: value.double().numpy() for key, value in weights.items() if key.startswith(f"decoders.{task}.")}
    key = f"decoders.{task}"
    normed = np.array([_norm(x, state, f"{key}.norm") for x in tokens[1:]])
    maps = normed.reshape(IMAGE_H // P, IMAGE_W // P, D).transpose(2, 0, 1)
    for i in range(4):
        maps = _convolve(maps, state[f"{key}.conv_{i}.weight"], state[f"{key}.conv_{i}.bias"])
        bn = f"{key}.syncbn_fc_{i}"
        gain = state[f"{bn}.weight"] / np.sqrt(state[f"{bn}.running_var"] + 1e-5)
        maps = (maps - state[f"{bn}.running_mean"][:, None, None]) * gain[:, None, None]
        maps = np.maximum(maps + state[f"{bn}.bias"][:, None, None], 0)
        if i < 3:
            maps = _double(maps)
    return _double(_convolve(maps, state[f"{key}.conv_4.weight"], state[f"{key}.conv_4.bias"]))


def image(seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (IMAGE_H, IMAGE_W, 3), dtype=np.uint8)


def output(weights: dict[str, torch.Tensor], pixels: np.ndarray, task: str) -> np.ndarray:
    """What the original model answers for a uint8 image under ImageNet normalization."""
    return head(weights, encoder(weights, (pixels / 255 - MEAN) / STD, task), task)
