"""The machine through accelerate: device, processes, and what they say to each other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import subprocess
import sys
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BY_MALLOC = {M_TRIM_THRESHOLD: 2**30, M_MMAP_THRESHOLD: 2**25}  # bytes; glibc never maps fewer than the second


def best_device() -> torch.device:
    """The GPU where there is one. fp32 means fp32 from here on: cuDNN would round convolutions' inputs to TF32."""
    torch.backends.cudnn.allow_tf32 = False
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True  # the shapes of a run are few and stay
        return torch.device("cuda")
    keep_memory()
    return torch.device("cpu")


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the next allocation, and whether it listens.

    By default it returns every large tensor's pages to the kernel, which hands them out again zeroed, page by page, at
    each step: a sixth of the time of a small net's training.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return all(bool(mallopt(what, size)) for what, size in KEPT_BY_MALLOC.items())


class Processes:
    """This process among those that accelerate or torchrun started; alone without either.

    Precision is not accelerate's: the training step sets it, so that evaluation is fp32 in every run.
    """

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator: Any = Accelerator(mixed_precision="no", cpu=best_device().type == "cpu")

    @cached_property
    def device(self) -> torch.device:
        device: torch.device = self._accelerator.device
        return device

    @cached_property
    def rank(self) -> int:
        return int(self._accelerator.process_index)

    @cached_property
    def world(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def local_world(self) -> int:
        """Processes on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE") or self.world)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, net: nn.Module) -> nn.Module:
        """The net inside DistributedDataParallel where there are several processes."""
        return self._accelerator.prepare_model(net) if self.world > 1 else net

    def share(self, value: Any) -> Any:
        """The first process' value, on every process."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Every process' value, in rank order, on every process."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Equally long tensors of all processes, concatenated in rank order."""
        gathered: torch.Tensor = self._accelerator.gather(tensor)
        return gathered

    def sync(self, net: nn.Module) -> None:
        """Give every process the first one's weights and buffers."""
        if self.world > 1:
            for tensor in net.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def agree(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.world == 1:
            return number
        return int(self.gather(torch.tensor([number], device=self.device)).max())

    def close(self) -> None:
        """Leave the process group, if there is one."""
        if self.world > 1:
            self._accelerator.end_training()


def environment(processes: Processes, precision: str) -> dict[str, Any]:
    """What a number may depend on: versions, device, processes, determinism."""
    import accelerate
    import numpy

    import rpbench

    device = processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "rpbench": rpbench.__version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "accelerate": accelerate.__version__,
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "world_size": processes.world,
        "precision": precision,
        "engine": "eager",
        "deterministic": device.type == "cpu",
        "tf32": device.type == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
    }


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (2**20 bytes): the device's where it is a GPU, else this process'."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that rpbench runs from, '+' where it has changes; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD")[:12] + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
