"""The HTML report: its data, its safety, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import browser
import pytest
from page_records import a_board, a_record, a_sheet, entries, records

from rpbench.board import Wanted, board_names, expand, load_board
from rpbench.entries import Fault
from rpbench.ranking import score
from rpbench.report.page import CELL, RUN, SCRIPTS, embedded, page, page_json
from rpbench.report.reported import reported
from rpbench.rows import Order, Sheet
from rpbench.selection import select
from rpbench.stats import t_interval

HOSTILE = "<script>document.title='owned'</script>"
ODD = "a|b --> <!-- </script> \u2028 \U0001f600 \"'&amp;"
SCHEMES = ["uniform", "erk", "erk_plus", "snip", "igq"]
GRID = {
    "task": "cifar10",
    "models": ["resnet20", "resnet20-8", "resnet56"],
    "densities": [0.5, 0.1, 0.02],
    "schemes": SCHEMES,
}


def rough(wanted: Wanted, record: dict[str, Any]) -> dict[str, Any] | None:
    """Gaps of every kind: cells that fail, are infeasible or missing, rows of one seed, records that are left out."""
    scheme, (_, model, density), seed = wanted.who.scheme, wanted.context, wanted.seeds.run
    if scheme == "erk_plus" and density < 0.05:
        none = {"kept": None, "realised": None, "effective": None, "kept_per_layer": []}
        ends = {"status": "infeasible", "error": "the classifier alone takes density 0.031"}
        return record | ends | {"density": record["density"] | none}
    if scheme == "snip" and model == "resnet56" and density < 0.05:
        return record | {"status": "diverged", "error": "loss is nan"} if seed == 0 else None
    if scheme == "igq" and seed > 0:
        return record | {"protocol": {"on": False, "overrides": {"recipe.epochs": 1}, "limit": None}}
    return record


def hostile(sheet_of: Any) -> Sheet:
    """A board with rows whose names, devices, errors and commands are markup."""
    plan = expand(sheet_of)
    found = list(records(plan))
    for name in (HOSTILE, ODD):
        for wanted in plan.cells:
            if wanted.who.scheme == "erk":
                record = a_record(plan, wanted)
                code = hashlib.sha256(f"{name}{wanted.seeds}{wanted.context}".encode()).hexdigest()[:12]
                found.append(record | {
                    "run_id": f"x-{code}", "scheme": record["scheme"] | {"name": name, "source": "0"}, "command": name,
                    "warnings": [name], "env": {"device": name, "world_size": 1},
                })  # fmt: skip
    return score(plan, select(plan, entries(iter(found))))


@pytest.fixture(scope="module")
def digits() -> Sheet:
    return a_sheet(load_board("digits"))


@pytest.fixture(scope="module")
def mixed() -> Sheet:
    return a_sheet(a_board([GRID], name="mixed"), rough)


REPORTED = [
    {"task": "cifar10", "model": "resnet20", "scheme": "erk", "density": 0.1, "metric": "top1", "value": 0.901,
     "tolerance": 0.002, "place": "Figure 1"},
    {"task": "cifar10", "model": "resnet56", "scheme": "dense", "density": 1.0, "metric": "top1", "value": 0.94,
     "tolerance": None, "place": "Table 2"},
]  # fmt: skip


# --- the document ---------------------------------------------------------------------------------------------------


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def test_the_same_records_give_the_same_bytes(digits: Sheet) -> None:
    board = load_board("digits")
    plan = expand(board)
    again = score(plan, select(plan, reversed(entries(records(plan)))))
    assert page([digits]) == page([again])


def test_a_page_of_the_shipped_board_is_small(digits: Sheet) -> None:
    assert len(page([digits]).encode()) < 250_000  # 240 cells, all metrics; 500 KB is the promise


def test_the_policy_allows_the_page_itself_and_no_address(digits: Sheet) -> None:
    text = page([digits])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_the_script_never_makes_markup_of_text() -> None:
    folder = Path(__file__).parent.parent / "rpbench" / "report" / "html"
    assert {path.stem for path in folder.glob("*.js")} == set(SCRIPTS)
    script = "".join(path.read_text() for path in folder.glob("*.js"))
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "fetch("):
        assert way not in script


def test_embedded_json_ends_no_script() -> None:
    value = {"a": ["</script><!--", "\u2028\u2029 & \U0001f600", "]]>"]}
    text = embedded(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text)
    assert text.isascii()


def test_hostile_names_stay_data() -> None:
    text = page([hostile(load_board("digits"))])
    assert "<script>document" not in text
    assert text.count("</script>") == 2
    labels = [row[0] for row in data_of(text)["boards"][0]["rows"]]
    assert {HOSTILE, ODD} <= {label.partition(":")[0] if label.startswith(HOSTILE) else label for label in labels}


def test_runs_are_told_in_full(mixed: Sheet) -> None:
    data = page_json([mixed])
    words = data["words"]
    for row, told in zip(mixed.rows, data["boards"][0]["rows"], strict=True):
        for cell, short in zip(row.cells, told[-1], strict=True):
            fields = dict(zip(CELL, short, strict=True))
            for e, values in zip(cell.entries, fields["runs"], strict=True):
                run = dict(zip(RUN, values, strict=True))
                assert fields["record"][0] + run["record"] + fields["record"][1] == e.run_id
                head, tail = fields["command"]
                assert " ".join(words[i] for i in head) + run["command"] + tail == e.command
                assert words[run["device"]] == e.device
                assert run["seeds"] == e.seed
                assert fields["layers"] == pytest.approx([10_000 * d for d in cell.entries[0].layers])


def test_published_values_of_the_boards_nets_are_scaled_as_they_are_shown(mixed: Sheet) -> None:
    elsewhere = REPORTED[0] | {"model": "resnet110"}
    found = page_json([mixed], [*REPORTED, elsewhere])["reported"]
    assert [(r["value"], r["tolerance"]) for r in found] == [(90.1, 0.2), (94, None)]


def test_runs_of_streams_set_apart_say_so() -> None:
    board = page_json([a_sheet(load_board("luck"))])["boards"][0]
    runs = dict(zip(CELL, board["rows"][0][-1][0], strict=True))["runs"]
    assert runs[0][0] == 0
    assert {"0, init 1", "0, mask 9", "0, order 3"} <= {run[0] for run in runs}


def test_what_is_left_out_is_cut_after_a_while_and_counted(digits: Sheet) -> None:
    many = replace(digits, left_out=tuple(Fault(f"place-{i}", "why") for i in range(5000)))
    board = page_json([many])["boards"][0]
    assert board["all_left_out"] == 5000
    assert len(board["left_out"]) == 200


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium on this machine (set RPBENCH_CHROMIUM)")
    with browser.browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def show(tab: browser.Browser, tmp_path: Path) -> Any:
    """Open a page of these sheets; afterwards nothing may stand on the console, nothing may have been asked for."""
    opened = []

    def call(*sheets: Sheet, width: int = 1300, dark: bool = False, reported: Any = ()) -> browser.Browser:
        path = tmp_path / "page.html"
        path.write_text(page(sheets, reported))
        opened.append(path.as_uri())
        tab.size(width, dark=dark, mobile=width < 500)
        tab.open(path.as_uri())
        return tab

    yield call
    tab.js("0")
    assert tab.complaints() == []
    assert set(tab.requests()) <= set(opened)


TABLE = "#tables section:first-of-type table"
LABELS = f"{TABLE} tbody.ranked .label"
CELLS = "section[aria-labelledby=cells]"


def sorts(tab: browser.Browser) -> list[str]:
    found: list[str] = tab.js(f"[...document.querySelectorAll('{TABLE} th[aria-sort]')].map(t => t.ariaSort)")
    return found


def test_sorting(show: Any, digits: Sheet) -> None:
    tab = show(digits)
    ranked = [row.label for row in digits.ranked.rows]
    assert tab.texts(LABELS) == ranked
    assert sorts(tab)[0] == "ascending"
    tab.press("Scheme", "th button")
    assert tab.texts(LABELS) == sorted(ranked)
    assert sorts(tab)[:3] == ["none", "ascending", "none"]
    tab.press("Scheme", "th button")
    assert tab.texts(LABELS) == sorted(ranked, reverse=True)
    assert sorts(tab)[1] == "descending"
    tab.press("FLOPs", "th button")
    flops = {row.label: row.mean("flops") or 0 for row in digits.ranked.rows}
    assert [flops[label] for label in tab.texts(LABELS)] == sorted(flops.values())
    for i in range(len(sorts(tab))):  # every column can be sorted by, and loses no row
        tab.js(f"document.querySelectorAll('{TABLE} th[aria-sort] button')[{i}].click()")
        assert sorts(tab)[i] in ("ascending", "descending")
        assert sorted(tab.texts(LABELS)) == sorted(ranked)


def test_sorting_outlives_a_filter(show: Any, mixed: Sheet) -> None:
    tab = show(mixed)
    tab.press("Scheme", "th button")
    tab.press("Scheme", "th button")
    pick(tab, "0.5")
    assert tab.texts(LABELS) == sorted((row.label for row in mixed.ranked.rows), reverse=True)
    assert sorts(tab)[1] == "descending"


def test_sorting_by_keyboard_keeps_the_focus(show: Any, digits: Sheet) -> None:
    tab = show(digits)
    tab.js("document.querySelector('th.name button').focus()")
    tab.key("Enter")
    assert tab.texts(LABELS) == sorted(row.label for row in digits.ranked.rows)
    assert tab.js("document.activeElement.textContent").startswith("Scheme")


def test_filters(show: Any, mixed: Sheet) -> None:
    tab = show(mixed)
    heads = f"{CELLS} thead th.cell"
    assert tab.texts(".status") == [""]
    assert len(tab.texts(heads)) == 9
    for chip in ("resnet20", "resnet20-8", "0.5", "0.1"):
        pick(tab, chip)
    assert len(tab.texts(heads)) == 4
    assert "4 of 9 cells" in tab.texts(".status")[0]
    # a plain mean of the shown cells' gaps, without an interval; rows that lack other cells have one now
    lines = f"{TABLE} tbody:not(.dense)"
    gaps = dict(zip(tab.texts(f"{lines} .label"), tab.texts(f"{lines} td.strong"), strict=True))
    for row in mixed.rows:
        shown = [c for c in row.cells if c.context.model != "resnet56" and c.context.density > 0.05]
        assert gaps[row.label] == written(sum(c.gap.value for c in shown if c.gap) / len(shown))
    assert tab.texts("td.rank.grey")
    pick(tab, "resnet56")  # all nets are picked, so none is any longer
    assert tab.js("document.querySelector('.chips button').ariaPressed") == "true"
    assert len(tab.texts(heads)) == 6
    pick(tab, "0.5")
    pick(tab, "0.1")
    assert len(tab.texts(heads)) == 9
    assert not tab.texts("td.rank.grey")


def pick(tab: browser.Browser, chip: str) -> None:
    tab.js(f"[...document.querySelectorAll('.chips button')].find(b => b.textContent === {chip!r}).click()")


def written(gap: float) -> str:
    return f"{gap:+.2f}".replace("-", "\u2212")


def test_another_metric(show: Any, digits: Sheet) -> None:
    tab = show(digits)
    index = [m[0] for m in page_json([digits])["boards"][0]["metrics"]].index("ece")
    tab.js(f"const s = document.getElementById('metric'); s.value = {index}; s.dispatchEvent(new Event('change'))")
    assert tab.texts("#figures h2")[0].startswith("Figures: ECE")
    right = [row.axes["ece"] for row in digits.ranked.rows]
    assert [t.split()[0] for t in tab.texts(f"{TABLE} .ranked td.strong")] == [written(e.value) for e in right if e]


def test_the_page_computes_what_the_statistics_do(show: Any, digits: Sheet) -> None:
    tab = show(digits)
    shown = tab.texts("tbody.ranked button.cell")
    cells = [cell for row in digits.ranked.rows for cell in row.cells]
    assert len(shown) == len(cells)
    for text, cell in zip(shown, cells, strict=True):
        interval = t_interval(cell.values)
        assert interval
        assert cell.group
        half = (interval[1] - interval[0]) / 2
        assert [float(x) for x in text.split("\u00b1")] == pytest.approx([cell.group.mean, half], abs=0.00501)


def test_details_by_keyboard(show: Any, mixed: Sheet) -> None:
    tab = show(mixed)
    tab.js(f"document.querySelector('{CELLS} tbody.ranked button.cell').focus()")
    tab.key("ArrowDown")
    tab.key("ArrowRight")
    row, cell = mixed.ranked.rows[1], mixed.ranked.rows[1].cells[1]
    assert row.label in tab.js("document.activeElement.title")
    tab.key("Enter")
    assert tab.js("document.getElementById('details').open")
    text = tab.js("document.getElementById('details').innerText")
    for e in cell.entries:
        assert e.run_id in text
        assert e.command in text
        assert f"{e.metrics['top1'] * 100:.2f}" in text
    tab.key("Escape")
    assert not tab.js("document.getElementById('details').open")
    assert row.label in tab.js("document.activeElement.title")


def test_what_the_tab_key_reaches(show: Any, mixed: Sheet) -> None:
    """Everything, and the cells of a table at one stop, as the points of a plot."""
    tab = show(mixed)
    assert len(tab.texts('button.cell[tabindex="0"]')) == 1
    assert len(tab.texts('.spot[tabindex="0"]')) == len(tab.texts(".plot"))
    wanted = {"button.cell", ".spot", ".legend button", "th button", "select", ".box", ".theme"}
    for _ in range(120):
        tab.key("Tab")
        wanted = {kind for kind in wanted if not tab.js(f"document.activeElement.matches('{kind}')")}
        if not wanted:
            break
    assert not wanted


def test_points_tell_themselves_by_keyboard(show: Any, digits: Sheet) -> None:
    tab = show(digits)
    tab.js("document.querySelector('.plot .spot').focus()")
    (first,) = tab.texts("#tip")
    tab.key("ArrowRight")
    (second,) = tab.texts("#tip")
    assert "top-1" in first
    assert first != second
    tab.key("Enter")
    assert tab.js("document.getElementById('details').open")


def test_hostile_names_do_nothing(show: Any) -> None:
    tab = show(hostile(load_board("digits")))
    assert tab.js("document.title") == "digits \u2013 rpbench"
    assert {HOSTILE, ODD} <= set(tab.texts(LABELS))
    for i in range(0, len(tab.texts("button.cell")), 3):
        tab.js(f"document.querySelectorAll('button.cell')[{i}].click(); document.querySelector('dialog').close()")
    assert tab.js("document.title") == "digits \u2013 rpbench"


@pytest.mark.parametrize("width", [360, pytest.param(800, marks=pytest.mark.slow), 1400])
def test_only_tables_scroll_sideways(show: Any, mixed: Sheet, digits: Sheet, width: int) -> None:
    long = hostile(load_board("digits"))
    for sheets in ((mixed, digits), (long,)):
        tab = show(*sheets, width=width, reported=REPORTED)
        assert tab.js("document.documentElement.scrollWidth") == width
        tab.js("document.querySelector('tbody.ranked button.cell').click()")
        assert tab.js("document.documentElement.scrollWidth") == width
        assert tab.js("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")


# Texts whose contrast with what is behind them is below 4.5 (WCAG 2, AA), with that contrast.
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, k, i) => sum + k * linear(c[i] / 255), 0);
  const ground = (e) => {
    const c = e ? rgb(getComputedStyle(e).backgroundColor) : [255, 255, 255, 255];
    return c[3] === 255 ? c : ground(e.parentElement);
  };
  const worst = {};
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.checkVisibility() || e.closest('script, style, noscript, .sr, .skip')) continue;
    const style = getComputedStyle(e), back = ground(e);
    let fore = rgb(e.namespaceURI.endsWith('svg') ? style.fill : style.color), shown = 1;
    for (let p = e; p; p = p.parentElement) shown *= Number(getComputedStyle(p).opacity);
    fore = fore.map((v, i) => v * shown + back[i] * (1 - shown));
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) worst[`${e.outerHTML.slice(0, 60)}`] = (a + 0.05) / (b + 0.05);
  }
  return worst;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(show: Any, mixed: Sheet, dark: bool) -> None:
    tab = show(mixed, dark=dark, reported=REPORTED)
    assert tab.js(CONTRAST) == {}
    pick(tab, "0.5")
    tab.js("document.querySelector('button.cell').click()")
    assert tab.js(CONTRAST) == {}


def test_the_theme_can_be_turned(show: Any, digits: Sheet) -> None:
    tab = show(digits)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.js(ground)
    tab.press("Dark theme")
    assert tab.js(ground) != light
    tab.press("Light theme")
    assert tab.js(ground) == light
    tab.js("localStorage.clear()")


def test_headings_landmarks_and_names(show: Any, mixed: Sheet) -> None:
    tab = show(mixed, reported=REPORTED)
    assert tab.js("document.documentElement.lang") == "en"
    for landmark in ("header", "main", "footer", "section[aria-labelledby]"):
        assert tab.js(f"document.querySelector({landmark!r}) !== null")
    for fault in ("table:not(:has(caption))", "th:not([scope])", "section:not([aria-labelledby], [aria-label])"):
        assert tab.texts(fault) == []
    controls = "[...document.querySelectorAll('button, select, [tabindex]')]"
    assert tab.js(f"{controls}.every(e => e.ariaLabel || e.textContent.trim() || e.labels.length)")
    ids = tab.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    named = tab.js("[...document.querySelectorAll('section')].map(e => e.getAttribute('aria-labelledby'))")
    assert {name for name in named if name} <= set(ids)


def test_boards_are_switched(show: Any, mixed: Sheet, digits: Sheet) -> None:
    tab = show(mixed, digits)
    assert tab.js("document.querySelector('h1').textContent").startswith("mixed")
    tab.press("digits", ".boards button")
    assert tab.js("document.querySelector('h1').textContent").startswith("digits")
    assert tab.js("document.activeElement.textContent") == "digits"
    assert tab.js("document.title") == "digits \u2013 rpbench"


@pytest.mark.parametrize(
    "shape", ["empty", "no reference", "one seed", "one cell", pytest.param("forty rows", marks=pytest.mark.slow)]
)
def test_boards_of_every_shape(show: Any, shape: str) -> None:
    def change(wanted: Wanted, record: dict[str, Any]) -> dict[str, Any] | None:
        if shape == "empty" or (shape == "no reference" and wanted.who.scheme == "dense"):
            return None
        return None if shape == "one seed" and wanted.seeds.run else record

    schemes = [f"snip:batches={i + 1}" for i in range(40)] if shape == "forty rows" else SCHEMES
    grid = {"task": "cifar10", "models": ["resnet20"], "densities": [0.1], "schemes": schemes}
    if shape != "one cell":
        grid |= {"densities": [0.2, 0.1]}
    tab = show(a_sheet(a_board([grid]), change), width=1000)
    assert tab.js("document.querySelector('h1').textContent").startswith("synthetic")
    assert "NaN" not in tab.js("document.body.innerText")
    assert "undefined" not in tab.js("document.body.innerText")
    assert "NaN" not in tab.js("document.getElementById('page').outerHTML")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["params", "flops"])
@pytest.mark.parametrize("name", board_names())
def test_every_board_of_the_shelf(show: Any, name: str, order: Order) -> None:
    published = [vars(value) for value in reported()]
    sheet = a_sheet(load_board(name), order=order)
    assert len(page([sheet], published).encode()) < 350_000
    tab = show(sheet, reported=published)
    assert tab.texts(".plot")
    assert "NaN" not in tab.js("document.getElementById('page').outerHTML")


def test_paper(show: Any, mixed: Sheet, tmp_path: Path) -> None:
    tab = show(mixed)
    tab.paper(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert tab.js("[...document.querySelectorAll('#page details')].every(d => d.open)")


def test_served_pages_ask_for_nothing_either(tab: browser.Browser, digits: Sheet) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text if self.path == "/" else b"")

        log_message = partial(lambda *_: None)  # type: ignore[assignment]

    text = page([digits]).encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tab.size(1200)
        tab.open(f"http://127.0.0.1:{server.server_port}/")
        pick(tab, "0.3")
        tab.js("document.querySelector('button.cell').click()")
        tab.js("new Promise(done => setTimeout(done, 200))")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == ["/"]
    assert tab.complaints() == []
