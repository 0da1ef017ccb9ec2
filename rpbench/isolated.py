"""A stranger's function, called in a confined process of its own.

The process runs the file; this one never does. It answers in frames of JSON and safetensors bytes of bounded size, no
pickle, and what it answers is checked as if a person had typed it. Labelled batches are handed over one by one, and
counted here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rpbench import confine, errors, wire
from rpbench.errors import InfeasibleBudget, RpbenchError, SchemeError, UsageError
from rpbench.loading import real
from rpbench.outline import Kind, Outline
from rpbench.sampler import MaskKey, Sampler
from rpbench.scheme import NoMoreBatches, Probe, Scheme

if TYPE_CHECKING:
    from rpbench.layers import LayerTable
    from rpbench.wiring import Wiring

T = TypeVar("T", Scheme, Sampler)
Head = dict[str, Any]
Serve = Callable[[Head, bytes], tuple[Head, bytes]]

START = 300.0  # seconds in which a process imports torch, on whatever disk it lies
PRINTED = 200  # lines of what a file prints that are passed on, for each process
WIDE = 500  # characters of such a line
BOOT = "import json,sys; sys.path[:] = json.loads(sys.argv[1]); from rpbench.child import main; main()"
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "HF_HUB_OFFLINE")
KEPT_FAMILIES = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "CUBLAS_", "NVIDIA_")


@dataclass(frozen=True)
class Limits:
    """What one call may take: wall-clock seconds, GB (2**30 bytes) of memory."""

    seconds: float = 600.0
    memory: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds < 1e6:
            raise UsageError(f"--scheme-seconds {self.seconds:g}: give a number of seconds above 0")
        if not 0 < self.memory < 1e6:
            raise UsageError(f"--scheme-memory {self.memory:g}: give a number of GB above 0")


def scheme(outline: Outline, limits: Limits | None = None) -> Scheme:
    """The scheme of an outline; what its function does happens in a process of its own, one for each call."""
    function = _proxy(outline, limits or Limits())
    assert outline.kind != "mask"
    return Scheme(outline.name, function, outline.kind, outline.density, outline)


def sampler(outline: Outline, limits: Limits | None = None) -> Sampler:
    """The sampler of an outline, as `scheme`."""
    function = _proxy(outline, limits or Limits())
    return Sampler(outline.name, function, outline.exact, outline.scored, outline.wired, outline)


def limited(found: T, limits: Limits) -> T:
    """The same with other limits; one that is not isolated stays what it is."""
    return found if found.outline is None else replace(found, function=_proxy(found.outline, limits))


@contextlib.contextmanager
def session(found: T, limits: Limits) -> Iterator[T]:
    """The same with one process for all calls in the block (a new one after one has died)."""
    if found.outline is None or switched_off():
        yield found
        return
    process = Process(found.outline, limits)
    try:
        yield replace(found, function=_proxy(found.outline, limits, process))
    finally:
        process.close()


def switched_off() -> bool:
    """Whether RPBENCH_ISOLATION=off: files of one's own run in this process, to be debugged."""
    given = os.environ.get("RPBENCH_ISOLATION", "")
    if given not in ("", "off"):
        raise UsageError(f"RPBENCH_ISOLATION is '{given}': it may be off, or not set")
    return given == "off"


def _proxy(outline: Outline, limits: Limits, process: Process | None = None) -> Callable[..., Mapping[str, Any]]:
    """A function that looks like the outline's and runs it elsewhere."""

    def function(*values: Any, **args: Any) -> Mapping[str, Any]:
        if switched_off():
            _say_once(f"RPBENCH_ISOLATION=off: {outline.word} '{outline.name}' runs unprotected, in this process")
            return real(outline).function(*values, **args)
        if process is not None:
            return _call(process, values, args)
        own = Process(outline, limits)
        try:
            return _call(own, values, args)
        finally:
            own.close()

    function.__name__ = function.__qualname__ = outline.name
    function.__doc__ = outline.doc
    function.__signature__ = outline.signature  # type: ignore[attr-defined]
    return function


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def _call(process: Process, values: tuple[Any, ...], args: dict[str, Any]) -> Mapping[str, Any]:
    calls: dict[Kind, Callable[..., Mapping[str, Any]]] = {"shape": _shape, "score": _score, "mask": _mask}
    return calls[process.outline.kind](process, *values, args)


def _shape(process: Process, table: LayerTable, density: float, args: dict[str, Any]) -> dict[str, Any]:
    asked = {"call": "shape", "table": wire.table_out(table), "density": density, "args": wire.args_out(args)}
    answer, _ = process.call(asked, b"", 2**16 + 1024 * len(table), 0)
    rows = answer.get("densities")
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in rows
    ):
        process.refuse("no densities")
    names = set(table.names)
    return {(name if name in names else _plain(name)): _density(value) for name, value in rows}


def _density(value: Any) -> Any:
    """A density as it was given: a number, or the text of something else (the budget's check says so)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else "huge"
    return _plain(value.get("text") if isinstance(value, dict) else value)


def _score(process: Process, probe: Probe, args: dict[str, Any]) -> dict[str, Any]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    net, table = probe.net, probe.table
    origin, files, blob = _sent(probe)
    asked = {
        "call": "score", "table": wire.table_out(table), "density": probe.density, "args": wire.args_out(args),
        "batches": probe.has_batches, "seed": probe.seed, "chunk": probe.chunk, "classes": probe.classes,
        "device": str(probe.device), "origin": origin, "files": files,
    }  # fmt: skip

    def batch(wanted: Head, _: bytes) -> tuple[Head, bytes]:
        if wanted["want"] != "batch":
            process.refuse("a question that nobody answers")
        try:
            x, y = probe.batch()
        except NoMoreBatches:
            return {"end": True}, b""
        box = io.BytesIO()
        torch.save((x.cpu().clone(), y.cpu().clone()), box)  # with strides: sums round by them
        return {}, box.getvalue()

    cuda = probe.device.type == "cuda"
    largest = 2**16 + 1024 * len(table) + 8 * table.prunable
    del net
    answer, blob = process.call(asked, blob, 2**16, largest, batch, cuda)
    if answer.get("scores") is not True:
        process.refuse("no scores")
    try:
        found = dict(load(blob))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        process.refuse("scores that cannot be read")
    if unknown := sorted(set(found) - set(table.names)):
        raise SchemeError(f"scores of unknown layers {_plain(', '.join(unknown))}")
    return found


def _sent(probe: Probe) -> tuple[Head | None, list[str], bytes]:
    """What another process makes the probe's net from: (its origin, files that define it, bytes)."""
    import torch

    net, box = probe.net, io.BytesIO()
    if probe.origin is not None:
        origin = asdict(probe.origin)
        if probe.origin.family is None:
            path, colon, function = probe.origin.name.partition(":")
            origin["name"] = f"{Path(path).expanduser().absolute()}{colon}{function}"
        torch.save({k: v.cpu() for k, v in net.state_dict().items()}, box)
        return origin, [], box.getvalue()
    homes = {type(m).__module__ for m in net.modules() if type(m).__module__.startswith("rpbench_model_")}
    try:
        torch.save(net, box)
    except Exception as error:
        raise UsageError(
            f"this net cannot be sent to the process of '{type(net).__name__}': {error}; define its class at the top "
            "level of a file, and name the net by that file"
        ) from None
    return None, [str(sys.modules[home].__file__) for home in homes], box.getvalue()


def _mask(
    process: Process,
    table: LayerTable,
    counts: Mapping[str, int],
    key: MaskKey,
    scores: Any,
    *rest: Any,
) -> dict[str, Any]:
    from safetensors.torch import save

    *wirings, args = rest
    wiring: Wiring | None = wirings[0] if wirings else None
    asked = {
        "call": "mask", "table": wire.table_out(table), "counts": dict(counts), "seed": key.seed,
        "scores": scores is not None, "args": wire.args_out(args), "wiring": wire.wiring_out(wiring),
    }  # fmt: skip
    size = wire.bits_size(table)

    def paths(wanted: Head, bits: bytes) -> tuple[Head, bytes]:
        if wiring is None or wanted["want"] != "paths" or len(bits) != size:
            process.refuse("a question that nobody answers")
        return {}, wire.bits_out(table, wiring.on_path(wire.bits_in(table, bits)))

    sent = b"" if scores is None else save({k: v.contiguous().clone() for k, v in scores.items()})
    answer, blob = process.call(asked, sent, 2**16, size, paths)
    if answer.get("masks") is not True or len(blob) != size:
        process.refuse("no masks")
    return wire.bits_in(table, blob)


class Process:
    """A confined process for one file: started by the first call, ended by `close` or by a call that goes wrong."""

    def __init__(self, outline: Outline, limits: Limits) -> None:
        self.outline, self.limits = outline, limits
        self.who = f"{outline.word} '{outline.name}'"
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = ""
        self._deadline = 0.0
        self._over = ""  # what is said where the deadline passes
        self._said = b""
        self._lines = 0
        self._printing = True  # or it has closed its stderr

    def call(
        self, asked: Head, blob: bytes, most_text: int, most_bytes: int, serve: Serve | None = None, cuda: bool = False
    ) -> tuple[Head, bytes]:
        """The answer to a call, at most so many bytes of JSON and beside it; `serve` gives what is asked for meanwhile.

        Raises what the function raised, SchemeError for what is refused.
        """
        try:
            answer, found = self._exchange(asked, blob, (most_text, most_bytes), serve, cuda)
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            raise _raised(answer["error"], self.who)
        return answer, found

    def refuse(self, what: str) -> NoReturn:
        """End it: it has answered with something that is no answer."""
        self.close()
        raise SchemeError(f"{self.who} answered with {what}: refused")

    def close(self) -> None:
        """End it, and remove what it has written."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = ""

    def _exchange(
        self, asked: Head, blob: bytes, most: tuple[int, int], serve: Serve | None, cuda: bool
    ) -> tuple[Head, bytes]:
        if self._process is None:
            self._start(cuda)
        self._deadline = time.monotonic() + self.limits.seconds
        self._over = f"took more than {self.limits.seconds:g} s: ended (--scheme-seconds)"
        self._send(asked | {"who": self.who}, blob)
        while True:
            answer, found = self._receive(*most)
            if serve is None or "want" not in answer:
                self._pass_on()
                return answer, found
            began = time.monotonic()
            told = serve(answer, found)
            if answer["want"] == "batch":
                self._deadline += time.monotonic() - began  # reading images is not the function's time
            self._send(*told)

    def _start(self, cuda: bool) -> None:
        """A process that has imported what it needs, and given up the rest."""
        self._scratch = os.path.realpath(tempfile.mkdtemp(prefix="rpbench-"))
        path = [place or os.getcwd() for place in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", BOOT, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._scratch,
            env=_environment(self._scratch),
            start_new_session=True,  # a terminal's Ctrl-C is this process' business
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._said, self._lines, self._printing = b"", 0, True
        self._deadline, self._over = time.monotonic() + START, f"did not start within {START:g} s"
        told: Head = {
            "scratch": self._scratch,
            "devices": confine.gpu_devices() if cuda else (),
            "memory": int(self.limits.memory * 2**30),
            "outline": _outline_out(self.outline),
            "torch": self.outline.kind != "shape",
        }
        if told["torch"]:
            import torch

            cudnn = torch.backends.cudnn
            told |= {"threads": torch.get_num_threads(), "tf32": cudnn.allow_tf32, "benchmark": cudnn.benchmark}
        self._send(told, b"")
        ready, _ = self._receive(2**14, 0)
        lacks = tuple((what, why) for what, why in ready["ready"])
        if not set(lacks) <= set(confine.expected().lacks):
            _say_once(confine.Protection((), lacks).words)

    def _send(self, head: Head, blob: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe, rest = self._process.stdin.fileno(), memoryview(wire.frame(head, blob))
        while rest:
            self._wait(pipe, select.POLLOUT)
            try:
                rest = rest[os.write(pipe, rest[: 2**20]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._died()

    def _receive(self, most_text: int, most_bytes: int) -> tuple[Head, bytes]:
        try:
            text, blob = wire.lengths(self._read(wire.PREFIX.size))
            if text > most_text or blob > most_bytes:
                raise SchemeError(
                    f"{self.who} answered with {text + blob:,} bytes, more than the {most_text + most_bytes:,} that "
                    "an answer may have: refused"
                )
            return wire.head(self._read(text)), self._read(blob)
        except wire.BadFrame:
            raise SchemeError(f"{self.who} answered with something that is no answer: refused") from None

    def _read(self, size: int) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, parts = self._process.stdout.fileno(), []
        while size:
            self._wait(pipe, select.POLLIN)
            try:
                part = os.read(pipe, min(size, 2**20))
            except BlockingIOError:
                continue
            if not part:
                self._died()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, pipe: int, event: int) -> None:
        """Until the pipe is ready; what the file prints is passed on meanwhile. SchemeError after the deadline."""
        assert self._process is not None
        assert self._process.stderr is not None
        heard = self._process.stderr.fileno()
        poll = select.poll()
        poll.register(pipe, event)
        if self._printing:
            poll.register(heard, select.POLLIN)
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise SchemeError(f"{self.who} {self._over}")
            ready = [number for number, _ in poll.poll(min(left, 60.0) * 1000)]
            if heard in ready and not self._pass_on():
                poll.unregister(heard)
            if pipe in ready:
                return

    def _pass_on(self) -> bool:
        """Pass on what the file has printed since, to stderr, by whole lines; False when there will be no more.

        Past a number of lines it is read and not shown: a process that cannot print stands still.
        """
        assert self._process is not None
        assert self._process.stderr is not None
        try:
            part = os.read(self._process.stderr.fileno(), 2**16)
        except BlockingIOError:
            return True
        self._printing = bool(part)
        *lines, self._said = (self._said + part).split(b"\n")
        if not part or len(self._said) > 2**12:
            lines, self._said = [*lines, self._said], b""
        for line in filter(None, lines):
            self._lines += 1
            text = "prints more: not shown"
            if self._lines <= PRINTED:
                text = _printable(line[: 4 * WIDE].decode(errors="replace")[:WIDE])
            if self._lines <= PRINTED + 1:
                print(f"{self.outline.path.name}: {text}", file=sys.stderr)
        return self._printing

    def _died(self) -> NoReturn:
        """Say how it ended."""
        assert self._process is not None
        until = time.monotonic() + 5
        while self._process.poll() is None and time.monotonic() < until:
            self._pass_on()
            time.sleep(0.01)
        while self._printing and self._pass_on() and time.monotonic() < until:
            pass
        code = self._process.poll()
        if code is None:
            raise SchemeError(f"{self.who}: its process has hung up")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise SchemeError(f"{self.who}: its process died ({how})")


def _outline_out(outline: Outline) -> Head:
    """An outline as plain values, without what is for people."""
    same = ("name", "kind", "source_hash", "density", "exact", "scored", "wired", "module")
    return {key: getattr(outline, key) for key in same} | {"path": str(outline.path.absolute())}


def _environment(scratch: str) -> dict[str, str]:
    """What a process needs of this one's environment: no token, no key."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_FAMILIES)}
    return kept | {"HOME": scratch, "TMPDIR": scratch, "HF_HUB_OFFLINE": "1"}


def _raised(told: Any, who: str) -> RpbenchError:
    """The error that a process tells of; anything else than one is refused."""
    if isinstance(told, dict) and isinstance(text := told.get("text"), str):
        bounds: list[Any] = [told.get(key) for key in ("density", "least", "most")]
        if told.get("class") == "InfeasibleBudget" and all(isinstance(b, int | float) and 0 <= b <= 2 for b in bounds):
            density, least, most = map(float, bounds)
            return InfeasibleBudget(density, least, most, _plain(told.get("why", "")))
        if told.get("class") in ("UsageError", "ScoreError", "SchemeError"):
            error: RpbenchError = getattr(errors, told["class"])(_plain(text))
            return error
    return SchemeError(f"{who} answered with something that is no answer: refused")


def _plain(value: Any) -> str:
    """A text of the other process for a terminal: one line, of bounded length, without control characters."""
    return _printable(" ".join(str(value).split())[:2000])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
