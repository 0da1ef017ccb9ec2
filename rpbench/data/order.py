"""Who sees which image when: a pure function of (seed, epoch, step), however many processes share the work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpbench import streams


@dataclass(frozen=True)
class Order:
    """The order of n training images in global batches; process `rank` of `world` takes a slice of each batch."""

    seed: int
    n: int
    batch: int
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return -(-self.n // self.batch)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The order of all n images in an epoch."""
        return streams.permutation(streams.key("order", self.seed, epoch), self.n)

    def size(self, step: int) -> int:
        """Images in the global batch of a step."""
        return min(self.batch, self.n - step * self.batch)

    def local(self, step: int) -> slice:
        """This process' slice of the epoch's order. Slices of all processes are disjoint and make up the batch."""
        start, size = step * self.batch, self.size(step)
        # rounded up, so that the first process has an image whenever anybody has: its BatchNorm statistics are kept
        first, last = (-(-r * size // self.world) for r in (self.rank, self.rank + 1))
        return slice(start + first, start + last)


def shares(n: int, batch: int, rank: int = 0, world: int = 1) -> list[NDArray[np.int64]]:
    """Index batches of this process in a pass over n images, each image in exactly one process' share.

    Shares are contiguous and equally long but for the last, so that gathered results only need cutting to n.
    """
    length = -(-n // world)
    mine = np.arange(rank * length, min((rank + 1) * length, n), dtype=np.int64)
    return [mine[i : i + batch] for i in range(0, len(mine), batch)]
