"""Masks on weights: zero whenever anybody looks, and the same training as masked gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import rpbench
from rpbench.models import build, resolve


def net() -> nn.Module:
    torch.manual_seed(0)
    return build(resolve("resnet8", "cifar"), 10, 1, 8)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, mask_gradients: dict[str, torch.Tensor] | None) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x, y = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if mask_gradients:
            for name, p in model.named_parameters():
                if name in mask_gradients:
                    assert p.grad is not None
                    p.grad.mul_(mask_gradients[name])
        optimizer.step()


SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@pytest.mark.parametrize(
    "changes", [{}, {"nesterov": False}, {"momentum": 0.0, "nesterov": False}, {"weight_decay": 0.1}]
)
def test_masking_weights_equals_masking_gradients(changes: dict[str, Any]) -> None:
    ours, theirs = net(), net()
    masks = rpbench.plan(ours, "erk", 0.2).draw(0)
    optimizer = torch.optim.SGD(ours.parameters(), **SGD | changes)
    bound = rpbench.prune(ours, masks, optimizer)
    rpbench.prune(theirs, masks)
    steps(ours, optimizer, None)
    steps(theirs, torch.optim.SGD(theirs.parameters(), **SGD | changes), masks)
    bound.verify()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_hidden_weight_is_caught() -> None:
    model = net()
    masks = rpbench.plan(model, "erk", 0.2).draw(0)
    bound = rpbench.prune(model, masks)
    steps(model, torch.optim.SGD(model.parameters(), **SGD), None)
    with pytest.raises(rpbench.MaskError, match="are not zero"):
        bound.verify()
    bound.apply()
    bound.verify()


def test_channels_last_and_float64_nets() -> None:
    model = net().double().to(memory_format=torch.channels_last)
    masks = rpbench.plan(model, "erk", 0.2).draw(0)
    bound = rpbench.prune(model, masks)
    bound.verify()
    assert model.blocks[1].conv1.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, index]
    assert rpbench.digest(bound.masks()) == rpbench.digest(masks)


def test_masks_that_do_not_fit_are_refused() -> None:
    model = net()
    with pytest.raises(rpbench.ModelError, match="'nowhere', which ResNet does not have"):
        rpbench.prune(model, {"nowhere": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(rpbench.ModelError, match=r"torch.bool \(3,\), its weight \(10, 64\)"):
        rpbench.prune(model, {"fc.weight": torch.ones(3, dtype=torch.bool)})


def test_digest_is_of_bits_not_names() -> None:
    masks = rpbench.plan(net(), "erk", 0.2).draw(0)
    renamed = {f"x{i}": mask for i, mask in enumerate(masks.values())}
    flipped = copy.deepcopy(masks)
    first = next(iter(flipped))
    flipped[first].view(-1)[0] = ~flipped[first].view(-1)[0]
    assert rpbench.digest(masks) == rpbench.digest(renamed) != rpbench.digest(flipped)


def test_the_optimizer_of_accelerate_is_hooked() -> None:
    from accelerate import Accelerator

    model = net()
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD(model.parameters(), **SGD))
    bound = rpbench.prune(model, rpbench.plan(model, "erk", 0.2).draw(0), optimizer)
    steps(model, optimizer, None)
    bound.verify()
