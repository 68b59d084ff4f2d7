"""Other sources: Edge-MoE's float dumps, DeiT and timm ViTs, input normalization."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import import_original as original
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from accel.config import Network, network
from accel.errors import CheckpointError
from model.import_layout import NORMALIZATIONS, fold_normalization, raw_names, resize_positions
from model.importing import import_checkpoint
from model.vit import MultiTaskViT, PatchEmbed

EDGE = dataclasses.replace(original.NETWORK, tasks=original.NETWORK.tasks[:2])


def edge_name(key: str) -> str:
    """Edge-MoE's file name of a key, written down a second time."""
    parts = key.removeprefix("backbone.").split(".")
    if parts[0] != "blocks":
        return {"pos_embed": "pos_embed", "weight": "patch_embed_weight", "bias": "patch_embed_bias"}[parts[-1]]
    layer, rest = parts[1], parts[2:]
    if rest[-1] == "w_gate":
        return f"l{layer}_w_gate_T_task{rest[2]}"
    short = {"attn": rest[1] if rest[1] == "qkv" else "attn_proj", "mlp": rest[-2], "norm1": "norm1", "norm2": "norm2"}
    return f"l{layer}_{short[rest[0]]}_{rest[-1]}"


def encoder_state() -> dict[str, torch.Tensor]:
    """The encoder's tensors for two tasks; cls is in row 0 of the positions, as Edge-MoE stores it."""
    state = {k: v for k, v in original.state_dict("multi_gate").items() if k.startswith("backbone.")}
    state = {k: v for k, v in state.items() if ".gate.2." not in k and ".gate.3." not in k}
    state["backbone.pos_embed"][:, 0] += state.pop("backbone.cls_token")[0]
    return state


def write_dump(directory: Path, names: str = "edge-moe") -> dict[str, torch.Tensor]:
    directory.mkdir()
    state, manifest = encoder_state(), {}
    for key, value in state.items():
        gate = key.endswith("w_gate")
        stored = (value.t() if gate else value).contiguous().numpy().astype("<f4")
        name = {"edge-moe": edge_name(key), "keys": key, "manifest": f"t{len(manifest)}"}[names] + ".float32.bin"
        manifest[key] = {"file": name, "shape": list(stored.shape)}
        stored.tofile(directory / name)
    np.zeros(3, "<f4").tofile(directory / "image.float32.bin")
    if names == "manifest":
        (directory / "manifest.json").write_text(json.dumps({"tensors": manifest}))
    return state


@pytest.mark.parametrize("names", ["edge-moe", "keys", "manifest"])
def test_edge_moe_dump(tmp_path: Path, names: str) -> None:
    state = write_dump(tmp_path / "weights", names)
    model, report = import_checkpoint(tmp_path / "weights", EDGE, normalization="none")
    assert report.kind == "edge-moe" and not report.missing and not report.unexpected
    assert all(key.startswith("decoders.") for key in report.initialized)
    loaded = model.state_dict()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key
    assert not loaded["backbone.cls_token"].any() and "cls_token" in report.warnings[0]
    assert list(report.dropped) == ([] if names == "manifest" else ["image.float32.bin"])


def test_edge_moe_dump_computes_what_the_formulas_do(tmp_path: Path) -> None:
    state = write_dump(tmp_path / "weights")
    model, _ = import_checkpoint(tmp_path / "weights", EDGE)
    pixels, weights = original.image(3), {**state, "backbone.cls_token": torch.zeros(1, 1, original.D)}
    normalized = (pixels / 255 - original.MEAN) / original.STD
    with torch.no_grad():
        tokens, _, _ = model.backbone((torch.from_numpy(pixels)[None].float() - 128) / 128, [0, 1], None)
    # Gate 1 is the second task's; the formulas call the second gate "normals".
    for index, task in enumerate(("semseg", "normals")):
        expected = np.array(original.encoder(weights, normalized, task))
        np.testing.assert_allclose(tokens[index, 0].numpy(), expected, rtol=0, atol=1e-5)


def test_edge_moe_names_are_unique() -> None:
    for name in ("m3vit-tiny-cityscapes", "m3vit-demo"):
        for routing, width in (("multi_gate", 0), ("task_conditioned", 4)):
            keys = MultiTaskViT(
                dataclasses.replace(network("m3vit-demo"), name=name, routing=routing, task_embed_dim=width)
            ).state_dict()
            seen: dict[str, str] = {}
            for key in keys:
                for stem in raw_names(key):
                    assert seen.setdefault(stem, key) == key


def test_edge_moe_errors(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    write_dump(folder)
    gate = folder / "l1_w_gate_T_task0.float32.bin"
    content = gate.read_bytes()
    gate.write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match=r"l1_w_gate_T_task0.*: expected 768 bytes .*\(8, 24\)\), found 764"):
        import_checkpoint(folder, EDGE)
    gate.unlink()
    with pytest.raises(CheckpointError, match=r"1 keys missing: backbone\.blocks\.1\.mlp\.gate\.0\.w_gate"):
        import_checkpoint(folder, EDGE)
    gate.write_bytes(content)
    (folder / "l1_fc9_weight.float32.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"1 unexpected keys: l1_fc9_weight\.float32\.bin"):
        import_checkpoint(folder, EDGE)
    (folder / "manifest.json").write_text('{"tensors": {"a": {"file": "../../etc/passwd"}}}')
    with pytest.raises(CheckpointError, match=r"manifest\.json: tensors\.a: file: expected a name in this folder"):
        import_checkpoint(folder, EDGE)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"manifest\.json: expected"):
        import_checkpoint(folder, EDGE)


def deit(dim: int = 64, depth: int = 4, side: int = 3, distilled: bool = False) -> dict[str, torch.Tensor]:
    """Keys and shapes of timm's VisionTransformer."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    state = {
        "cls_token": random(1, 1, dim), "pos_embed": random(1, side * side + 1 + distilled, dim),
        "patch_embed.proj.weight": random(dim, 3, 8, 8), "patch_embed.proj.bias": random(dim),
        "norm.weight": random(dim), "norm.bias": random(dim), "head.weight": random(10, dim), "head.bias": random(10),
    }  # fmt: skip
    if distilled:
        state.update({"dist_token": random(1, 1, dim), "head_dist.weight": random(10, dim)})
    for i in range(depth):
        key = f"blocks.{i}"
        for norm in ("norm1", "norm2"):
            state.update({f"{key}.{norm}.weight": random(dim), f"{key}.{norm}.bias": random(dim)})
        for name, outputs, inputs in (
            ("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("mlp.fc1", 4 * dim, dim), ("mlp.fc2", dim, 4 * dim),
        ):  # fmt: skip
            state.update({f"{key}.{name}.weight": random(outputs, inputs), f"{key}.{name}.bias": random(outputs)})
    return state


@pytest.fixture
def student(tiny: Network) -> Network:
    return dataclasses.replace(tiny, embed_dim=64, heads=1, dense_hidden=256, expert_hidden=32, unit_hidden=32)


@pytest.mark.parametrize("container", ["model field", "safetensors", "distilled"])
def test_deit(tmp_path: Path, student: Network, container: str) -> None:
    state = deit(distilled=container == "distilled")
    path = tmp_path / "deit.pth"
    if container == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path)
    model, report = import_checkpoint(path, student, normalization="none", seed=5)
    fresh = MultiTaskViT(student, seed=5).state_dict()
    loaded = model.state_dict()
    for key in report.used:
        source = key.removeprefix("backbone.")
        assert report.used[key] == source
        if source != "pos_embed":
            assert torch.equal(loaded[key], state[source]), key
    for key in report.initialized:
        assert torch.equal(loaded[key], fresh[key]), key
        assert any(part in key for part in (".experts.", ".gate.", "decoders."))
    assert set(report.used) | set(report.initialized) == set(loaded)
    assert set(report.used.values()) | set(report.dropped) == set(state)
    assert {k for k in report.dropped if k.startswith("blocks.")} == {
        f"blocks.{i}.mlp.{fc}.{part}" for i in (1, 3) for fc in ("fc1", "fc2") for part in ("weight", "bias")
    }
    assert not report.warnings  # 64 channels, 1 head of 64
    grid = state["pos_embed"][:, 2 if container == "distilled" else 1 :]
    assert torch.equal(loaded["backbone.pos_embed"][0, 0], state["pos_embed"][0, 0])
    assert not torch.equal(loaded["backbone.pos_embed"][0, 1], grid[0, 0])  # 3 × 3 became 2 × 3


def test_head_trap_is_warned_about(tmp_path: Path, student: Network) -> None:
    torch.save({"model": deit()}, tmp_path / "deit.pth")
    two = dataclasses.replace(student, heads=2)
    _, report = import_checkpoint(tmp_path / "deit.pth", two, normalization="imagenet")
    assert len(report.warnings) == 1 and "2 heads of 32 channels" in report.warnings[0]
    assert "heads = 1 keeps the pre-trained function" in report.warnings[0]
    small = network("m3vit-small-pascal")
    assert small.heads == 12 and small.embed_dim // 64 == 6  # the preset is the trap's case


def test_positions_are_resized_bilinearly(tiny: Network) -> None:
    """A plane stays the plane between its outermost samples; cls and equal sizes stay bit for bit."""
    net = dataclasses.replace(tiny, image_height=32, image_width=48)  # 4 × 6 from 8 × 8
    y, x = np.meshgrid((np.arange(8) + 0.5) / 8, (np.arange(8) + 0.5) / 8, indexing="ij")
    planes = np.stack([y, x, 2 * y - 3 * x + 1], -1).reshape(1, 64, 3)
    source = torch.tensor(np.concatenate([np.full((1, 1, 3), 9.0), planes], 1), dtype=torch.float32)
    result = resize_positions(source, net, "here")
    assert result.shape == (1, 25, 3) and torch.equal(result[:, 0], source[:, 0])
    y, x = np.meshgrid((np.arange(4) + 0.5) / 4, (np.arange(6) + 0.5) / 6, indexing="ij")
    expected = np.stack([y, x, 2 * y - 3 * x + 1], -1).reshape(24, 3)
    np.testing.assert_allclose(result[0, 1:].numpy(), expected, atol=1e-6)
    same = torch.randn(1, 25, 3)
    assert resize_positions(same, net, "here") is same
    with pytest.raises(CheckpointError, match="here: expected 25 positions or a square grid and cls, found 24"):
        resize_positions(torch.zeros(1, 24, 3), net, "here")


@pytest.mark.parametrize("name", list(NORMALIZATIONS))
def test_normalization_folds_exactly(name: str) -> None:
    """Same tokens from (u8 − 128) / 128 with folded weights as from the trained input with the original ones."""
    torch.manual_seed(0)
    embed = PatchEmbed(8, 32).double()
    images = torch.randint(0, 256, (2, 16, 24, 3)).double()
    statistics = {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "unit": ((0, 0, 0), (1, 1, 1)),
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }  # fmt: skip
    ours = (images - 128) / 128
    if name == "none":
        trained = ours
    else:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in statistics[name])
        trained = (images / 255 - mean) / std
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(trained.permute(0, 3, 1, 2), embed.proj.weight, embed.proj.bias, stride=8)
        weight, bias = fold_normalization(embed.proj.weight, embed.proj.bias, name)
        embed.proj.weight.copy_(weight)
        embed.proj.bias.copy_(bias)
        found = embed(ours)
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-12)
