"""What the data sets on disk share: what they hold, and reading one file with a clear error.

Every reader returns targets as `model.conventions` says.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from accel.errors import ConfigError, DataError
from model.conventions import EDGE_TOLERANCE, IGNORE, Sample


@dataclass(frozen=True)
class TaskSpec:
    """What a data set offers for one task: its name, output channels, and the kinds of `accel.config.Task` that fit,
    the usual one first."""

    name: str
    channels: int
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class DatasetSpec:
    """A data set, whatever its location.

    Attributes:
        name: what the command line calls it.
        folder: its folder under ``M3VIT_DATA_ROOT``.
        variable: environment variable with its root, which goes before ``M3VIT_DATA_ROOT``.
        tasks: all tasks it has targets for.
        height, width: network input size of the published configurations.
        marks: files and folders of which one at least is where the data set is.
        one_file: name of its release in one file, if there is one; read where the first mark is missing.
        edge_tolerance: how far apart matched edge pixels may be for odsF, as a fraction of the image diagonal.
        splits: names of its splits.
    """

    name: str
    folder: str
    variable: str
    tasks: tuple[TaskSpec, ...]
    height: int
    width: int
    marks: tuple[str, ...]
    one_file: str | None = None
    edge_tolerance: float = EDGE_TOLERANCE
    splits: tuple[str, ...] = ("train", "val")

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def task(self, name: str) -> TaskSpec:
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(f"data set {self.name!r}: task {name!r}: expected one of {', '.join(self.task_names)}")


@dataclass(frozen=True)
class Needed:
    """Files of one task for one image: any one of ``paths`` will do (all of them missing is a gap)."""

    paths: tuple[Path, ...]

    def find(self, listing: Listing) -> Path | None:
        return next((path for path in self.paths if path in listing), None)


class Listing:
    """Which files exist, from one listing per directory: much faster than asking for each file, above all on NFS."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: object) -> bool:
        assert isinstance(path, Path)
        return path.name in self.names(path.parent)

    def names(self, directory: Path) -> frozenset[str]:
        """Names in a directory; none if it is missing."""
        if directory not in self._names:
            try:
                self._names[directory] = frozenset(os.listdir(directory))
            except (FileNotFoundError, NotADirectoryError):
                self._names[directory] = frozenset()
            except OSError as error:
                raise DataError(f"{directory}: cannot list: {error.strerror or error}") from error
        return self._names[directory]


class SourceBase(ABC):
    """A split of a data set: images and targets as they lie on disk, read one at a time.

    Attributes:
        spec: the data set. root, split: where and which part. tasks: what `load` returns by default.
        ids: name of each image. key: identifies the data set, split, tasks and images, but not the root.
    """

    spec: DatasetSpec
    normals_y_down = True

    def __init__(self, root: Path, split: str, tasks: Sequence[str] | None) -> None:
        if split not in self.spec.splits:
            raise ConfigError(
                f"data set {self.spec.name!r}: split = {split!r}: expected one of {', '.join(self.spec.splits)}"
            )
        self.root, self.split = root, split
        self.tasks = self.spec.task_names if tasks is None else tuple(tasks)
        for name in self.tasks:
            self.spec.task(name)
        self.ids: Sequence[str] = ()

    @property
    def key(self) -> str:
        digest = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:12]
        return f"{self.spec.name}:{self.split}:{'+'.join(self.tasks)}:{len(self.ids)}-{digest}"

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int, tasks: Sequence[str] | None = None) -> Sample:
        """Image ``index`` with its targets at the size they have on disk.

        Raises:
            DataError: a file is missing or damaged, a target has another size than the image, or a value that the
                task does not know.
        """
        image = self.load_image(index)
        sample = {"image": image}
        for name in self.tasks if tasks is None else tasks:
            sample[name] = self.load_target(index, name, image.shape[:2])
        return sample

    @abstractmethod
    def load_image(self, index: int) -> NDArray[np.uint8]:
        """Image ``index``, uint8 [H, W, 3]."""

    @abstractmethod
    def load_target(self, index: int, task: str, size: tuple[int, ...]) -> NDArray:
        """Target of ``task``, which must have height and width ``size``."""


class FolderSource(SourceBase):
    """A split whose images and targets are files of their own."""

    def __init__(
        self, root: Path, split: str, tasks: Sequence[str] | None, *, check: bool = True, listing: Listing | None = None
    ) -> None:
        super().__init__(root, split, tasks)
        self.listing = listing or Listing()
        self.ids = self.read_ids()
        if not self.ids:
            raise DataError(f"{self.split_file()}: split {split!r}: expected at least one image, found none")
        if check:
            self.require_files()

    @abstractmethod
    def split_file(self) -> Path:
        """The file or directory that says which images the split has."""

    @abstractmethod
    def read_ids(self) -> list[str]:
        """Names of the split's images."""

    @abstractmethod
    def image_file(self, name: str) -> Path: ...

    @abstractmethod
    def needed(self, task: str, name: str) -> tuple[Needed, ...]:
        """Files that ``task`` needs for image ``name``, beside the image."""

    def missing(self, task: str | None) -> list[Path]:
        """First choice of every file that is missing, for a task or (None) for the images."""
        gaps = []
        for name in self.ids:
            wanted = (Needed((self.image_file(name),)),) if task is None else self.needed(task, name)
            gaps += [need.paths[0] for need in wanted if need.find(self.listing) is None]
        return gaps

    def require_files(self) -> None:
        """Raise DataError, naming the first, if any file that the asked tasks need is missing."""
        for task in (None, *self.tasks):
            gaps = self.missing(task)
            if gaps:
                more = f" ({len(gaps) - 1} more are missing, too)" if len(gaps) > 1 else ""
                raise DataError(
                    f"{gaps[0]}: {task or 'image'}: expected a file for split {self.split!r}, found none{more}"
                )

    def path(self, task: str, index: int, part: int = 0) -> Path:
        """The file that holds part ``part`` of a task's target."""
        need = self.needed(task, self.ids[index])[part]
        return need.find(self.listing) or need.paths[0]

    def load_image(self, index: int) -> NDArray[np.uint8]:
        return read_rgb(self.image_file(self.ids[index]))


def read_lines(path: Path, field: str) -> list[str]:
    """Lines of a text file, stripped, without empty ones."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: {field}: expected a file, found none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {field}: cannot read: {getattr(error, 'strerror', None) or error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _open_image(path: Path, field: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise DataError(f"{path}: {field}: expected a file, found none") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others, depending on the damage
        raise damaged(path, field, "cannot decode", error) from error


def read_rgb(path: Path, field: str = "image") -> NDArray[np.uint8]:
    """An image as uint8 [H, W, 3]."""
    return np.asarray(_open_image(path, field).convert("RGB"), dtype=np.uint8)


def read_gray(path: Path, field: str) -> NDArray:
    """A single-channel image as it is; a palette image gives its indices."""
    values = np.asarray(_open_image(path, field))
    if values.ndim != 2:
        raise DataError(f"{path}: {field}: expected one channel, found shape {values.shape}")
    return values


def read_npy(path: Path, field: str) -> NDArray:
    """An array from a .npy file; pickled objects are refused."""
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: {field}: expected a file, found none") from None
    except Exception as error:  # a damaged header also raises TokenError, SyntaxError, OverflowError, MemoryError
        raise damaged(path, field, "cannot read as NumPy array", error) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "bfiu":
        found = getattr(values, "dtype", "an archive")
        raise DataError(f"{path}: {field}: expected an array of numbers, found {found}")
    return values


def check_size(path: Path | str, field: str, values: NDArray, size: tuple[int, ...]) -> None:
    """Raise DataError unless ``values`` has the height and width ``size``."""
    if values.shape[:2] != tuple(size):
        expected, found = "×".join(map(str, size)), "×".join(map(str, values.shape))
        raise DataError(f"{path}: {field}: expected the image's size {expected}, found {found}")


def as_labels(path: Path | str, field: str, values: NDArray, classes: int) -> NDArray[np.uint8]:
    """Class numbers 0 .. classes - 1 and 255 as uint8; anything else is an error."""
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise DataError(f"{path}: {field}: expected whole class numbers, found fractions")
    bad = ((values < 0) | (values >= classes)) & (values != IGNORE)
    if bad.any():
        raise DataError(
            f"{path}: {field}: expected labels 0 to {classes - 1} or {IGNORE}, found {int(values[bad].flat[0])}"
        )
    return values.astype(np.uint8)


def as_binary(path: Path | str, field: str, values: NDArray) -> NDArray[np.uint8]:
    """0 / 1 (and 255 = ignore) as uint8; fractions count from one half."""
    whole = values.astype(np.float32)
    bad = ~((whole >= 0) & (whole <= 1)) & (whole != IGNORE)
    if bad.any():
        raise DataError(f"{path}: {field}: expected values from 0 to 1 or {IGNORE}, found {whole[bad].flat[0]:g}")
    return np.where(whole == IGNORE, IGNORE, whole > 0.5).astype(np.uint8)


def as_depth(path: Path | str, field: str, values: NDArray) -> NDArray[np.float32]:
    """Depth as float32 [H, W]; 0 = unknown, as are values that are not finite."""
    depth = values.astype(np.float32)
    if depth.ndim == 3 and depth.shape[2] == 1:
        depth = depth[:, :, 0]
    if depth.ndim != 2:
        raise DataError(f"{path}: {field}: expected one channel, found shape {values.shape}")
    depth = np.where(np.isfinite(depth), depth, np.float32(0))
    if (depth < 0).any():
        raise DataError(f"{path}: {field}: expected depths of at least 0, found {depth.min():g}")
    return depth


def as_normals(path: Path | str, field: str, values: NDArray) -> NDArray[np.float32]:
    """Unit vectors float32 [H, W, 3]; where the length is 0 or not finite the normal is unknown: 0."""
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"{path}: {field}: expected shape H×W×3, found {'×'.join(map(str, values.shape))}")
    vectors = values.astype(np.float32)
    vectors = np.where(np.isfinite(vectors).all(-1, keepdims=True), vectors, np.float32(0))
    largest = np.abs(vectors).max(initial=0)
    if largest > 2:
        raise DataError(f"{path}: {field}: expected components from -1 to 1, found {largest:g}")
    return unit(vectors)


def unit(vectors: NDArray[np.float32], least: float = 1e-6) -> NDArray[np.float32]:
    """Vectors [..., 3] scaled to length 1; those of at most ``least`` become 0."""
    length = np.sqrt((vectors * vectors).sum(-1, keepdims=True))
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > least)


def mat_version(path: Path, field: str) -> str:
    """``5`` or ``7.3``: the version in a .mat file's header.

    Raises:
        DataError: the file is missing or is no MATLAB file of these versions.
    """
    try:
        with path.open("rb") as file:
            head = file.read(520)
    except FileNotFoundError:
        raise DataError(f"{path}: {field}: expected a file, found none") from None
    except OSError as error:
        raise DataError(f"{path}: {field}: cannot read: {error.strerror or error}") from error
    signature = b"\x89HDF\r\n\x1a\n"
    if head.startswith((b"MATLAB 7.3", signature)) or head[512:] == signature:
        return "7.3"
    if head.startswith(b"MATLAB 5.0"):
        return "5"
    raise DataError(f"{path}: {field}: expected a MATLAB file of version 5 or 7.3, found another header")


def read_mat(path: Path, field: str, variables: Sequence[str]) -> Mapping[str, Any]:
    """Variables of a MATLAB file of version 5 (also written by -v6 and -v7)."""
    version = mat_version(path, field)
    if version != "5":
        raise DataError(f"{path}: {field}: expected a MATLAB file of version 5, found version {version}")
    from scipy.io import loadmat

    try:
        content = loadmat(str(path), variable_names=list(variables))
    except Exception as error:  # SciPy raises whatever the damage leads to
        raise damaged(path, field, "cannot read", error) from error
    for name in variables:
        if name not in content:
            raise DataError(f"{path}: {name}: expected this variable, found none")
    return content


def read_mat_numbers(path: Path, variable: str) -> NDArray[np.int64]:
    """Whole numbers in a variable of a MATLAB file of version 5, as a vector."""
    return whole_numbers(path, variable, np.asarray(read_mat(path, variable, [variable])[variable])).ravel()


def whole_numbers(path: Path, field: str, values: NDArray) -> NDArray[np.int64]:
    """``values`` as int64; DataError for fractions and for what is no number (cells, structs, text)."""
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path}: {field}: expected numbers, found {values.dtype}")
    if values.dtype.kind == "f" and not ((np.abs(values) < 2**53) & (values == np.rint(values))).all():
        raise DataError(f"{path}: {field}: expected whole numbers, found fractions")
    return values.astype(np.int64)


def damaged(path: Path | str, field: str, what: str, error: Exception) -> DataError:
    """An error of one line from one of a decoder, whose message may be empty or have several lines."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: {field}: {what}: {reason}")
