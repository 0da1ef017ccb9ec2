"""Schemes: how much of each layer is kept.

A scheme is one decorated function. A *shape* scheme looks at the layer table alone; a *score* scheme gives every weight
a score, and the core turns the ranking of all scores into densities. Positions are the sampler's business.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from rpbench import options
from rpbench.budget import check_density, densities_from_scores
from rpbench.errors import RpbenchError, SchemeError, ScoreError, UsageError
from rpbench.layers import LayerTable
from rpbench.outline import Outline

if TYPE_CHECKING:
    import torch
    from torch import nn

Batch = tuple["torch.Tensor", "torch.Tensor"]
Function = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Scheme:
    """A ratio scheme: a name, its function, and what that function looks at.

    `density`, where set, is the only density that the scheme is defined for (dense: 1). `outline` is set where the
    scheme is known by what its file says alone: its function then runs the file's in a process of its own.
    """

    name: str
    function: Function
    kind: Literal["shape", "score"]
    density: float | None = None
    outline: Outline | None = None

    @property
    def summary(self) -> str:
        return options.first_sentence(self.function.__doc__)

    @property
    def url(self) -> str:
        return options.first_url(self.function.__doc__)

    @property
    def source_hash(self) -> str:
        """sha256 of the file that defines the scheme ('' where there is none, as in an interactive session)."""
        return self.outline.source_hash if self.outline else source_hash(self.function)

    def allocate(
        self, table: LayerTable, density: float, probe: Probe | None, args: Mapping[str, Any]
    ) -> tuple[dict[str, float], Mapping[str, torch.Tensor] | None]:
        """Densities per layer (before rounding), and the scores where the scheme has any.

        Raises what the scheme raises, UsageError for a density it is not defined for, ScoreError for scores that
        rank nothing.
        """
        density = check_density(density)
        if self.density is not None and density != self.density:
            raise UsageError(f"'{self.name}' is density {self.density:g} by definition, not {density:g}")
        if self.kind == "shape":
            return dict(call(f"scheme '{self.name}'", self.function, table, density, **args)), None
        if probe is None:
            raise UsageError(f"'{self.name}' scores weights: it needs a model and labelled batches")
        scores = self.scores(probe, args)
        return densities_from_scores(table, as_arrays(scores), density), scores

    def scores(self, probe: Probe, args: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What the function of a score scheme gives, as tensors on the CPU, otherwise unchecked.

        torch's generators are the probe's meanwhile (dropout), and as they were after.
        """
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(probe.generator().initial_seed())
            found = call(f"scheme '{self.name}'", self.function, probe, **args)
        return {name: self._score(name, score) for name, score in found.items()}

    def _score(self, layer: str, score: Any) -> torch.Tensor:
        import torch

        try:
            return torch.as_tensor(score).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise SchemeError(
                f"scheme '{self.name}' scored '{layer}' with a {type(score).__name__}, no array"
            ) from None


def as_arrays(scores: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Scores as NumPy arrays; it has no short floats of torch's kinds."""
    return {k: (v if v.dtype.itemsize >= 4 else v.float()).numpy() for k, v in scores.items()}


def call(who: str, function: Function, *values: Any, **args: Any) -> Mapping[str, Any]:
    """What a submitted function gives; whatever it raises, or gives that is no mapping, becomes a SchemeError."""
    try:
        found = function(*values, **args)
    except RpbenchError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise ScoreError(f"{who} ran out of memory: let fewer images through at once (--micro-batch)") from error
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(line.filename).name}, line {line.lineno}"
        raise SchemeError(f"{who} raised {type(error).__name__}: {error} ({where})") from error
    if not isinstance(found, Mapping):
        raise SchemeError(f"{who} gave a {type(found).__name__}, not a mapping of layer names")
    return found


def source_hash(function: Callable[..., Any]) -> str:
    """sha256 of the file that defines `function`, '' where there is none."""
    file = inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


@overload
def shape_scheme(function: Function) -> Scheme: ...
@overload
def shape_scheme(*, density: float) -> Callable[[Function], Scheme]: ...
def shape_scheme(function: Function | None = None, *, density: float | None = None) -> Any:
    """A scheme from a pure function (table, density, *, options) -> {layer name: density in [0, 1]}.

    Nearly all are one call of `spread(table, weight, density, fixed=...)`. `@shape_scheme(density=1.0)` declares the
    only density that the scheme is defined for.
    """

    def decorate(function: Function) -> Scheme:
        return Scheme(function.__name__, function, "shape", density)

    return decorate if function is None else decorate(function)


def score_scheme(function: Function) -> Scheme:
    """A scheme from a function (probe, *, options) -> {layer name: score per weight, higher = keep}."""
    return Scheme(function.__name__, function, "score")


@dataclass(frozen=True)
class Origin:
    """How another process can make a probe's net: its name as `rpbench.models` knows it, its sizes, its init seed."""

    name: str
    family: str | None
    source: str
    classes: int
    channels: int
    size: int
    seed: int


class Probe:
    """What a score scheme may look at: a throw-away copy of the net and, on request, labelled training batches.

    What is asked for is counted (`batches_used`, `images_used`): "data-free" is measured, not claimed.
    `chunk` bounds how many images go through the net at once; BatchNorm then sees the chunk. `origin` says how the net
    was made, where that is known.
    """

    def __init__(
        self,
        model: nn.Module,
        table: LayerTable,
        density: float,
        batches: Iterable[Batch] | None = None,
        seed: int = 0,
        chunk: int | None = None,
        classes: int | None = None,
        device: torch.device | str | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.table, self.density, self.chunk = table, density, chunk
        self.seed, self.classes, self.origin = seed, classes, origin
        self.batches_used = self.images_used = 0
        self._model, self._device = model, device
        self._batches: Iterator[Batch] | None = None if batches is None else iter(batches)

    @property
    def net(self) -> nn.Module:
        """The net itself, not to be changed; UsageError where it has no values."""
        if any(p.is_meta for p in self._model.parameters()):
            raise UsageError("this scheme scores the weights of the net: it needs a net with values (not on meta)")
        return self._model

    @property
    def device(self) -> torch.device:
        """Where the net works."""
        import torch

        if self._device is not None:
            return torch.device(self._device)
        return next(p for p in self._model.parameters() if p.is_floating_point()).device

    @property
    def has_batches(self) -> bool:
        """Whether labelled batches were given."""
        return self._batches is not None

    def model(self) -> nn.Module:
        """A fresh copy of the net in training mode, free to be changed."""
        model = copy.deepcopy(self.net).train()
        model.requires_grad_(True)
        return model.to(self._device) if self._device is not None else model

    def weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The prunable weights of `model` by layer name."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return {name: parameters[name] for name in self.table.names}

    def generator(self) -> torch.Generator:
        """A CPU generator in a state that follows from the run's seed alone."""
        import torch

        from rpbench import streams

        return torch.Generator().manual_seed(streams.torch_seed("probe", self.seed))

    def batch(self) -> Batch:
        """The next labelled batch: images (n, channels, height, width) in the net's dtype (whole-number inputs, such
        as token ids, as they are), classes (n,) int64."""
        import torch

        if self._batches is None:
            raise UsageError("this scheme looks at labelled batches: give batches=[(images, labels), ...]")
        try:
            found = next(self._batches)
        except StopIteration:
            raise NoMoreBatches(
                f"this scheme asked for more labelled batches than the {self.batches_used} there are"
            ) from None
        x, y = check_batch(found)
        self.batches_used += 1
        self.images_used += len(y)
        like = next(p for p in self._model.parameters() if p.is_floating_point())
        ids = x.dtype in (torch.int32, torch.int64)
        return x.to(device=self.device, dtype=x.dtype if ids else like.dtype), y.to(self.device).long()

    def per_class(self, samples: int) -> Batch:
        """The first `samples` images of every class, sorted by class; UsageError where a class has too few."""
        import torch

        if samples < 1:
            raise UsageError(f"{samples} images of every class: it must be at least 1")
        images: dict[int, list[torch.Tensor]] = {}
        classes = self.classes
        while classes is None or any(len(images.get(c, ())) < samples for c in range(classes)):
            try:
                x, y = self.batch()
            except NoMoreBatches as error:
                if classes is None:
                    raise
                short = next(c for c in range(classes) if len(images.get(c, ())) < samples)
                raise UsageError(
                    f"class {short} has {len(images.get(short, ()))} images in the batches given: "
                    f"{samples} of each of {classes} classes are needed"
                ) from error
            classes = classes or self._count_classes(x)
            for image, label in zip(x, y.tolist(), strict=True):
                if len(images.setdefault(label, [])) < samples:
                    images[label].append(image.clone())  # a view would keep its whole batch
        chosen = torch.stack([image for c in range(classes) for image in images[c]])
        return chosen, torch.arange(classes, device=chosen.device).repeat_interleave(samples)

    def chunks(self, x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
        """(images, classes, share of the whole) in pieces of at most `chunk`, every piece a stride through all."""
        pieces = -(-len(y) // self.chunk) if self.chunk else 1
        for i in range(pieces):
            yield x[i::pieces], y[i::pieces], len(y[i::pieces]) / len(y)

    def loss(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood; UsageError where the net gives anything else than logits (n, classes)."""
        import torch
        from torch.nn import functional

        if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
            raise UsageError(f"the net gives {found}, not logits of shape (images, classes): wrap it so that it does")
        return functional.cross_entropy(logits, y)

    def _count_classes(self, x: torch.Tensor) -> int:
        import torch

        with torch.no_grad():
            logits = copy.deepcopy(self._model).eval().to(x.device)(x[:2])
        self.loss(logits, torch.zeros(len(logits), dtype=torch.int64, device=x.device))
        return int(logits.shape[1])


class NoMoreBatches(UsageError):
    """The labelled batches have run out."""


def check_batch(found: Any) -> Batch:
    """`found` as (images, labels); UsageError where it is no pair of tensors of one length."""
    import torch

    if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(t, torch.Tensor) for t in found):
        raise UsageError("batches must be pairs of tensors, [(images, labels), ...]")
    x, y = found
    if y.dim() != 1 or len(x) != len(y) or y.is_floating_point():
        raise UsageError(
            f"a batch has images {tuple(x.shape)} and labels {tuple(y.shape)} {y.dtype}: "
            "labels must be whole numbers, one for each image"
        )
    return x, y
