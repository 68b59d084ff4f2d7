"""The network of the host tests: small, not square, every kind of task, two units per expert."""

from accel.config import Network, Task

TASKS = (
    Task("semseg", 5, "labels"),
    Task("depth", 1, "log_depth"),
    Task("normals", 3, "normals"),
    Task("edge", 1, "binary"),
)
TINY = Network(
    "tiny", 16, 24, patch=8, embed_dim=16, depth=4, heads=2, dense_hidden=32, experts=4, top_k=2,
    expert_hidden=32, unit_hidden=16, tasks=TASKS, head_hidden=24,
)  # fmt: skip
