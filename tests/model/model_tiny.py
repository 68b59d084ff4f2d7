"""The network that the tests of `model` use: small enough to train in a blink."""

from __future__ import annotations

from accel.config import Network, Task

TINY = Network(
    name="tiny",
    image_height=16,
    image_width=24,
    patch=8,
    embed_dim=16,
    depth=4,
    heads=2,
    dense_hidden=32,
    experts=4,
    top_k=2,
    expert_hidden=16,
    unit_hidden=16,
    tasks=(
        Task("semseg", 8, "labels"),
        Task("depth", 1, "log_depth"),
        Task("normals", 3, "normals"),
        Task("edge", 1, "binary"),
    ),
    head_hidden=16,
)
