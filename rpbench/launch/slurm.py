"""Cells as the jobs of one SLURM array, submitted through submitit and watched from here.

The jobs are SLURM's: they need nothing of this process, go on without it, and the next one finds them. What is known
of them comes from squeue and from the store; accounting (sacct) is not needed.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpbench.errors import UsageError
from rpbench.launch import notes
from rpbench.launch.job import CellsJob
from rpbench.launch.queue import read_queue
from rpbench.launch.watching import Watching

if TYPE_CHECKING:
    from rpbench.pack import Asked, End, Watch
    from rpbench.run import Wish

REQUEUES = 100  # at time limits; a job that has not ended by then never will
NOTICE = 90  # seconds before the time limit at which a job is told; SLURM rounds it up by as many as 60
OWN_OPTION = {  # what sbatch calls it, and we
    "partition": "partition", "time": "minutes", "cpus_per_task": "cpus", "gpus_per_node": "gpus", "mem": "memory",
}  # fmt: skip
RESERVED = (
    "array", "error", "job_name", "nodes", "ntasks", "ntasks_per_node", "open_mode", "output", "requeue", "signal",
    "wrap",
)  # fmt: skip


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of SLURM for each job. `extra` are further options of sbatch: {"account": "me", "exclusive": True}.

    Raises UsageError for a value that cannot be.
    """

    partition: str | None = None
    minutes: int = 60
    cpus: int = 1
    gpus: int = 0
    memory: float | None = None  # GB
    parallelism: int = 64  # jobs that run at the same time
    pack: int = 1  # cells in a job, trained at once
    extra: Mapping[str, str | bool] = field(default_factory=dict)
    poll: float = 5.0  # seconds between looks at the queue

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "parallelism", "pack"):
            if getattr(self, name) < 1:
                raise UsageError(f"slurm: {name} {getattr(self, name)} is less than 1")
        if not 0 <= self.gpus <= self.pack:
            raise UsageError(f"slurm: {self.gpus} gpus for a job of {self.pack} cells (pack): a cell takes one at most")
        if self.memory is not None and self.memory <= 0:
            raise UsageError(f"slurm: memory of {self.memory:g} GB: give a number above 0")
        for key in self.extra:
            name = key.replace("-", "_")
            if name in OWN_OPTION:
                raise UsageError(f"slurm: '{key}' has an option of its own: {OWN_OPTION[name]}")
            if name in RESERVED:
                raise UsageError(f"slurm: '{key}' is set by rpbench for every job")


def read_extra(texts: Sequence[str]) -> dict[str, str | bool]:
    """Options of sbatch from KEY=VALUE, or KEY for one that takes no value."""
    extra: dict[str, str | bool] = {}
    for text in texts:
        key, given, value = text.partition("=")
        name = key.strip().removeprefix("--").replace("-", "_")
        if not name.isidentifier():
            raise UsageError(f"slurm: '{text}' is not KEY=VALUE, or KEY for an option without a value")
        extra[name] = value.strip() if given else True
    return extra


def in_jobs(asked: Sequence[Asked], store: Path) -> list[bool]:
    """Which cells are in a job that is queued or running: `run_slurm` would watch them. UsageError without an answer of
    squeue, unless nothing was ever submitted for this store."""
    from rpbench.cell import ask

    cells = [ask(**each).run_id({}) for each in asked]
    folder = store.resolve() / ".slurm"
    found = {cell for job in _alive(folder, cells) for cell in job.cells} if folder.is_dir() else set[str]()
    return [cell in found for cell in cells]


def run_slurm(
    asked: Sequence[Asked],
    wish: Wish,
    options: SlurmOptions,
    watch: Watch,
    say: Callable[[str], None] = lambda text: None,
) -> list[End]:
    """Run cells as SLURM jobs and wait for their ends. Finished cells are not submitted; nor are those whose job, of an
    earlier call, is still queued or running: they are watched.

    Raises UsageError for a cell that cannot be asked for, or jobs that SLURM refuses, before any is submitted;
    Interrupted after a signal, which ends the watching and not the jobs.
    """
    from rpbench.cell import ask

    cells = [ask(**each).run_id({}) for each in asked]
    for program in ("sbatch", "squeue", "srun"):
        if shutil.which(program) is None:
            raise UsageError(f"no '{program}' on PATH: is this a machine of a SLURM cluster?")
    wish = replace(wish, store=wish.store.resolve())
    folder = notes.folder_of(wish.store)
    watching = Watching(cells, wish.store, options.poll, watch)
    if not wish.force:
        watching.find_finished()
    with notes.alone(folder):
        jobs = _alive(folder, watching.missing)
        watched = {cell for job in jobs for cell in job.cells}
        if jobs:
            say(f"{_count(jobs, 'job')} of an earlier command still queued or running: watching, not submitting again")
        of_cell = dict(zip(cells, asked, strict=True))
        rest = {cell: of_cell[cell] for cell in watching.missing if cell not in watched}
        if rest:
            names = list(rest)
            groups = [names[i : i + options.pack] for i in range(0, len(names), options.pack)]
            array, new = _submit(folder, groups, rest, wish, options)
            say(f"SLURM job {array}: {_count(new, 'job')} for {_count(names, 'cell')} (scancel {array} ends them)")
            jobs += new
    return watching.to_the_end(jobs)


def _count(things: Sequence[object], word: str) -> str:
    return f"{len(things)} {word}{'s' * (len(things) != 1)}"


def _alive(folder: Path, cells: Sequence[str]) -> list[notes.Job]:
    """Jobs that are not over, each with those of the cells that it has still to do; of several the newest."""
    wanted = set(cells)
    noted = [job for job in notes.all_jobs(folder) if wanted & set(job.cells)]
    states = read_queue({job.array.name for job in noted})
    found = []
    for job in noted:
        known = states.get(job.key)
        to_do = [cell for cell in job.cells if cell in wanted and cell not in notes.told(job)]
        if known and not known.over and to_do:
            found.append(replace(job, cells=tuple(to_do)))
            wanted -= set(to_do)
    return found


def _submit(
    folder: Path, groups: list[list[str]], asked: Mapping[str, Asked], wish: Wish, options: SlurmOptions
) -> tuple[str, list[notes.Job]]:
    """Submit a job for each group of cells; returns the number that SLURM gave the array, and the jobs."""
    try:
        import submitit
    except ImportError:
        raise UsageError(
            "jobs are submitted through submitit, which is missing: pip install 'rpbench[slurm]'"
        ) from None
    jobs = notes.new_array(folder, groups)
    array = jobs[0].array
    calls = [CellsJob(job, tuple(asked[cell] for cell in job.cells), vars(wish)) for job in jobs]
    try:
        executor: Any = submitit.SlurmExecutor(array, max_num_timeout=REQUEUES)
        executor.update_parameters(**_parameters(array.name, options))
        said = io.StringIO()
        with contextlib.redirect_stderr(said), executor.batch():
            submitted = [executor.submit(call) for call in calls]
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError) as error:
        shutil.rmtree(array)
        raise UsageError(f"SLURM takes no such jobs: {' '.join(str(error).split())}") from None
    return submitted[0].job_id.partition("_")[0], jobs


def _parameters(name: str, options: SlurmOptions) -> dict[str, Any]:
    """The options in submitit's words. SIGTERM is what jobs are told at time limits, as at preemption; srun gives a
    step its cores only where it is told them again."""
    given = {
        "job_name": name,
        "partition": options.partition,
        "time": options.minutes,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus or None,
        "mem": None if options.memory is None else f"{max(1, round(options.memory * 1024))}MB",
        "array_parallelism": options.parallelism,
        "setup": ["export SUBMITIT_PREEMPT_SIGNAL=TERM", f"export OMP_NUM_THREADS={options.cpus}"],
        "srun_args": [f"--cpus-per-task={options.cpus}"],
        "additional_parameters": {
            "signal": f"TERM@{min(NOTICE, 15 * options.minutes)}",
            "requeue": True,
            **options.extra,
        },
    }
    return {key: value for key, value in given.items() if value is not None}
