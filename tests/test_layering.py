"""Imports point down; nothing in rpbench knows a task or a baseline by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rpbench"

# From the top down: a module imports from the rows below its own, and from its own.
LAYERS = [
    ["cli", "__main__"],
    [
        "cli.cells",
        "cli.shelf",
        "cli.bench",
        "cli.boards",
        "cli.sweeps",
        "cli.claims",
        "cli.starting",
        "cli.submitting",
        "cli.verifying",
        "cli.merging",
    ],
    ["cli.shared"],
    ["trial"],
    ["show", "shelves", "scoring", "cell_plan", "starting"],
    ["bench.runs"],
    ["bench.eval"],
    ["bench.engine", "bench.usual", "bench.data"],
    ["bench", "bench.race"],
    ["launch.slurm"],
    ["launch.job", "launch.watching"],
    ["rerun"],
    ["verification"],
    ["checks.asked", "checks.trained", "checks.pruned", "checks.scored", "checks.submitted"],
    ["checks.known"],
    ["pack"],
    ["run"],
    ["checkpoint", "draft"],
    ["train", "progress", "evaluation", "machine"],
    ["engine"],
    ["step"],
    ["bundling", "hub", "merging"],
    ["submission"],
    ["card"],
    ["comparison", "published"],
    ["report.render"],
    ["report.page", "report.figures"],
    ["report.latex"],
    ["report.sheets", "report.tables", "report.verdicts", "report.checks"],
    ["report.plain", "report.words", "report.states", "report.series"],
    ["claims"],
    ["report", "ranking", "report.reported"],
    ["sweep"],
    ["checks", "checks.told", "checks.standing"],
    ["selection", "rows", "bundle", "submitted"],
    ["board", "entries"],
    ["contract"],
    ["contract.samplers"],
    ["contract.schemes"],
    ["contract.checks", "contract.nets", "contract.luck"],
    ["store", "cell", "launch", "launch.notes", "launch.queue"],
    ["data.opened"],
    ["data.streamed", "data.resident"],
    ["data.crop"],
    ["data.encoded", "data.embedded", "data.order"],
    ["data.sources", "data", "record", "planning", "metrics", "child"],
    ["models", "models.cifar", "models.imagenet", "models.names", "task"],
    ["catalog"],
    ["heartbeat", "isolated"],
    ["loading"],
    ["tracing"],
    ["connectivity"],
    ["masks", "files", "sampler", "untrusted", "correct"],
    ["scheme"],
    ["stats", "correlation"],
    ["rules"],
    ["source"],
    ["budget", "options", "streams", "signals", "batchnorm", "folding", "outline", "wire"],
    ["layers"],
    ["wiring"],
    ["errors", "verdict", "confine", ""],
]
HEIGHT = {name: len(LAYERS) - i for i, row in enumerate(LAYERS) for name in row}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of rpbench that a file imports at run time, functions' own imports included."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in only_types:
            if node.module.split(".")[0] != "rpbench":
                continue
            base = node.module.removeprefix("rpbench").lstrip(".")
            for alias in node.names:
                deeper = f"{base}.{alias.name}".lstrip(".")
                found.add(deeper if deeper in HEIGHT else base)
    return found


@pytest.mark.parametrize(("name", "path"), modules().items(), ids=list(modules()))
def test_imports_point_down(name: str, path: Path) -> None:
    assert name in HEIGHT, f"give {name} a place in LAYERS"
    for other in imports(path) - {name}:
        assert HEIGHT[other] <= HEIGHT[name], f"{name} imports {other}, which stands above it"


def test_there_is_no_cycle() -> None:
    graph = {name: imports(path) - {name} for name, path in modules().items()}
    while graph:
        free = [name for name, others in graph.items() if not others & set(graph)]
        assert free, f"a cycle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_no_baseline_or_task_is_known_by_name() -> None:
    names = {p.stem for p in (ROOT / "baselines").glob("*.py")} - {"__init__", "given"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                told = ast.unparse(node)
                assert "baselines" not in told
                assert "rpbench.tasks" not in told
            if isinstance(node, ast.Compare):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not words & names, f"{path.name}: {ast.unparse(node)}"


def test_light_modules_do_not_import_torch() -> None:
    light = [
        "record",
        "store",
        "task",
        "catalog",
        "show",
        "shelves",
        "cli",
        "layers",
        "budget",
        "scheme",
        "planning",
        "cell",
        "stats",
        "starting",
        "trial",
        "contract",
        "contract.checks",
        "contract.schemes",
        "contract.samplers",
        "contract.nets",
        "report.figures",
        "report.series",
    ]
    for name in light:
        tree = ast.parse(modules()[name].read_text())
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not any("torch" in ast.unparse(n).split() for n in top), name
