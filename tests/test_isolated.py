"""Schemes and samplers of others: what they may do, what they may not, and that they compute the same."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import rpbench
from rpbench import confine, isolated, wire
from rpbench.catalog import find_sampler, find_scheme, isolated_sampler, isolated_scheme, names, outline
from rpbench.cell import ask
from rpbench.errors import InfeasibleBudget, SchemeError, ScoreError, UsageError
from rpbench.isolated import Limits, limited, session
from rpbench.layers import LayerTable, layer_table
from rpbench.machine import Processes
from rpbench.masks import digest
from rpbench.models import build, resolve
from rpbench.options import bind
from rpbench.outline import read_file
from rpbench.planning import Plan, plan_table
from rpbench.progress import Quiet
from rpbench.run import Wish, initial_net, origin_of, run_cell
from rpbench.scheme import Origin, Probe, Scheme

protected = pytest.mark.skipif(confine.expected().lacks != (), reason=confine.expected().words)
SHAPE = (
    "import ctypes, os, socket, struct, subprocess, sys, time\nfrom pathlib import Path\nimport numpy as np\n"
    "from rpbench import InfeasibleBudget, UsageError, shape_scheme\n\n"
    '@shape_scheme\ndef mine(table, density):\n    """Mine. https://example.org"""\n'
)
HONEST = "\n    return {layer.name: density for layer in table}"


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(resolve("resnet8", "cifar"), 10, 1, 8)


@pytest.fixture(scope="module")
def table(net: torch.nn.Module) -> LayerTable:
    return layer_table(net, (1, 8, 8))


def mine(folder: Path, body: str, limits: Limits | None = None, head: str = SHAPE) -> Scheme:
    file = folder / "mine.py"
    file.write_text(f"{head}    {body}\n")
    return isolated.scheme(read_file(file, "scheme"), limits)


def every_fd(data: str) -> str:
    """Code that writes to every file that is open, the answers' pipe among them."""
    tried = "\n        try: os.write(fd, data)\n        except OSError: pass"
    return f"data = {data}\n    for fd in range(3, 30):{tried}\n    time.sleep(30)"


REFUSED = {
    "memory": ("np.ones(10**11)", "asked for more memory than the 1 GB that it may use (--scheme-memory)"),
    "shared memory": ("import mmap; mmap.mmap(-1, 10**11)", "asked for more memory than the 1 GB"),
    "lists": ("x = []\n        while True: x.append(bytes(10**8) + b'1')", "asked for more memory than the 1 GB"),
    "limits": ("import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**40, 2**40))", "raised ValueError"),
    "write": ("open(OUT, 'w')", "tried to write to '{out}' outside its scratch folder: refused"),
    "append": ("open(THERE, 'a')", "tried to write to '{there}' outside its scratch folder: refused"),
    "remove": ("os.remove(THERE)", "tried to write to '{there}' outside"),
    "truncate": ("os.truncate(THERE, 0)", "tried to write to '{there}' outside"),
    "rename": ("Path('x').touch(); os.rename('x', OUT)", "tried to write to '{out}' outside"),
    "link": ("os.link(THERE, 'linked'); open('linked', 'a')", "tried to write to '{there}' outside"),
    "mode": ("os.chmod(THERE, 0)", "tried to write to '{there}' outside"),
    "folder": ("Path(OUT).mkdir()", "tried to write to '{out}' outside"),
    "network": ("socket.create_connection(('127.0.0.1', 9))", "tried to use the network: refused"),
    "address": ("import urllib.request; urllib.request.urlopen('http://example.org')", "tried to use the network"),
    "process": ("subprocess.run(['true'])", "tried to start another process: refused"),
    "worker": (
        "from multiprocessing import get_context; get_context('spawn').Process(target=print).start()",
        "tried to start another process: refused",
    ),
    "fork": ("os.fork()", "tried to start another process: refused"),
    "signal": ("os.kill(os.getppid(), 9)", "tried to signal another process: refused"),
    "looking": ("open(f'/proc/{os.getppid()}/environ').read()", "tried to look into another process: refused"),
    "sys.exit": ("sys.exit(3)", "raised SystemExit: 3 (mine.py, line "),
    "raised": ("raise ValueError('\\x1b[31m' + 'y' * 10**6)", "raised ValueError: ?[31myyy"),
}
DEADLY = {
    "loop": ("while True: pass", "took more than 1 s: ended (--scheme-seconds)"),
    "sleep": ("time.sleep(99)", "took more than 1 s: ended"),
    "abort": ("os.abort()", "its process died (SIGABRT)"),
    "exit": ("os._exit(0)", "its process died (exit code 0)"),
    "segfault": ("ctypes.string_at(0)", "its process died (SIGSEGV)"),
    "x32": ("ctypes.CDLL(None).syscall(0x40000000 + 39)", "its process died (SIGSYS)"),
    "garbage": (every_fd("b'this is no frame, is it?'"), "answered with something that is no answer: refused"),
    "nan": (every_fd("struct.pack('>4sIQ', b'rpb1', 3, 0) + b'NaN'"), "something that is no answer: refused"),
    "giant": (every_fd("struct.pack('>4sIQ', b'rpb1', 9, 2**40)"), "bytes, more than the"),
    "untold": (every_fd("struct.pack('>4sIQ', b'rpb1', 2, 0) + b'{}'"), "answered with no densities: refused"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scheme, Path]]:
    """A scheme that tries whatever its option names, in one process, and the folder that it tries it on."""
    folder = tmp_path_factory.mktemp("hostile")
    head = f"OUT, THERE = {str(folder / 'out')!r}, {str(folder / 'there')!r}\n{SHAPE}"
    tries = "\n    ".join(f"if what == {name!r}:\n        {body}" for name, (body, _) in REFUSED.items())
    found = mine(folder, tries + HONEST, head=head.replace("(table, density)", "(table, density, *, what: str)"))
    with session(found, Limits(60, 1)) as scheme:
        yield scheme, folder


@protected
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_scheme_may_not_do(name: str, hostile: tuple[Scheme, Path], table: LayerTable) -> None:
    scheme, folder = hostile
    there, out = folder / "there", folder / "out"
    there.write_text("as it was")
    with pytest.raises(SchemeError) as told:
        plan_table(table, scheme, 0.2, None, {"what": name})
    assert str(told.value).startswith("scheme 'mine' ")
    assert REFUSED[name][1].replace("{out}", str(out)).replace("{there}", str(there)) in str(told.value)
    assert len(str(told.value)) < 2100
    assert str(told.value).isprintable()
    assert there.read_text() == "as it was"
    assert there.stat().st_mode & 0o600
    assert not out.exists()


@protected
@pytest.mark.parametrize("name", DEADLY)
def test_what_ends_its_process(name: str, tmp_path: Path, table: LayerTable) -> None:
    body, says = DEADLY[name]
    if name == "x32" and os.uname().machine != "x86_64":
        pytest.skip("x86_64 alone has a second set of calls")
    with pytest.raises(SchemeError) as told:
        plan_table(table, mine(tmp_path, body, Limits(1 if "took" in says else 60)), 0.2, None, {})
    assert str(told.value).startswith("scheme 'mine'")
    assert says in str(told.value)


def test_a_session_goes_on_in_a_new_process_after_a_death(tmp_path: Path, table: LayerTable) -> None:
    body = (
        "global calls; calls += 1\n    if calls == 3: os.abort()\n    return {layer.name: calls / 4 for layer in table}"
    )
    with session(mine(tmp_path, body, head=SHAPE.replace("\n\n@", "\ncalls = 0\n@")), Limits()) as found:
        for calls in (1, 2, 3, 1):
            if calls == 3:
                with pytest.raises(SchemeError, match="SIGABRT"):
                    found.allocate(table, 0.2, None, {})
            else:
                assert set(found.allocate(table, 0.2, None, {})[0].values()) == {calls / 4}


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("return dict.fromkeys(table.names, float('nan'))", SchemeError, "density of layer 'conv.weight' is nan"),
        ("return dict.fromkeys(table.names, -float('inf'))", SchemeError, "density of layer 'conv.weight' is -inf"),
        ("return dict.fromkeys(table.names, '0.2')", SchemeError, "density of layer 'conv.weight' is 0.2: it must lie"),
        ("return {f'x{i}': 1.0 for i in range(10**5)}", SchemeError, "unknown layers x0, x1, x2, x3, x4"),
        ("return {}", SchemeError, "no density for conv.weight"),
        ("return dict.fromkeys(table.names, 1.0)", SchemeError, "off budget: 0.2 of 77,072 weights is 15,414"),
        ("return None", SchemeError, "scheme 'mine' gave a NoneType, not a mapping of layer names"),
        ("return {1: table.names[7:, 0]}", SchemeError, "raised TypeError: tuple indices .* \\(mine.py, line 9\\)"),
        ("raise InfeasibleBudget(density, 0.3, 0.5, 'why not')", InfeasibleBudget, "0.3 to 0.5 work"),
        ("raise UsageError('no such')", UsageError, "^no such$"),
        ("return 1\n1 / 0", UsageError, "mine.py' does not load: ZeroDivisionError: division by zero"),
        ("return 1\nmine = print", SchemeError, "says scheme 'mine', but run it has none of that name"),
    ],
)
def test_what_comes_back_is_checked_in_the_same_words(
    body: str, error: type[Exception], says: str, tmp_path: Path, table: LayerTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpbench.outline._bound", lambda _: set())  # a file may hide that it binds a name twice
    with pytest.raises(error, match=says) as told:
        plan_table(table, mine(tmp_path, body), 0.2, None, {})
    if isinstance(told.value, InfeasibleBudget):
        assert (told.value.least, told.value.most, told.value.why) == (0.3, 0.5, "why not")


@protected
def test_a_scheme_that_goes_on_after_a_refusal_has_had_no_effect(
    tmp_path: Path, table: LayerTable, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scratch folder is its own, what it prints is shown as text, and no token is in its environment."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    out = tmp_path / "out"
    body = (
        f"for act in (lambda: open({str(out)!r}, 'w'), os.fork, socket.socket, lambda: os.kill(os.getppid(), 9)):\n"
        "        try: act()\n        except OSError: pass\n"
        f"    os.system('touch {out}')\n    Path('own').write_text('x'); assert Path.home() == Path.cwd()\n"
        "    print(dict(os.environ), '\\x1b[31m', Path.cwd())\n    [print('again') for _ in range(10**5)]"
    )
    plan = plan_table(table, mine(tmp_path, body + HONEST), 0.2, None, {})
    assert plan.kept == 15_414
    assert not out.exists()
    told = capfd.readouterr()
    assert told.out == ""
    first, *rest = told.err.splitlines()
    assert first.startswith("mine.py: {")
    assert "?[31m" in first
    assert "hf_secret" not in first
    assert not Path(first.split()[-1]).exists()
    assert len(rest) == 200
    assert rest[-1] == "mine.py: prints more: not shown"


def test_a_cell_of_a_sweep_ends_as_failed_and_takes_none_with_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"{SHAPE}    while True: pass\n")
    cell = ask(scheme=str(tmp_path / "mine.py"), density=0.1)
    wish = Wish(tmp_path / "runs", scheme_limits=Limits(seconds=1), note_failures=True)
    record = run_cell(cell, wish, Quiet(), Processes()).record
    assert (record.status, record.error) == ("failed", "scheme 'mine' took more than 1 s: ended (--scheme-seconds)")


def copied(name: str, folder: Path) -> Scheme:
    """A baseline as a file of one's own."""
    file = folder / f"{name}.py"
    file.write_bytes(outline(name).path.read_bytes())
    return isolated.scheme(read_file(file, "scheme"))


SHAPES = [n for n in names("baselines", ".py") if outline(n).kind == "shape" and not outline(n).needs]
SCORES = [n for n in names("baselines", ".py") if outline(n).kind == "score"]


@pytest.mark.parametrize("name", SHAPES)
def test_counts_are_those_of_ones_own_process(name: str, tmp_path: Path, table: LayerTable) -> None:
    own, density = find_scheme(name)[0], outline(name).density or 0.3
    theirs = copied(name, tmp_path)
    assert theirs.source_hash == own.source_hash
    args = bind(name, own.function, {})
    assert plan_table(table, theirs, density, None, args) == plan_table(table, own, density, None, args)


def test_a_file_that_an_option_names_is_read(
    tmp_path: Path, table: LayerTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    Path("d.json").write_text(json.dumps(dict.fromkeys(table.names, 0.25)))
    theirs = copied("given", tmp_path)
    args = bind("given", theirs.function, {"file": "d.json"})
    assert plan_table(table, theirs, 0.25, None, args).counts == {x.name: x.numel // 4 for x in table}


def batches(seed: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:  # channels last in memory, as a run's images are
        x = torch.randn(64, 8, 8, 1, generator=generator).permute(0, 3, 1, 2)
        yield x, torch.randint(10, (64,), generator=generator)


def probe(net: torch.nn.Module, table: LayerTable, **more: Any) -> Probe:
    return Probe(net, table, 0.1, batches(), seed=3, classes=10, **more)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_ones_own_process(
    name: str, tmp_path: Path, net: torch.nn.Module, table: LayerTable
) -> None:
    """To the bit: the net made again from its origin, or sent; images in their layout in memory."""
    own = find_scheme(name)[0]
    with session(copied(name, tmp_path), Limits()) as theirs:
        for chunk, origin in ((None, None), (16, Origin("resnet8", "cifar", "", 10, 1, 8, 0))):
            mine, yours = (probe(net, table, chunk=chunk, origin=origin) for _ in range(2))
            expected = plan_table(table, own, 0.1, mine, {})
            found = plan_table(table, theirs, 0.1, yours, {})
            assert found == expected
            assert expected.batches_used > 0
            assert expected.scores is not None
            assert found.scores is not None
            assert all(torch.equal(expected.scores[n], found.scores[n]) for n in table.names)


LIAR = """import numpy as np
import torch
from typing import Literal
from rpbench import score_scheme

calls = 0


@score_scheme
def mine(probe, *, what: str = "good", batches: int = 0):
    "Mine. https://example.org"
    global calls
    calls += 1
    for _ in range(batches):
        x, y = probe.batch()
        assert len(x) == len(y) == 64
    probe.batches_used = probe.images_used = 0
    model = probe.model()
    scores = {name: weight.detach().abs() for name, weight in probe.weights(model).items()}
    first = next(iter(scores))
    if what == "calls":
        print(calls)
    if what == "half":
        return {name: score.bfloat16() for name, score in scores.items()}
    if what == "numpy":
        return {name: score.numpy().astype(np.float64) for name, score in scores.items()}
    if what == "same":
        return {name: scores[name].view(-1)[:1].expand(scores[name].shape) for name in scores}
    bad = {
        "nan": {first: scores[first] * float("nan")}, "text": {first: "x"}, "unknown": {"x": torch.ones(1)},
        "painted": {"\\x1b]0;PWN\\x07": torch.ones(1)},
        "shape": {first: torch.ones(10**7)}, "complex": {first: scores[first] * 1j}, "equal": {},
        "memory": {first: torch.ones(10**11) if what == "memory" else 0},
    }
    if what == "equal":
        return {name: torch.ones_like(score) for name, score in scores.items()}
    if what == "missing":
        return {first: scores[first]}
    return scores | bad.get(what, {})
"""


def test_score_schemes_that_lie_and_that_break(
    tmp_path: Path, net: torch.nn.Module, table: LayerTable, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(LIAR)
    found = isolated.scheme(read_file(tmp_path / "mine.py", "scheme"))
    own = find_scheme(str(tmp_path / "mine.py"))[0]

    def planned(scheme: Scheme, batches: int = 0, **args: Any) -> Plan:
        args = bind("mine", scheme.function, {"batches": batches, **args})
        return plan_table(table, scheme, 0.1, probe(net, table), args)

    with session(found, Limits(60, 4)) as theirs:
        for batches in (3, 0):
            plan = planned(theirs, batches)
            assert (plan.batches_used, plan.images_used) == (batches, 64 * batches)
        for what, error, says in (
            ("nan", ScoreError, "scores of layer 'conv.weight' are not finite"),
            ("equal", ScoreError, "all 77,072 scores are equal"),
            ("text", SchemeError, "scheme 'mine' scored 'conv.weight' with a str, no array"),
            ("unknown", SchemeError, "scores of unknown layers x"),
            ("painted", SchemeError, "scores of unknown layers "),
            ("missing", SchemeError, "no scores for "),
            ("shape", SchemeError, "scores of 'conv.weight' have shape (10000000,), its weight (16, 1, 3, 3)"),
            ("complex", SchemeError, "scores of 'conv.weight' are complex64: they must be real numbers"),
        ):  # fmt: skip
            for scheme in (theirs, own):
                with pytest.raises(error) as told:
                    planned(scheme, what=what)
                assert says in str(told.value)
                assert str(told.value).isprintable() or scheme is own
        with pytest.raises(ScoreError, match="asked for more memory than the 4 GB that it may use"):
            planned(theirs, what="memory")
        for what in ("half", "numpy", "same"):
            assert planned(theirs, what=what) == planned(own, what=what)
        capfd.readouterr()
        planned(theirs, what="calls")  # one process for all of them
        assert capfd.readouterr().err == "mine.py: 15\n"
        with pytest.raises(UsageError, match="this scheme looks at labelled batches"):
            plan_table(table, theirs, 0.1, Probe(net, table, 0.1), bind("mine", own.function, {"batches": 1}))


NET = """from torch import nn


def make(classes, channels):
    class Own(nn.Sequential):
        pass
    net = Own(nn.Conv2d(channels, 8, 3), nn.Flatten(), nn.Linear(288, classes))
    net.twice = lambda x: 2 * x
    return net
"""


def test_a_net_of_ones_own_that_no_pickle_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    cell = ask(model="./net.py", scheme="snip", density=0.1)
    net = initial_net(cell)
    table = layer_table(net, (1, 8, 8))
    expected = plan_table(table, cell.scheme, 0.1, probe(net, table, origin=origin_of(cell)), {})
    theirs = copied("snip", tmp_path)
    found = plan_table(table, theirs, 0.1, probe(net, table, origin=origin_of(cell)), {})
    assert found == expected
    with pytest.raises(UsageError, match="this net cannot be sent"):
        plan_table(table, theirs, 0.1, probe(net, table), {})


SAMPLER = """import numpy as np
import torch
from rpbench import mask_sampler, streams


@mask_sampler
def mine(table, counts, key, scores, *, what: str = "good"):
    "Mine. https://example.org"
    masks = {}
    for i, layer in enumerate(table):
        draws = streams.raw(key(i), layer.numel)
        keep = np.zeros(layer.numel, dtype=bool)
        keep[np.argsort(draws)[: counts[layer.name]]] = True
        masks[layer.name] = keep.reshape(layer.shape)
    if what == "scored":
        return {n: torch.from_numpy(m) for n, m in masks.items() if (scores[n] >= 0).all()}
    first = next(iter(masks))
    bad = {"float": masks[first] * 1.0, "more": masks[first] | True, "shape": masks[first][:1]}
    if what == "unknown":
        return masks | {"x": masks[first]}
    return masks | ({first: bad[what]} if what in bad else {})
"""


def test_samplers_of_others(tmp_path: Path, table: LayerTable) -> None:
    import rpbench

    (tmp_path / "mine.py").write_text(SAMPLER)
    plan = plan_table(table, find_scheme("uniform")[0], 0.1, None, {})
    own = find_sampler(str(tmp_path / "mine.py"))[0]
    scores = {layer.name: torch.rand(layer.shape) for layer in table}
    with session(isolated.sampler(read_file(tmp_path / "mine.py", "sampler")), Limits()) as theirs:
        for args in ({}, {"what": "scored"}):
            given = [table, plan.counts, 7, scores, args]
            assert digest(theirs.draw(*given)) == digest(own.draw(*given))
        assert digest(theirs.draw(table, plan.counts, 7)) == digest(plan.draw(7))
        for what, says in (
            ("float", "gave 'conv.weight' a mask of torch.float64"), ("shape", r"torch.bool \\(1, 1, 3, 3\\)"),
            ("more", "kept 144 weights of 'conv.weight'"), ("unknown", "gave masks of unknown layers x"),
            ("scored", "raised TypeError"),
        ):  # fmt: skip
            with pytest.raises(rpbench.SchemeError, match=says.replace("\\\\", "\\")):
                theirs.draw(table, plan.counts, 7, None, {"what": what})


def test_samplers_of_others_may_follow_the_net(tmp_path: Path, net: torch.nn.Module) -> None:
    file = tmp_path / "mymica.py"
    code = inspect.getsource(importlib.import_module("rpbench.baselines.samplers.mica"))
    file.write_text(code.replace("def mica(", "def mymica("))
    plan = rpbench.plan(net, "erk", 0.02, input_shape=(1, 8, 8))
    theirs, _ = isolated_sampler(str(file))
    assert digest(plan.draw(seed=3, sampler=theirs)) == digest(plan.draw(seed=3, sampler="mica"))


def test_isolation_can_be_switched_off_to_debug_ones_own(
    tmp_path: Path, table: LayerTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = mine(tmp_path, f"assert os.getpid() == {os.getpid()}{HONEST}")
    with pytest.raises(SchemeError, match="AssertionError"):
        plan_table(table, found, 0.2, None, {})
    isolated._say_once.cache_clear()
    monkeypatch.setenv("RPBENCH_ISOLATION", "off")
    assert plan_table(table, found, 0.2, None, {}).kept == 15_414
    assert "RPBENCH_ISOLATION=off: scheme 'mine' runs unprotected" in capsys.readouterr().err
    monkeypatch.setenv("RPBENCH_ISOLATION", "on")
    with pytest.raises(UsageError, match="RPBENCH_ISOLATION is 'on': it may be off, or not set"):
        plan_table(table, found, 0.2, None, {})


def test_what_runs_is_the_file_that_was_read(tmp_path: Path, table: LayerTable) -> None:
    """Also where an older one was compiled, with the same length and time of change."""
    import py_compile

    found = mine(tmp_path, "return {}" + " " * 42)
    py_compile.compile(str(tmp_path / "mine.py"))
    before = (tmp_path / "mine.py").stat()
    honest = mine(tmp_path, HONEST.strip() + " " * (51 - len(HONEST.strip())))
    os.utime(tmp_path / "mine.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tmp_path / "mine.py").stat().st_size == before.st_size
    assert plan_table(table, honest, 0.2, None, {}).kept == 15_414
    with pytest.raises(UsageError, match="mine.py' has changed since it was read: ask again"):
        plan_table(table, found, 0.2, None, {})


def test_what_a_file_prints_is_cut(tmp_path: Path, table: LayerTable, capfd: pytest.CaptureFixture[str]) -> None:
    body = "for _ in range(300): os.write(2, b'\\x1b]0;x\\x07' * 9000 + b'\\n')" + HONEST
    plan_table(table, mine(tmp_path, body), 0.2, None, {})
    lines = capfd.readouterr().err.splitlines()
    assert 200 <= len(lines) <= 201
    assert max(map(len, lines)) <= 520
    assert all(line.isprintable() for line in lines)


def test_limits_of_the_command_line(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    mine(tmp_path, "while True: pass")
    done = invoke("plan", "--scheme", str(tmp_path / "mine.py"), "--scheme-seconds", "0.5")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "Error: scheme 'mine' took more than 0.5 s: ended (--scheme-seconds)"
    done = invoke("run", "--scheme", str(tmp_path / "mine.py"), "--scheme-memory", "0")
    assert done.stderr.splitlines()[-1] == "Error: --scheme-memory 0: give a number of GB above 0"


def test_what_a_platform_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "_landlock_abi", lambda: (0, "Linux 5.4 has no Landlock"))
    monkeypatch.setattr(confine, "_no_seccomp", lambda: "no filter is written for riscv64")
    found = confine.expected()
    assert found.holds == ((confine.MEMORY,) if os.uname().sysname == "Linux" else ())
    assert found.words.startswith("does not hold here: files outside of a scratch folder cannot be written (Linux 5.4")
    assert "the network cannot be used (no filter is written for riscv64)" in found.words


def test_nothing_that_has_threads_is_imported_before_a_process_confines_itself() -> None:
    code = "import rpbench.child, sys; assert not {'numpy', 'torch', 'scipy'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


STAYS = """
import fcntl, os, struct, sys
from pathlib import Path
from rpbench import confine

real = confine._landlock_abi
confine._landlock_abi = lambda: (min(5, real()[0]), "")  # signals are Landlock's from version 6 on
confine.die_with_parent()
assert not confine.confine(Path(sys.argv[1])).lacks
prctl, (ready, _) = confine._libc().prctl, os.pipe()
other = struct.pack("i", os.getppid())
for name, ask in {
    "F_SETOWN": lambda: fcntl.fcntl(ready, 8, os.getppid()),
    "F_SETSIG": lambda: fcntl.fcntl(ready, 10, 9),
    "F_SETOWN_EX": lambda: fcntl.fcntl(ready, 15, struct.pack("ii", 1, os.getppid())),
    "FIOSETOWN": lambda: fcntl.ioctl(ready, 0x8901, other),
    "SIOCSPGRP": lambda: fcntl.ioctl(ready, 0x8902, other),
}.items():
    try:
        ask()
        print(name)
    except PermissionError:
        pass
    except OSError as error:
        print(name, error)
if prctl(1, 0, 0, 0, 0) != -1:
    print("PR_SET_PDEATHSIG")
fcntl.fcntl(ready, fcntl.F_SETFL, fcntl.fcntl(ready, fcntl.F_GETFL) | os.O_NONBLOCK)
assert prctl(15, b"mine", 0, 0, 0) == 0
print("done")
"""


@protected
def test_no_signal_is_sent_by_way_of_a_file_and_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-c", STAYS, str(tmp_path)], capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("done\n", "")


def test_limits_are_positive_and_leave_the_shelf_alone() -> None:
    with pytest.raises(UsageError, match="--scheme-seconds 0"):
        Limits(seconds=0)
    with pytest.raises(UsageError, match="--scheme-memory nan"):
        Limits(memory=float("nan"))
    erk = isolated_scheme("erk")[0]
    assert limited(erk, Limits(1)) is erk


def test_frames_are_strict() -> None:
    text, blob = wire.lengths(wire.frame({"a": 1.5}, b"xyz")[: wire.PREFIX.size])
    assert (text, blob) == (10, 3)
    for wrong in (b"[1]", b"NaN", b'{"a": Infinity}', b"{", b"\xff", b"[" * 10**5, b"9" * 5000):
        with pytest.raises(wire.BadFrame):
            wire.head(wrong)


def test_a_light_process_answers_at_once(tmp_path: Path, table: LayerTable) -> None:
    start = time.process_time()
    found = mine(tmp_path, f"assert 'torch' not in sys.modules{HONEST}")
    assert plan_table(table, found, 0.2, None, {}).kept == 15_414
    assert time.process_time() - start < 1.0
