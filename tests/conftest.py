"""Fixtures: a home of its own for every test, one thread, and the real images where they are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

ROOT = Path(__file__).resolve().parent.parent
# Set before torch is imported. Small nets on two threads take twice the processor time of one and end no sooner; on a
# machine that does other things too, threads that spin while they wait take four times, and end much later.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _find_shared() -> Path | None:
    given = os.environ.get("RPBENCH_SHARED")
    places = [Path(given)] if given else [ROOT.parent / "shared"]
    return next((p for p in places if (p / "golden").is_dir()), None)


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images are cached once per test session, apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.delenv("RPBENCH_DATA", raising=False)
        yield


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPBENCH_STORE", str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers from other implementations."""
    shared = _find_shared()
    if shared is None:
        pytest.skip("the golden numbers are not here (set RPBENCH_SHARED)")
    return shared / "golden"


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images, one sub-folder per set."""
    shared = _find_shared()
    if shared is None or not (shared / "data" / "cifar10").is_dir():
        pytest.skip("the real images are not here (set RPBENCH_SHARED)")
    return shared / "data"


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Result]:
    """Run `rpbench ARGS` in this process: a second instead of five. A traceback fails the test."""
    from click.testing import CliRunner

    from rpbench.cli import main

    def call(*args: str) -> Result:
        result = CliRunner().invoke(main, list(args))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As a process of several has it: with other threads sums round otherwise, and data-driven counts may differ."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """For as long as the test lasts."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rpbench_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `rpbench ARGS` in a process of its own."""

    def call(*args: str, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rpbench", *args],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | env,
        )

    return call
