from collections.abc import Mapping

import torch

from rpbench import Probe, score_scheme

TEMPERATURE = 200.0


@score_scheme
def grasp(
    probe: Probe, *, samples_per_class: int = 10, reinit_classifier: bool = False, halves: bool = False
) -> Mapping[str, torch.Tensor]:
    """GraSP: keeps what pruning would hurt the gradient flow most, -w * Hg removed from the top. https://arxiv.org/abs/2002.07376

    `samples_per_class` images of every class (the code released with Liu et al. takes 25). `reinit_classifier` scores
    a xavier-normal re-draw of the classifier, as the original does. `halves` adds up two halves sorted by class,
    each with its own BatchNorm statistics: an accident of memory in the released code, for parity only.
    """
    model = probe.model()
    weights = probe.weights(model)
    if reinit_classifier:
        last = weights[probe.table.last.name]
        drawn = torch.empty(last.shape, dtype=last.dtype)
        last.data.copy_(torch.nn.init.xavier_normal_(drawn, generator=probe.generator()))
    x, y = probe.per_class(samples_per_class)
    middle = len(y) // 2
    parts = [(x[:middle], y[:middle], 1.0), (x[middle:], y[middle:], 1.0)] if halves else list(probe.chunks(x, y))

    leaves = list(weights.values())
    gradient = [torch.zeros_like(w) for w in leaves]
    for images, classes, share in parts:
        loss = probe.loss(model(images) / TEMPERATURE, classes) * share
        for total, part in zip(gradient, torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True):
            total += part
    product = [torch.zeros_like(w) for w in leaves]
    for images, classes, share in parts:
        loss = probe.loss(model(images) / TEMPERATURE, classes) * share
        flow = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        dot = torch.stack([(g * f).sum() for g, f in zip(gradient, flow, strict=True)]).sum()
        for total, part in zip(product, torch.autograd.grad(dot, leaves, materialize_grads=True), strict=True):
            total += part
    return {name: w.detach() * hg for (name, w), hg in zip(weights.items(), product, strict=True)}
