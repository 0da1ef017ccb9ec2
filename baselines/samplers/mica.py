from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rpbench import Layer, LayerTable, mask_sampler, streams
from rpbench.budget import Counts
from rpbench.sampler import Key, smallest

if TYPE_CHECKING:
    from rpbench.wiring import Bools, Integers, Wiring

Inputs = Literal["max", "min", "rand"]


@mask_sampler(wired=True)
def mica(
    table: LayerTable,
    counts: Counts,
    key: Key,
    scores: object,
    wiring: Wiring,
    *,
    inputs: Literal["max", "min", "rand"] = "max",
) -> Mapping[str, Any]:
    """Minimum connection assurance: random positions on paths from input to output, as far as the counts allow.

    Otsuka et al., TMLR 2024, https://openreview.net/forum?id=yf4ciZcgrg; it reports VGG-16 on CIFAR-10 at 10^4.7 x
    compression 27.0 points above random pruning. From the outputs back to the images, every layer is told which of
    its output channels are wanted and wants input channels itself: as many as its count can give a weight at every
    kernel position (`inputs=max`), as few as hold the count (`min`), or a random number between (`rand`). Then, from
    the images on, a layer's weights first match the inputs that carry something with the wanted outputs at random, go
    to other pairs of those next, and elsewhere only when these are full.

    Beyond the paper: groups are matched apart, concatenated layers are wanted evenly, and weights that are on no path
    all the same (on a map of 2x2 pixels two kernels can shift all out of the picture) move to random places on one.
    """
    on_path = wiring.on_path({layer.name: np.ones(layer.shape, dtype=bool) for layer in table})
    parts = [_part(i, layer, counts[layer.name], key(i), wiring, on_path) for i, layer in enumerate(table)]
    wanted = _wanted(parts, wiring, inputs)
    active: dict[int | None, Bools] = {}
    masks: dict[str, Bools] = {}
    for i in wiring.order:
        arrives = np.zeros(len(parts[i].units), dtype=bool)
        for feed in wiring.into(i):
            arrives[feed.inputs] |= feed.source is None or active[feed.source][feed.outputs]
        kept, active[i] = _drawn(parts[i], wanted[i], arrives)
        masks[table[i].name] = kept.reshape(table[i].shape)
    return _moved(parts, masks, wiring)


@dataclass(frozen=True)
class _Part:
    """A layer to be drawn. Inputs that come from the same channels are one *unit*: an input channel of a convolution,
    the pixels of one after flattening. `units` has the unit of every input, numbered in the order in which they are
    wanted; `possible` are weights that can be on a path at all, shape (out, in of a group, kernel area)."""

    layer: Layer
    count: int
    stream: int
    units: Integers
    possible: Bools

    @property
    def rows(self) -> int:
        """Outputs of one group."""
        return self.layer.shape[0] // self.layer.groups

    def draws(self, n: int, purpose: str) -> streams.Raw:
        return streams.raw(streams.key("mica", self.stream, purpose), n)

    def columns(self, allowed: Bools) -> Bools:
        """Inputs x kernel positions that have a weight among `allowed`, shape (in, kernel area)."""
        _, inside, area = self.possible.shape
        by_group = allowed.reshape(self.layer.groups, self.rows, inside, area)
        return np.asarray(by_group.any(1).reshape(-1, area))


def _part(i: int, layer: Layer, count: int, stream: int, wiring: Wiring, on_path: Mapping[str, Bools]) -> _Part:
    feeds = wiring.into(i)
    places = np.full((layer.shape[1] * layer.groups, len(feeds)), -1.0)  # in its source, as a fraction of its channels
    for column, feed in zip(places.T, feeds, strict=True):
        column[feed.inputs] = feed.outputs / (feed.outputs.max() + 1)
    patterns, units = np.unique(places, axis=0, return_inverse=True)
    rank = np.argsort(np.argsort(patterns.max(1, initial=-1.0), kind="stable"), kind="stable")
    return _Part(layer, count, stream, rank[units.ravel()], on_path[layer.name].reshape(*layer.shape[:2], -1))


def _wanted(parts: list[_Part], wiring: Wiring, inputs: Inputs) -> list[tuple[Bools, Bools]]:
    """(outputs that are wanted of it, inputs that it wants) of every layer, decided from the net's outputs back."""
    outputs = [np.zeros(part.layer.shape[0], dtype=bool) for part in parts]
    chosen = [np.zeros(len(part.units), dtype=bool) for part in parts]
    for layer in (None, *reversed(wiring.order)):
        if layer is not None:
            outputs[layer] = _first(outputs[layer] & parts[layer].possible.any((1, 2)), parts[layer].count)
            chosen[layer] = _inputs(parts[layer], outputs[layer], inputs)
        for feed in wiring.into(layer):
            asked = feed.outputs if layer is None else feed.outputs[chosen[layer][feed.inputs]]
            if feed.source is not None:
                outputs[feed.source][asked] = True
    return list(zip(outputs, chosen, strict=True))


def _inputs(part: _Part, outputs: Bools, inputs: Inputs) -> Bools:
    """The inputs that a layer wants for these outputs: its first units, of every group in turn."""
    groups = int(outputs.reshape(-1, part.rows).any(1).sum())
    if not groups:
        return np.zeros(len(part.units), dtype=bool)
    columns = part.columns(outputs[:, None, None] & part.possible)
    used = np.flatnonzero(columns.any(1))
    area = int(np.bincount(part.units, weights=columns.sum(1)).max())  # most kernel positions, or pixels, of a unit
    low, high = math.ceil(part.count * groups / int(outputs.sum())), part.count // area
    if low < high and inputs != "min":
        spare = streams.integers(streams.key("mica", part.stream, "inputs"), 1, high - low + 1)
        low = high if inputs == "max" else low + int(spare[0])
    units, at = np.unique(part.units[used], return_index=True)
    first = units[np.argsort(_turns(used[at] // part.possible.shape[1]), kind="stable")][: max(low, groups)]
    return np.isin(part.units, first) & columns.any(1)


def _drawn(part: _Part, wanted: tuple[Bools, Bools], arrives: Bools) -> tuple[Bools, Bools]:
    """(weights kept, outputs that carry something) of a layer, given which inputs do."""
    outside, inside, area = part.possible.shape
    by_output = arrives.reshape(part.layer.groups, inside).repeat(part.rows, axis=0)
    live = part.possible & by_output[:, :, None]
    outputs = _first(wanted[0] & live.any((1, 2)), part.count)
    kept = np.zeros(live.size, dtype=bool)
    kept[_matched(part, outputs[:, None, None] & live, wanted[1])[: part.count]] = True
    draws = part.draws(live.size, "positions")
    for allowed in (outputs[:, None, None] & live, live, part.possible, np.ones_like(live)):
        if left := part.count - int(kept.sum()):
            free = np.flatnonzero(allowed.ravel() & ~kept)
            kept[free[smallest(draws[free], min(left, len(free)))]] = True
    mask = kept.reshape(outside, inside, area)
    return mask, np.asarray((mask & live).any((1, 2)))


def _matched(part: _Part, allowed: Bools, wants: Bools) -> Integers:
    """Flat positions of weights that together give every output an input and every input a way out, the first of them
    one for every output and every unit already: a unit's second kernel position comes after all others' first."""
    outside, inside, area = allowed.shape
    columns = np.flatnonzero(part.columns(allowed))
    outputs = np.flatnonzero(allowed.any((1, 2)))
    columns = columns[np.argsort(part.draws(part.layer.groups * inside * area, "columns")[columns], kind="stable")]
    outputs = outputs[np.argsort(part.draws(outside, "outputs")[outputs], kind="stable")]
    columns = columns[np.lexsort((~wants[columns // area], _turns(part.units[columns // area])))]
    partners = part.draws(part.layer.groups * inside * area + outside, "partners")
    found, turns = [], []
    for group in np.unique(outputs // part.rows):
        here, there = (x[x // size == group] for x, size in ((columns, inside * area), (outputs, part.rows)))
        n = max(len(here), len(there))
        drawn, partners = np.split(partners, [n])
        pairs = [np.concatenate([x, x[_below(drawn[len(x) :], len(x))]]) for x in (here, there)]
        found.append(pairs[1] * (inside * area) + pairs[0] % (inside * area))
        turns.append(np.arange(n))
    if not found:
        return np.zeros(0, dtype=np.int64)
    flat = np.concatenate(found)[np.argsort(np.concatenate(turns), kind="stable")]
    return np.asarray(flat[allowed.ravel()[flat]])


def _moved(parts: list[_Part], masks: dict[str, Bools], wiring: Wiring) -> dict[str, Bools]:
    """Weights on no path, moved to random places on one; what is on a path stays, so that no path is lost."""
    turn, moved = 0, True
    while moved:
        turn, moved = turn + 1, False
        there = wiring.on_path(masks)
        alive = {name: mask & there[name] for name, mask in masks.items()}
        if all(np.array_equal(alive[name], mask) for name, mask in masks.items()):
            break
        there = wiring.on_path(alive)
        for part in parts:
            name = part.layer.name
            dead, room = (np.flatnonzero(x & ~alive[name]) for x in (masks[name], there[name]))
            if n := min(len(dead), len(room)):
                moved = True
                draws = part.draws(masks[name].size, f"moved {turn}")
                flat = masks[name].ravel().copy()
                flat[dead[smallest(draws[dead], n)]] = False
                flat[room[smallest(draws[room], n)]] = True
                masks[name] = flat.reshape(masks[name].shape)
    return masks


def _first(which: Bools, n: int) -> Bools:
    """The first n of those that are true."""
    return which & (np.cumsum(which) <= n)


def _turns(labels: Integers) -> Integers:
    """How many equal labels stand before each."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    turns = np.empty(len(labels), dtype=np.int64)
    turns[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return turns


def _below(draws: streams.Raw, n: int) -> Integers:
    """Draws as integers in [0, n)."""
    return (((draws >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).astype(np.int64)
