"""Sample trees that several tests of the data sets use, and a fabricated ``nyu_depth_v2_labeled.mat``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = 12  # of the fabricated file; the real one has 894


def write_nyu_mat(folder: Path, images: int = 5, height: int = 48, width: int = 64) -> dict[str, NDArray]:
    """The one-file release with its companions, as HDF5 shows MATLAB's arrays; returns what went in, unreversed."""
    import h5py
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    content = {
        "images": rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8),
        "depths": rng.uniform(1, 4, (images, height, width)).astype(np.float32),
        "labels": np.zeros((images, height, width), np.uint16),
    }
    content["labels"][:, 4:-4, 4:30] = 3
    content["labels"][:, 4:-4, 32:-4] = 7  # two columns between them have no label
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, values in content.items():
            file[name] = np.ascontiguousarray(values.transpose((0, *range(values.ndim - 1, 0, -1))))
        references = np.empty((1, CLASSES), dtype=h5py.ref_dtype)
        for index in range(CLASSES):
            place = f"#refs#/{index}"
            file[place] = np.array([[ord(letter)] for letter in f"class {index + 1}"], dtype=np.uint16)
            references[0, index] = file[place].ref
        file["names"] = references
    with (folder / "nyu_depth_v2_labeled.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))
    savemat(str(folder / "splits.mat"), {"trainNdxs": [[1], [3], [4]], "testNdxs": [[2], [5]]})
    mapping = np.arange(CLASSES)[None] % 40 + 1
    mapping[0, 6] = 40
    savemat(str(folder / "classMapping40.mat"), {"mapClass": mapping.astype(np.uint8)})
    return content
