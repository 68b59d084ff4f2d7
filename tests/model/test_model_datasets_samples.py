"""Reading while training: batches are a function of (seed, step, position), runs resume to the same bits."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
from accel.config import Network, Task  # noqa: E402
from accel.errors import ConfigError, DataError  # noqa: E402
from model.checkpoint import load_checkpoint  # noqa: E402
from model.data import Dataset  # noqa: E402
from model.datasets import DATASETS, open_dataset, open_source  # noqa: E402
from model.datasets.synthetic import make_sample  # noqa: E402
from model.evaluate import evaluate, expert_load  # noqa: E402
from model.samples import FolderBatches, FolderDataset  # noqa: E402
from model.train import TrainOptions, fit  # noqa: E402
from model.transforms import RECIPES, Augmentation  # noqa: E402
from model.vit import MultiTaskViT  # noqa: E402

QUIET = {"quiet": True, "tensorboard": False, "log_every": 1, "warmup": 0}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("trees")
    return {spec.name: make_sample(spec.name, base / spec.folder, 5, seed=2) for spec in DATASETS.values()}


@pytest.fixture(scope="module")
def nyud(trees: dict[str, Path]) -> FolderDataset:
    return FolderDataset(open_source("nyud", "train", root=trees["nyud"]), 16, 24, RECIPES["nyud"], workers=2)


class Counting:
    """A source that knows how often it was read."""

    ids: Sequence[str] = [str(i) for i in range(6)]
    tasks = ("semseg",)
    normals_y_down = True
    key = "counting"

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.broken: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int, tasks: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self.loaded.append(index)
        if index == self.broken:
            raise DataError(f"{index}.jpg: image: cannot decode")
        image = np.full((8, 8, 3), index, np.uint8)
        return {"image": image, **{name: image[..., 0] for name in (self.tasks if tasks is None else tasks)}}


def equal(a: tuple[torch.Tensor, dict], b: tuple[torch.Tensor, dict]) -> bool:
    return torch.equal(a[0], b[0]) and a[1].keys() == b[1].keys() and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


def test_batches_are_a_function_of_seed_and_step(nyud: FolderDataset) -> None:
    first, second = nyud.batches(4, seed=1), nyud.batches(4, seed=1)
    forward = [first.batch(step) for step in range(4)]
    backward = [second.batch(step) for step in reversed(range(4))][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not equal(forward[0], nyud.batches(4, seed=2).batch(0))
    images, targets = forward[0]
    assert images.shape == (4, 16, 24, 3) and images.dtype == torch.uint8
    assert set(targets) == {"semseg", "depth", "normals", "edge"}
    assert targets["normals"].shape == (4, 16, 24, 3) and targets["depth"].dtype == torch.float32
    order = np.concatenate([first.indices(step) for step in range(5)])
    assert all(sorted(order[start : start + 5]) == list(range(5)) for start in (0, 5, 10, 15))
    # The same image is augmented otherwise in another epoch.
    draws = {first.geometry(step, position) for step in range(4) for position in range(4)}
    assert len(draws) > 3


def test_processes_share_the_global_batch(nyud: FolderDataset) -> None:
    whole = nyud.batches(4, seed=3).batch(2)
    parts = [nyud.batches(4, 3, True, rank, 2).batch(2) for rank in range(2)]
    joined = torch.cat([p[0] for p in parts]), {k: torch.cat([p[1][k] for p in parts]) for k in whole[1]}
    assert equal(whole, joined)
    with pytest.raises(ConfigError, match="batch_size = 3"):
        nyud.batches(3, world=2)


def test_mirror_option_turns_only_mirroring_off(nyud: FolderDataset) -> None:
    on, off = nyud.batches(4, seed=1), nyud.batches(4, seed=1, mirror=False)
    pairs = [(on.geometry(0, p), off.geometry(0, p)) for p in range(4)]
    assert any(a.mirror for a, _ in pairs if a) and not any(b.mirror for _, b in pairs if b)
    assert all(a and b and dataclasses.replace(a, mirror=False) == b for a, b in pairs)
    plain = FolderDataset(nyud.source, 16, 24)
    assert plain.batches(4).geometry(0, 0) is None


def test_reading_ahead_and_stopping() -> None:
    source = Counting()
    batches = FolderDataset(source, 8, 8, workers=2).batches(2)
    assert batches.batch(0)[0][:, 0, 0, 0].tolist() == batches.indices(0).tolist()
    deadline = time.monotonic() + 5
    while len(source.loaded) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(source.loaded) == 6  # this batch and two ahead
    batches.batch(1)
    batches.batch(7)  # a jump: what was read ahead is not used
    threads = [t for t in threading.enumerate() if t.name.startswith("m3vit-data")]
    assert threads
    del batches
    gc.collect()
    for thread in threads:
        thread.join(5)
    assert not any(t.is_alive() for t in threads)


def test_errors_reach_the_caller() -> None:
    source = Counting()
    source.broken = 4
    dataset = FolderDataset(source, 8, 8, workers=2)
    batches = dataset.batches(6)
    with pytest.raises(DataError, match="4.jpg: image: cannot decode"):
        batches.batch(0)
    with pytest.raises(DataError, match="4.jpg"):
        list(dataset.chunks(4))
    assert dataset.first_images(3)[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_chunks_cover_everything_in_order() -> None:
    dataset = FolderDataset(Counting(), 8, 8, Augmentation(), workers=2)
    chunks = list(dataset.chunks(4))
    assert [len(images) for images, _ in chunks] == [4, 2]
    assert np.concatenate([t["semseg"][:, 0, 0] for _, t in chunks]).tolist() == list(range(6))
    assert [targets for _, targets in dataset.chunks(6, ())] == [{}]
    for _ in dataset.chunks(2):  # stopping early is fine
        break
    small = dataset.subset(3)
    assert len(small) == 3 and small.key != dataset.key
    with pytest.raises(ConfigError, match="size = 0×8"):
        FolderDataset(Counting(), 0, 8)


def test_in_memory_set_has_the_same_interface(scenes_train: Dataset) -> None:
    chunks = list(scenes_train.chunks(16, ["depth"]))
    assert [len(images) for images, _ in chunks] == [16, 16, 8] and set(chunks[0][1]) == {"depth"}
    np.testing.assert_array_equal(np.concatenate([c[0] for c in chunks]), scenes_train.images)
    np.testing.assert_array_equal(scenes_train.first_images(3), scenes_train.images[:3])
    assert scenes_train.task_names == ("semseg", "depth", "normals", "edge")


def network(tiny: Network, name: str) -> Network:
    tasks = tuple(Task(spec.name, spec.channels, spec.kinds[0]) for spec in DATASETS[name].tasks)
    return dataclasses.replace(tiny, tasks=tasks)


@pytest.mark.parametrize("name", list(DATASETS))
def test_one_epoch_and_evaluation(tmp_path: Path, trees: dict[str, Path], tiny: Network, name: str) -> None:
    net = network(tiny, name)
    train, val = (open_dataset(name, split, net, root=trees[name]) for split in ("train", "val"))
    model = MultiTaskViT(net)
    result = fit(model, train, TrainOptions(steps=3, batch_size=2, **QUIET), tmp_path)
    assert len(result.losses) == 3
    metrics = evaluate(model, val, batch=3)
    assert set(metrics) == set(net.task_names)
    assert all(np.isfinite(value) for task in metrics.values() for value in task.values())
    assert set(expert_load(model, val)) == set(net.task_names)


def test_single_task_needs_only_its_targets(tmp_path: Path, trees: dict[str, Path], tiny: Network) -> None:
    net = network(tiny, "pascal")
    train = open_dataset("pascal", "train", net, ["sal"], trees["pascal"])
    result = fit(MultiTaskViT(net), train, TrainOptions(steps=2, batch_size=2, **QUIET), tmp_path)
    assert result.steps == 2
    assert set(evaluate(MultiTaskViT(net), train)) == {"sal"}


def test_stopped_run_resumes_to_the_same_bits(tmp_path: Path, trees: dict[str, Path], tiny: Network) -> None:
    net = network(tiny, "nyud")
    options = TrainOptions(steps=6, batch_size=2, checkpoint_every=2, **QUIET)

    def run(folder: Path, stop: int | None = None) -> Path:
        def on_step(done: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        train = open_dataset("nyud", "train", net, root=trees["nyud"])
        return fit(MultiTaskViT(net), train, options, folder, on_step=on_step).checkpoint

    whole = load_checkpoint(run(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=5)
    resumed = load_checkpoint(run(tmp_path / "stopped"))
    assert all(torch.equal(value, resumed.weights[key]) for key, value in whole.weights.items())
    other = FolderDataset(open_source("nyud", "train", root=trees["nyud"]), 16, 24)
    with pytest.raises(ConfigError, match="data: made with"):
        fit(MultiTaskViT(net), other, options, tmp_path / "whole")


def test_batches_type(nyud: FolderDataset) -> None:
    batches = nyud.batches(4)
    assert isinstance(batches, FolderBatches)
    batches.batch(0)
    batches.close()
    batches.close()
