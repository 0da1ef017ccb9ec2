"""Checkpoints of a training: one safetensors file, no pickled code, that appears whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rpbench.errors import StoreError
from rpbench.files import write_bytes
from rpbench.masks import Bound
from rpbench.store import CellFolder
from rpbench.train import State

FORMAT = "rpbench.checkpoint/1"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's content: `plan` is what the scheme decided, so that a resumed run need not score again."""

    state: State
    plan: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under a prefix, by their names without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


class Keeper:
    """Keeps a cell's checkpoints and the weights of its best epoch."""

    def __init__(
        self,
        cell: CellFolder,
        net: nn.Module,
        bound: Bound,
        optimizer: torch.optim.Optimizer,
        plan: dict[str, Any],
        world: int,
    ) -> None:
        self.cell, self.net, self.bound, self.optimizer = cell, net, bound, optimizer
        self.plan, self.world = plan, world
        self.writes = True  # only the first process writes

    def best(self, epoch: int) -> None:
        """Keep the net's present weights as those of `epoch`."""
        if self.writes:
            save_weights(self.net, self.cell.folder / f"best-{epoch:05d}.safetensors")

    def save(self, state: State, sums: list[float], track: list[torch.Tensor]) -> None:
        """Write the checkpoint, then drop best weights that it no longer refers to."""
        if not self.writes:
            return
        self.bound.verify()
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        names = {id(p): n for n, p in self.net.named_parameters()}
        for p, kept in self.optimizer.state.items():
            if kept.get("momentum_buffer") is not None:
                tensors[f"momentum.{names[id(p)]}"] = kept["momentum_buffer"]
        tensors |= {f"mask.{k}": v for k, v in self.bound.masks().items()}
        tensors["sums"] = torch.tensor(sums, dtype=torch.float64)
        if track:
            tensors["track"] = torch.stack(track)
        told = {
            "format": FORMAT,
            "run_id": self.cell.run_id,
            "world": str(self.world),
            "state": json.dumps(state.as_json()),
            "plan": json.dumps(self.plan),
        }
        write_tensors(self.cell.checkpoint, tensors, told)
        self.cell.write_lines("curve.jsonl", state.curve)
        for old in self.cell.folder.glob("best-*.safetensors"):
            if old.name != f"best-{state.best_epoch:05d}.safetensors":
                old.unlink(missing_ok=True)

    def restore(self, loaded: Loaded) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Put a checkpoint's tensors back; returns (sums, track)."""
        self.net.load_state_dict(loaded.part("net."))
        momentum = loaded.part("momentum.")
        for name, parameter in self.net.named_parameters():
            if name in momentum:
                self.optimizer.state[parameter]["momentum_buffer"].copy_(momentum[name])
        track = loaded.tensors.get("track")
        return loaded.tensors["sums"], [] if track is None else list(track.unbind())


def load(cell: CellFolder, world: int) -> Loaded | None:
    """The cell's checkpoint, None where there is none. StoreError for a file that is not this cell's, was written by
    another number of processes, or cannot be read."""
    from safetensors import SafetensorError, safe_open

    path = cell.checkpoint
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"checkpoint '{path}' cannot be read ({error}): remove it, or start over with --force"
        ) from None
    if told.get("format") != FORMAT:
        raise StoreError(f"'{path}' is not a checkpoint of this version: start over with --force")
    if told.get("run_id") != cell.run_id:
        raise StoreError(f"'{path}' is a checkpoint of another cell, {told.get('run_id')}: start over with --force")
    if int(told["world"]) != world:
        raise StoreError(
            f"this cell was begun with {told['world']} processes and cannot go on with {world}: "
            "BatchNorm saw other batches; use as many, or start over with --force"
        )
    return Loaded(State(**json.loads(told["state"])), json.loads(told["plan"]), tensors)


def save_weights(net: nn.Module, path: Path, **told: str) -> None:
    """The net's state dict as safetensors."""
    write_tensors(path, net.state_dict(), told)


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a state dict that `save_weights` wrote."""
    from safetensors.torch import load_file

    net.load_state_dict(load_file(path))


def write_tensors(path: Path, tensors: dict[str, Any], told: dict[str, str]) -> None:
    """A safetensors file with text metadata, written atomically; tensors that share memory are written apart."""
    from safetensors.torch import save

    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_bytes(path, save(plain, metadata=told))
