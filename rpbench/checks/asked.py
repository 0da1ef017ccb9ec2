"""Checks of what was asked: identity, protocol, budget, and whether a row has exactly its board's cells."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from rpbench import options
from rpbench.board import Choice, Context, Plan, Who, every_baseline, expand, own_density
from rpbench.budget import budget as budget_of
from rpbench.catalog import is_shelved_sampler, is_shelved_scheme, outline
from rpbench.checks.known import Known, bound, chosen
from rpbench.checks.told import Skipped, Told
from rpbench.errors import RpbenchError
from rpbench.record import RunRecord, SamplerPart, SchemePart, run_id
from rpbench.selection import Shelved, who_of
from rpbench.streams import Seeds
from rpbench.task import ImageSet, Task
from rpbench.untrusted import shown
from rpbench.verdict import Verdict

FLAGS = {
    "--task", "--model", "--scheme", "--density", "--seed", "--sampler", "--mask-seed", "--init-seed", "--order-seed",
    "--precision", "--set", "--limit", "--limit-test", "--micro-batch",
}  # fmt: skip


def identity(told: Told, known: Known) -> Iterator[str]:
    """The run's name is the hash of what the record says was asked; sources are those at hand; the command is ours."""
    record = told.record
    yield from _source_faults(record, known)
    yield from _command_faults(record)
    names = run_ids(record, known)
    if record.run_id not in names:
        yield f"run_id is {shown(record.run_id)}: what the record says was asked has {names[0]}"


def run_ids(record: RunRecord, known: Known) -> list[str]:
    """The names that a run of what this record says was asked may have, from the record alone.

    A scheme on the shelf is known by its name, a file of one's own by what is in it, also where both are called the
    same: then there are two.
    """
    model = record.model.name
    if record.model.source:
        model = f"{model.rpartition('/')[2]}@{record.model.source[:16]}"
    asked: dict[str, Any] = {
        "task": record.task.model_dump(include={"name", "version", "spec"}),
        "overrides": record.protocol.overrides,
        "model": model,
        "density": record.density.requested,
        "init": record.init,
        "source": record.source,
        "procedure": record.procedure,
        "precision": record.precision,
        "seeds": record.seeds.model_dump(include={"run", "init", "mask", "order"}),
        "limit": record.protocol.limit,
        "limit_test": record.protocol.limit_test,
        "micro_batch": record.micro_batch,
    }
    if differences := _data_differences(record, known):
        asked["data"] = differences
    schemes = _variants(record.scheme, _chosen_of_scheme(record, known), is_shelved_scheme(record.scheme.name))
    samplers = _variants(record.sampler, _chosen_of_sampler(record, known), is_shelved_sampler(record.sampler.name))
    return [run_id(asked | {"scheme": s, "sampler": d}) for s in schemes for d in samplers]


def _variants(part: SchemePart | SamplerPart, args: dict[str, Any], shelved: bool) -> list[dict[str, Any]]:
    plain = {"name": part.name, "args": args}
    own = plain | {"source": part.source[:16]}
    return [plain, own] if shelved else [own]


def _chosen_of_scheme(record: RunRecord, known: Known) -> dict[str, Any]:
    part = record.scheme
    return chosen(known.scheme(part.name, part.source).function, part.args) if part.args else {}


def _chosen_of_sampler(record: RunRecord, known: Known) -> dict[str, Any]:
    part = record.sampler
    return chosen(known.sampler(part.name, part.source).function, part.args) if part.args else {}


def _data_differences(record: RunRecord, known: Known) -> dict[str, int | str]:
    """What the record's images have other than their definitions: it makes another cell."""
    found: dict[str, int | str] = {}
    for _, image_set, split, fact in _facts(record, known):
        declared, n, print_ = image_set.splits.get(split), fact.get("n"), fact.get("fingerprint")
        if declared is None or not fact:
            continue
        if isinstance(n, int) and n != declared.n:
            found[f"{image_set.name}/{split}"] = n
        elif declared.fingerprint and print_ != declared.fingerprint:
            found[f"{image_set.name}/{split}"] = str(print_)[:12]
    return found


def _facts(record: RunRecord, known: Known) -> Iterator[tuple[str, ImageSet, str, dict[str, Any]]]:
    """(key in record.data, definition, split, what the record says) of every image set of a task, training first."""
    task, sets = known.task(record), known.sets(known.task(record))
    yield (
        f"{sets.own.name}/{task.data.train}",
        sets.own,
        task.data.train,
        record.data.get(f"{sets.own.name}/{task.data.train}", {}),
    )
    yield sets.own.name, sets.own, task.data.test, record.data.get(sets.own.name, {})
    yield from ((s.name, s, split, record.data.get(s.name, {})) for s, split in sets.ood)


def _source_faults(record: RunRecord, known: Known) -> Iterator[str]:
    """Whether sources are those at hand. A sampler of the shelf may have changed: its masks are drawn again."""
    own = known.source
    for kind, part, shelved in (
        ("scheme", record.scheme, is_shelved_scheme(record.scheme.name)),
        ("sampler", record.sampler, is_shelved_sampler(record.sampler.name)),
    ):
        if own is not None and own.kind == kind:
            if part.source != own.sha256:
                yield f"{kind}.source is {part.source[:12]}...: the submitted file has sha256 {own.sha256[:12]}..."
            elif not own.barred:  # raises where it has another name
                (known.scheme if kind == "scheme" else known.sampler)(part.name, part.source)
        elif own is not None and not shelved:
            yield f"{kind} {shown(part.name)} is neither on the shelf nor the submitted file"
        elif kind == "scheme" and shelved and part.source != (right := outline(part.name).source_hash):
            yield f"scheme.source is {part.source[:12]}...: that of '{part.name}' on the shelf is {right[:12]}... today"


def _command_faults(record: RunRecord) -> Iterator[str]:
    """People copy the command of a record into a shell."""
    try:
        words = shlex.split(record.command)
    except ValueError:
        words = []
    flags = words[2:]
    if flags and flags[-1] == "--skip-missing":
        flags = flags[:-1]
    whole = words[:2] == ["rpbench", "run"] and shlex.join(words) == record.command and len(flags) % 2 == 0
    if not whole or not set(flags[::2]) <= FLAGS:
        yield f"command is {shown(record.command)}: none that rpbench writes"
        return
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    right = {
        "--task": record.task.name, "--model": record.model.name, "--scheme": record.scheme.name,
        "--density": repr(record.density.requested), "--seed": str(record.seeds.run),
    }  # fmt: skip
    for flag, value in right.items():
        told = given.get(flag, "").partition(":")[0]
        if told != value and not told.endswith((".py", ".toml")):  # a file of one's own
            yield f"command has {flag} {shown(told)}: the record says {shown(value)}"


def protocol(told: Told, known: Known) -> Iterator[str]:
    """The task to the letter: today's definition, nothing overridden or limited, the board's precision, the images of
    the definitions."""
    record, task, board = told.record, known.task(told.record), known.plan.board
    spec = known.plan.specs[task.name]
    if record.task.spec != spec:
        yield f"task.spec is {record.task.spec[:12]}...: '{task.name}' is {spec[:12]}... today"
    if record.task.version != task.version:
        yield f"task.version is {record.task.version}: '{task.name}' has version {task.version}"
    asked = record.protocol
    if asked.overrides:
        yield f"numbers of the task were overridden: {shown(json.dumps(asked.overrides))}"
    for name, value in (("limit", asked.limit), ("limit_test", asked.limit_test)):
        if value is not None:
            yield f"protocol.{name} is {value}: all images are used"
    if asked.notes:
        yield f"off protocol: {shown('; '.join(asked.notes))}"
    if asked.on != (not (asked.overrides or asked.notes or asked.limit is not None or asked.limit_test is not None)):
        yield f"protocol.on is {str(asked.on).lower()}, which its notes, overrides and limits contradict"
    for name, found, right in (
        ("precision", record.precision, board.precision),
        ("env.precision", record.env.get("precision"), board.precision),
        ("init", record.init, "default"),
        ("source", record.source, "none"),
        ("procedure", record.procedure, "static"),
        ("model.source", record.model.source, known.model_source(record)),
    ):
        if found != right:
            yield f"{name} is {shown(found)}: the board's is {right or 'none'}"
    if why := micro_batch_fault(record, known):
        yield why
    yield from _data_faults(record, known, task)


def micro_batch_fault(record: RunRecord, known: Known) -> str:
    """Why a batch cannot have been trained in the parts that a record says; '' if it can."""
    part, batch = record.micro_batch, known.task(record).recipe.batch
    if part is None or 1 <= part <= batch:
        return ""
    return f"micro_batch is {shown(part)}: it is null, or a whole number from 1 to the recipe's batch, {batch:,}"


def _data_faults(record: RunRecord, known: Known, task: Task) -> Iterator[str]:
    sets = known.sets(task)
    names = {image_set.name for image_set, _ in sets.ood}
    if odd := [name for name in record.skipped if name not in names]:
        yield f"skipped names {', '.join(map(shown, odd))}: the task has {', '.join(sorted(names)) or 'no such sets'}"
    expected = set()
    for key, image_set, split, fact in _facts(record, known):
        if image_set.name in record.skipped:
            continue
        expected.add(key)
        if not fact:
            yield f"data.{key} is missing"
            continue
        declared = image_set.splits.get(split)
        n = declared.n if declared else sets.test  # generated: as many as the task tests on
        if fact.get("n") != n:
            yield f"data.{key}.n is {shown(fact.get('n'))}: its definition says {n:,}"
        right = (declared.fingerprint if declared else "") or _print_here(known, task, key)
        if right and fact.get("fingerprint") != right:
            yield f"data.{key}.fingerprint is {shown(fact.get('fingerprint'))}: it is {right}"
        if key == f"{sets.own.name}/{task.data.train}":
            for word, number in (("validation", task.data.validation), ("trained_on", n - task.data.validation)):
                if fact.get(word) != number:
                    yield f"data.{key}.{word} is {shown(fact.get(word))}: the task says {number:,}"
    if extra := sorted(set(record.data) - expected):
        yield f"data has {', '.join(map(shown, extra))}: no set of the task"


def _print_here(known: Known, task: Task, name: str) -> str:
    """The fingerprint of a set that its definition does not pin, where it is on this machine."""
    try:
        return str(known.images(task).facts.get(name, {}).get("fingerprint", ""))
    except Skipped:
        return ""


def budget(told: Told, known: Known) -> Iterator[str]:
    """Exactly round(density * prunable) weights of all convolution and linear weights."""
    record, table = told.record, known.net(told.record).table
    d = record.density
    if d.prunable != table.prunable or record.model.prunable != table.prunable:
        yield f"prunable is {d.prunable:,}: '{record.model.name}' has {table.prunable:,} such weights"
    if not told.ok:
        return
    try:
        right = budget_of(d.requested, table.prunable)
    except RpbenchError as error:
        yield str(error)
        return
    if d.kept != right or sum(d.kept_per_layer) != right:
        yield f"kept is {d.kept}: round({d.requested:g} * {table.prunable:,}) is {right:,}"


def rows(tolds: Sequence[Told], known: Known) -> dict[Who, list[Told]]:
    """Cells by row; the submitted file is known by what is in it, also where it is called as one on the shelf."""
    shelved = Shelved.now()
    found: dict[Who, list[Told]] = {}
    for told in tolds:
        who, e = who_of(told.entry, shelved), told.entry
        if known.path_of("scheme", e.scheme_source):
            who = who._replace(source=e.scheme_source)
        if known.path_of("sampler", e.sampler_source):
            who = who._replace(sampler_source=e.sampler_source)
        found.setdefault(who, []).append(told)
    return found


def cells(tolds: Sequence[Told], known: Known) -> list[Verdict]:
    """Whether every row has exactly the cells that its board wants of it, each once, each with an end."""
    verdicts = []
    for who, row in rows(tolds, known).items():
        there: dict[tuple[Context, Seeds], str] = {}
        name = who.scheme if not who.args.strip("{}") else f"{who.scheme} {who.args}"
        try:
            wanted = wanted_of(known, who)
        except RpbenchError as error:
            verdicts.append(Verdict("cells", "R4", "failed", str(error), shown(name)))
            continue
        for told in row:
            key = (told.context, told.entry.seeds)
            why = ""
            if key not in wanted:
                why = f"board '{known.plan.board.name}' wants no {told.context.title} seed {told.entry.seed} of {name}"
            elif key in there:
                why = f"a second record of the cell of {there[key]}"
            elif told.record.status == "failed":
                why = f"it failed, and has no result: {shown(told.record.error)}"
            there.setdefault(key, told.where)
            verdicts.append(Verdict("cells", "R4", "failed" if why else "passed", why, told.where))
        lacking: dict[Context, list[str]] = {}
        for context, seeds in wanted:
            if (context, seeds) not in there:
                lacking.setdefault(context, []).append(str(seeds.run))
        verdicts += [
            Verdict("cells", "R4", "failed", f"{name} lacks {context.title} seed {', '.join(seeds)}", shown(name))
            for context, seeds in lacking.items()
        ]
    return verdicts


def wanted_of(known: Known, who: Who) -> dict[tuple[Context, Seeds], dict[str, Any]]:
    """The cells that a board wants of a row, with how to ask for each: arguments of `rpbench.cell.ask`.

    UsageError where nothing asks for such a row.
    """
    plan: Plan = known.plan
    if who in plan.labels:
        return {(w.context, w.seeds): w.asked for w in plan.cells if w.who == who}
    # of what is not here any other scheme's cells are the same
    stand_in = next(name for name in every_baseline() if own_density(name) is None), "exact"
    scheme, sampler = given_of(known, who) or stand_in
    asks = expand(plan.board, Choice(schemes=(scheme,), samplers=(sampler,)))
    return {(w.context, w.seeds): w.asked for w in asks.cells}


def given_of(known: Known, who: Who) -> tuple[str, str] | None:
    """A row's scheme and sampler as they are asked for; None where one of them is not here. UsageError where no command
    asks for their options."""
    return _written(
        known, who, known.path_of("scheme", who.source) or who.scheme,
        known.path_of("sampler", who.sampler_source) or who.sampler,
    )  # fmt: skip


def label_of(known: Known, who: Who) -> str:
    """What a row is called in a table; '' where its scheme or sampler is not here. UsageError as `given_of`."""
    scheme, sampler = _written(known, who, who.scheme, who.sampler) or ("", "")
    return scheme if sampler in ("exact", "") else f"{scheme} + {sampler}"


def _written(known: Known, who: Who, scheme: str, sampler: str) -> tuple[str, str] | None:
    """NAME:key=value of both, under these names."""
    try:
        scored = known.scheme(who.scheme, who.source).function
        drawn = known.sampler(who.sampler, who.sampler_source).function
        scheme_args = bound(who.scheme, scored, json.loads(who.args))
        sampler_args = bound(who.sampler, drawn, json.loads(who.sampler_args))
    except (Skipped, RpbenchError):
        return None
    return options.written(scheme, scored, scheme_args), options.written(sampler, drawn, sampler_args)
