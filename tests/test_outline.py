"""What a file says without being run: the same as when it is run, and nothing of it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Optional

import pytest
import synthetic
from click.testing import Result

from rpbench import options
from rpbench.board import Choice, expand, load_board
from rpbench.catalog import find_scheme, isolated_sampler, isolated_scheme, list_samplers, list_schemes, names, outline
from rpbench.errors import UsageError
from rpbench.outline import Word, find_source, read_file

Invoke = Callable[..., Result]
HEAD = "from rpbench import mask_sampler, score_scheme, shape_scheme\n"


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", names("baselines", ".py"))
def test_every_baseline_is_what_its_file_says(name: str) -> None:
    told, (found, _) = outline(name), find_scheme(name)
    assert (told.name, told.kind, told.density, told.source_hash) == (
        name,
        found.kind,
        found.density,
        found.source_hash,
    )
    assert (told.summary, told.url) == (found.summary, found.url)
    known = options.declared(found.function)
    assert told.options == {k: None if p.default is p.empty else p.default for k, p in known.items()}
    assert told.needs == tuple(k for k, p in known.items() if p.default is p.empty)
    types = {p.name: p.annotation for p in told.signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert types == {k: p.annotation for k, p in known.items()}


@pytest.mark.parametrize(
    ("written", "given", "value"),
    [
        ("a: int = 1", "3", 3),
        ("a: float = 1", "0.5", 0.5),
        ("a=0.5", "2", 2.0),
        ("a=-1", "2", 2),
        ("a", "2", "2"),
        ("a: bool = True", "false", False),
        ("a: str = 'x'", "y", "y"),
        ("a: 'float' = 1.0", "2", 2.0),
        ("a: Literal['x', 'y'] = 'x'", "y", "y"),
        ("a: t.Literal[1, 2] = 1", "2", 2),
        ("a: int | None = None", "7", 7),
        ("a: None | float = None", "7", 7.0),
        ("a: Optional[float] = None", "7", 7.0),
        ("a: t.Union[int, None] = None", "7", 7),
        ("a: P | None = None", __file__, Path(__file__)),
        ("a: pathlib.Path", __file__, Path(__file__)),
    ],
)
def test_types_of_options(written: str, given: str, value: object, tmp_path: Path) -> None:
    head = "import pathlib\nimport typing as t\nfrom pathlib import Path as P\nfrom typing import Literal, Optional\n"
    file = write(tmp_path, f"{head}{HEAD}@shape_scheme\ndef mine(table, density, *, {written}): ...\n")
    found, chosen = isolated_scheme(f"{file}:a={given}")
    bound = options.bind(found.name, found.function, chosen)["a"]
    assert (bound, type(bound)) == (value, type(value))
    in_process = find_scheme(str(file))[0]
    assert bound == options.bind("mine", in_process.function, chosen)["a"]


def test_an_optional_literal_and_a_signature(tmp_path: Path) -> None:
    file = write(tmp_path, f"{HEAD}from typing import Literal\n@shape_scheme(density=1)\ndef mine(table, density, *, "
                           "a: Literal['x'] | None = None, **more): 'All. https://example.org'\n")  # fmt: skip
    told = read_file(file, "scheme")
    assert str(told.signature).startswith("(table, density, *, a: Optional[Literal['x']] = None")
    assert told.signature.parameters["a"].annotation == Optional[Literal["x"]]  # noqa: UP045
    assert (told.density, told.summary, told.url) == (1.0, "All", "https://example.org")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("@shape_scheme\ndef mine(table, density, *, a=1/3): ...", "has the default `1 / 3`: write its value there"),
        ("@shape_scheme\ndef mine(table, density, *, a=[1]): ...", "has the default `[1]`: write its value there"),
        ("@shape_scheme\ndef mine(table, density, *, a=1e999): ...", "write its value there"),
        (
            "@shape_scheme\ndef mine(table, density, *, a: list[int] = 1): ...",
            "type `list[int]`: write int, float, str",
        ),
        (
            "@shape_scheme\ndef mine(table, density, *, a: int | str = 1): ...",
            "type `int | str`: write int, float, str",
        ),
        ("@shape_scheme(density=D)\ndef mine(table, density): ...", "density of 'mine' is `D`: write a number there"),
        ("@shape_scheme(exact=True)\ndef mine(table, density): ...", "@shape_scheme takes density=..."),
        ("@score_scheme(1)\ndef mine(probe): ...", "@score_scheme takes no arguments"),
        ("@cache\n@shape_scheme\ndef mine(table, density): ...", "line 2: cache makes something else of 'mine'"),
        ("if 1:\n    @shape_scheme\n    def mine(table, density): ...", "'mine' (line 4) must stand at the top level"),
        ("mine = shape_scheme(lambda t, d: t)", "line 2 makes one by a call; write @shape_scheme or @score_scheme"),
        ("@shape_scheme\ndef mine(t, d): ...\nmine = 3", "line 4: 'mine' is bound again there"),
        ("def shape(t, d): ...", "must define one scheme (or one called 'mine'): it has none"),
        ("@shape_scheme\ndef a(t, d): ...\n@score_scheme\ndef b(p): ...", "it has a, b"),
        ("@mask_sampler\ndef mine(t, c, k, s): ...", "must define one scheme (or one called 'mine'): it has none"),
        (
            "@shape_scheme\ndef mine(t, d, *, a=1, a=2): ...",
            "line 3: 'mine' has no signature: duplicate parameter name",
        ),
        ("@shape_scheme\ndef mine(t, t): ...", "line 3: 'mine' has no signature: duplicate parameter name: 't'"),
        ("def mine(:", "does not load: SyntaxError: invalid syntax (mine.py, line 2)"),
        ("x = '\0'", "source code string cannot contain null bytes"),
        ("x = " + "(" * 500 + ")" * 500, "does not load: "),
        ("x = 1\n" * 200_000, "is longer than the 1,048,576 bytes that are read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = write(tmp_path, f"{HEAD}{text}\n")
    with pytest.raises(UsageError) as told:
        read_file(file, "scheme")
    assert says in str(told.value)
    assert str(file) in str(told.value)
    assert "\n" not in str(told.value)


def test_how_a_decorator_may_be_written(tmp_path: Path) -> None:
    for number, text in enumerate((
        "import rpbench\n@rpbench.shape_scheme\n", "import rpbench as r\n@r.scheme.shape_scheme()\n",
        "from rpbench.scheme import shape_scheme as s\n@s\n", "from rpbench import *\n@shape_scheme\n",
        "import functools\nfrom rpbench import shape_scheme\n@shape_scheme\n@functools.lru_cache\n",
    )):  # fmt: skip
        file = write(tmp_path, f"{text}def any_name(table, density): 'Is read.'\n", f"m{number}.py")
        assert read_file(file, "scheme").summary == "Is read"
    file = write(tmp_path, "from other import shape_scheme\n@shape_scheme\ndef mine(table, density): ...\n")
    with pytest.raises(UsageError, match="it has none"):
        read_file(file, "scheme")


def test_a_file_may_hold_several_and_both_kinds(tmp_path: Path) -> None:
    two = "@shape_scheme\ndef other(table, density): ...\n@shape_scheme\ndef mine(table, density): ...\n"
    drawn = "@mask_sampler(exact=False, scored=True)\ndef drawn(t, c, k, s, *, n: int = 2): ...\n"
    file = write(tmp_path, HEAD + two + drawn)
    assert read_file(file, "scheme").name == "mine"
    assert read_file(file, "scheme", "other").name == "other"
    told, _ = isolated_sampler(str(file))
    assert (told.name, told.exact, told.scored) == ("drawn", False, True)
    assert options.bind(told.name, told.function, {"n": "4"}) == {"n": 4}
    with pytest.raises(UsageError, match="defines no scheme function 'lost': write @shape_scheme or @score_scheme"):
        read_file(file, "scheme", "lost")


PACKAGE = {
    "theirs/__init__.py": "open({marker!r}, 'w').close()\nfrom theirs.deep.ratios import mine\n",
    "theirs/deep/ratios.py": HEAD + "open({marker!r}, 'w').close()\n@shape_scheme\ndef mine(table, density, *, a=2):\n"
                                    "    '''Theirs. https://example.org'''\n    return {{}}\n"
                                    "@mask_sampler\ndef drawn(t, c, k, s): 'Drawn.'\n",
    "theirs-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n",
    "theirs-1.0.dist-info/entry_points.txt": (
        "[rpbench.schemes]\ntheirs = theirs.deep.ratios:mine\nlost = theirs.nowhere:mine\nagain = theirs:mine\n"
        "[rpbench.samplers]\ndrawn = theirs.deep.ratios:drawn\n"
    ),
}  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with entry points that writes a marker when any of it is imported."""
    for name, text in PACKAGE.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(marker=str(tmp_path / "marker")))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def test_entry_points_are_found_and_not_imported(package: Path) -> None:
    assert find_source("theirs.deep.ratios") == package / "site" / "theirs" / "deep" / "ratios.py"
    rows = {row["name"]: row for row in list_schemes()}
    assert (rows["theirs"]["summary"], rows["theirs"]["options"]) == ("Theirs", {"a": 2})
    assert "there is no Python file of module 'theirs.nowhere'" in rows["lost"]["summary"]
    assert "it imports it from theirs.deep.ratios, so name that module" in rows["again"]["summary"]
    assert {row["name"]: row["summary"] for row in list_samplers()}["drawn"] == "Drawn"
    assert isolated_scheme("theirs:a=3")[0].summary == "Theirs"
    assert not (package / "marker").exists()
    assert "theirs" not in sys.modules


def test_no_command_that_only_looks_runs_a_file(package: Path, invoke: Invoke) -> None:
    text = f"{HEAD}open({str(package / 'marker')!r}, 'w').close()\n@shape_scheme\ndef mine(table, density):\n"
    own = write(package, f"{text}    '''Mine. https://example.org'''\n    return {{x.name: density for x in table}}\n")
    board = package / "board.toml"
    board.write_text(
        'name = "own"\nversion = 1\nsummary = "x"\nurl = "x"\nseeds = [0, 1]\n[[grids]]\ntask = "digits"\n'
        f'models = ["resnet8"]\ndensities = [0.1]\nschemes = ["erk", "{own}"]\nsamplers = ["exact", "drawn"]\n'
    )
    store = package / "runs"
    plan = expand(load_board(str(board)), Choice())
    assert {w.who.scheme for w in plan.cells} == {"dense", "erk", "mine"}
    synthetic.fill(store, plan, lambda w: 0.9)
    for asked in (
        ["report", str(board)], ["status", str(board)], ["list", "schemes"], ["list", "samplers"], ["show", "theirs"],
        ["sweep", "digits", "--scheme", str(own), "--dry-run"], ["sweep", str(board), "--dry-run", "--format", "json"],
        ["compare", "erk", "mine", "--board", str(board)],
    ):  # fmt: skip
        done = invoke(*asked, *(["--store", str(store)] if asked[0] not in ("list", "show") else []))
        assert done.exit_code == 0, done.stderr
    assert "mine" in invoke("report", str(board), "--store", str(store)).stdout
    assert not (package / "marker").exists()


def test_asking_for_a_cell_imports_no_torch(tmp_path: Path) -> None:
    own = write(tmp_path, f"import torch\n{HEAD}@score_scheme\ndef mine(probe): 'Mine.'\n")
    code = f"import sys\nfrom rpbench.cell import ask\nask(scheme={str(own)!r})\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_match_kinds(tmp_path: Path) -> None:
    words: tuple[Word, ...] = ("scheme", "sampler")
    for word in words:
        with pytest.raises(UsageError, match=f"{word} file '.*nowhere.py' does not exist"):
            read_file(tmp_path / "nowhere.py", word)
