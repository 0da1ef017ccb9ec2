"""Which part of a masked net is connected: weights on a path from input to output."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rpbench.layers import LayerTable
from rpbench.masks import Masks


@dataclass(frozen=True)
class Paths:
    """Which part of a masked net is connected: the fraction of prunable weights on a path from input to output, and
    how many outputs no path reaches."""

    effective: float
    unreached: int


def paths(model: nn.Module, table: LayerTable, masks: Masks, input_shape: tuple[int, ...]) -> Paths | None:
    """Effective density (Vysogorets & Kempe 2021) of a masked net.

    One pass of ones through the masks, forward and backward, where every layer passes on only *whether* something
    arrives: a product over layers would overflow float64 on deep wide nets. None for nets whose paths cannot be
    followed this way (attention, recurrence), never a guess.
    """
    try:
        out, found = gradients(skeleton(model, table), table, masks, input_shape)
    except Exception:  # a net that cannot run on its own skeleton has no defined paths
        return None
    alive = sum(int(((g != 0) & masks[name].to(g.device)).sum()) for name, g in found.items() if g is not None)
    return Paths(alive / table.prunable, int((out == 0).sum()))


def gradients(
    net: nn.Module, table: LayerTable, masks: Masks, input_shape: tuple[int, ...]
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """One pass of ones through a skeleton with `masks` for its weights: what arrives at its outputs, and for every
    weight whether it lies on a path, or would if it were kept (not zero there). None for layers that are not used."""
    weights = dict(net.named_parameters(remove_duplicate=False))
    like = next(iter(weights.values()))
    for name in table.names:
        weights[name].data = masks[name].to(like)
        weights[name].requires_grad_(True)
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [m.register_forward_hook(_arrives) for m in net.modules() if isinstance(m, layers)]
    try:
        with torch.enable_grad(), following():
            out = net(torch.ones(1, *input_shape, device=like.device))
            found = torch.autograd.grad(out.sum(), [weights[name] for name in table.names], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return out.detach(), dict(zip(table.names, found, strict=True))


class _Arrives(torch.autograd.Function):
    """1 where something positive arrives, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


class _AveragePool(nn.Module):
    """A max-pool's window with an average: every input of the window counts, not only the largest."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool, self.args = _AVERAGE[type(pool)]
        self.given = [getattr(pool, name) for name in self.args]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.pool(x, *self.given)
        return out


_WINDOW = ("kernel_size", "stride", "padding", "ceil_mode")
_AVERAGE: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    nn.MaxPool1d: (functional.avg_pool1d, _WINDOW),
    nn.MaxPool2d: (functional.avg_pool2d, _WINDOW),
    nn.MaxPool3d: (functional.avg_pool3d, _WINDOW),
    nn.AdaptiveMaxPool1d: (functional.adaptive_avg_pool1d, ("output_size",)),
    nn.AdaptiveMaxPool2d: (functional.adaptive_avg_pool2d, ("output_size",)),
    nn.AdaptiveMaxPool3d: (functional.adaptive_avg_pool3d, ("output_size",)),
}
_PASSING = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.Softmax, nn.LogSoftmax, nn.modules.dropout._DropoutNd,
)  # fmt: skip


class NotFollowed(Exception):
    """What this net does cannot be followed; says what."""


_PASS_CALLS: Any = {
    torch.relu, torch.relu_, functional.relu, functional.relu6, functional.leaky_relu, functional.gelu,
    functional.silu, functional.mish, functional.elu, functional.hardswish, functional.hardsigmoid,
    functional.hardtanh, functional.softplus, functional.logsigmoid, torch.sigmoid, functional.sigmoid,
    torch.tanh, functional.tanh, functional.batch_norm, functional.layer_norm, functional.group_norm,
    functional.instance_norm, functional.dropout, functional.dropout2d,
    torch.Tensor.relu, torch.Tensor.relu_, torch.Tensor.sigmoid, torch.Tensor.tanh,
}  # fmt: skip
_REFUSE_CALLS: Any = {
    functional.scaled_dot_product_attention, functional.softmax, functional.log_softmax, torch.softmax,
    torch.log_softmax, torch.Tensor.softmax, torch.bmm, torch.baddbmm, torch.einsum, torch.Tensor.bmm,
    functional.multi_head_attention_forward,
}  # fmt: skip
_PRODUCT_CALLS: Any = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
_POOL_CALLS: dict[Any, Any] = {
    torch.max_pool1d: functional.avg_pool1d, functional.max_pool1d: functional.avg_pool1d,
    torch.max_pool2d: functional.avg_pool2d, functional.max_pool2d: functional.avg_pool2d,
    torch.max_pool3d: functional.avg_pool3d, functional.max_pool3d: functional.avg_pool3d,
}  # fmt: skip
_ADAPTIVE_CALLS: dict[Any, Any] = {
    functional.adaptive_max_pool1d: functional.adaptive_avg_pool1d,
    functional.adaptive_max_pool2d: functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool3d: functional.adaptive_avg_pool3d,
}


class _Followed(TorchFunctionMode):
    """Functions called by the net itself: activations and norms pass on, max-pools average, attention is refused."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _REFUSE_CALLS:
            raise NotFollowed(f"it calls {function.__name__}")
        if function in _PRODUCT_CALLS and not any(isinstance(a, nn.Parameter) for a in args):
            raise NotFollowed("it multiplies what layers give")
        if function in _PASS_CALLS:
            return args[0] if args else kwargs["input"]
        if function in _POOL_CALLS or function in _ADAPTIVE_CALLS:
            window = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            names = ("input", *(window if function in _POOL_CALLS else ("output_size",)), "return_indices")
            given = dict(zip(names, args, strict=False)) | kwargs
            if given.pop("return_indices", False) or given.pop("dilation", 1) not in (1, (1, 1), [1, 1]):
                raise NotFollowed("it calls a max-pool that is dilated or returns indices")
            return (_POOL_CALLS | _ADAPTIVE_CALLS)[function](**given)
        return function(*args, **kwargs)


def following() -> TorchFunctionMode:
    """A context in which the functions that a net calls itself pass on what arrives. NotFollowed for attention."""
    return _Followed()


def _arrives(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> Any:
    return _Arrives.apply(out)


def skeleton(model: nn.Module, table: LayerTable) -> nn.Module:
    """A copy of a net without biases, norms and activations, its max-pools averages: what is left between its layers
    carries values on as they are. All weights are zero, and take no memory; those of a meta net are on the CPU.

    Raises NotFollowed for attention and recurrence, and where a parameter is neither a layer's nor its bias: it might
    scale, add or gate.
    """
    if any(isinstance(module, nn.MultiheadAttention | nn.RNNBase) for module in model.modules()):
        raise NotFollowed("it has attention or recurrence")
    device = next(model.parameters()).device
    device = torch.device("cpu") if device.type == "meta" else device
    zero = torch.zeros((), device=device)
    memo: dict[int, Any] = {id(p): nn.Parameter(zero.expand(p.shape), requires_grad=False) for p in model.parameters()}
    net = copy.deepcopy(model, memo).float().eval()
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip the second use of a module
            if isinstance(child, _PASSING):
                setattr(parent, name, nn.Identity())
            elif type(child) in _AVERAGE:
                if getattr(child, "return_indices", False) or getattr(child, "dilation", 1) not in (1, (1, 1)):
                    raise NotFollowed("it has a max-pool that is dilated or returns indices")
                setattr(parent, name, _AveragePool(child))
    parameters = dict(net.named_parameters(remove_duplicate=False))
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    known = {id(parameters[name]) for name in table.names}
    known |= {id(m.bias) for m in net.modules() if isinstance(m, layers)}
    if unknown := [name for name, parameter in parameters.items() if id(parameter) not in known]:
        raise NotFollowed(f"'{unknown[0]}' is neither a layer's weight nor its bias")
    return net
