"""From a net to its wiring: which output channels arrive where is found by sending values through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from rpbench import streams
from rpbench.connectivity import NotFollowed, following, gradients, skeleton
from rpbench.errors import UsageError
from rpbench.layers import LayerTable
from rpbench.wiring import Bools, Feed, Wiring

Site = int | None  # a layer's position in the table; None: the images as a source, the net's outputs as a target
Tensors = dict[Site, torch.Tensor]


def wire(model: nn.Module, table: LayerTable, input_shape: tuple[int, ...]) -> Wiring:
    """The wiring of `model` for one example of `input_shape` (channels, height, width). Weights do not matter: a net
    on the meta device will do.

    Raises UsageError for a net whose channels cannot be followed from layer to layer (attention, recurrence, gates,
    transposed convolutions, a layer that is called twice or never).
    """
    try:
        order, feeds = _feeds(model, table, input_shape)
        full = skeleton(model, table)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        net = type(model).__name__
        raise UsageError(f"the channels of {net} cannot be followed from layer to layer: {reason}") from error

    def on_path(masks: Mapping[str, Any]) -> dict[str, Bools]:
        held = {name: torch.as_tensor(masks[name]) for name in table.names}
        _, found = gradients(full, table, held, input_shape)
        return {
            name: np.zeros(held[name].shape, dtype=bool) if g is None else (g != 0).numpy(force=True)
            for name, g in found.items()
        }

    return Wiring(order, feeds, on_path)


def _feeds(
    model: nn.Module, table: LayerTable, input_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[Feed, ...]]:
    """Calling order and feeds of a net that is cut at its layers: each gives values of its own, whatever it is given.

    What a layer is given is then linear in what others give, channel by channel: the derivative along ones says how
    much of a source arrives at an input, that along channel numbers which channel it is. A second pass with random
    values must agree with what these feeds say, or there is more to the net (a product, a constant, a mixture).
    """
    net = skeleton(model, table)
    cut = _Cut(net, table)
    image = torch.ones(1, *input_shape, requires_grad=True)
    arrived, given = cut.through(net, image, {})
    values = {site: _random(site, x.shape[_channels(table, site)]) for site, x in given.items()}
    feeds, told = [], {}
    for target, x in arrived.items():
        ones = torch.ones_like(x, requires_grad=True)
        backward = torch.autograd.grad(x, list(given.values()), ones, create_graph=True, allow_unused=True)
        told[target] = torch.zeros(x.shape[_channels(table, target)], dtype=torch.float64)
        for (source, leaf), back in zip(given.items(), backward, strict=True):
            if back is None:
                continue
            numbers = torch.arange(leaf.shape[_channels(table, source)], dtype=leaf.dtype)
            amount, number = (
                _per_channel(
                    _carried(back, ones, _everywhere(v, leaf, _channels(table, source))), _channels(table, target)
                )
                for v in (torch.ones_like(numbers), numbers)
            )
            inputs = amount.nonzero()[:, 0]
            outputs = (number[inputs] / amount[inputs]).round().long()
            told[target][inputs] += amount[inputs] * values[source][outputs].double()
            if len(inputs):
                feeds.append(Feed(source, target, outputs.numpy(), inputs.numpy()))
    order = tuple(cut.order)
    again, _ = cut.through(net, _everywhere(values[None], image, 1), values)
    for site, x in again.items():
        if not torch.allclose(_per_channel(x, _channels(table, site)), told[site], rtol=1e-3, atol=1e-6):
            what = "the output" if site is None else f"'{table[site].name}'"
            raise NotFollowed(f"{what} sees more than sums of other layers' outputs, channel by channel")
    return order, tuple(feeds)


class _Cut:
    """The layers of a skeleton, made to give values of their own."""

    def __init__(self, net: nn.Module, table: LayerTable) -> None:
        self.table = table
        self.order: list[int] = []
        self.arrived: Tensors = {}
        self.given: Tensors = {}
        self.values: Mapping[Site, torch.Tensor] = {}
        self.shapes: dict[int, torch.Size] = {}
        places = {name: i for i, name in enumerate(table.names)}
        for path, module in net.named_modules():
            if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                continue
            name = f"{path}.weight" if path else "weight"
            if name not in places:
                raise NotFollowed(f"'{name}' is another layer's weight too")
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                raise NotFollowed(f"'{name}' is a transposed convolution's")
            module.forward = self._layer(places[name], module)  # type: ignore[method-assign]

    def through(
        self, net: nn.Module, image: torch.Tensor, values: Mapping[Site, torch.Tensor]
    ) -> tuple[Tensors, Tensors]:
        """(what arrives at every layer, what every layer gives) in one pass; `values` are per output channel, ones
        where there are none."""
        self.order, self.arrived, self.given, self.values = [], {}, {None: image}, values
        with torch.enable_grad(), following():
            out = net(image)
        if not isinstance(out, torch.Tensor):
            raise NotFollowed(f"it gives a {type(out).__name__}, not a tensor")
        if idle := [layer.name for i, layer in enumerate(self.table) if i not in self.given]:
            raise NotFollowed(f"'{idle[0]}' is not called as a layer")
        self.arrived[None] = out
        return self.arrived, self.given

    def _layer(self, place: int, module: nn.Module) -> Any:
        whole = module.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            if place in self.given:
                raise NotFollowed(f"'{self.table[place].name}' is called twice")
            if place not in self.shapes:
                with torch.no_grad():
                    self.shapes[place] = whole(x).shape
            like, dim = torch.empty(()).expand(self.shapes[place]), _channels(self.table, place)
            value = self.values.get(place, torch.ones(like.shape[dim]))
            self.order.append(place)
            self.arrived[place] = x
            self.given[place] = _everywhere(value, like, dim).requires_grad_(True)
            return self.given[place].clone()  # a net may add to it in place

        return forward


def _channels(table: LayerTable, site: Site) -> int:
    """The dimension of the channels in what a layer is given and gives."""
    return -1 if site is not None and table[site].kind == "linear" else 1


def _carried(back: torch.Tensor, ones: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What arrives of a source's `value`: `back` is linear in the `ones` it starts from, and this its transpose."""
    (forward,) = torch.autograd.grad(back, ones, value, retain_graph=True)
    return forward


def _per_channel(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.detach().double().movedim(dim, 0).flatten(1).sum(1)


def _everywhere(value: torch.Tensor, like: torch.Tensor, dim: int) -> torch.Tensor:
    """One value per channel in every other place: a tensor of its own in the shape of `like`."""
    shape = [1] * like.dim()
    shape[dim] = -1
    return value.reshape(shape).expand(like.shape).clone()


def _random(site: Site, channels: int) -> torch.Tensor:
    return torch.from_numpy(1 + streams.uniform(streams.key("wiring", site), channels)).float()
