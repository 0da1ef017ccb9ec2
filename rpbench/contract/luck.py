"""Other states of the global random generators, for a while."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def other_luck(other: bool = True) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators (the CPU's) in another state; afterwards as they were."""
    if not other:
        yield
        return
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(91)
    np.random.seed(91)
    torch.default_generator.manual_seed(91)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
