"""What every sampler keeps to, as checks on the masks that it draws for counts and keys."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rpbench.budget import counts_from_densities, spread
from rpbench.contract import nets
from rpbench.contract.checks import Case, Check, Example, said_checks, shape_text
from rpbench.contract.luck import other_luck
from rpbench.contract.schemes import PATIENCE, trained
from rpbench.errors import RpbenchError, SchemeError
from rpbench.layers import LayerTable
from rpbench.sampler import MaskKey, Sampler
from rpbench.scheme import call

if TYPE_CHECKING:
    import torch

NETS = ("resnet20", "mlp", "grouped", "one_layer")
DENSITIES = (0.02, 0.1, 0.5)
USUAL = 0.1
EDGES: Mapping[str, Callable[[int], bool]] = {  # whether layer i is kept
    "nothing": lambda i: False,
    "everything": lambda i: True,
    "every other layer": lambda i: i % 2 == 0,
}
Ask = Literal["first", "again", "other key", "other scores", "renamed"]


@dataclass(frozen=True)
class Drawn:
    """What a sampler gave for a net and counts: masks as they came, or an error."""

    where: str
    table: LayerTable
    counts: Mapping[str, int]
    masks: Mapping[str, Any] | None = None
    error: RpbenchError | None = None


class Subject:
    """A sampler under examination. What it has drawn is not asked for again, unless that is the question."""

    def __init__(self, sampler: Sampler, args: Mapping[str, Any]) -> None:
        self.sampler, self.args = sampler, dict(args)
        self.answers: dict[tuple[str, float | str, Ask], Drawn] = {}
        self.seconds = 0.0

    def first(self) -> Iterator[Drawn]:
        return (self.ask(net, density) for net in NETS for density in DENSITIES)

    def edges(self) -> Iterator[Drawn]:
        return (self.ask(net, edge) for net in ("resnet20", "mlp") for edge in EDGES)

    def ask(self, net: str, kept: float | str, turn: Ask = "first") -> Drawn:
        """Masks at a density (counts as ERK has them), or at an edge."""
        asked = (net, kept, turn)
        if asked not in self.answers:
            began = time.monotonic()
            self.answers[asked] = self._drawn(net, kept, turn)
            self.seconds += time.monotonic() - began
        return self.answers[asked]

    def _drawn(self, net: str, kept: float | str, turn: Ask) -> Drawn:
        table = nets.table(net, renamed=turn == "renamed")
        where = f"{net}, {kept} kept" if isinstance(kept, str) else f"{net} at density {kept:g}"
        counts = _counts(table, kept)
        if self.seconds > PATIENCE:
            late = f"not asked: its calls have taken {self.seconds:.0f} s, more than {PATIENCE:.0f} s in all"
            return Drawn(where, table, counts, error=SchemeError(late))
        seed = 1 if turn == "other key" else 0
        scores = _scores(table, 1 if turn == "other scores" else 0) if self.sampler.scored else None
        who = f"sampler '{self.sampler.name}'"
        try:
            with other_luck(turn == "again"):
                joined = [nets.wiring(net, renamed=turn == "renamed")] if self.sampler.wired else []
                masks = call(who, self.sampler.function, table, counts, MaskKey(seed), scores, *joined, **self.args)
        except RpbenchError as error:
            return Drawn(where, table, counts, error=error)
        return Drawn(where, table, counts, masks)


def sampler_list(sampler: Sampler, args: Mapping[str, Any], called: str) -> tuple[list[Check], Subject]:
    """All checks of a sampler with these options, and the subject that they share."""
    s = Subject(sampler, args)
    many = len(NETS) * len(DENSITIES)
    total = "as many weights as asked for, in every layer" if sampler.exact else "within 4 standard deviations in all"
    moved = "other scores give other positions" if sampler.scored else "another key gives other positions"
    return [
        *said_checks(sampler, called),
        Check("answers", f"{many} draws on {len(NETS)} nets, no error", lambda: _answers(s)),
        Check("masks", "bool, of the weight's shape, one for every layer", lambda: _masks(s)),
        Check("counts", total, lambda: _kept(s, s.first())),
        Check("edges", "keeps nothing, and everything, where that is asked", lambda: _edges(s)),
        Check("repeatable", "the same positions twice, whatever happened between", lambda: _same(s, "again")),
        Check("names", "layers by other names get the same positions", lambda: _same(s, "renamed")),
        Check("key", moved, lambda: _moved(s)),
        Check("training", "the mask holds through two steps of SGD", lambda: _training(s)),
    ], s


def unsound(drawn: Drawn) -> str:
    """What is wrong with masks, before their weights are counted; '' for nothing."""
    assert drawn.masks is not None
    if unknown := [str(name) for name in drawn.masks if name not in drawn.counts]:
        return f"masks of unknown layers {', '.join(unknown[:3])}"
    for layer in drawn.table:
        if layer.name not in drawn.masks:
            return f"no mask for '{layer.name}'"
        mask = np.asarray(drawn.masks[layer.name])
        if mask.dtype != np.bool_ or mask.shape != layer.shape:
            return f"the mask of '{layer.name}' is {mask.dtype} {mask.shape}, not bool {layer.shape}"
    return ""


def _answers(s: Subject) -> Iterable[Case]:
    return (Case(drawn.where, str(drawn.error or "")) for drawn in s.first())


def _masks(s: Subject) -> Iterable[Case]:
    return (Case(drawn.where, unsound(drawn)) for drawn in s.first() if drawn.masks is not None)


def _kept(s: Subject, draws: Iterable[Drawn]) -> Iterable[Case]:
    for drawn in draws:
        if (kept := _sums(drawn)) is None:
            continue
        wrong = [i for i, layer in enumerate(drawn.table) if kept[i] != drawn.counts[layer.name]]
        if s.sampler.exact:
            i = wrong[0] if wrong else 0
            layer = drawn.table[i]
            told = f"{kept[i]:,} weights of '{layer.name}' kept, not {drawn.counts[layer.name]:,}"
            yield Case(drawn.where, told if wrong else "")
            continue
        share = {x.name: drawn.counts[x.name] / x.numel for x in drawn.table}
        deviation = math.sqrt(sum(drawn.counts[x.name] * (1 - share[x.name]) for x in drawn.table))
        off = sum(kept) - sum(drawn.counts.values())
        told = f"{off:+,} weights against its expectation, where a standard deviation is {deviation:.1f}"
        yield Case(drawn.where, told if abs(off) > 4 * deviation + (1 if deviation else 0) else "")


def _edges(s: Subject) -> Iterable[Case]:
    for drawn in s.edges():
        if drawn.masks is None or unsound(drawn):
            yield Case(drawn.where, str(drawn.error or unsound(drawn)))
        else:
            yield from _kept(s, [drawn])


def _same(s: Subject, turn: Ask) -> Iterable[Case]:
    """The first answers once more, differently asked: positions stay where they are, layer by layer."""
    for net in reversed(NETS if turn == "again" else ("resnet20", "grouped")):
        before, after = s.ask(net, USUAL), s.ask(net, USUAL, turn)
        if _sums(before) is None:
            continue
        if _sums(after) is None:
            assert after.masks is not None or after.error is not None
            yield Case(before.where, f"asked again: {after.error or unsound(after)}")
            continue
        told = "asked twice" if turn == "again" else "with layers renamed"
        differ = [a.name for a, b in zip(before.table, after.table, strict=True) if not _equal(before, a, after, b)]
        yield Case(before.where, f"{told}, '{differ[0]}' keeps other positions" if differ else "")


def _moved(s: Subject) -> Iterable[Case]:
    turn: Ask = "other scores" if s.sampler.scored else "other key"
    for net in ("resnet20", "mlp"):
        before, after = s.ask(net, USUAL), s.ask(net, USUAL, turn)
        if _sums(before) is None or _sums(after) is None:
            continue
        moved = any(not _equal(before, x, after, x) for x in before.table)
        told = "the masks do not follow the scores" if s.sampler.scored else "the masks do not follow from the key"
        yield Case(before.where, "" if moved else f"{told}: they are the same for two of them")


def _training(s: Subject) -> Iterable[Case]:
    import torch

    drawn = s.ask("mlp", USUAL)
    if _sums(drawn) is not None:
        assert drawn.masks is not None
        masks = {x.name: torch.as_tensor(np.array(drawn.masks[x.name])) for x in drawn.table}
        yield Case(drawn.where, trained("mlp", drawn.counts, masks))


def example(s: Subject, where: str = "") -> Example | None:
    """What came back for one net, layer by layer: where a check failed, else on a small net."""
    drawn = next((d for d in s.answers.values() if d.where == where and d.masks is not None), None)
    drawn = drawn or s.ask("mlp", USUAL)
    if drawn.masks is None:
        return None
    rows = [
        (x.name, shape_text(x.shape), f"{drawn.counts[x.name]:,}", _told(drawn.masks.get(x.name))) for x in drawn.table
    ]
    return Example(drawn.where, ("layer", "shape", "asked", "kept"), tuple(rows))


def _counts(table: LayerTable, kept: float | str) -> dict[str, int]:
    if isinstance(kept, str):
        return {layer.name: layer.numel * EDGES[kept](i) for i, layer in enumerate(table)}
    return counts_from_densities(table, spread(table, lambda x: sum(x.shape) / x.numel, kept), kept)


def _scores(table: LayerTable, seed: int) -> dict[str, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {layer.name: torch.rand(layer.shape, generator=generator) for layer in table}


def _sums(drawn: Drawn) -> list[int] | None:
    """Weights kept per layer, None where there are no sound masks."""
    if drawn.masks is None or unsound(drawn):
        return None
    return [int(np.asarray(drawn.masks[layer.name]).sum()) for layer in drawn.table]


def _equal(a: Drawn, x: Any, b: Drawn, y: Any) -> bool:
    assert a.masks is not None
    assert b.masks is not None
    return np.array_equal(np.asarray(a.masks[x.name]), np.asarray(b.masks[y.name]))


def _told(mask: Any) -> str:
    if mask is None:
        return "-"
    array = np.asarray(mask)
    return f"{int(array.sum()):,}" if array.dtype == np.bool_ else f"{array.dtype} {shape_text(array.shape)}"
