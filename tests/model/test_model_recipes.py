"""Recipes: the packaged ones are complete and fit the presets; files are checked field by field."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from accel.config import Network, network
from accel.errors import ConfigError
from cli.recipes import recipe_network
from model.datasets import DATASETS as SPECS
from model.datasets import check_network
from model.losses import LOSS_WEIGHTS
from model.recipes.loader import DATASETS, MODES, SIZES, load_recipe, recipe_names

OWN = """
dataset = "cityscapes"
tasks = ["depth"]
optimizer = "sgd"
epochs = 2
batch = 3
seed = 1
balance_weight = 0.5
gate_noise = 0

[network]
preset = "m3vit-demo"

[outputs.depth]
channels = 1
kind = "log_depth"
weight = 4

[sgd]
lr = 0.1
momentum = 0
weight_decay = 0
schedule = "poly"

[quantization]
epochs = 0
lr = 1e-3
weight_bits = 4
activation_bits = 6
"""


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def same(recipe_name: str, preset: str) -> tuple[Network, Network]:
    found, wanted = recipe_network(load_recipe(recipe_name)), network(preset)
    return found, dataclasses.replace(wanted, name=found.name, head=found.head)


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipe_is_complete(name: str) -> None:
    recipe = load_recipe(name)
    net = recipe_network(recipe)
    size, dataset, mode, *task = name.split("-")
    part, dataset = dataset, recipe.dataset
    assert (dataset, net.name, net.task_names) == (part.removesuffix("2"), name, recipe.tasks)
    assert net.routing == ("task_conditioned" if mode == "task_conditioned" else "multi_gate")
    whole = {"semseg", "depth"} if part == "nyud2" else set(LOSS_WEIGHTS[dataset])
    assert recipe.tasks == tuple(task) if task else set(recipe.tasks) == whole
    options = recipe.options(100)
    assert options.loss_weights == {task: LOSS_WEIGHTS[dataset][task] for task in recipe.tasks}
    if dataset == "scenes":
        return
    assert check_network(SPECS[dataset], net) == net.task_names
    assert (net.image_height, net.image_width) == (SPECS[dataset].height, SPECS[dataset].width)
    assert net.head == "pup" and net.embed_dim == {"tiny": 192, "small": 384, "base": 768}[size]
    assert (options.optimizer, options.momentum, options.weight_decay, options.power) == ("sgd", 0.9, 1e-4, 0.9)
    assert options.lr == (0.001 if task or dataset == "cityscapes" else 0.002)
    assert (options.schedule, recipe.epochs, options.warmup, options.clip) == ("poly", 100, 0, 0)


def test_there_is_a_recipe_for_every_combination() -> None:
    names = recipe_names()
    assert len(set(names)) == len(names)
    for size in SIZES:
        for dataset in DATASETS:
            stem = f"{size}-{dataset}"
            assert {f"{stem}-{mode}" for mode in MODES[1:]} <= set(names)
            tasks = ("semseg", "depth") if dataset == "nyud2" else SPECS[dataset].task_names
            assert {f"{stem}-single_task-{task}" for task in tasks} <= set(names)


@pytest.mark.parametrize(
    ("recipe", "preset"),
    [
        ("small-pascal-multi_gate", "m3vit-small-pascal"),
        ("small-nyud-multi_gate", "m3vit-small-nyud"),
        ("tiny-cityscapes-multi_gate", "m3vit-tiny-cityscapes"),
        ("demo-scenes-multi_gate", "m3vit-demo"),
    ],
)
def test_recipes_are_the_presets_networks(recipe: str, preset: str) -> None:
    found, wanted = same(recipe, preset)
    assert found == wanted


def test_pascal_losses() -> None:
    assert load_recipe("small-pascal-multi_gate").losses() == {
        "loss_weights": {"semseg": 1, "human_parts": 2, "sal": 5, "normals": 10, "edge": 50},
        "loss_names": {"sal": "class_balanced", "edge": "balanced"},
    }


def test_options_count_in_epochs() -> None:
    options = load_recipe("small-nyud-multi_gate").options(795)  # batch 4: 199 steps per epoch
    assert (options.steps, options.epoch_steps) == (19900, 199)
    assert options.learning_rate(198) == 0.002
    assert options.learning_rate(199) == pytest.approx(0.002 * 0.99**0.9)
    adamw = load_recipe("small-nyud-multi_gate", changes={"optimizer": "adamw"}).options(795, quiet=True)
    assert (adamw.optimizer, adamw.schedule, adamw.lr, adamw.warmup) == ("adamw", "cosine", 5e-4, 5 * 199)
    assert adamw.quiet


def test_own_file_overrides_a_recipe(file) -> None:
    path = file('recipe = "small-nyud-multi_gate"\nbatch = 2\ntasks = ["depth", "edge"]\n'
                '[network]\nhead = "light"\n[outputs.depth]\nkind = "log_depth"\nloss = "log_depth"\n')  # fmt: skip
    recipe, base = load_recipe(path), load_recipe("small-nyud-multi_gate")
    net, wanted = recipe_network(recipe), recipe_network(base)
    assert (recipe.name, recipe.batch, recipe.tasks, recipe.epochs) == ("mine", 2, ("depth", "edge"), base.epochs)
    assert net.task("depth").kind == "log_depth" and net.task("edge") == wanted.task("edge")
    assert dataclasses.replace(net, name=wanted.name, tasks=wanted.tasks, head="pup") == wanted
    assert load_recipe(path, tasks=("edge",), changes={"batch": 9}).batch == 9
    assert load_recipe(path, tasks=("edge",)).tasks == ("edge",)


def test_own_file_may_hold_everything(file) -> None:
    recipe = load_recipe(file(OWN))
    assert recipe.losses() == {"loss_weights": {"depth": 4.0}, "loss_names": {}}
    assert recipe_network(recipe).tasks[0].kind == "log_depth"
    assert recipe.options(10).steps == 2 * 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch = 3", "batch = 3\nbach = 3", "bach: unknown field: expected one of"),
        ("batch = 3", "batch = 3\nbatch = 4", r"batch: given twice \(line 7\)"),
        ("[sgd]", "[network]\n[sgd]", r"network: given twice \(line"),
        ("batch = 3", "", "batch: missing"),
        ("batch = 3", "batch = 0", "batch = 0: expected at least 1"),
        ("batch = 3", "batch = 3.5", "batch = 3.5: expected an integer"),
        ("batch = 3", "batch = true", "batch = True: expected an integer"),
        ("batch = 3", "batch =", "not valid TOML"),
        ("epochs = 2", "epochs = -1", "epochs = -1: expected at least 0"),
        ('"cityscapes"', '"kitti"', "dataset = 'kitti': expected one of scenes, pascal, nyud, cityscapes"),
        ('"sgd"', '"adam"', "optimizer = 'adam': expected one of sgd, adamw"),
        ('"sgd"', '"adamw"', "adamw: missing"),
        ("lr = 0.1", "", "sgd.lr: missing"),
        ("lr = 0.1", 'lr = "fast"', "sgd.lr = 'fast': expected a number"),
        ("lr = 0.1", "lr = nan", "sgd.lr = nan: expected a finite number"),
        ("lr = 0.1", "lr = 0", "sgd.lr = 0: expected more than 0"),
        ("momentum = 0", "momentum = 1", "sgd.momentum = 1: expected at least 0 and less than 1"),
        ("momentum = 0", "momentum = 0\nclip = -1", "sgd.clip = -1: expected at least 0"),
        ("momentum = 0", "momentum = 0\nwarmup_epochs = -0.1", "sgd.warmup_epochs = -0.1: expected at least 0"),
        ('schedule = "poly"', 'schedule = "step"', "sgd.schedule = 'step': expected cosine or poly"),
        ('"sgd"', '"adamw"\nadamw = {lr = 1, beta1 = 1, beta2 = 0, weight_decay = 0, schedule = "poly"}',
         "adamw.beta1 = 1: expected at least 0 and less than 1"),
        ('"sgd"', '"sgd"\nprecision = "half"', "precision = 'half': expected auto or float32"),
        ("gate_noise = 0", "gate_noise = -1", "gate_noise = -1: expected at least 0"),
        ("lr = 1e-3", "lr = 0", "quantization.lr = 0: expected more than 0"),
        ("weight_bits = 4", "weight_bits = 1", "quantization.weight_bits = 1: expected 2 to 8"),
        ("momentum = 0", "momentums = 0", "sgd.momentums: unknown field"),
        ('["depth"]', '["depth", "semseg"]', "tasks: 'semseg': expected one of depth"),
        ('["depth"]', '["depth", "depth"]', "tasks: 'depth' is given twice"),
        ('["depth"]', "[]", r"tasks = \[\]: expected at least one task"),
        ('["depth"]', "[1]", r"tasks\[0\] = 1: expected text"),
        ('["depth"]', '"depth"', "tasks = 'depth': expected a list"),
        ("channels = 1", "", "outputs.depth.channels: missing"),
        ('"log_depth"', '"metres"', "outputs.depth.kind = 'metres': expected one of labels"),
        ("weight = 4", 'loss = "balanced"', "outputs.depth.loss = 'balanced': expected one of log_depth"),
        ("weight = 4", "weight = 0", "outputs.depth.weight = 0: expected more than 0"),
        ("weight_bits = 4", "", "quantization.weight_bits: missing"),
        ("[network]", "[nework]", "nework: unknown field"),
        ('"m3vit-demo"', '"m3vit-huge"', "network.preset = 'm3vit-huge': expected one of m3vit-demo"),
        ('"m3vit-demo"', '"m3vit-demo"\npatch = 7', "image_height = 64: expected a multiple of patch = 7"),
        ('"m3vit-demo"', '"m3vit-demo"\nhead = "big"', "head = 'big': expected one of light, pup"),
        ("[sgd]", 'network.depth = "x"\n[sgd]', "network.*: unknown field|given twice|outputs.depth.network"),
        ('dataset = "cityscapes"', 'recipe = "huge-nyud-multi_gate"', "recipe 'huge-nyud-multi_gate': expected SIZE"),
    ],
)
def test_errors_name_file_and_field(file, old: str, new: str, message: str) -> None:
    assert OWN.count(old) >= 1
    with pytest.raises(ConfigError, match=rf"mine.toml: (.*: )?({message})") as caught:
        recipe_network(load_recipe(file(OWN.replace(old, new, 1))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small-nyud-single_task", "expected small-nyud-single_task-TASK with one of semseg, depth"),
        ("small-nyud-single_task-sal", "with one of semseg, depth, normals, edge"),
        ("small-nyud-multi_gate-depth", "without a task"),
        ("small-scenes-multi_gate", "data set 'scenes': expected one of pascal, nyud, nyud2, cityscapes"),
        ("demo-nyud-multi_gate", "data set 'nyud'"),
        ("nothing", "expected SIZE-DATASET-MODE"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.toml: cannot read recipe: No such file"):
        load_recipe(tmp_path / "none.toml")
