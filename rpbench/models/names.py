"""Names of CIFAR ResNets: resnet20, resnet20-56 (width 56), resnet32-x1.5 (width 24)."""

from __future__ import annotations

import re


def cifar_resnet(name: str) -> tuple[int, int] | None:
    """(depth, width) of ResNet-A-W with A = 6n+2, or None where the name is not one."""
    found = re.fullmatch(r"resnet(\d{1,4})(?:-(\d{1,4})|-x(\d{1,3}(?:\.\d{1,4})?))?", name)
    if not found:
        return None
    depth = int(found[1])
    width = int(found[2]) if found[2] else 16
    if found[3]:
        exact = 16 * float(found[3])
        width = round(exact) if abs(exact - round(exact)) < 1e-9 else 0
    if depth < 8 or (depth - 2) % 6 or width < 1:
        return None
    return depth, width
