"""The command line: parses, calls, prints. Results go to stdout, progress and notes to stderr.

Exit codes: 0 ok, 1 something failed, 2 usage (nothing was written), 128 + n stopped by signal n.
"""

from __future__ import annotations

import click

from rpbench.cli.bench import bench
from rpbench.cli.boards import compare, publish, report
from rpbench.cli.cells import plan, run, score
from rpbench.cli.claims import claims
from rpbench.cli.shared import Group
from rpbench.cli.shelf import data, list_, show
from rpbench.cli.starting import new, try_
from rpbench.cli.submitting import submit
from rpbench.cli.sweeps import status, sweep
from rpbench.cli.verifying import verify

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(package_name="rpbench")
def main() -> None:
    """Benchmark suite for sparse training with random pruning at initialization.

    A scheme decides how much of each layer is kept, positions are drawn at random, the sparse net is trained from
    scratch with a fixed mask, and scored on five axes: accuracy, calibration, out-of-distribution detection,
    adversarial robustness, cost.

    \b
    rpbench run                                the embedded task, under a minute
    rpbench run --task cifar10 --scheme snip   the paper's recipe (needs images)
    rpbench run --scheme erk --scheme dense    several cells, several at once
    rpbench sweep digits                       every cell of a board
    rpbench report digits                      who is above whom, and is it real
    rpbench plan --model resnet20              what a scheme would keep of a net
    rpbench new scheme mine                    the first ten lines of a scheme of your own
    rpbench try ./mine.py                      its contract, and a first comparison
    rpbench submit ./mine.py --board digits    its row as a bundle that anybody can check
    rpbench verify mine.zip                    whether a bundle's numbers follow
    rpbench list schemes                       what there is
    rpbench bench engine                       how fast this machine trains
    """


COMMANDS = (
    run, sweep, status, report, compare, claims, new, try_, submit, verify, publish, plan, score, list_, show, data,
    bench,
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)
