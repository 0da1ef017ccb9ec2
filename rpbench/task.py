"""Tasks, image sets and attacks: validated models of the TOML files in `tasks/`.

Every faulty key of a file is reported at once, with its place, line, value and what would be right.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rpbench.catalog import definition, known_scheme
from rpbench.errors import BadDefinition, UnknownName

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Reference = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._-]*|.*\.toml)$")]  # a name on the shelf, or a file
Fraction = Annotated[float, Field(ge=0, le=1)]
Density = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Definition(BaseModel):
    """Base of everything read from TOML: frozen, unknown keys rejected, no NaN, no silent conversions of text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Split(Definition):
    """One split of an image set: its size, and the fingerprint of its images where known."""

    n: Count
    fingerprint: str = ""


class Columns(Definition):
    image: str = "image"
    label: str = "label"


class ImageSet(Definition):
    """A set of labelled images: where it comes from, how large it is.

    `source` "hub": a dataset of the Hugging Face hub at a pinned revision (or a folder in one of the accepted
    layouts), `folder` a folder inside it; "folder": only a folder given by the user; "embedded": ships with a Python
    package; "generated": N(mean, sigma^2) from a counter-based stream, or with `base = "test"` the task's own test
    images plus N(0, sigma^2).
    """

    name: Name
    summary: str
    url: str
    source: Literal["hub", "folder", "embedded", "generated"]
    repo: str = ""
    revision: str = Field(default="", pattern=r"^([0-9a-f]{40})?$")
    folder: str = ""
    columns: Columns = Columns()
    labels: bool = True
    size: Count | None = None
    channels: Literal[1, 3] | None = None
    aliases: tuple[str, ...] = ()
    base: Literal["", "test"] = ""
    mean: Fraction = 0.0
    sigma: Annotated[float, Field(ge=0)] = 0.0
    splits: dict[str, Split] = {}

    @model_validator(mode="after")
    def _complete(self) -> ImageSet:
        if self.source == "hub" and not (self.repo and self.revision):
            raise ValueError("a hub set needs repo and a pinned revision")
        if self.source == "generated" and self.sigma <= 0:
            raise ValueError("a generated set needs sigma > 0")
        if self.source != "generated" and not self.splits:
            raise ValueError("a set needs at least one [splits.*]")
        return self


class Attack(Definition):
    """An adversarial attack in pixel space [0, 1], normalisation inside the model."""

    name: Name
    summary: str
    url: str
    kind: Literal["fgsm"]
    eps_255: Annotated[float, Field(ge=0, le=255)]

    @property
    def eps(self) -> float:
        return self.eps_255 / 255


class Data(Definition):
    """Which images are trained and tested on. `validation` training images are held out to select the epoch."""

    set: Reference
    train: str = "train"
    test: str = "test"
    classes: Annotated[int, Field(ge=2)]
    channels: Literal[1, 3]
    size: Annotated[int, Field(ge=2)]
    validation: Count
    pipeline: Literal["resident", "stream"]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]

    @model_validator(mode="after")
    def _channels(self) -> Data:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, one per channel")
        return self


class Augment(Definition):
    """How training images are varied. Resident sets: pad and crop, flip; streamed sets: RandomResizedCrop, flip."""

    pad: Annotated[int, Field(ge=0)] = 0
    pad_mode: Literal["reflect", "constant"] = "reflect"
    flip: bool = False
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    resize: Count = 256


class Recipe(Definition):
    """Every number that decides the training. `drops` are fractions of the epochs at which the rate is multiplied by
    `factor`; `decay` says which parameters weight decay acts on; `probe_batch` is the batch that data-driven schemes
    are shown."""

    epochs: Count
    batch: Count
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0)]
    decay: Literal["all", "weights"]
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    factor: Positive
    warmup: Annotated[float, Field(ge=0, lt=1)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    probe_batch: Count

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError("drops must rise")
        return self


class Evaluation(Definition):
    """What a trained net is scored on beside its test images."""

    top5: bool = False
    ood: tuple[Reference, ...] = ()
    attacks: tuple[Reference, ...] = ()
    batch: Count = 500


class Defaults(Definition):
    model: str
    scheme: str
    density: Density


class Expected(Definition):
    """A number that the source reports, with its place."""

    model: str
    scheme: str
    density: Density
    metric: str
    value: float
    place: str


class Task(Definition):
    """A benchmark definition: data, recipe, models and evaluations under one version."""

    name: Name
    version: Count
    summary: str
    url: str
    family: Literal["cifar", "imagenet"]
    models: tuple[str, ...]
    data: Data
    augment: Augment = Augment()
    recipe: Recipe
    evaluation: Evaluation = Evaluation()
    defaults: Defaults
    expected: tuple[Expected, ...] = ()

    @model_validator(mode="after")
    def _padding(self) -> Task:
        if self.augment.pad_mode == "reflect" and self.augment.pad >= self.data.size:
            raise ValueError(
                f"augment.pad {self.augment.pad} must be smaller than data.size {self.data.size} to reflect"
            )
        return self

    @property
    def set_names(self) -> tuple[str, ...]:
        """Every image set that the task needs, its own first."""
        return (self.data.set, *self.evaluation.ood)


M = TypeVar("M", bound=Definition)


def load_task(given: str) -> Task:
    """The task that `given` names: a shelf name or a TOML file."""
    path = definition("task", "tasks", given)
    task = load_definition(Task, path)
    faults = []
    for place, load, name in _names_in(task):
        try:
            load(name)
        except UnknownName as error:
            line = _line(path.read_text(), place.split("."))
            faults.append(f"{place}{f' (line {line})' if line else ''}: {error}")
    if faults:
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise BadDefinition(f"{path}: {count}: " + "; ".join(faults))
    return task


def _names_in(task: Task) -> Iterator[tuple[str, Callable[[str], Any], str]]:
    """(place, what resolves it, name) of everything that a task refers to by name."""
    yield "data.set", load_set, task.data.set
    yield from (("evaluation.ood", load_set, name) for name in task.evaluation.ood)
    yield from (("evaluation.attacks", load_attack, name) for name in task.evaluation.attacks)
    yield "defaults.scheme", known_scheme, task.defaults.scheme


def load_set(given: str) -> ImageSet:
    return load_definition(ImageSet, definition("image set", "tasks.images", given))


def load_attack(given: str) -> Attack:
    return load_definition(Attack, definition("attack", "tasks.attacks", given))


def spec(task: Task, parts: Sequence[Definition] | None = None) -> str:
    """sha256 of everything in a task's definition, its image sets and attacks (`parts`) that can move a score."""
    told = {"summary", "url", "expected", "defaults", "models", "aliases"}
    if parts is None:
        parts = [*map(load_set, task.set_names), *map(load_attack, task.evaluation.attacks)]
    content = [part.model_dump(mode="json", exclude=told) for part in (task, *parts)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def with_overrides(task: Task, settings: tuple[str, ...]) -> tuple[Task, dict[str, Any]]:
    """The task with `--set recipe.epochs=1` style settings, and the settings that changed something.

    Raises BadDefinition naming the key, the value and what would be right.
    """
    content = task.model_dump(mode="json", exclude_defaults=False)
    asked: list[tuple[list[str], str]] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise BadDefinition(f"--set {setting}: write KEY=VALUE, as in recipe.epochs=1")
        place, value = content, _value(text)
        *path, last = key.split(".")
        for part in path:
            inner = place.get(part) if isinstance(place, dict) else None
            if not isinstance(inner, dict):
                raise _unknown_key(task, key)
            place = inner
        if last not in place or isinstance(place[last], dict) or not path or path[0] == "defaults":
            raise _unknown_key(task, key)
        place[last] = value
        asked.append((path, last))
    try:
        found = _validate(Task, content)
    except ValidationError as error:
        raise BadDefinition("; ".join(f"--set {fault}" for fault in _faults(error, ""))) from None
    before, after = task.model_dump(mode="json"), found.model_dump(mode="json")
    changed = {f"{p[0]}.{last}": after[p[0]][last] for p, last in asked if before[p[0]][last] != after[p[0]][last]}
    return found, changed


def set_keys(task: Task) -> list[str]:
    """Every key that --set accepts."""
    content = task.model_dump(mode="json")
    return [f"{a}.{b}" for a, inner in content.items() if isinstance(inner, dict) and a != "defaults" for b in inner]


def _unknown_key(task: Task, key: str) -> UnknownName:
    return UnknownName("key for --set", key, set_keys(task))


def _value(text: str) -> Any:
    """A TOML value; text that is none stands for itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def load_definition(kind: type[M], path: Path) -> M:
    """A definition read from a TOML file; BadDefinition says everything that is wrong with it."""
    try:
        text = path.read_text()
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadDefinition(f"{path}: not TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadDefinition(f"{path}: cannot be read: {error}") from None
    try:
        return _validate(kind, content)
    except ValidationError as error:
        faults = _faults(error, text)
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise BadDefinition(f"{path}: {count}: " + "; ".join(faults)) from None


def _validate(kind: type[M], content: dict[str, Any]) -> M:
    """Through JSON, where strict mode takes a list for a tuple and a whole number for a float, but not "3" for 3."""
    return kind.model_validate_json(json.dumps(content, default=str), strict=True)


def _faults(error: ValidationError, text: str) -> list[str]:
    """One phrase per fault: key (line), what is there, what would be right."""
    found = []
    places = {fault["loc"] for fault in error.errors(include_url=False)}
    for fault in error.errors(include_url=False):
        if fault["type"] == "too_short" and any(p[: len(fault["loc"])] == fault["loc"] != p for p in places):
            continue  # short only because what it holds has faults of its own
        parts = [str(part) for part in fault["loc"]]
        line = _line(text, parts)
        where = ".".join(parts) + (f" (line {line})" if line else "")
        message = str(fault["msg"]).removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if fault["type"] == "missing":
            found.append(f"{where or 'the file'} is missing")
        elif fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], [key for key in _keys() if key != parts[-1]], n=1)
            found.append(f"{where} is not a key that exists here" + (f": did you mean '{near[0]}'?" if near else ""))
        elif isinstance(fault["input"], dict):
            found.append(f"{where or 'the file'}: {message}")
        else:
            found.append(f"{where} is {json.dumps(fault['input'], default=str)}: {message}")
    return found


def _keys() -> list[str]:
    return sorted({key for kind in Definition.__subclasses__() for key in kind.model_fields})


def _line(text: str, path: list[str]) -> int | None:
    """The line of a key in TOML text, as far as a look at table headers and key names tells."""
    table: list[str] = []
    best = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            if table == path:
                best = number
        elif key := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
            full = [*table, *(part.strip("\"'") for part in key[1].split("."))]
            if full == path[: len(full)] and len(full) > len(table):
                best = number
    return best
