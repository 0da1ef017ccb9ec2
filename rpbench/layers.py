"""The layer table: every prunable weight tensor of a net, in registration order.

Prunable is every convolution and linear *weight*: the first convolution, 1x1 shortcuts, the classifier and attention's
fused projection included. Biases, norms and embeddings are neither pruned nor counted.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from rpbench.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

Add = Callable[[Any, float], None]


@dataclass(frozen=True)
class Layer:
    """One prunable weight tensor.

    `shape` is (out, in) or (out, in/groups, kh, kw); `kind` is "conv" or "linear"; `macs` counts the multiply-adds
    per example at the task's input size, None where no input size was given.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    groups: int = 1
    macs: int | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class LayerTable(Sequence[Layer]):
    """All layers of a net; iterating gives `Layer`s. `notes` says what of the net stands outside the table."""

    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def prunable(self) -> int:
        """Weights in all layers together: what every density is a fraction of."""
        return sum(layer.numel for layer in self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @property
    def first(self) -> Layer:
        return self.layers[0]

    @property
    def last(self) -> Layer:
        """The classifier: identified by its position, never by its name."""
        return self.layers[-1]

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Layer, ...]: ...
    def __getitem__(self, index: int | slice) -> Layer | tuple[Layer, ...]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)


def layer_table(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> LayerTable:
    """The table of `model`, multiply-adds counted for one example of `input_shape` (channels, height, width).

    Raises ModelError for a net without prunable weights, with weights that are not plain parameters, or that cannot
    take an input of that shape.
    """
    found = list(_prunable(model))
    if not found:
        raise ModelError(f"{type(model).__name__} has no convolution or linear weight to prune")
    macs = _pass_of_two(model, input_shape)[0] if input_shape is not None else {}
    layers = tuple(
        Layer(name, tuple(weight.shape), kind, groups, None if input_shape is None else macs.get(name, 0))
        for name, weight, kind, groups in found
    )
    return LayerTable(layers, tuple(_notes(model, layers, input_shape is not None)))


def _prunable(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, str, int]]:
    """(parameter name, weight, kind, groups) in registration order; a shared tensor appears once."""
    from torch import nn

    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            keys = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
            kind, groups = "linear", 1
        elif isinstance(module, convolutions):
            keys, kind, groups = ["weight"], "conv", module.groups
        elif isinstance(module, nn.Linear):
            keys, kind, groups = ["weight"], "linear", 1
        else:
            continue
        for key in keys:
            name = f"{path}.{key}" if path else key
            weight = module._parameters.get(key)
            if isinstance(weight, nn.parameter.UninitializedParameter):
                raise ModelError(f"'{name}' has no shape yet: run one batch through the net first")
            own_attribute = key in getattr(module, "parametrizations", ()) or f"{key}_orig" in module._parameters
            if weight is None and (key == "weight" or own_attribute):
                raise ModelError(
                    f"'{name}' is not a plain parameter (it is parametrized, or pruned by torch.nn.utils.prune): "
                    "remove that first"
                )
            if weight is not None and id(weight) not in seen:
                seen.add(id(weight))
                yield name, weight, kind, groups


def _notes(model: nn.Module, layers: tuple[Layer, ...], counted: bool) -> Iterator[str]:
    from torch import nn

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    known = {layer.name for layer in layers}
    outside = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
        and name not in known
        and id(parameter) not in embeddings
        and name.rsplit(".", 1)[-1].startswith("weight")
    ]
    if outside:
        yield f"not pruned and not counted (neither convolution nor linear): {', '.join(outside)}"
    if layers[-1].kind != "linear":
        yield f"the last layer '{layers[-1].name}' is a convolution: it stands for the classifier"
    idle = [layer.name for layer in layers if layer.macs == 0]
    if counted and idle:
        yield f"never used by a forward pass: {', '.join(idle)}"


def output_shape(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `model` gives for a batch of two examples. Raises ModelError where it cannot take them."""
    return _pass_of_two(model, input_shape)[1]


def _pass_of_two(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[dict[str, int], tuple[int, ...]]:
    """(multiply-adds per example of every layer, output shape) of one forward pass of two examples.

    The pass is of a copy without weights; a net that writes into its weights runs with weights of its own. Two,
    because some nets squeeze a batch of one away.
    """
    given = input_shape
    try:
        input_shape = tuple(operator.index(d) for d in given)
    except TypeError:
        input_shape = ()
    if not input_shape or min(input_shape) < 1:
        raise ModelError(f"input_shape {given} is not (channels, height, width) of one example: whole numbers from 1")
    try:
        return _observed(_weightless(model), input_shape)
    except Exception:
        try:
            return _observed(copy.deepcopy(model), input_shape)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{type(model).__name__} cannot take an input of shape {input_shape}: {reason}") from error


def _observed(net: nn.Module, input_shape: tuple[int, ...]) -> tuple[dict[str, int], tuple[int, ...]]:
    import torch

    macs: dict[str, int] = {}
    names = {id(weight): name for name, weight, _, _ in _prunable(net)}  # the names of the table, shared weights too

    def add(weight: torch.Tensor, vectors: float) -> None:
        if (name := names.get(id(weight))) is not None:
            macs[name] = macs.get(name, 0) + round(weight.numel() * vectors / 2)

    hooks = _watch_attention(net, add)
    like = next(p for p in net.parameters() if p.is_floating_point())
    modes = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad(), _counting_calls(add):
            out = net.eval()(torch.zeros(2, *input_shape, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return macs, tuple(getattr(out, "shape", ()))


def _weightless(model: nn.Module) -> nn.Module:
    """A copy whose weights are one zero each, seen in the weight's shape: cheap even for nets of gigabytes.

    Attention's are copied, as torch applies them for real, and slowly where they have no storage.
    """
    from torch import nn

    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    applied = {id(p) for attention in attentions for p in attention.parameters()}
    memo: dict[int, Any] = {}
    for p in model.parameters():
        if id(p) not in applied:
            memo[id(p)] = nn.Parameter(p.new_zeros(()).expand(p.shape), requires_grad=False)
    return copy.deepcopy(model, memo)


def _counting_calls(add: Add) -> Any:
    """A context that calls add(weight, number of positions at which the weight matrix is applied) for every linear and
    convolution call, whether a module makes it or the net itself (torchvision's Swin does).

    The calls are made for one channel in and out, which gives the shape of their output, and the output is zero. The
    meta device would do without arithmetic too, but torch imports for more than a second on the first use of it.
    """
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    first = ("input", "weight", "bias", "stride", "padding")
    arguments: dict[Any, tuple[str, ...]] = {functional.linear: first[:3]}
    arguments |= dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), (*first, "dilation", "groups"))
    transposed = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
    arguments |= dict.fromkeys(transposed, (*first, "output_padding", "groups", "dilation"))

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function not in arguments:
                return function(*args, **kwargs)
            given = dict(zip(arguments[function], args, strict=False)) | kwargs
            x, weight = given["input"], given["weight"]
            if not 2 <= weight.dim() <= x.dim() + 1:
                return function(*args, **kwargs)
            inside, outside = weight.shape[1] * given.get("groups", 1), weight.shape[0]
            if function in transposed:
                inside, outside = outside, inside
            channels = 1 - weight.dim()  # the dimension of x that the weight matrix is applied along
            if x.shape[channels] != inside:
                return function(*args, **kwargs)  # raises, and says why
            thin = {"input": x.narrow(channels, 0, 1), "weight": weight[:1, :1], "bias": None}
            if "groups" in given:
                thin["groups"] = 1
            out = function(**given | thin)
            shape = list(out.shape)
            shape[channels] = outside
            out = out.new_zeros(shape)
            add(weight, x.numel() / inside if function in transposed else out.numel() / outside)
            return out

    return Calls()


def _watch_attention(model: nn.Module, add: Add) -> list[Any]:
    """Hooks that count attention's projections: torch applies them inside of one fused call."""
    from torch import nn

    def attention(module: Any, args: Any, kwargs: Any, _: Any) -> None:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        tokens = [given[k].numel() / given[k].shape[-1] for k in ("query", "key", "value")]
        if module.in_proj_weight is not None:
            add(module.in_proj_weight, sum(tokens) / 3)
        else:
            for key, count in zip(("q", "k", "v"), tokens, strict=True):
                add(getattr(module, f"{key}_proj_weight"), count)
        add(module.out_proj.weight, tokens[0])

    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    return [module.register_forward_hook(attention, with_kwargs=True) for module in attentions]
