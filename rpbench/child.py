"""The confined process: it gives up what a scheme has no use for, runs one file, and answers calls.

`rpbench.isolated` starts it and speaks with it in frames (`rpbench.wire`). Nothing that this process says is believed
there: what is checked here is checked to have the same words as in one's own process.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from errno import EACCES, ENETDOWN, ENOMEM, EPERM, EROFS, EXDEV
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rpbench import wire
from rpbench.confine import confine, die_with_parent, limit_memory
from rpbench.errors import InfeasibleBudget, RpbenchError, SchemeError, ScoreError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rpbench.sampler import Sampler
    from rpbench.scheme import Scheme

STARTS_PROCESSES = {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "subprocess.Popen"}
TOLD = (UsageError, ScoreError, SchemeError)  # classes that keep their name on the way; the more special first
LONGEST = 2000  # characters of a text that is told


class Pipe:
    """Frames from and to the process that started this one."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self.source, self.sink = source, sink

    def receive(self) -> tuple[dict[str, Any], bytes]:
        prefix = self.source.read(wire.PREFIX.size)
        if len(prefix) < wire.PREFIX.size:  # the other end has gone
            os._exit(0)
        text, blob = wire.lengths(prefix)
        return wire.head(self.source.read(text)), self.source.read(blob)

    def send(self, head: dict[str, Any], blob: bytes = b"") -> None:
        self.sink.write(wire.frame(head, blob))
        self.sink.flush()


def main() -> None:
    """A life: be told what to run, give up the rest, answer calls until there are none."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pipe = Pipe(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)  # what the file prints goes where its complaints go
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="replace")
    told, _ = pipe.receive()
    protection = confine(Path(told["scratch"]), told["devices"])
    _import(told)
    limit_memory(told["memory"], bool(told["devices"]))
    attempts = _watch()
    pipe.send({"ready": protection.lacks})
    found: Scheme | Sampler | None = None
    while True:
        asked, blob = pipe.receive()
        attempts.clear()
        try:
            found = found or _load(told)
            head, answer = _answer(found, asked, blob, pipe)
        except BaseException as error:
            head, answer = {"error": _error(error, asked["who"], told, attempts)}, b""
        pipe.send(head, answer)


def _import(told: dict[str, Any]) -> None:
    """What every call needs, before memory is counted."""
    import rpbench.loading  # noqa: F401 - numpy

    if told["torch"]:
        import torch

        torch.set_num_threads(told["threads"])
        torch.backends.cudnn.allow_tf32 = told["tf32"]
        torch.backends.cudnn.benchmark = told["benchmark"]
        if told["devices"]:
            torch.zeros(1, device="cuda")


def _load(told: dict[str, Any]) -> Scheme | Sampler:
    import inspect

    from rpbench.loading import real
    from rpbench.outline import Outline

    given = told["outline"]
    return real(Outline(**given | {"path": Path(given["path"]), "signature": inspect.Signature(), "doc": ""}))


def _answer(found: Any, asked: dict[str, Any], blob: bytes, pipe: Pipe) -> tuple[dict[str, Any], bytes]:
    table, args = wire.table_in(asked["table"]), wire.args_in(asked["args"])
    if asked["call"] == "shape":
        densities, _ = found.allocate(table, asked["density"], None, args)
        return {"densities": _numbers(densities, set(table.names))}, b""
    if asked["call"] == "score":
        return _score(found, asked, blob, pipe)
    from safetensors.torch import load

    scores = load(blob) if asked["scores"] else None

    def on_path(masks: Mapping[str, Any]) -> dict[str, Any]:
        pipe.send({"want": "paths"}, wire.bits_out(table, masks))
        return wire.bits_in(table, pipe.receive()[1])

    wiring = wire.wiring_in(asked["wiring"], on_path)
    masks = found.draw(table, asked["counts"], asked["seed"], scores, args, lambda: wiring)
    return {"masks": True}, wire.bits_out(table, {name: mask.numpy() for name, mask in masks.items()})


def _numbers(densities: dict[str, Any], names: set[str]) -> list[list[Any]]:
    """Densities as JSON: what is no finite number is told as text. Of layers that do not exist, the first few."""
    import math

    import numpy as np

    rows: list[list[Any]] = []
    unknown = 0
    for name, value in densities.items():
        unknown += name not in names
        if unknown > 5 and name not in names:
            continue
        number = float(value) if isinstance(value, int | float | np.floating | np.integer) else math.nan
        rows.append([_short(name), number if math.isfinite(number) else {"text": _short(value)}])
    return rows


def _score(found: Scheme, asked: dict[str, Any], blob: bytes, pipe: Pipe) -> tuple[dict[str, Any], bytes]:
    import torch
    from safetensors.torch import save

    from rpbench.budget import check_scores
    from rpbench.scheme import Probe, as_arrays

    table = wire.table_in(asked["table"])
    probe = Probe(
        _net(asked, blob),
        table,
        asked["density"],
        _batches(pipe) if asked["batches"] else None,
        seed=asked["seed"],
        chunk=asked["chunk"],
        classes=asked["classes"],
        device=asked["device"],
    )
    scores = found.scores(probe, wire.args_in(asked["args"]))
    check_scores(table, as_arrays(scores))
    own = {name: scores[name].clone(memory_format=torch.contiguous_format) for name in table.names}
    return {"scores": True}, save(own)


def _net(asked: dict[str, Any], blob: bytes) -> nn.Module:
    """The net of the probe: made again as its origin says, with the weights that were sent; else as it was sent."""
    import torch

    from rpbench.loading import load_file

    origin = asked["origin"]
    if origin is None:
        for path in asked["files"]:
            load_file(Path(path), "model")
        sent: nn.Module = torch.load(io.BytesIO(blob), weights_only=False)
        return sent
    from rpbench import streams
    from rpbench.models import ModelName, build

    torch.manual_seed(streams.torch_seed("init", origin["seed"]))
    name = ModelName(origin["name"], origin["family"], origin["source"])
    net = build(name, origin["classes"], origin["channels"], origin["size"])
    net.load_state_dict(torch.load(io.BytesIO(blob), weights_only=True))
    return net


def _batches(pipe: Pipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Labelled batches, each asked for when it is wanted: the other end counts them."""
    import torch

    while True:
        pipe.send({"want": "batch"})
        told, blob = pipe.receive()
        if told.get("end"):
            return
        x, y = torch.load(io.BytesIO(blob), weights_only=True)
        yield x, y


def _watch() -> list[str]:
    """The doings that a refusal may be of, the latest last: what the kernel answers does not tell them apart."""
    attempts: list[str] = []

    def note(event: str, _: Any) -> None:
        if event in STARTS_PROCESSES or event == "os.kill":
            attempts.append(event)

    sys.addaudithook(note)
    return attempts


def _error(error: BaseException, who: str, told: dict[str, Any], attempts: list[str]) -> dict[str, Any]:
    """An exception as plain values: what was refused in words, else as it would be told in one's own process."""
    if isinstance(error, InfeasibleBudget):
        bounds = {"density": error.density, "least": error.least, "most": error.most}
        return {"class": "InfeasibleBudget", "text": "", "why": _short(error.why), **bounds}
    if refused := _refusal(error, told, attempts):
        memory = told["outline"]["kind"] == "score" and refused.startswith("asked")
        return {"class": "ScoreError" if memory else "SchemeError", "text": f"{who} {refused}"}
    if isinstance(error, RpbenchError):
        name = next((c.__name__ for c in TOLD if isinstance(error, c)), "SchemeError")
        return {"class": name, "text": _short(error)}
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"
    return {"class": "SchemeError", "text": _short(f"{who} raised {type(error).__name__}: {error} ({where})")}


def _refusal(error: BaseException, told: dict[str, Any], attempts: list[str]) -> str:
    """What of confinement an exception comes from; '' where from none of it."""
    for one in _chain(error):
        if isinstance(one, MemoryError) or "can't allocate memory" in str(one) or "std::bad_alloc" in str(one):
            return _memory(told)
        if not isinstance(one, OSError):
            continue
        if one.errno == ENOMEM:
            return _memory(told)
        if one.errno == ENETDOWN or type(one).__name__ == "gaierror":
            return "tried to use the network: refused"
        if one.errno == EPERM and attempts:
            signals = attempts[-1] == "os.kill"
            return f"tried to {'signal' if signals else 'start'} another process: refused"
        if one.errno not in (EACCES, EPERM, EROFS, EXDEV):
            continue
        if one.filename is None and any(
            "multiprocessing" in f.filename for f in traceback.extract_tb(one.__traceback__)
        ):
            return "tried to start another process: refused"
        for path in (one.filename2, one.filename):
            outside = isinstance(path, str) and not os.path.abspath(path).startswith(told["scratch"] + os.sep)
            if outside and (not os.path.exists(path) or os.access(path, os.R_OK)):
                if path.startswith("/proc/"):
                    return "tried to look into another process: refused"
                return f"tried to write to '{_short(os.path.abspath(path))}' outside its scratch folder: refused"
    return ""


def _memory(told: dict[str, Any]) -> str:
    return f"asked for more memory than the {told['memory'] / 2**30:g} GB that it may use (--scheme-memory)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from, twenty at most."""
    for _ in range(20):
        if error is None:
            return
        yield error
        reason = getattr(error, "reason", None)  # of urllib
        if isinstance(reason, BaseException):
            yield reason
        error = error.__cause__ or error.__context__


def _short(value: object) -> str:
    try:
        text = str(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text[:LONGEST]
