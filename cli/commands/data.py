"""``m3vit data``: look at a data set on disk, or write a tiny synthetic one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.console import emit_json, json_option, note, table

if TYPE_CHECKING:
    from model.datasets.check import DatasetReport

NAMES = ("pascal", "nyud", "cityscapes")


@click.group()
def command() -> None:
    """PASCAL-Context, NYUD-v2 and Cityscapes on disk: check what is there, or make a tiny sample.

    \b
    Training and evaluation find a data set by M3VIT_PASCAL_ROOT, M3VIT_NYUD_ROOT or M3VIT_CITYSCAPES_ROOT,
    or as PASCAL_MT, NYUD_MT or cityscapes in M3VIT_DATA_ROOT. Nothing is ever downloaded.

    \b
    Examples:
      m3vit data make-sample nyud build/NYUD_MT
      m3vit data check build/NYUD_MT --json
    """


@command.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--dataset", "name", type=click.Choice(NAMES), help="Which one it is.  [default: whatever is found]")
@click.option("--tasks", metavar="TASK[,TASK...]", help="Only these, all of them needed.  [default: whatever is there]")
@click.option("--samples", default=4, show_default=True, type=click.IntRange(0), help="Images to read in every split.")
@json_option
@click.pass_context
def check(
    context: click.Context, folder: Path, name: str | None, tasks: str | None, samples: int, as_json: bool
) -> None:
    """Say what is in DIR, what is missing, and which split and task each gap affects.

    Every file is looked for; a few per split are read, and their sizes and labels checked. DIR is a data set, a folder
    with several (PASCAL_MT, NYUD_MT, cityscapes), or nyu_depth_v2_labeled.mat.

    \b
    Exit code 0: usable; 1: something is missing or damaged. Without --tasks a task may be absent as a whole.

    \b
    Examples:
      m3vit data check /data/PASCAL_MT
      m3vit data check /data --json
      m3vit data check /data/NYUD_MT --tasks semseg,depth
    """
    from model.datasets.check import check_dataset, find_datasets

    wanted = [part.strip() for part in tasks.split(",") if part.strip()] if tasks is not None else None
    reports = [check_dataset(spec.name, root, wanted, samples) for spec, root in find_datasets(folder, name)]
    if as_json:
        emit_json({"datasets": [report.to_json() for report in reports], "ok": all(report.ok for report in reports)})
    else:
        for place, report in enumerate(reports):
            _print(report, place)
    if not all(report.ok for report in reports):
        context.exit(1)


def _print(report: DatasetReport, place: int) -> None:
    print(f"{chr(10) if place else ''}{report.dataset} in {report.root} ({report.layout})\n")
    rows: list[list[Any]] = []
    for split, found in report.splits.items():
        for task, state in found.tasks.items():
            size = ""
            if task == "image" and found.sizes:
                ends = ["×".join(map(str, found.sizes[end])) for end in ("smallest", "largest")]
                size = ends[0] if ends[0] == ends[1] else " to ".join(ends)
            rows.append([split, task, state.state, state.files, state.missing, size or _values(state.values)])
    if rows:
        print(table(["split", "task", "state", "files", "missing", "sampled"], rows))
    lines = []
    for split, found in report.splits.items():
        if found.problem:
            lines.append(f"split {split}: {found.problem}")
        for task, state in found.tasks.items():
            lines += [f"split {split}, {task}: missing {path}" for path in state.examples if not state.problems]
            hidden = state.missing - len(state.examples)
            if state.examples and hidden > 0:
                lines.append(f"split {split}, {task}: {hidden} more are missing")
            lines += [f"split {split}, {task}: {problem}" for problem in state.problems]
    if lines:
        print("\n" + "\n".join(lines))
    print(f"\n{'usable' if report.ok else 'not usable as it is'}")


def _values(values: dict[str, Any]) -> str:
    if not values:
        return ""
    parts = []
    if "labels" in values:
        labels = values["labels"]
        shown = ", ".join(map(str, labels[:12])) + (" …" if len(labels) > 12 else "")
        parts.append(f"labels {shown}" if labels else "no labels")
    if "least" in values:
        parts.append(f"{values['least']:.3g} to {values['most']:.3g}")
    parts.append(f"{values['unknown_percent']:.1f} % unknown")
    return "; ".join(parts)


@command.command("make-sample")
@click.argument("name", metavar="{" + "|".join(NAMES) + "}", type=click.Choice(NAMES))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--images", default=8, show_default=True, type=click.IntRange(1), help="Images in every split.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the rendered scenes.")
@json_option
def make_sample_command(name: str, folder: Path, images: int, seed: int, as_json: bool) -> None:
    """Write a tiny synthetic data set into DIR, in exactly the layout of the real one, with every task.

    Rendered scenes stand in for photos: for tests and first tries, not for results.

    \b
    Example:
      m3vit data make-sample nyud build/NYUD_MT && m3vit data check build/NYUD_MT
    """
    from model.datasets.synthetic import make_sample

    path = make_sample(name, folder, images, seed)
    if as_json:
        size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
        emit_json({"dataset": name, "root": str(path), "images_per_split": images, "seed": seed, "bytes": size})
    else:
        note(f"{path}: {name}, {images} images in each split")
