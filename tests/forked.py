"""Processes that need not import what takes long: forked from one that has imported it and done nothing else.

What a new interpreter does before the first line of a command is tested with new interpreters, in test_cli and
wherever `rpbench_command` is asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import torch

from rpbench import progress
from rpbench.cli import main

if TYPE_CHECKING:
    from rpbench.train import State

HEAVY = ["torch._dynamo", "sklearn.metrics", "accelerate", "rpbench.cli", "rpbench.run", "rpbench.data.streamed"]
STREAMS = ("stdout", "stderr")


class Forked:
    """A function of words that runs in a process of its own; what can be done to it is named as in subprocess.Popen."""

    def __init__(self, function: Callable[..., Any], *words: str, own_group: bool = False, **env: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
        self._folder: Path | None = Path(mkdtemp())
        told = [function, words, os.environ | env, str(self._folder), own_group]
        self._process = context.Process(target=_live, args=told)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to stdout and stderr by its end."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        if self._folder is not None:
            self._said = [path.read_text() if path.exists() else "" for path in map(self._folder.joinpath, STREAMS)]
            shutil.rmtree(self._folder)
            self._folder = None
        return self._said[0], self._said[1]


def rpbench(*words: str) -> None:
    """What `rpbench WORDS` does."""
    main(words)


class Signalled(progress.Quiet):
    """Sends its own process a signal in the middle of the second epoch."""

    def __init__(self, number: int) -> None:
        self.number = number

    def step(self, state: State, steps: int, loss: float | None) -> None:
        if (state.epoch, state.step) == (1, steps // 2):
            os.kill(os.getpid(), self.number)


def killed(*words: str) -> None:
    """`rpbench WORDS`, until it dies in the second epoch."""
    progress.progress = lambda quiet: Signalled(signal.SIGKILL)
    main(words)


def run(*words: str, own_group: bool = False, **env: str) -> Forked:
    """`rpbench run WORDS`, begun."""
    return Forked(rpbench, "run", *words, own_group=own_group, **env)


@contextmanager
def run_together(count: int, *words: str) -> Iterator[list[Forked]]:
    """`rpbench run WORDS` by processes that know each other, in the environment that torchrun gives; killed at the end.

    Their store is in this process, as torchrun's is in its own: its port is taken before they hear of it.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    found = [run(*words, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def _live(
    function: Callable[..., Any], words: tuple[str, ...], env: dict[str, str], folder: str, own_group: bool
) -> None:
    multiprocessing.set_start_method(None, force=True)  # what it starts is started as by anybody
    if own_group:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    for number, name in enumerate(STREAMS, 1):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    function(*words)
