"""accel, sim and host run on the board: NumPy (and Pillow for pictures), nothing upward, nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"accel": {"accel"}, "sim": {"sim", "accel"}, "host": {"host", "accel", "PIL"}}
OPTIONAL = {"accel": {"threadpoolctl"}, "sim": set(), "host": {"pynq"}}
"""Imported inside ``try`` or a function only."""
ON_BOARD = {"board_ip.py", "sim_board.py"}
"""Classes of PYNQ's own, imported only once PYNQ is known to be there."""
HEAVY = ("torch", "onnx", "onnxruntime", "brevitas", "threadpoolctl", "pynq")


def packages() -> list[str]:
    return [name for name in ALLOWED if any((ROOT / name).glob("*.py"))]


def imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """Top-level module names imported anywhere, and whether unconditionally at import time."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, always: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((item.name.partition(".")[0], always) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append(((node.module or "").partition(".")[0], always))
        inner = always and not isinstance(node, ast.Try | ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(tree, True)
    return found


@pytest.mark.parametrize("package", packages())
def test_only_light_imports(package: str) -> None:
    files = [file for file in sorted((ROOT / package).rglob("*.py")) if file.name not in ON_BOARD]
    assert files
    for file in files:
        for name, always in imports(ast.parse(file.read_text(encoding="utf-8"))):
            known = name in sys.stdlib_module_names or name == "numpy" or name in ALLOWED[package]
            assert known or (not always and name in OPTIONAL[package]), f"{file.name} imports {name}"


@pytest.mark.parametrize("package", packages())
def test_imports_and_runs_with_heavy_packages_blocked(package: str) -> None:
    files = [file for file in sorted((ROOT / package).rglob("*.py")) if file.name not in ON_BOARD]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    work = (
        "from accel.config import network; from accel.random_params import random_encoder\n"
        "import dataclasses, numpy as np\n"
        "from accel.golden import GoldenEngine, run_frame\n"
        "net = dataclasses.replace(network('m3vit-demo'), depth=2)\n"
        "encoder = random_encoder(net)\n"
        "image = np.zeros((64, 64, 3), np.uint8)\n"
        "assert run_frame(encoder, image, 'depth', GoldenEngine(encoder)).head.shape == (64, 64)\n"
    )
    script = (
        f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\n{work}"
        "print(len([n for n in sys.modules if n.partition('.')[0] == 'accel' and sys.modules[n]]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 10


def test_the_walk_finds_what_it_should() -> None:
    source = "import torch\ntry:\n    import rich\nexcept ImportError:\n    pass\ndef f():\n    from onnx.x import y"
    assert imports(ast.parse(source)) == [("torch", True), ("rich", False), ("onnx", False)]
