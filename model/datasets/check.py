"""What is there of a data set, what is missing, and which split and task each gap affects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from accel.errors import DataError, M3vitError
from model.conventions import IGNORE
from model.datasets import DATASETS, FOLDERS, NyuMat, dataset_spec
from model.datasets.common import DatasetSpec, FolderSource, Listing, SourceBase
from model.datasets.location import find_in, locate
from model.datasets.nyu_mat import MAPPING_FILES, MappingError

EXAMPLES = 3  # missing files named per gap


@dataclass
class TaskReport:
    """One task of one split.

    state: ``complete``, ``incomplete`` (some files are missing), ``absent`` (all are) or ``damaged`` (a sampled file
    cannot be used). files, missing: images with and without it. examples: some missing files. problems: what was wrong
    with sampled files. values: what the sampled targets hold.
    """

    state: str
    files: int
    missing: int
    examples: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class SplitReport:
    """One split: its images, their sizes (height x width of the sampled ones, smallest and largest), and its tasks."""

    images: int
    problem: str | None = None
    sizes: dict[str, list[int]] = field(default_factory=dict)
    tasks: dict[str, TaskReport] = field(default_factory=dict)


@dataclass
class DatasetReport:
    """A data set found at ``root``, in the ``layout`` ``folders`` or ``mat``."""

    dataset: str
    root: str
    layout: str
    asked: list[str]
    explicit: bool
    splits: dict[str, SplitReport] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every asked task can be used in every split. Tasks not asked for by name may be absent as a whole,
        as long as there is one."""
        if any(split.problem is not None or split.tasks["image"].state != "complete" for split in self.splits.values()):
            return False
        states = [{split.tasks[name].state for split in self.splits.values()} for name in self.asked]
        absent: list[set[str]] = [] if self.explicit else [{"absent"}]
        return {"complete"} in states and all(state in [{"complete"}, *absent] for state in states)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def find_datasets(folder: str | os.PathLike[str], name: str | None = None) -> list[tuple[DatasetSpec, Path]]:
    """Data sets at ``folder`` or in its folders PASCAL_MT, NYUD_MT and cityscapes.

    Args:
        name: this one is there, however little of it.

    Raises:
        DataError: none is.
    """
    place = Path(folder).expanduser()
    if name is not None:
        spec = dataset_spec(name)
        return [(spec, locate(spec, place))]
    found = [(spec, inner) for spec in DATASETS.values() if (inner := find_in(spec, place)) is not None]
    if not found and not place.is_dir():
        found_here = "a file" if place.exists() else "none"
        raise DataError(f"{place}: expected a directory with a data set, found {found_here}")
    if not found:
        marks = "; ".join(f"{name}: {' or '.join(spec.marks[:2])}" for name, spec in DATASETS.items())
        raise DataError(f"{place}: expected a data set ({marks}), found none; --dataset says which it should be")
    return found


def check_dataset(
    name: str, root: str | os.PathLike[str], tasks: Sequence[str] | None = None, samples: int = 4
) -> DatasetReport:
    """Look for every file, read ``samples`` images per split with their targets, spread over the split."""
    spec = dataset_spec(name)
    place = locate(spec, root)
    for task in tasks or ():
        spec.task(task)
    asked = list(tasks or spec.task_names)
    one_file = place.is_file()
    report = DatasetReport(name, str(place), "mat" if one_file else "folders", asked, tasks is not None)
    listing = Listing()
    for split in spec.splits:
        try:
            if one_file:
                report.splits[split] = _check_mat(place, split, asked, samples)
            else:
                source = FOLDERS[name](place, split, asked, check=False, listing=listing)
                report.splits[split] = _check_folders(source, samples)
        except M3vitError as error:
            report.splits[split] = SplitReport(0, str(error))
    return report


def _check_folders(source: FolderSource, samples: int) -> SplitReport:
    report = SplitReport(len(source))
    for task in ("image", *source.tasks):
        gaps = source.missing(None if task == "image" else task)
        lacking = len({path.stem for path in gaps})
        state = "complete" if not gaps else "absent" if lacking == len(source) else "incomplete"
        report.tasks[task] = TaskReport(state, len(source) - lacking, lacking, [str(path) for path in gaps[:EXAMPLES]])
    usable = [name for name in source.tasks if report.tasks[name].state != "absent"]
    _sample(source, report, usable, samples)
    return report


def _check_mat(place: Path, split: str, asked: list[str], samples: int) -> SplitReport:
    without: MappingError | None = None
    try:
        source = NyuMat(place, split, asked)
    except MappingError as error:  # concerns semseg only
        without = error
        source = NyuMat(place, split, [name for name in asked if name != "semseg"])
    report = SplitReport(len(source))
    for task in ("image", *asked):
        report.tasks[task] = TaskReport("complete", len(source), 0)
    if without is not None and without.missing:
        missing = str(source.root / MAPPING_FILES[0])
        report.tasks["semseg"] = TaskReport("absent", 0, len(source), [missing], [str(without)])
    elif without is not None:
        report.tasks["semseg"] = TaskReport("damaged", len(source), 0, problems=[str(without)])
    _sample(source, report, list(source.tasks), samples)
    return report


def _spread(count: int, samples: int) -> Iterator[int]:
    """Up to ``samples`` places from the first to the last of ``count``."""
    yield from sorted({int(place) for place in np.linspace(0, count - 1, min(samples, count))})


def _sample(source: SourceBase, report: SplitReport, tasks: list[str], samples: int) -> None:
    """Read some images with targets; note sizes, values and whatever is wrong."""
    sizes = []
    for index in _spread(len(source), samples):
        if _is_missing(source, None, index):
            continue
        try:
            image = source.load_image(index)
        except M3vitError as error:
            _note(report.tasks["image"], error)
            continue
        sizes.append(image.shape[:2])
        for task in tasks:
            if _is_missing(source, task, index):
                continue
            try:
                target = source.load_target(index, task, image.shape[:2])
            except M3vitError as error:
                _note(report.tasks[task], error)
                continue
            _summarize(report.tasks[task].values, target)
    if sizes:
        report.sizes = {"smallest": list(min(sizes)), "largest": list(max(sizes))}


def _is_missing(source: SourceBase, task: str | None, index: int) -> bool:
    if not isinstance(source, FolderSource):
        return False
    name = source.ids[index]
    if task is None:
        return source.image_file(name) not in source.listing
    return any(need.find(source.listing) is None for need in source.needed(task, name))


def _note(report: TaskReport, error: M3vitError) -> None:
    report.state = "damaged"
    report.problems.append(str(error))


def _summarize(values: dict[str, Any], target: np.ndarray) -> None:
    """Add a target to what is known of a task: its classes or range, and the share of pixels without a label."""
    if target.dtype == np.uint8:
        labels = np.unique(target[target != IGNORE])
        values["labels"] = sorted({*values.get("labels", ()), *(int(label) for label in labels)})
        unknown = float((target == IGNORE).mean())
    else:
        length = target if target.ndim == 2 else np.abs(target).sum(-1)
        known = target[length > 0]
        if known.size:
            values["least"] = min(values.get("least", np.inf), float(known.min()))
            values["most"] = max(values.get("most", -np.inf), float(known.max()))
        unknown = float((length == 0).mean())
    count = values.get("sampled", 0)
    values["unknown_percent"] = round((values.get("unknown_percent", 0.0) * count + 100 * unknown) / (count + 1), 2)
    values["sampled"] = count + 1
