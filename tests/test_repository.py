"""Rules of the repository itself: who imports whom, versions, no trace of the machine it was written on."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("accel", "cli", "host", "model", "quant", "sim")
BASICS = ("accel.errors.", "accel.atomic.", "accel.usage.")
"""Modules of accel that model may use."""
HEAVY = ("torch", "brevitas", "onnx", "onnxruntime", "safetensors", "tensorboard")
IGNORED = {
    ".git", ".venv", ".venv-pynq", "build", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis"
}  # fmt: skip


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in {getattr(test, "id", None), getattr(test, "attr", None)}


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Modules that a file imports at run time."""

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and _is_type_checking(node.test):
                yield from walk(node.orelse)
            elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
                for field in ("body", "orelse", "finalbody", "handlers"):
                    inner = getattr(node, field, [])
                    yield from walk([s for h in inner for s in (h.body if isinstance(h, ast.ExceptHandler) else [h])])

    return walk(ast.parse(path.read_text(encoding="utf-8")).body)


def third_party(names: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("accel", {"accel", "numpy", "threadpoolctl"}),
        ("sim", {"sim", "accel", "numpy"}),
        ("host", {"host", "accel", "numpy", "PIL", "pynq"}),
        ("model", {"model", "accel", "numpy", "torch", "safetensors", "tqdm", "PIL", "scipy", "h5py", "tomli"}),
        ("quant", {"quant", "model", "accel", "numpy", "torch", "brevitas", "onnx", "onnxruntime", "tqdm"}),
    ],
)
def test_who_imports_whom(package: str, allowed: set[str]) -> None:
    for path in sources(package):
        extra = third_party(imports(path)) - allowed
        assert not extra, f"{path.relative_to(ROOT)} imports {', '.join(sorted(extra))}"


def test_model_takes_only_the_basics_of_accel() -> None:
    for path in sources("model"):
        for name in imports(path):
            if name.startswith("accel"):
                assert name.startswith(BASICS), f"{path.relative_to(ROOT)} imports {name}"


def test_command_line_is_light_until_used() -> None:
    for path in sources("cli"):
        light = {"accel", "cli", "click", "host", "numpy", "PIL", "sim", "tqdm"}
        extra = third_party(imports(path, top_level_only=True)) - light
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)} when loaded"


def test_board_side_works_without_the_heavy_packages() -> None:
    """Importing everything in accel, host, sim and cli loads none of them, even where they are installed."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("accel", "host", "sim", "cli")
        for path in sources(package)
        if path.name not in ("__init__.py", "__main__.py")
        and "pynq" not in third_party(imports(path, top_level_only=True))
    ]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY + ('model', 'quant')!r}))\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def texts() -> Iterator[tuple[Path, str]]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or IGNORED & set(parts) or any(part.endswith(".egg-info") for part in parts):
            continue
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_nothing_refers_to_the_machine_it_was_written_on() -> None:
    # Written so that this file does not contain what it looks for.
    forbidden = re.compile(
        r"\.\./(?:\.\./)*sh" r"ared\b" r"|(?<![\w.)])/(?:wo" r"rk|ro" r"ot|ho" r"me)/\w" r"|(?<![\w.])/t" r"mp/w/"
        r"|\bpy" r"pi\.org|python" r"hosted"
    )  # fmt: skip
    checked = 0
    for path, text in texts():
        checked += 1
        found = forbidden.search(text)
        assert found is None, f"{path.relative_to(ROOT)}: {found.group() if found else ''}"
    assert checked > 40


def test_readme_names_both_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text and "make test" in text


def test_folders_of_the_design_exist() -> None:
    for folder in ("model", "quant", "accel", "hls_src", "rtl_tb", "sim", "bitstreams", "host", "tests"):
        assert any((ROOT / folder).iterdir()), folder


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements() -> dict[str, list[Requirement]]:
    """Extra (or ``base``) → its requirements, from setup.cfg."""
    parser = metadata()
    lists = {"base": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {
        extra: [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
        for extra, text in lists.items()
    }


def constraints(python: str) -> dict[str, str]:
    """Distribution → the exact version for one Python version, from constraints.txt."""
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and not specifier.version.endswith("*"), line
        name = requirement.name.lower().replace("_", "-")
        assert name not in pins, f"constraints.txt: {name} is given twice for Python {python}"
        pins[name] = specifier.version
    return pins


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_versions_agree(python: str) -> None:
    pins = constraints(python)
    assert set(requirements()) == {
        "base", "train", "export", "explore", "rtl", "synth", "hls", "notebook", "board", "dev"
    }  # fmt: skip
    for extra, wanted in requirements().items():
        if extra == "board":  # its versions come with the board's image
            continue
        for requirement in wanted:
            if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
                continue
            name = requirement.name.lower().replace("_", "-")
            assert name in pins, f"constraints.txt: expected a version of {name} ({extra}) for Python {python}"
            assert requirement.specifier.contains(pins[name]), f"{requirement} against {pins[name]} in constraints.txt"


def test_base_installation_is_light() -> None:
    assert {r.name for r in requirements()["base"]} == {"numpy", "click", "tqdm", "pillow", "threadpoolctl"}


def test_metadata() -> None:
    parser = metadata()
    assert parser["metadata"]["name"] == "m3vit-codesign"
    assert parser["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert parser["options"]["python_requires"] == ">=3.10"
    assert "m3vit = cli.main:main" in parser["options.entry_points"]["console_scripts"]
    included = {line.rstrip("*") for line in parser["options.packages.find"]["include"].split()}
    assert included == set(PACKAGES)
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").is_file(), package


def test_package_inits_hold_a_docstring_only() -> None:
    for package in PACKAGES:
        body = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), package
