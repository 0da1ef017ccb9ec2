"""What every scheme keeps to, as checks on what it answers for nets and densities."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rpbench.budget import check_budget, counts_from_densities
from rpbench.catalog import find_sampler
from rpbench.contract import nets
from rpbench.contract.checks import Case, Check, Example, said_checks, shape_text
from rpbench.contract.luck import other_luck
from rpbench.errors import InfeasibleBudget, MaskError, RpbenchError, SchemeError
from rpbench.layers import LayerTable
from rpbench.scheme import Probe, Scheme

if TYPE_CHECKING:
    from torch import nn

DENSITIES = (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9)
SCORED_DENSITIES = (0.01, 0.1, 0.5)
USUAL = 0.1
EXTREMES = (1e-6, 1.0)
PATIENCE = 120.0  # seconds that all calls together may take
Turn = Literal["first", "again", "renamed", "more"]


@dataclass(frozen=True)
class Answer:
    """What a scheme gave for a net and a density: densities as they came, or an error. `changed` are tensors of the
    net that are not as they were, `batches` the labelled batches it asked for."""

    where: str
    table: LayerTable
    density: float
    densities: Mapping[str, Any] | None = None
    error: RpbenchError | None = None
    batches: int = 0
    changed: tuple[str, ...] = ()

    @property
    def infeasible(self) -> InfeasibleBudget | None:
        return self.error if isinstance(self.error, InfeasibleBudget) else None


class Subject:
    """A scheme under examination. What it has answered is not asked again, unless that is the question."""

    def __init__(self, scheme: Scheme, args: Mapping[str, Any]) -> None:
        self.scheme, self.args = scheme, dict(args)
        self.scored = scheme.kind == "score"
        self.answers: dict[tuple[str, float, Turn], Answer] = {}
        self.seconds = 0.0

    @property
    def usual(self) -> float:
        return self.scheme.density or USUAL

    def grid(self) -> list[tuple[str, float]]:
        """Every net with every density at which the scheme is asked."""
        if self.scheme.density is not None:
            return [(net, self.scheme.density) for net in self.nets]
        if not self.scored:
            return [(net, d) for net in self.nets for d in DENSITIES]
        small = [net for net in self.nets if net != nets.LARGEST]
        return [*((net, d) for net in small for d in SCORED_DENSITIES), (nets.LARGEST, USUAL)]

    @property
    def nets(self) -> tuple[str, ...]:
        return nets.SCORED if self.scored else nets.SHAPED

    def first(self) -> Iterator[Answer]:
        return (self.ask(net, density) for net, density in self.grid())

    def sound(self) -> Iterator[Answer]:
        """First answers that are densities."""
        return (answer for answer in self.first() if answer.densities is not None and not unsound(answer))

    def ask(self, net: str, density: float, turn: Turn = "first") -> Answer:
        asked = (net, density, turn)
        if asked not in self.answers:
            began = time.monotonic()
            self.answers[asked] = self._answer(net, density, turn)
            self.seconds += time.monotonic() - began
        return self.answers[asked]

    def _answer(self, net: str, density: float, turn: Turn) -> Answer:
        where, renamed = f"{net} at density {density:g}", turn == "renamed"
        table = nets.weighted_table(net, renamed) if self.scored else nets.table(net, renamed)
        if self.seconds > PATIENCE:
            late = f"not asked: its calls have taken {self.seconds:.0f} s, more than {PATIENCE:.0f} s in all"
            return Answer(where, table, density, error=SchemeError(late))
        model, probe = None, None
        if self.scored:
            model = copy.deepcopy(nets.weighted(net, renamed))
            probe = Probe(model, table, density, nets.batches(net), classes=nets.NETS[net].classes)
        args = dict(self.args)
        if turn == "more":
            args["batches"] += 1
        densities, error = None, None
        try:
            with other_luck(turn == "again"):
                densities, _ = self.scheme.allocate(table, density, probe, args)
        except RpbenchError as raised:
            error = raised
        changed = _changed(model, net, renamed) if model is not None else ()
        used = probe.batches_used if probe else 0
        return Answer(where, table, density, densities, error, used, changed)


def scheme_list(scheme: Scheme, args: Mapping[str, Any], called: str) -> tuple[list[Check], Subject]:
    """All checks of a scheme with these options, and the subject that they share."""
    s = Subject(scheme, args)
    scored, n = s.scored, len(s.grid())
    checks = [
        *said_checks(scheme, called),
        Check("answers", f"{n} plans on {len(s.nets)} nets, no error", lambda: _answers(s)),
        Check("densities", "finite, in [0, 1], one for every layer", lambda: _densities(s)),
        Check("budget", "exactly round(density * prunable) weights kept", lambda: _budget(s)),
    ]
    if scheme.density is None:
        checks.append(Check("infeasible", "what it refuses it cannot meet; the bounds work", lambda: _infeasible(s)))
    checks += [
        Check("repeatable", "the same answer twice, whatever happened between", lambda: _repeatable(s)),
        Check("names", "layers by other names are kept alike", lambda: _names(s)),
        Check("batches", _batches_said(s), lambda: _batches(s)),
    ]
    if scored:
        checks.append(Check("net", "the net that is handed out stays as it was", lambda: _unchanged(s)))
    checks.append(Check("training", "the mask holds through two steps of SGD", lambda: _training(s)))
    return checks, s


def unsound(answer: Answer) -> str:
    """What is wrong with densities, before their sum is looked at; '' for nothing."""
    assert answer.densities is not None
    given = answer.densities
    missing = [name for name in answer.table.names if name not in given]
    unknown = [str(name) for name in given if name not in set(answer.table.names)]
    if missing:
        return f"no density for {_some(missing)}"
    if unknown:
        return f"densities of unknown layers {_some(unknown)}"
    for layer in answer.table:
        p = given[layer.name]
        if isinstance(p, bool) or not isinstance(p, int | float | np.number):
            return f"the density of '{layer.name}' is a {type(p).__name__}, not a number"
        if not math.isfinite(p) or not -1e-12 <= p <= 1 + 1e-12:
            return f"the density of '{layer.name}' is {p:g}: it must lie in [0, 1]"
    return ""


def _answers(s: Subject) -> Iterable[Case]:
    for answer in s.first():
        wrong = answer.error is not None and not answer.infeasible
        yield Case(answer.where, str(answer.error) if wrong else "")
    if all(answer.infeasible for answer in s.first()):
        yield Case("", "it refuses every density on every net")


def _densities(s: Subject) -> Iterable[Case]:
    return (Case(answer.where, unsound(answer)) for answer in s.first() if answer.densities is not None)


def _budget(s: Subject) -> Iterable[Case]:
    """What the core makes of sound densities: it refuses what is off, and rounds the rest to the exact total."""
    for answer in s.sound():
        assert answer.densities is not None
        try:
            check_budget(answer.table, answer.densities, answer.density)
            counts = counts_from_densities(answer.table, answer.densities, answer.density)
        except RpbenchError as error:
            yield Case(answer.where, "" if isinstance(error, InfeasibleBudget) else str(error))
            continue
        wanted, kept = round(answer.density * answer.table.prunable), sum(counts.values())
        yield Case(answer.where, "" if kept == wanted else f"{kept:,} weights kept, not {wanted:,}")


def _infeasible(s: Subject) -> Iterable[Case]:
    """Refused densities lie outside of the interval that is named, and the ends of that interval work."""
    asked = [*s.grid(), *((net, d) for net in ([] if s.scored else nets.SHAPED) for d in EXTREMES)]
    for net, density in asked:
        answer = s.ask(net, density)
        if (refused := answer.infeasible) is None:
            if answer.error is None:
                yield Case(answer.where)
            continue
        prunable = answer.table.prunable
        if refused.least <= density <= refused.most and round(density * prunable) >= 1:
            told = f"[{refused.least:g}, {refused.most:g}]"
            yield Case(answer.where, f"refused, though {density:g} lies in {told}, which it says works")
            continue
        ends = [d for d in (refused.least, refused.most) if 1.5 / prunable < d < 1]
        broken = [d for d in ends if s.ask(net, d).error is not None]
        why = f"it says that density {broken[0]:g} works: {s.ask(net, broken[0]).error}" if broken else ""
        yield Case(answer.where, why)


def _repeatable(s: Subject) -> Iterable[Case]:
    for net in reversed(s.nets):
        before, after = s.ask(net, s.usual), s.ask(net, s.usual, "again")
        if before.densities is None or unsound(before):
            continue
        if after.densities is None:
            yield Case(before.where, f"the second time: {after.error}")
            continue
        differ = [x.name for x in before.table if before.densities[x.name] != after.densities.get(x.name)]
        if differ:
            one = differ[0]
            pair = f"{before.densities[one]:.6g}, then {_number(after.densities.get(one))}"
            yield Case(before.where, f"another answer the second time: '{one}' got {pair}")
        else:
            yield Case(before.where)


def _names(s: Subject) -> Iterable[Case]:
    for net in ("mlp", "grouped") if s.scored else ("resnet20", "mobilenet_v2"):
        plain, renamed = s.ask(net, s.usual), s.ask(net, s.usual, "renamed")
        counts = [_counts(plain), _counts(renamed)]
        if counts[0] is None:
            continue
        if counts[1] is None:
            yield Case(plain.where, f"with layers renamed: {renamed.error or unsound(renamed) or 'off budget'}")
            continue
        differ = [i for i, pair in enumerate(zip(*counts, strict=True)) if pair[0] != pair[1]]
        if differ:
            i = differ[0]
            name, other = plain.table[i].name, renamed.table[i].name
            yield Case(plain.where, f"'{name}' keeps {counts[0][i]:,} weights, and {counts[1][i]:,} as '{other}'")
        else:
            yield Case(plain.where)


def _batches_said(s: Subject) -> str:
    return "as many labelled batches as declared, every time" if s.scored else "it sees shapes alone, no batches"


def _batches(s: Subject) -> Iterable[Case]:
    """`batches=n` means n; without such an option it is a number of the net's, whatever the density."""
    declared = s.args.get("batches") if isinstance(s.args.get("batches"), int) else None
    if not s.scored:
        yield Case("")
        return
    for net in nets.SCORED:
        used = {d: s.ask(net, d).batches for n, d in s.grid() if n == net if s.ask(net, d).error is None}
        for density, n in used.items():
            where = s.ask(net, density).where
            if declared is not None and n != declared:
                yield Case(where, f"it looked at {n} labelled batches, but says batches={declared}")
            elif n != next(iter(used.values())):
                first = next(iter(used))
                yield Case(where, f"{n} labelled batches, but {used[first]} at density {first:g}")
            else:
                yield Case(where)
        again = s.ask(net, s.usual, "again")
        if s.usual in used and again.error is None:
            differs = again.batches != used[s.usual]
            yield Case(again.where, f"{used[s.usual]} labelled batches, then {again.batches}" if differs else "")
    if declared is not None:
        more = s.ask("mlp", s.usual, "more")
        if more.error is None:
            wrong = more.batches != declared + 1
            told = f"it looked at {more.batches} labelled batches, but was given batches={declared + 1}"
            yield Case(more.where, told if wrong else "")


def _unchanged(s: Subject) -> Iterable[Case]:
    for answer in s.first():
        yield Case(answer.where, f"it changed the net: {_some(list(answer.changed))}" if answer.changed else "")


def _training(s: Subject) -> Iterable[Case]:
    for net in nets.TRAINED:
        answer = s.ask(net, s.usual)
        counts = _counts(answer)
        if counts is not None:
            yield Case(answer.where, trained(net, dict(zip(answer.table.names, counts, strict=True))))


def trained(net: str, counts: Mapping[str, int], masks: Mapping[str, Any] | None = None) -> str:
    """Two steps of SGD on random data under masks of these counts; what does not hold afterwards, '' for nothing."""
    import torch

    from rpbench.masks import digest, prune

    model = copy.deepcopy(nets.weighted(net)).train()
    drawn = dict(masks) if masks is not None else find_sampler("exact")[0].draw(nets.table(net), counts, 0)
    before = digest(drawn)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    bound = prune(model, drawn, optimizer)
    for images, labels in islice(nets.batches(net), 2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    try:
        bound.verify()
    except MaskError as error:
        return str(error)
    return "" if digest(bound.masks()) == before else "the mask is another one after two steps"


def example(s: Subject, where: str = "") -> Example | None:
    """What came back for one net, layer by layer: where a check failed, else on a small net."""
    chosen = next((a for a in s.answers.values() if a.where == where and a.densities is not None), None)
    answer = chosen or s.ask("resnet8", s.usual)
    if answer.densities is None:
        return None
    counts = _counts(answer)
    kept = ["-"] * len(answer.table) if counts is None else [f"{n:,}" for n in counts]
    rows = [
        (layer.name, shape_text(layer.shape), _number(answer.densities.get(layer.name)), n)
        for layer, n in zip(answer.table, kept, strict=True)
    ]
    return Example(answer.where, ("layer", "shape", "density", "kept"), tuple(rows))


def _counts(answer: Answer) -> list[int] | None:
    """Weights kept per layer, None where the answer does not give any."""
    if answer.densities is None or unsound(answer):
        return None
    try:
        counts = counts_from_densities(answer.table, answer.densities, answer.density)
    except RpbenchError:
        return None
    return [counts[layer.name] for layer in answer.table]


def _changed(model: nn.Module, net: str, renamed: bool) -> tuple[str, ...]:
    import torch

    before, after = nets.weighted(net, renamed).state_dict(), model.state_dict()
    return tuple(name for name in before if name not in after or not torch.equal(after[name], before[name]))


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, int | float | np.number) else repr(value)[:20]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
