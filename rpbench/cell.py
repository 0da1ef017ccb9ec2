"""A cell: task x model x scheme x density x seed, and everything else that was asked of one training."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from rpbench import options
from rpbench.budget import check_density
from rpbench.catalog import is_shelved_sampler, is_shelved_scheme, isolated_sampler, isolated_scheme
from rpbench.errors import UsageError
from rpbench.models import ModelName, resolve
from rpbench.record import run_id
from rpbench.sampler import Sampler
from rpbench.scheme import Scheme
from rpbench.streams import Seeds
from rpbench.task import Attack, Task, load_attack, load_set, load_task, spec, with_overrides

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Cell:
    """Everything that decides one training, resolved and checked. The four axes with one value today (`init`,
    `source`, `procedure`, and `precision` with two) are in the identity from the first day."""

    given_task: str
    task: Task
    spec: str
    overrides: dict[str, Any]
    attacks: dict[str, Attack]
    given_model: str
    model: ModelName
    given_scheme: str
    scheme: Scheme
    scheme_args: dict[str, Any]
    scheme_source: str
    given_sampler: str
    sampler: Sampler
    sampler_args: dict[str, Any]
    sampler_source: str
    density: float
    seeds: Seeds
    precision: Precision = "fp32"
    limit: int | None = None
    limit_test: int | None = None
    micro_batch: int | None = None
    init: str = "default"
    source: str = "none"
    procedure: str = "static"

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked, as plain values; options only where they differ from their defaults."""
        return {
            "task": {"name": self.task.name, "version": self.task.version, "spec": self.spec},
            "overrides": self.overrides,
            "model": self.model.name,
            "scheme": {"name": self.scheme.name, "args": options.chosen(self.scheme.function, self.scheme_args)},
            "sampler": {"name": self.sampler.name, "args": options.chosen(self.sampler.function, self.sampler_args)},
            "density": self.density,
            "init": self.init,
            "source": self.source,
            "procedure": self.procedure,
            "precision": self.precision,
            "seeds": asdict(self.seeds),
            "limit": self.limit,
            "limit_test": self.limit_test,
            "micro_batch": self.micro_batch,
        }

    def run_id(self, data_differences: Mapping[str, int | str]) -> str:
        """The name of the cell's folder. Images that are not those of the definition make another cell."""
        asked = self.asked
        # a name on the shelf is known by its name; a file of one's own by what is in it
        if self.model.source:
            asked["model"] = f"{self.model.title}@{self.model.source[:16]}"
        if not is_shelved_scheme(self.given_scheme):
            asked["scheme"]["source"] = self.scheme_source[:16]
        if not is_shelved_sampler(self.given_sampler):
            asked["sampler"]["source"] = self.sampler_source[:16]
        if data_differences:
            asked["data"] = dict(data_differences)
        return run_id(asked)

    def changed_since(self, scheme_source: str) -> list[str]:
        """What has changed since a record was made that its identity does not hold: the source of a shelved scheme."""
        if scheme_source == self.scheme_source:
            return []
        return [f"the source of scheme '{self.scheme.name}' has changed since this record was made"]

    @property
    def command(self) -> str:
        """The shortest command that asks for this cell."""
        words = ["rpbench", "run", "--task", self.given_task, "--model", self.given_model]
        scheme = options.written(self.given_scheme, self.scheme.function, self.scheme_args)
        words += ["--scheme", scheme, "--density", f"{self.density!r}", "--seed", str(self.seeds.run)]
        if self.given_sampler != "exact" or self.sampler_args:
            words += ["--sampler", options.written(self.given_sampler, self.sampler.function, self.sampler_args)]
        for name in ("mask", "init", "order"):
            if getattr(self.seeds, name) != self.seeds.run:
                words += [f"--{name}-seed", str(getattr(self.seeds, name))]
        if self.precision != "fp32":
            words += ["--precision", self.precision]
        for key, value in self.overrides.items():
            words += ["--set", f"{key}={_toml(value)}"]
        for flag, number in (("limit", self.limit), ("limit-test", self.limit_test), ("micro-batch", self.micro_batch)):
            if number is not None:
                words += [f"--{flag}", str(number)]
        return shlex.join(words)


def ask(
    task: str = "digits",
    model: str | None = None,
    scheme: str | None = None,
    density: float | None = None,
    sampler: str = "exact",
    seed: int = 0,
    mask_seed: int | None = None,
    init_seed: int | None = None,
    order_seed: int | None = None,
    precision: Precision = "fp32",
    overrides: tuple[str, ...] = (),
    limit: int | None = None,
    limit_test: int | None = None,
    micro_batch: int | None = None,
) -> Cell:
    """Resolve names and check values; what is not given comes from the task's defaults.

    Raises UsageError (unknown names, wrong values) before anything is opened or written.
    """
    declared = load_task(task)
    used, changed = with_overrides(declared, overrides)
    for name in used.set_names:
        load_set(name)
    given_scheme = scheme or declared.defaults.scheme
    found, scheme_given = isolated_scheme(given_scheme)
    args = options.bind(found.name, found.function, scheme_given)
    if density is None:
        density = found.density if found.density is not None else declared.defaults.density
    density = check_density(density)
    if found.density is not None and density != found.density:
        raise UsageError(f"'{found.name}' is density {found.density:g} by definition, not {density:g}")
    drawer, sampler_given = isolated_sampler(sampler)
    if drawer.scored and found.kind != "score":
        raise UsageError(f"sampler '{drawer.name}' keeps a scheme's best-scored weights, '{found.name}' scores none")
    given_model = model or declared.defaults.model
    return Cell(
        given_task=task,
        task=used,
        spec=spec(declared),
        overrides=changed,
        attacks={attack.name: attack for attack in map(load_attack, used.evaluation.attacks)},
        given_model=given_model,
        model=resolve(given_model, used.family),
        given_scheme=options.parse(given_scheme)[0],
        scheme=found,
        scheme_args=args,
        scheme_source=found.source_hash,
        given_sampler=options.parse(sampler)[0],
        sampler=drawer,
        sampler_args=options.bind(drawer.name, drawer.function, sampler_given),
        density=density,
        sampler_source=drawer.source_hash,
        seeds=_seeds(seed, init=init_seed, mask=mask_seed, order=order_seed),
        precision=precision,
        limit=limit,
        limit_test=limit_test,
        micro_batch=micro_batch,
    )


def read_density(density: str | None, sparsity: str | None) -> float | None:
    """--density or --sparsity as a density: 1 - sparsity by decimal arithmetic, so that 0.9 is the cell of 0.1."""
    if density is not None and sparsity is not None:
        raise UsageError("give --density or --sparsity, not both: sparsity is 1 - density")
    text = density if density is not None else sparsity
    if text is None:
        return None
    word = "density" if density is not None else "sparsity"
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"--{word} '{text}' is not a number: give a fraction such as 0.1") from None
    if not number.is_finite():
        raise UsageError(f"--{word} {text} is not a finite number: give a fraction such as 0.1")
    if word == "sparsity":
        if not 0 <= number < 1:
            raise UsageError(f"--sparsity {text} is not a fraction of weights removed: give one from 0 up to below 1")
        number = 1 - number
    return check_density(float(number))


def _seeds(run: int, **streams: int | None) -> Seeds:
    """The run's seed and those of its streams: equal to it unless set apart."""
    for name, number in (("seed", run), *((f"{name}-seed", number) for name, number in streams.items())):
        if number is not None and number < 0:
            raise UsageError(f"--{name} {number}: seeds are whole numbers from 0")
    return Seeds(run=run, **{name: run if number is None else number for name, number in streams.items()})


def _toml(value: Any) -> str:
    import json

    return json.dumps(value)
