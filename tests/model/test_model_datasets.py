"""The three folder layouts: what is read back from them, and one line for everything that can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scipy")
from scipy.io import loadmat, savemat  # noqa: E402

from accel.config import NETWORKS, Task  # noqa: E402
from accel.errors import ConfigError, DataError, M3vitError  # noqa: E402
from model.datasets import DATASETS, check_network, open_dataset, open_source  # noqa: E402
from model.datasets.boundaries import laplacian_edges, region_edges, thin  # noqa: E402
from model.datasets.common import SourceBase  # noqa: E402
from model.datasets.pascal import PARTS, read_human_parts  # noqa: E402
from model.datasets.synthetic import make_sample, person_anno  # noqa: E402

IMAGES = 4


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("trees")
    return {spec.name: make_sample(spec.name, base / spec.folder, IMAGES, seed=1) for spec in DATASETS.values()}


@pytest.fixture
def copy(trees: dict[str, Path], tmp_path: Path):  # noqa: ANN201
    """A tree of one's own to break."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(trees[name], tmp_path / name))

    return make


def check_conventions(source: SourceBase) -> None:
    for index in range(len(source)):
        sample = source.load(index)
        size = sample["image"].shape[:2]
        assert sample["image"].dtype == np.uint8
        for spec in source.spec.tasks:
            target = sample[spec.name]
            assert target.shape[:2] == size
            if spec.kinds == ("labels",):
                assert target.dtype == np.uint8 and ((target < spec.channels) | (target == 255)).all()
            elif spec.kinds == ("binary",):
                assert target.dtype == np.uint8 and set(np.unique(target)) <= {0, 1, 255}
            elif spec.kinds == ("normals",):
                length = np.linalg.norm(target, axis=-1)
                assert target.dtype == np.float32
                assert (np.isclose(length, 1, atol=1e-4) | (length == 0)).all() and (length > 0).mean() > 0.5
            else:
                assert target.dtype == np.float32 and target.min() >= 0 and (target > 0).mean() > 0.5


@pytest.mark.parametrize("name", list(DATASETS))
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_follow_the_conventions(trees: dict[str, Path], name: str, split: str) -> None:
    source = open_source(name, split, root=trees[name])
    assert len(source) == len(source.ids) == IMAGES and source.tasks == DATASETS[name].task_names
    check_conventions(source)
    other = open_source(name, "val" if split == "train" else "train", root=trees[name])
    assert source.key != other.key
    if name != "cityscapes":
        assert not set(source.ids) & set(other.ids)


def test_pascal_values_come_from_their_files(trees: dict[str, Path]) -> None:
    root = trees["pascal"]
    source = open_source("pascal", "train", root=root)
    assert len({source.load(i, ())["image"].shape for i in range(IMAGES)}) > 1  # sizes differ, as in the real set
    name = source.ids[0]
    sample = source.load(0)
    np.testing.assert_array_equal(sample["semseg"], np.asarray(Image.open(root / f"semseg/VOC12/{name}.png")))
    assert not (root / "semseg/VOC12" / f"{source.ids[-1]}.png").exists()
    assert source.load(IMAGES - 1, ["semseg"])["semseg"].max() <= 20  # from semseg/pascal-context
    person = sample["semseg"] == 15
    assert person.any() and ((sample["human_parts"] > 0) == person).all()
    assert set(np.unique(sample["human_parts"])) == set(range(7))
    rows = [np.flatnonzero((sample["human_parts"] == part).any(1)).mean() for part in range(1, 7)]
    assert rows == sorted(rows)  # head above torso above arms above legs
    masked = 0
    for index, other in enumerate(source.ids):
        label_map = loadmat(root / f"pascal-context/trainval/{other}.mat")["LabelMap"]
        unknown = (source.load(index, ["normals"])["normals"] == 0).all(-1)
        np.testing.assert_array_equal(unknown, label_map == 244)  # "mat" is no class of NYUD-v2
        masked += int(unknown.sum())
    assert masked
    label_map = loadmat(root / f"pascal-context/trainval/{name}.mat")["LabelMap"]
    np.testing.assert_array_equal(sample["edge"], laplacian_edges(label_map))
    assert 0 < sample["edge"].mean() < 0.2
    np.testing.assert_array_equal(sample["sal"] > 0, np.isin(sample["semseg"], (5, 9, 15)))


def test_pascal_parts_cover_the_list_of_names() -> None:
    assert len(PARTS) == 24 and set(PARTS.values()) == set(range(1, 7))
    assert (PARTS["lebrow"], PARTS["neck"], PARTS["ruarm"], PARTS["lhand"], PARTS["luleg"], PARTS["rfoot"]) == (
        1, 2, 3, 4, 5, 6)  # fmt: skip


def test_pascal_normals_classes_are_those_that_nyud_has_too() -> None:
    from model.datasets.pascal import NORMALS_CLASSES

    assert len(set(NORMALS_CLASSES.tolist())) == len(NORMALS_CLASSES)
    inside = {"bed": 18, "ceiling": 68, "chair": 72, "floor": 158, "person": 284, "sofa": 368, "table": 397,
              "tvmonitor": 427, "wall": 440, "window": 454}  # fmt: skip
    outside = {"aeroplane": 2, "bird": 25, "bus": 45, "grass": 187, "horse": 207, "road": 324, "sky": 360, "tree": 420,
               "unknown": 431, "water": 445}  # fmt: skip
    assert set(inside.values()) <= set(NORMALS_CLASSES.tolist())
    assert not set(outside.values()) & set(NORMALS_CLASSES.tolist())


def test_human_parts_alone_leave_out_images_without_a_person(copy) -> None:  # noqa: ANN001
    root = copy("pascal")
    listing = root / "ImageSets/Parts/train.txt"
    categories = json.loads(listing.read_text())
    ids = list(categories)
    categories[ids[1]] = [9]
    listing.write_text(json.dumps(categories))
    alone = open_source("pascal", "train", ["human_parts"], root)
    assert list(alone.ids) == [ids[0], *ids[2:]]
    both = open_source("pascal", "train", ["human_parts", "sal"], root)
    assert list(both.ids) == ids
    assert (both.load(1)["human_parts"] == 255).all()
    listing.write_text("[1]")
    with pytest.raises(DataError, match=r"Parts/train\.txt: human_parts: expected JSON"):
        open_source("pascal", "train", ["human_parts"], root)
    listing.unlink()
    assert list(open_source("pascal", "train", ["human_parts"], root).ids) == ids


def test_nyud_values_come_from_their_files(trees: dict[str, Path]) -> None:
    root = trees["nyud"]
    source = open_source("nyud", "val", root=root)
    sample, name = source.load(0), source.ids[0]
    stored = np.asarray(Image.open(root / f"segmentation/{name}.png")).astype(int)
    np.testing.assert_array_equal(sample["semseg"], np.where(stored == 0, 255, stored - 1))
    np.testing.assert_array_equal(sample["depth"], np.load(root / f"depth/{name}.npy"))
    np.testing.assert_allclose(sample["normals"], np.load(root / f"normals/{name}.npy"), atol=1e-6)
    np.testing.assert_array_equal(sample["edge"], np.load(root / f"edge/{name}.npy"))
    assert (sample["depth"][:, :4] == 0).all() and (sample["semseg"][:4] == 255).all()
    facing = sample["normals"][..., 2][(sample["normals"] != 0).any(-1)]
    assert (facing < 0.1).mean() > 0.95


def test_cityscapes_values_come_from_their_files(trees: dict[str, Path]) -> None:
    root = trees["cityscapes"]
    source = open_source("cityscapes", "train", root=root)
    assert list(source.ids) == ["0", "1", "2", "3"]
    sample = source.load(2)
    stored = np.load(root / "train/image/2.npy")
    assert stored.max() <= 1
    np.testing.assert_array_equal(sample["image"], np.rint(stored * 255).astype(np.uint8))
    labels = np.load(root / "train/label_7/2.npy")
    np.testing.assert_array_equal(sample["semseg"], np.where(labels == -1, 255, labels))
    np.testing.assert_array_equal(sample["depth"], np.load(root / "train/depth/2.npy")[..., 0])


def test_cityscapes_images_are_ordered_by_number(copy) -> None:  # noqa: ANN001
    root = copy("cityscapes")
    for kind in ("image", "label_7", "depth"):
        (root / f"train/{kind}/3.npy").rename(root / f"train/{kind}/10.npy")
    labels = np.load(root / "train/label_7/10.npy")
    np.save(root / "train/label_7/10.npy", labels.astype(np.int8))
    np.save(root / "train/image/10.npy", np.load(root / "train/image/10.npy") * 255)
    source = open_source("cityscapes", "train", root=root)
    assert list(source.ids) == ["0", "1", "2", "10"]
    sample = source.load(3)
    assert (sample["semseg"][-1] == 255).all() and sample["image"].max() > 100


# Roots.


def test_root_by_argument_or_environment(
    trees: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("M3VIT_DATA_ROOT", "M3VIT_NYUD_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError, match="root: expected a directory, M3VIT_NYUD_ROOT or M3VIT_DATA_ROOT"):
        open_source("nyud", "val")
    monkeypatch.setenv("M3VIT_DATA_ROOT", str(trees["nyud"].parent))
    assert open_source("nyud", "val").root == trees["nyud"]  # type: ignore[attr-defined]
    assert len(open_source("pascal", "val")) == IMAGES
    monkeypatch.setenv("M3VIT_NYUD_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere: M3VIT_NYUD_ROOT: expected the directory of data set 'nyud'"):
        open_source("nyud", "val")
    assert len(open_source("nyud", "val", root=trees["nyud"])) == IMAGES


def test_names_that_do_not_exist(trees: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="data set 'coco': expected one of pascal, nyud, cityscapes"):
        open_source("coco", "val")
    with pytest.raises(ConfigError, match="split = 'test'"):
        open_source("nyud", "test", root=trees["nyud"])
    with pytest.raises(ConfigError, match="task 'sal': expected one of semseg, depth"):
        open_source("nyud", "val", ["sal"], trees["nyud"])


# Gaps: only what is asked for is needed, and one line says what is missing.


@pytest.mark.parametrize(
    ("name", "task", "folder"),
    [
        ("pascal", "semseg", "semseg"), ("pascal", "human_parts", "human_parts"), ("pascal", "sal", "sal_distill"),
        ("pascal", "normals", "normals_distill"), ("pascal", "edge", "pascal-context"),
        ("nyud", "semseg", "segmentation"), ("nyud", "depth", "depth"), ("nyud", "normals", "normals"),
        ("nyud", "edge", "edge"),
        ("cityscapes", "semseg", "train/label_7"), ("cityscapes", "depth", "train/depth"),
    ],
)  # fmt: skip
def test_a_task_that_is_not_asked_for_needs_no_files(copy, name: str, task: str, folder: str) -> None:  # noqa: ANN001
    root = copy(name)
    shutil.rmtree(root / folder)
    affected = {task, "normals"} if folder == "pascal-context" else {task}
    rest = [other for other in DATASETS[name].task_names if other not in affected]
    assert set(open_source(name, "train", rest, root).load(0)) == {"image", *rest}
    with pytest.raises(DataError, match=rf"{task}: expected a file for split 'train', found none \(3 more"):
        open_source(name, "train", [task], root)


def test_missing_image_is_named(copy) -> None:  # noqa: ANN001
    root = copy("nyud")
    next((root / "images").iterdir()).unlink()
    with pytest.raises(DataError, match=r"images/\d+\.jpg: image: expected a file for split '\w+', found none$"):
        for split in ("train", "val"):
            open_source("nyud", split, [], root)


def test_empty_or_missing_split(copy) -> None:  # noqa: ANN001
    root = copy("pascal")
    (root / "ImageSets/Context/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt: split 'val': expected at least one image, found none"):
        open_source("pascal", "val", root=root)
    (root / "ImageSets/Context/val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt: split 'val': expected a file, found none"):
        open_source("pascal", "val", root=root)
    city = copy("cityscapes")
    shutil.rmtree(city / "val/image")
    with pytest.raises(DataError, match="val/image: split 'val': expected at least one image"):
        open_source("cityscapes", "val", root=city)


# Contents.


def damage(root: Path, name: str, task: str, values: np.ndarray) -> None:
    """Replace the first training image's target of a task."""
    source = open_source(name, "train", root=root)
    path = source.path(task, 0)  # type: ignore[attr-defined]
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        savemat(str(path), {"LabelMap": values})


SMALL = np.zeros((5, 6), np.uint8)


@pytest.mark.parametrize(
    ("name", "task", "values", "message"),
    [
        ("pascal", "semseg", SMALL, r"\.png: semseg: expected the image's size 96×128, found 5×6"),
        ("pascal", "sal", SMALL, r"\.png: sal: expected the image's size"),
        ("pascal", "normals", np.zeros((5, 6, 3), np.uint8), r"\.png: normals: expected the image's size"),
        ("pascal", "edge", SMALL, r"\.mat: LabelMap: expected the image's size"),
        ("pascal", "semseg", np.full((96, 128), 21, np.uint8), "semseg: expected labels 0 to 20 or 255, found 21"),
        ("pascal", "edge", np.full((96, 128), 460, np.uint16), "LabelMap: expected labels 0 to 459, found 460"),
        ("pascal", "sal", np.zeros((96, 128, 3), np.uint8), "sal: expected one channel"),
        ("nyud", "semseg", SMALL, "semseg: expected the image's size"),
        ("nyud", "depth", SMALL.astype(float), r"\.npy: depth: expected the image's size"),
        ("nyud", "normals", np.zeros((5, 6, 3)), "normals: expected the image's size"),
        ("nyud", "edge", SMALL, "edge: expected the image's size"),
        ("nyud", "semseg", np.full((96, 128), 41, np.uint8), r"semseg: expected labels 0 \(void\) to 40, found 41"),
        ("nyud", "depth", np.full((96, 128), -1.0), "depth: expected depths of at least 0, found -1"),
        ("nyud", "normals", np.full((96, 128), 1.0), "normals: expected shape H×W×3, found 96×128"),
        ("nyud", "normals", np.full((96, 128, 3), 127.0), "normals: expected components from -1 to 1, found 127"),
        ("nyud", "edge", np.full((96, 128), 2.0), "edge: expected values from 0 to 1 or 255, found 2"),
        ("nyud", "depth", np.full((96, 128), "far"), "depth: expected an array of numbers, found <U3"),
        ("cityscapes", "semseg", SMALL, "semseg: expected the image's size 128×256"),
        ("cityscapes", "depth", np.zeros((5, 6, 1)), "depth: expected the image's size 128×256"),
        ("cityscapes", "semseg", np.full((128, 256), 7.0), "semseg: expected labels 0 to 6 or 255, found 7"),
        ("cityscapes", "semseg", np.full((128, 256), 0.5), "semseg: expected whole class numbers"),
        ("cityscapes", "depth", np.zeros((128, 256, 2)), "depth: expected one channel"),
    ],
)  # fmt: skip
def test_wrong_contents_are_one_line(copy, name: str, task: str, values: np.ndarray, message: str) -> None:  # noqa: ANN001
    root = copy(name)
    damage(root, name, task, values)
    with pytest.raises(DataError, match=message) as error:
        open_source(name, "train", [task], root).load(0)
    assert "\n" not in str(error.value) and str(root) in str(error.value)


@pytest.mark.parametrize(("name", "task"), [("pascal", "semseg"), ("pascal", "edge"), ("pascal", "human_parts"),
                                            ("nyud", "depth"), ("cityscapes", "semseg")])  # fmt: skip
def test_damaged_files_are_one_line(copy, name: str, task: str) -> None:  # noqa: ANN001
    root = copy(name)
    path = open_source(name, "train", root=root).path(task, 0)  # type: ignore[attr-defined]
    whole = path.read_bytes()
    field = {"edge": "LabelMap", "human_parts": "anno"}.get(task, task)
    for content in (b"", b"nonsense" * 40, whole[: len(whole) * 2 // 3]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name}: {field}: "):
            open_source(name, "train", [task], root).load(0)


def test_unknown_depth_that_is_not_finite(copy) -> None:  # noqa: ANN001
    root = copy("nyud")
    depth = np.full((96, 128), 2.5)
    depth[3, 4], depth[5, 6] = np.nan, np.inf
    damage(root, "nyud", "depth", depth)
    found = open_source("nyud", "train", ["depth"], root).load(0)["depth"]
    assert found[3, 4] == found[5, 6] == 0 and (found > 0).sum() == found.size - 2


def test_mat_files_of_another_version(copy) -> None:  # noqa: ANN001
    h5py = pytest.importorskip("h5py")
    root = copy("pascal")
    source = open_source("pascal", "train", root=root)
    for task, field in (("edge", "LabelMap"), ("human_parts", "anno")):
        path = source.path(task, 0)  # type: ignore[attr-defined]
        path.unlink()
        with h5py.File(path, "w") as file:
            file[field] = np.zeros((128, 96))
        with pytest.raises(DataError, match=f"{field}: expected a MATLAB file of version 5, found version 7"):
            source.load(0, [task])
        savemat(str(path), {"other": 1})
        with pytest.raises(DataError, match=f"{path.name}: {field}: expected this variable, found none"):
            source.load(0, [task])
        savemat(str(path), {"x": 1}, format="4")
        with pytest.raises(DataError, match=f"{field}: expected a MATLAB file of version 5 or 7.3, found another"):
            source.load(0, [task])


def test_human_parts_of_a_broken_struct(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    person = np.zeros((20, 10), bool)
    person[3:18, 2:8] = True

    def read(content: dict, size: tuple[int, int] = (20, 10)) -> np.ndarray:
        savemat(str(path), content)
        return read_human_parts(path, size)

    target = read(person_anno("a", person))
    assert ((target > 0) == person).all()
    assert (read(person_anno("a", np.zeros((20, 10), bool))) == 255).all()
    with pytest.raises(DataError, match=r"a\.mat: anno\.objects\.parts\.mask \(head\): expected the image's size"):
        read(person_anno("a", person), (20, 11))
    with pytest.raises(DataError, match=r"a\.mat: anno\.objects: expected this field, found none"):
        read({"anno": {"imname": "a"}})
    with pytest.raises(DataError, match=r"a\.mat: anno\.objects: expected this field, found none"):
        read({"anno": np.ones((3, 3))})
    wrong = person_anno("a", person)
    wrong["anno"][0, 0]["objects"][0, 1]["parts"][0, 0]["part_name"] = "tail"
    with pytest.raises(DataError, match="part_name: expected a part of a person, found 'tail'"):
        read(wrong)


# Edges.


def test_thinning_keeps_lines_and_connections() -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:8, 5:35] = True
    mask[5:28, 18:22] = True
    line = thin(mask)
    from scipy.ndimage import label

    assert line.sum() < mask.sum() / 2 and (line <= mask).all()
    assert label(line, np.ones((3, 3)))[1] == 1
    block = line[:-1, :-1].astype(int) + line[1:, :-1] + line[:-1, 1:] + line[1:, 1:]
    assert block.max() < 4  # nowhere two pixels wide in both directions
    np.testing.assert_array_equal(thin(line), line)
    single = np.zeros((5, 5), bool)
    single[2, 2] = single[2, 3] = True
    assert thin(single).any() and not thin(np.zeros((5, 5), bool)).any()
    ring = np.zeros((12, 12), bool)
    ring[1:11, 1:11], ring[4:8, 4:8] = True, False
    assert label(~thin(ring))[1] == 2  # the hole stays a hole


def test_laplacian_edges_of_two_halves() -> None:
    labels = np.full((8, 10), 158, np.uint16)
    labels[:, 5:] = 440
    edges = laplacian_edges(labels)
    assert (edges[1:-1].sum(1) == 1).all() and set(np.flatnonzero(edges.any(0))) <= {4, 5}
    assert not laplacian_edges(np.full((8, 10), 7, np.uint8)).any()


def test_region_edges_close_gaps_and_ignore_what_is_far() -> None:
    regions = np.zeros((20, 40), int)
    regions[:, :10], regions[:, 12:20] = 1, 2
    edges = region_edges(regions, regions > 0)
    columns = np.flatnonzero((edges[5:15] == 1).any(0))
    assert len(columns) == 1 and 9 <= columns[0] <= 11
    assert (edges[:, 27:] == 255).all() and (edges[:, :25] != 255).all()
    assert (region_edges(regions, np.zeros_like(regions, bool)) == 255).all()


# With a network.


def test_network_and_data_set_must_mean_the_same() -> None:
    net = NETWORKS["m3vit-small-nyud"]
    assert check_network(DATASETS["nyud"], net) == ("semseg", "depth", "normals", "edge")
    assert check_network(DATASETS["cityscapes"], NETWORKS["m3vit-tiny-cityscapes"]) == ("semseg", "depth")
    assert set(check_network(DATASETS["pascal"], NETWORKS["m3vit-small-pascal"])) == set(DATASETS["pascal"].task_names)
    with pytest.raises(ConfigError, match="task 'semseg': channels: expected 21 for data set 'pascal', found 40"):
        check_network(DATASETS["pascal"], net)
    import dataclasses

    wrong = dataclasses.replace(net, tasks=(Task("depth", 3, "labels"),))
    with pytest.raises(ConfigError, match="task 'depth': kind: expected depth or log_depth"):
        check_network(DATASETS["nyud"], wrong)
    with pytest.raises(ConfigError, match="tasks: expected one of semseg, human_parts"):
        check_network(DATASETS["pascal"], dataclasses.replace(net, tasks=(Task("depth", 1, "depth"),)))


def test_open_dataset_resizes_to_the_network(trees: dict[str, Path]) -> None:
    net = NETWORKS["m3vit-tiny-cityscapes"]
    train = open_dataset("cityscapes", "train", net, root=trees["cityscapes"])
    val = open_dataset("cityscapes", "val", net, ["depth"], trees["cityscapes"])
    assert train.augmentation is not None and val.augmentation is None
    assert (train.height, train.width) == (net.image_height, net.image_width)
    assert val.task_names == ("depth",) and set(val.sample(0)) == {"image", "depth"}


# Sample trees.


def test_sample_trees_repeat_and_are_not_overwritten(trees: dict[str, Path], tmp_path: Path) -> None:
    again = make_sample("pascal", tmp_path / "again", IMAGES, seed=1)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(trees["pascal"]) for p in trees["pascal"].rglob("*") if p.is_file())
    assert all((again / f).read_bytes() == (trees["pascal"] / f).read_bytes() for f in files)
    with pytest.raises(M3vitError, match="again: expected an empty or a new directory"):
        make_sample("pascal", again)
    with pytest.raises(ConfigError, match="images = 0"):
        make_sample("nyud", tmp_path / "none", 0)
    with pytest.raises(ConfigError, match="data set 'coco'"):
        make_sample("coco", tmp_path / "none")
    assert not (tmp_path / "none").exists()
