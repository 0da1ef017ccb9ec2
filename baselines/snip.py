from collections.abc import Mapping
from typing import Literal

import torch

from rpbench import Probe, UsageError, score_scheme


@score_scheme
def snip(probe: Probe, *, batches: int = 1, reinit: Literal["none", "xavier"] = "none") -> Mapping[str, torch.Tensor]:
    """SNIP: |w * dL/dw| on labelled training batches, ranked over the whole net. https://arxiv.org/abs/1810.02340

    `reinit=xavier` scores a xavier-normal re-draw of all weights, as the released CIFAR code does; `batches` averages
    the gradient over several batches.
    """
    if batches < 1:
        raise UsageError(f"snip:batches is {batches}: it must be at least 1")
    model = probe.model()
    weights = probe.weights(model)
    if reinit == "xavier":
        generator = probe.generator()
        for weight in weights.values():
            drawn = torch.empty(weight.shape, dtype=weight.dtype)
            weight.data.copy_(torch.nn.init.xavier_normal_(drawn, generator=generator))
    leaves = list(weights.values())
    gradients = [torch.zeros_like(weight) for weight in leaves]
    for _ in range(batches):
        for x, y, share in probe.chunks(*probe.batch()):
            loss = probe.loss(model(x), y) * share / batches
            for total, part in zip(gradients, torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True):
                total += part
    return {name: (w.detach() * g).abs() for (name, w), g in zip(weights.items(), gradients, strict=True)}
