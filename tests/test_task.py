"""Definitions: every file on the shelves, faults and their reports, overrides, the spec hash, the learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rpbench.task
from rpbench import catalog
from rpbench.catalog import find_scheme
from rpbench.errors import BadDefinition, UnknownName, UsageError
from rpbench.models import resolve
from rpbench.task import Task, load_attack, load_set, load_task, set_keys, with_overrides
from rpbench.train import rate

TASKS = catalog.names("tasks", ".toml")
SETS = catalog.names("tasks.images", ".toml")
ATTACKS = catalog.names("tasks.attacks", ".toml")

# A changed hash means a changed definition: bump the task's `version`, then pin the new hash here.
SPECS = {
    ("cifar10", 1): "ab5f7d5c52efee7d01ee75c0833c35effa2dc998dfef00ad98b52120ef3c14c0",
    ("cifar10-cpu", 1): "b6d1e0a9fe059d36ac220bd36532be237ee77b9673e020a13ed52566bce1ed1d",
    ("cifar100", 1): "643f6d42989d8e9322eb76debaf908accf1793eb9b2030d40099c1712d3d9a82",
    ("digits", 1): "1fe786f59f5b6b0ffa9cff9a75a167c643e2fe409c7831573c9ad28f94587c58",
    ("imagenet", 1): "773c0a218f26a13edd0ae951e4bc6c197adcb57321a11e01f4b8face2e6449e8",
}


def spec(task: Task, part: str = "", name: str = "", **changes: Any) -> str:
    """The spec of a task, with one of its sets ("set") or attacks ("attack") changed."""
    sets = {n: load_set(n) for n in task.set_names}
    attacks = {n: load_attack(n) for n in task.evaluation.attacks}
    if part == "set":
        sets[name] = sets[name].model_copy(update=changes)
    if part == "attack":
        attacks[name] = attacks[name].model_copy(update=changes)
    return rpbench.task.spec(task, [*sets.values(), *attacks.values()])


def changed_file(folder: Path, *replacements: tuple[str, str], name: str = "digits") -> Path:
    """A copy of a shipped task with pieces of its text replaced."""
    text = (catalog.shelf("tasks") / f"{name}.toml").read_text()
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = folder / "mine.toml"
    file.write_text(text)
    return file


def line_of(file: Path, start: str) -> int:
    return next(i for i, line in enumerate(file.read_text().splitlines(), start=1) if line.startswith(start))


def fault(file: Path) -> str:
    """What is said about a faulty file: one line that names it."""
    with pytest.raises(BadDefinition) as error:
        load_task(str(file))
    text = str(error.value)
    assert str(file) in text
    assert "\n" not in text
    return text


# the shelves


def test_shelves_are_the_folders_of_the_tree() -> None:
    root = Path(__file__).resolve().parent.parent / "tasks"
    assert sorted(p.stem for p in root.glob("*.toml")) == TASKS
    assert sorted(p.stem for p in (root / "images").glob("*.toml")) == SETS
    assert sorted(p.stem for p in (root / "attacks").glob("*.toml")) == ATTACKS


@pytest.mark.parametrize("name", TASKS)
def test_task_loads_under_its_file_name(name: str) -> None:
    assert load_task(name).name == name


@pytest.mark.parametrize("name", SETS)
def test_image_set_loads_under_its_file_name(name: str) -> None:
    image_set = load_set(name)
    assert image_set.name == name
    assert image_set.source != "hub" or len(image_set.revision) == 40
    assert all(split.fingerprint == "" or len(split.fingerprint) == 64 for split in image_set.splits.values())


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_loads_under_its_file_name(name: str) -> None:
    assert load_attack(name).name == name


def test_fgsm_8_is_8_of_255() -> None:
    assert load_attack("fgsm-8").eps == 8 / 255


@pytest.mark.parametrize("name", TASKS)
def test_everything_that_a_task_names_exists(name: str) -> None:
    task = load_task(name)
    own = load_set(task.data.set)
    assert {task.data.train, task.data.test} <= own.splits.keys()
    assert own.size in (None, task.data.size)
    assert own.channels in (None, task.data.channels)
    for ood in task.evaluation.ood:
        image_set = load_set(ood)
        assert image_set.source == "generated" or {"test", "validation"} & image_set.splits.keys()
        assert image_set.name != task.data.set
    for attack in task.evaluation.attacks:
        load_attack(attack)
    for model in task.models:
        assert resolve(model, task.family).family == task.family
    assert task.defaults.model in task.models
    find_scheme(task.defaults.scheme)
    for expected in task.expected:
        assert expected.model in task.models
        assert 0 < expected.value < 1
        find_scheme(expected.scheme)


@pytest.mark.parametrize("name", TASKS)
def test_normalisation_has_one_number_per_channel(name: str) -> None:
    data = load_task(name).data
    assert len(data.mean) == len(data.std) == data.channels
    assert all(0 < value < 1 for value in (*data.mean, *data.std))


# names and paths


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("cifar1O", "cifar10"), ("CIFAR100", "cifar100"), ("digit", "digits"), ("imagnet", "imagenet")],
)
def test_unknown_task_suggests_the_nearest_and_lists_all(given: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match=f"no task '{given}': did you mean '{nearest}'") as error:
        load_task(given)
    assert all(name in str(error.value) for name in TASKS)


def test_unknown_set_and_attack() -> None:
    with pytest.raises(UnknownName, match="no image set 'cifar11'"):
        load_set("cifar11")
    with pytest.raises(UnknownName, match="no attack 'fgsm-9': did you mean 'fgsm-8'"):
        load_attack("fgsm-9")


def test_task_by_path(tmp_path: Path) -> None:
    assert load_task(str(changed_file(tmp_path, ("epochs = 30", "epochs = 3")))).recipe.epochs == 3


def test_path_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        load_task(str(tmp_path / "nothing.toml"))


# faults


def test_three_faults_are_reported_at_once(tmp_path: Path) -> None:
    file = changed_file(
        tmp_path,
        ("epochs = 30", 'epochs = "thirty"'),
        ("validation = 200", "validation = 200\ncolour = 1"),
        ("\nlr = 0.1", ""),
    )
    text = fault(file)
    assert "3 faults" in text
    assert f'recipe.epochs (line {line_of(file, "epochs")}) is "thirty": input should be a valid integer' in text
    assert f"data.colour (line {line_of(file, 'colour')}) is not a key" in text
    assert "recipe.lr is missing" in text


def test_faults_in_several_tables(tmp_path: Path) -> None:
    file = changed_file(tmp_path, ("density = 0.2", "density = 0"), ("batch = 64", "batch = -1"), ("version = 1", ""))
    text = fault(file)
    assert "3 faults" in text
    assert f"defaults.density (line {line_of(file, 'density')}) is 0" in text
    assert f"recipe.batch (line {line_of(file, 'batch')}) is -1" in text
    assert "version is missing" in text


def test_missing_table(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text((catalog.shelf("tasks") / "digits.toml").read_text().split("[evaluation]")[0])
    assert "1 fault: defaults is missing" in fault(file)


def test_unknown_key_says_what_would_be_right(tmp_path: Path) -> None:
    assert "'epochs'" in fault(changed_file(tmp_path, ("epochs = 30", "epochs = 30\nepoch = 30")))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = 30", "epochs = 30.0", "recipe.epochs"),
        ("epochs = 30", "epochs = true", "recipe.epochs"),
        ("epochs = 30", "epochs = 0", "recipe.epochs"),
        ("\nlr = 0.1", '\nlr = "0.1"', "recipe.lr"),
        ("\nlr = 0.1", "\nlr = nan", "recipe.lr"),
        ("\nlr = 0.1", "\nlr = inf", "recipe.lr"),
        ("factor = 0.1", "factor = -inf", "recipe.factor"),
        ("std = [0.376]", "std = [nan]", "data.std.0"),
        ("momentum = 0.9", "momentum = 1.0", "recipe.momentum"),
        ("momentum = 0.9", "momentum = 0.0", "nesterov needs momentum > 0"),
        ("nesterov = true", "nesterov = 1", "recipe.nesterov"),
        ("drops = [0.5, 0.75]", "drops = [0.75, 0.5]", "drops must rise"),
        ("drops = [0.5, 0.75]", "drops = [0.5, 1.0]", "recipe.drops.1"),
        ("mean = [0.305]", "mean = [0.3, 0.3, 0.3]", "mean and std need 1 numbers"),
        ("channels = 1", "channels = 2", "data.channels"),
        ('pad_mode = "constant"', 'pad_mode = "circular"', "augment.pad_mode"),
        ('name = "digits"', 'name = "My Digits"', "name (line 2)"),
        ("[defaults]", "[default]", "default (line"),
    ],
)
def test_wrong_value(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert said in fault(changed_file(tmp_path, (old, new)))


def test_whole_number_stands_for_a_float(tmp_path: Path) -> None:
    assert load_task(str(changed_file(tmp_path, ("\nlr = 0.1", "\nlr = 1")))).recipe.lr == 1.0


@pytest.mark.parametrize("text", ["name = \nx = 1", "[recipe\n", "a = 1\na = 2\n", "epochs: 3"])
def test_syntax_error_names_the_file_and_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    said = fault(file)
    assert "not TOML" in said
    assert "line" in said


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b""])
def test_file_that_is_no_definition(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    fault(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('source = "hub"\nrepo = "a/b"\nrevision = "main"', "revision"),
        ('source = "hub"', "a hub set needs repo and a pinned revision"),
        ('source = "generated"', "a generated set needs sigma > 0"),
        ('source = "folder"', r"a set needs at least one \[splits"),
        ('source = "ftp"', "source"),
    ],
)
def test_incomplete_image_set(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "pictures.toml"
    file.write_text(f'name = "pictures"\nsummary = ""\nurl = ""\n{text}\n')
    with pytest.raises(BadDefinition, match=said):
        load_set(str(file))


# --set


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("recipe.epochs=1", "recipe.epochs", 1),
        ("recipe.lr=0.5", "recipe.lr", 0.5),
        ("recipe.lr=1", "recipe.lr", 1.0),
        ("recipe.nesterov=false", "recipe.nesterov", False),
        ("recipe.drops=[]", "recipe.drops", []),
        ("augment.pad_mode=constant", "augment.pad_mode", "constant"),
        ('augment.pad_mode="constant"', "augment.pad_mode", "constant"),
        ('evaluation.ood=["noise"]', "evaluation.ood", ["noise"]),
    ],
)
def test_override(setting: str, key: str, value: Any) -> None:
    task, changed = with_overrides(load_task("cifar10"), (setting,))
    assert changed == {key: value}
    table, field = key.split(".")
    found = getattr(getattr(task, table), field)
    assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("recipe.epochs=160",),
        ("recipe.drops=[0.5, 0.75]",),
        ("augment.pad_mode=reflect",),
        ("recipe.weight_decay=0.0005",),
        ("recipe.epochs=1", "recipe.epochs=160"),
    ],
)
def test_unchanged_value_is_no_override(settings: tuple[str, ...]) -> None:
    task = load_task("cifar10")
    assert with_overrides(task, settings) == (task, {})


def test_last_of_two_settings_counts() -> None:
    task, changed = with_overrides(load_task("cifar10"), ("recipe.epochs=1", "recipe.epochs=2"))
    assert task.recipe.epochs == 2
    assert changed == {"recipe.epochs": 2}


def test_equal_overrides_are_written_alike() -> None:
    """The overrides are part of a cell's identity: 1 and 1.0 are the same learning rate."""
    task = load_task("cifar10")
    told = {json.dumps(with_overrides(task, (f"recipe.lr={text}",))[1]) for text in ("1", "1.0", "1e0")}
    assert len(told) == 1


@pytest.mark.parametrize(
    "key",
    ["recipe.epoch", "epochs", "recipe", "recipe.epochs.x", "version", "name", "", "defaults.density", "nothing.x"],
)
def test_unknown_override(key: str) -> None:
    with pytest.raises(UnknownName, match=r"no key for --set .*there is .*recipe\.epochs"):
        with_overrides(load_task("cifar10"), (f"{key}=1",))


def test_unknown_override_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'recipe\.epochs'"):
        with_overrides(load_task("cifar10"), ("recipe.epoch=1",))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("recipe.epochs", "write KEY=VALUE"),
        ("recipe.epochs=", "recipe.epochs is"),
        ("recipe.epochs=many", 'recipe.epochs is "many"'),
        ('recipe.epochs="3"', 'recipe.epochs is "3"'),
        ("recipe.epochs=1.5", "recipe.epochs is 1.5"),
        ("recipe.epochs=160.0", "recipe.epochs is 160.0"),
        ("recipe.epochs=0", "recipe.epochs is 0"),
        ("recipe.lr=nan", "recipe.lr is NaN"),
        ("recipe.lr=inf", "recipe.lr is Infinity"),
        ("recipe.lr=-0.1", "recipe.lr is -0.1"),
        ("recipe.nesterov=1", "recipe.nesterov is 1"),
        ("recipe.drops=0.5", "recipe.drops is 0.5"),
        ("data.mean=[0.5]", "mean and std need 3 numbers"),
    ],
)
def test_wrong_override(setting: str, said: str) -> None:
    with pytest.raises(BadDefinition) as error:
        with_overrides(load_task("cifar10"), (setting,))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_overrides_are_reported_at_once() -> None:
    with pytest.raises(BadDefinition, match=r"recipe\.epochs is 0.*recipe\.lr is -1"):
        with_overrides(load_task("cifar10"), ("recipe.epochs=0", "recipe.lr=-1"))


@pytest.mark.parametrize("name", TASKS)
def test_every_listed_key_can_be_set(name: str) -> None:
    task = load_task(name)
    content = task.model_dump(mode="json")
    for key in set_keys(task):
        table, field = key.split(".")
        assert with_overrides(task, (f"{key}={json.dumps(content[table][field])}",)) == (task, {})


# the spec hash


@pytest.mark.parametrize("name", TASKS)
def test_shipped_spec_is_pinned(name: str) -> None:
    task = load_task(name)
    assert spec(task) == SPECS[task.name, task.version]


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("recipe", "epochs", 161),
        ("recipe", "lr", 0.2),
        ("recipe", "label_smoothing", 0.1),
        ("recipe", "drops", (0.5,)),
        ("data", "validation", 4999),
        ("data", "mean", (0.5, 0.5, 0.5)),
        ("augment", "pad", 3),
        ("evaluation", "attacks", ()),
        ("", "version", 2),
        ("", "family", "imagenet"),
    ],
)
def test_spec_moves_with_what_moves_a_score(table: str, field: str, value: Any) -> None:
    task = load_task("cifar10")
    update = {table: getattr(task, table).model_copy(update={field: value})} if table else {field: value}
    assert spec(task.model_copy(update=update)) != spec(task)


@pytest.mark.parametrize(
    ("part", "name", "changes"),
    [
        ("set", "cifar10", {"revision": "0" * 40}),
        ("set", "cifar10", {"repo": "another/cifar10"}),
        ("set", "svhn", {"folder": "full_numbers"}),
        ("set", "gaussian", {"sigma": 0.3}),
        ("attack", "fgsm-8", {"eps_255": 4.0}),
    ],
)
def test_spec_moves_with_sets_and_attacks(part: str, name: str, changes: dict[str, Any]) -> None:
    task = load_task("cifar10")
    assert spec(task, part, name, **changes) != spec(task)


def test_spec_stays_where_only_words_change() -> None:
    task = load_task("cifar10")
    defaults = task.defaults.model_copy(update={"model": "vgg16", "density": 0.1})
    words = {"summary": "", "url": "", "expected": (), "models": ("resnet20",), "defaults": defaults}
    for field, value in words.items():
        assert spec(task.model_copy(update={field: value})) == spec(task), field
    assert spec(task, "set", "cifar10", summary="", url="", aliases=()) == spec(task)
    assert spec(task, "attack", "fgsm-8", summary="", url="") == spec(task)


def test_spec_does_not_depend_on_the_layout_of_the_file(tmp_path: Path) -> None:
    respelt = ("epochs = 30", "# thirty\nepochs   =   30"), ("weight_decay = 5e-4", "weight_decay = 0.0005")
    file = changed_file(tmp_path, *respelt)
    assert spec(load_task(str(file))) == spec(load_task("digits"))


# the learning rate


@pytest.mark.parametrize("steps", [1, 7, 391])
@pytest.mark.parametrize(
    ("name", "epochs", "drops"),
    [
        ("cifar10", 160, [80, 120]),
        ("cifar10", 4, [2, 3]),
        ("cifar100", 160, [80, 120]),
        ("imagenet", 100, [30, 60, 90]),
        ("imagenet", 10, [3, 6, 9]),
        ("imagenet", 90, [27, 54, 81]),
    ],
)
def test_drops_fall_on_epochs(name: str, epochs: int, drops: list[int], steps: int) -> None:
    recipe = load_task(name).recipe.model_copy(update={"epochs": epochs})
    warm = round(recipe.warmup * epochs + 0.5)
    for epoch in range(warm, epochs):
        wanted = recipe.lr * 0.1 ** sum(epoch >= drop for drop in drops)
        assert rate(recipe, epoch, 0, steps) == pytest.approx(wanted, rel=1e-12)
        assert rate(recipe, epoch, steps - 1, steps) == pytest.approx(wanted, rel=1e-12)


def test_warm_up_is_linear_over_five_epochs() -> None:
    recipe, steps = load_task("imagenet").recipe, 10
    rates = [rate(recipe, epoch, step, steps) for epoch in range(6) for step in range(steps)]
    assert rates[:50] == pytest.approx([0.4 * (i + 1) / 50 for i in range(50)])
    assert rates[50:] == [0.4] * 10
