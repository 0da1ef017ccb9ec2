"""A stand-in for a device that records graphs: it keeps the operations of a recording and does them again on the same
tensors, without any of the Python between them. It refuses what a recording on a GPU could not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKING = {"_local_scalar_dense", "nonzero", "is_nonzero", "_unique2", "masked_select", "equal"}


class Tape(TorchDispatchMode):
    """Keeps every operation that is done under it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name.removeprefix("aten::") in ASKING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        fresh = [
            t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given
        ]
        self.done.append((function, args, kwargs or {}, fresh))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, fresh in self.done:
            out = function(*args, **kwargs)
            if fresh:
                new = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)][-len(fresh) :]
                for old, value in zip(fresh, new, strict=True):
                    old.data.copy_(value)


class TapeGraphs:
    """Records on tapes; counts what was run, recorded and replayed."""

    def __init__(self) -> None:
        self.ran = self.recorded = self.replayed = 0

    def run(self, work: Callable[[], None]) -> None:
        self.ran += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        tape = Tape()
        with tape:
            work()

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay
