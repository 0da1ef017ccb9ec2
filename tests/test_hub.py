"""Leaderboards on the hub: the real client against a small hub on this machine, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_server
import pytest
from click.testing import CliRunner
from hub_server import TOKEN, Hub
from submitted_bundles import PASSED, bundle, files_of, leaderboard, source

from rpbench.cli import main
from rpbench.errors import HubError, StoreError, UsageError
from rpbench.hub import is_place, leaderboard_at, published_files
from rpbench.merging import merge

Done = tuple[int, str, str]  # exit code, stdout, stderr
Call = Callable[..., Done]
CODE = """
import json, os, sys
from unittest.mock import patch
from click.testing import CliRunner
from rpbench.cli import main
for line in sys.stdin:
    args, env = json.loads(line)
    with patch.dict(os.environ, env):
        done = CliRunner().invoke(main, args)
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    print(json.dumps((done.exit_code, done.stdout, done.stderr)), flush=True)
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server.running() as found:
        yield found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    root = leaderboard(folder / "leaderboard")
    merge(bundle(folder / "bundle", source(folder)), PASSED, "checked", root)
    (root / "notes.txt").write_text("stays here")
    (root / "digits" / ".erk.jsonl.tmp").write_text("stays here")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the hub's client keeps what it has downloaded."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def start(hub: Hub, home: Path) -> Iterator[Callable[..., Call]]:
    """Processes that run rpbench commands one after another, each with its own environment."""
    processes = []

    def new(**env: str) -> Call:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | own | env,
        )  # fmt: skip
        processes.append(process)

        def call(*args: str, token: str = TOKEN) -> Done:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps((args, {"HF_TOKEN": token})) + "\n")
            process.stdin.flush()
            told = process.stdout.readline()
            assert told, "it has ended with a traceback, see above"
            code, out, err = json.loads(told)
            return code, out, err

        return call

    yield new
    for process in processes:
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def call(start: Callable[..., Call]) -> Call:
    return start()


def test_there_and_back(hub: Hub, root: Path, call: Call, start: Callable[..., Call]) -> None:
    sent = call("publish", "--to", "hf:me/board", "--root", str(root))
    read = call("report", "digits", "--leaderboard", "hf:me/board", token="")
    first = hub.newest("me/board")
    assert sent == (0, f"hf:me/board@{first}: {len(published_files(root))} files\n", "")
    assert len(hub.repos["me/board"]) == 2  # made, and one commit
    there = hub.repos["me/board"][first]
    kept = {name: data for name, data in files_of(root).items() if "tmp" not in name and name != "notes.txt"}
    assert {name: data for name, data in there.items() if name != ".gitattributes"} == kept
    own = CliRunner().invoke(main, ["report", "digits", f"--leaderboard={root}"]).stdout
    assert read == (0, own, f"leaderboard: hf:me/board@{first}\n")
    assert "checked" in own
    compare = ("compare", "erk", "dense", "--leaderboard", "hf:me/board")
    pinned = ("report", "digits", f"--leaderboard=hf:me/board@{first}")
    unseen = ("report", "digits", "--leaderboard", "hf:me/unseen")
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):  # the cache is enough
        away = start(**offline)
        told, again, nothing = away(*compare), away(*pinned), away(*unseen)
        assert told[0] == 0
        assert told[2].startswith(f"leaderboard: hf:me/board@{first}\n")
        assert again[:2] == (0, own)
        assert nothing[0] == 2
        assert "'hf:me/unseen': the hub cannot be reached, and it is not in the cache" in nothing[2]


def test_what_is_gone_here_goes_there(hub: Hub, root: Path, call: Call) -> None:
    hub.commit("me/again", {"digits/old-12345678.jsonl": b"{}\n", "submissions/old-12345678/old.py": b"", "kept": b""})
    publish = ("publish", "--to", "hf:me/again", "--root", str(root))
    done, again = call(*publish), call(*publish)
    assert done[0] == again[0] == 0, done[2] + again[2]
    assert "removed there: digits/old-12345678.jsonl" in done[2]
    assert again == (0, done[1], "")
    assert len(hub.repos["me/again"]) == 2  # nothing to say the second time
    assert set(hub.repos["me/again"][hub.newest("me/again")]) == {"kept", *published_files(root)}


def test_what_the_hub_does_not_take_or_give_is_one_line(hub: Hub, root: Path, call: Call) -> None:
    hub.commit("me/other", {"README.md": b"another dataset", "train.csv": b"1"})
    hub.commit("me/empty", {"README.md": b"nothing yet"})
    hub.commit("me/private", {"digits/erk.jsonl": b""})
    hub.private.add("me/private")
    hub.commit("me/large", {"digits/large.jsonl": b""})
    hub.large["digits/large.jsonl"] = 10**9
    to, where = ("publish", "--root", str(root), "--to"), ("report", "digits", "--leaderboard")
    wrong = (
        ((*to, "hf:me/other"), TOKEN, "'hf:me/other' holds something else"),
        ((*to, "hf:others/board"), TOKEN, "'hf:others/board': not allowed (403): log in"),
        ((*to, "hf:me/new"), "hf_of_another", "'hf:me/new': not allowed (401): log in"),
        ((*where, "hf:me/empty"), TOKEN, "'hf:me/empty' has no records of a board"),
        ((*where, "hf:me/nothing"), TOKEN, "'hf:me/nothing': the hub has no such dataset"),
        ((*where, "hf:me/private"), "", "'hf:me/private': the hub has no such dataset, or it is private"),
        ((*where, "hf:me/empty@v9"), TOKEN, "'hf:me/empty@v9' has no such revision"),
        ((*where, "hf:me/large"), TOKEN, "digits/large.jsonl has 1,000 MB: at most 64 MB are read"),
    )
    for args, token, why in wrong:
        code, out, err = call(*args, token=token)
        assert (code, out) == (2, ""), args
        assert why in err.strip().splitlines()[-1], err
    assert not any(asked.startswith("GET /datasets/me/large") for asked in hub.asked)  # not downloaded


def test_a_strangers_leaderboard_is_read_as_strictly_as_any(hub: Hub, call: Call, root: Path, home: Path) -> None:
    good = (root / "digits" / "erk.jsonl").read_bytes()
    files = {name: data for name, data in files_of(root).items() if name.startswith("digits/") and "tmp" not in name}
    odd = {"digits/erk.jsonl": good + b'{"record": "{}", "level": "verified"}\nno json\n', "digits/x.py": b"1/0",
           "submissions/bad/digits.json": b"[", "mine/erk.jsonl": good, "README.md": b"\xff"}  # fmt: skip
    hub.commit("stranger/board", files | odd)
    code, out, err = call("report", "digits", "--leaderboard", "hf:stranger/board")
    assert code == 0, err
    assert "erk.jsonl:21: " in out
    assert "erk.jsonl:22: " in out
    (cached,) = home.rglob("datasets--stranger--board/snapshots/*")
    assert [path.name for path in cached.iterdir()] == ["digits"]  # nothing else was fetched
    assert not list(cached.rglob("*.py"))


def test_a_word_behind_the_option_is_its_place_or_an_argument(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    assert [is_place(word) for word in ("hf:me/board", "./lb", "/lb", "lb/", ".", "..")] == [True] * 6
    assert not any(map(is_place, ("digits", "erk", "./own.toml", "", "--store", "mine @1234abcd")))
    shipped = CliRunner().invoke(main, ["report", "digits", "--leaderboard"]).stdout
    own = CliRunner().invoke(main, ["report", "digits", "--leaderboard=leaderboard"]).stdout
    assert shipped != own
    for args, wanted in (
        (["--leaderboard", "digits"], shipped),
        (["--leaderboard", "./leaderboard", "digits"], own),
        (["digits", "--leaderboard", "leaderboard/"], own),
        (["digits", "--leaderboard", "--by", "scheme"], shipped),
        (["--leaderboard", "--", "digits"], shipped),
    ):
        done = CliRunner().invoke(main, ["report", *args])
        assert (done.exit_code, done.stdout) == (0, wanted), args
    for args in (["--leaderboard", "erk", "dense"], ["erk", "--leaderboard", "./leaderboard", "dense"]):
        done = CliRunner().invoke(main, ["compare", *args, "--board", "digits"])
        assert done.exit_code == 0, done.output
    for place, why in (("nowhere/", "there is no leaderboard"), ("hub/..", "has no records of a board"),
                       ("hf:nobody", "is no repository on the hub")):  # fmt: skip
        (root.parent / "hub").mkdir(exist_ok=True)
        done = CliRunner().invoke(main, ["report", "digits", "--leaderboard", place])
        assert done.exit_code == 2
        assert why in done.output


def test_only_a_leaderboards_own_files_leave_the_machine(root: Path, tmp_path: Path) -> None:
    import shutil

    from rpbench.hub import upload

    copy = Path(shutil.copytree(root, tmp_path / "leaderboard"))
    assert "notes.txt" not in published_files(copy)
    (copy / "digits" / "secret.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match=r"secret\.jsonl' is no file"):
        published_files(copy)
    (copy / "digits" / "secret.jsonl").unlink()
    (card,) = copy.glob("submissions/*/digits.json")
    told = json.loads(card.read_text())
    (copy / "secret.json").write_text("{}")
    for name in ("../../secret.json", "/etc/hostname", "digits.json", "a/b.py", "mine.py\n"):
        card.write_text(json.dumps(told | {"code": told["code"] | {"file": name}}))
        with pytest.raises(StoreError, match=r"is not valid: code\.file: string should match"):
            published_files(copy)
    card.write_text(json.dumps(told))
    (copy / "README.md").write_text("edited")
    with pytest.raises(UsageError, match=r"README\.md are not made from the records: rpbench publish --refresh"):
        upload(copy, "hf:me/board")
    with pytest.raises(UsageError, match="is no repository"):
        upload(copy, "me/board")
    with pytest.raises(HubError, match="not in the cache"):  # the tests are offline
        leaderboard_at("hf:me/board")
