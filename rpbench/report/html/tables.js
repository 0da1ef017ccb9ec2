// Tables whose rows can be sorted by every column.

function drawTables() {
  const v = view(),
    b = v.board;
  const at = document.getElementById("tables");
  const places = b.ranked.rows.map((place, i) => ({ row: b.rows[place.row], place, i }));
  const ranked = new Set(places.map((e) => e.row.i));
  const rest = b.rows.filter((row) => !ranked.has(row.i)).map((row) => ({ row, place: null, i: null }));
  const sections = [
    h(
      "section",
      { "aria-labelledby": "ranking" },
      h("h2", { id: "ranking", tabindex: "-1" }, "Ranking"),
      h("p", { class: "about" }, about(v)),
      h("p", { class: "status", role: "status" }, status(v)),
      scoreTable(v, {
        name: "Table 1",
        title: `Schemes by their mean gap to ${b.board.reference}`,
        block: b.ranked,
        places,
        rest,
        contexts: b.contexts,
        parts: ["score", "axes", "cost"],
      }),
      b.not_run.length > 0 && h("p", { class: "note" }, "Not run: ", b.not_run.join(", "), "."),
    ),
  ];
  if (b.common) {
    const common = b.common.rows.map((place, i) => ({ row: b.rows[place.row], place, i }));
    sections.push(
      h(
        "section",
        { "aria-labelledby": "common" },
        h("h2", { id: "common" }, "Ranking on the common cells"),
        h(
          "p",
          { class: "about" },
          "Schemes that cannot meet some of the budgets have no place above; here every scheme is ranked on the cells that all can meet.",
        ),
        scoreTable(v, {
          name: "Table 2",
          title: `Every scheme on ${b.common.title}`,
          block: b.common,
          places: common,
          rest: [],
          contexts: b.common.contexts.map((i) => b.contexts[i]),
          parts: ["score", "axes"],
        }),
      ),
    );
  }
  sections.push(
    h(
      "section",
      { "aria-labelledby": "cells" },
      h("h2", { id: "cells" }, "Cells"),
      h(
        "p",
        { class: "about" },
        "Means over the seeds with the 95\u00a0% t-interval of these seeds alone. Choose a cell for every seed, all metrics and the commands; arrow keys go from cell to cell.",
      ),
      scoreTable(v, {
        name: `Table ${sections.length + 1}`,
        title: `${metricName(v.metric)}, by net and density`,
        block: b.ranked,
        places,
        rest,
        contexts: b.contexts,
        parts: ["cells"],
      }),
    ),
  );
  at.replaceChildren(...sections);
}

function status(v) {
  if (v.filtered)
    return `${v.contexts.length} of ${v.board.contexts.length} cells are shown: gaps are plain means over them, without intervals; ranks and steps are those of the whole board.`;
  if (!v.main)
    return `Gaps in ${v.metric.title} over all cells${v.board.order === "flops" ? ", at equal parameters" : ""}; ranks and steps are those of ${v.board.metrics[0].title}.`;
  return "";
}
function about(v) {
  if (!v.board.rows.length) return "No scheme has a record yet.";
  const levels = [...new Set(v.board.rows.map((row) => row.level))];
  return (
    "Rows that share ranks cannot be told apart (all pairs, Holm, 5\u00a0%). \u227b marks a step to the next row that is separated, \u2248 one that is not; intervals are 95\u00a0%." +
    (levels.length === 1 && levels[0] ? ` All rows are of level \u201c${levels[0]}\u201d.` : "")
  );
}

/** A table of rows that can be sorted by every column; `rest` are rows without a rank. */
function scoreTable(v, given) {
  const { name, title, places, rest } = given;
  const columns = columnsOf(v, given);
  const bodies = [places, rest].map(
    (entries, k) =>
      entries.length > 0 &&
      h(
        "tbody",
        { class: k ? "rest" : "ranked" },
        k > 0 &&
          places.length > 0 &&
          h(
            "tr",
            { class: "rule" },
            h(
              "th",
              { scope: "rowgroup", colspan: columns.length + 1 },
              h("span", {}, "Without a rank: not there on every cell"),
            ),
          ),
        entries.map((entry) => {
          const line = h(
            "tr",
            { class: entry.row.lacks.length ? "lacking" : null },
            columns.map((c) => c.cell(entry)),
          );
          line.entry = entry;
          return line;
        }),
      ),
  );
  const groups = [];
  for (const c of columns)
    (groups.at(-1)?.name === c.group
      ? groups.at(-1).columns
      : groups[groups.push({ name: c.group, columns: [] }) - 1].columns
    ).push(c);
  const width = (list) => list.reduce((a, c) => a + (c.span || 1), 0);
  const heads = columns.map((c) => {
    const button = h(
      "button",
      { type: "button", title: c.title, onclick: () => sort(c, button) },
      c.head,
      h("span", { class: "arrow", "aria-hidden": "true" }),
    );
    return h("th", { scope: "col", colspan: c.span, class: c.class, "aria-sort": "none" }, button, c.below);
  });
  const table = h(
    "table",
    { class: "score" },
    h("caption", {}, h("b", {}, `${name}. `), title),
    h(
      "thead",
      {},
      h(
        "tr",
        { class: "groups" },
        groups.map((g) =>
          g.name
            ? h("th", { scope: "colgroup", colspan: width(g.columns) }, h("span", {}, g.name))
            : h("td", { colspan: width(g.columns) }),
        ),
      ),
      h("tr", {}, heads),
    ),
    h(
      "tbody",
      { class: "dense" },
      h(
        "tr",
        {},
        columns.map((c) => c.dense()),
      ),
    ),
    bodies,
  );
  const sort = (column, button) => {
    const th = button.parentNode,
      was = th.getAttribute("aria-sort");
    const up = was === "none" ? column.first !== "descending" : was === "descending";
    heads.forEach((other) =>
      other.setAttribute("aria-sort", other === th ? (up ? "ascending" : "descending") : "none"),
    );
    for (const body of bodies) {
      if (!body) continue;
      const lines = [...body.querySelectorAll("tr")].filter((line) => line.entry);
      body.append(
        ...lines.sort(
          (x, y) =>
            compare(column.sort(x.entry), column.sort(y.entry), up) ||
            compare(x.entry.i ?? x.entry.row.i, y.entry.i ?? y.entry.row.i, true),
        ),
      );
    }
    table.classList.toggle("sorted", !(column.id === "rank" && up));
  };
  heads[0].setAttribute("aria-sort", "ascending");
  roam(table);
  return h("div", { class: "box", role: "region", "aria-label": name, tabindex: "0" }, table);
}
/** Rows without a value come last, whichever way the column is sorted. */
function compare(a, b, up) {
  if (a === null || b === null) return (a === null) - (b === null);
  return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
}

/** One stop of the Tab key for all cells of a table; arrow keys go from cell to cell. */
function roam(table) {
  const buttons = () => [...table.querySelectorAll("button.cell")];
  const first = buttons()[0];
  if (!first) return;
  first.tabIndex = 0;
  const go = (to) => {
    if (!to) return;
    buttons().forEach((button) => {
      button.tabIndex = button === to ? 0 : -1;
    });
    to.focus();
  };
  table.addEventListener(
    "focusin",
    (e) =>
      e.target.matches("button.cell") &&
      buttons().forEach((button) => {
        button.tabIndex = button === e.target ? 0 : -1;
      }),
  );
  table.addEventListener("keydown", (e) => {
    if (!e.target.matches("button.cell") || !/^Arrow/.test(e.key)) return;
    e.preventDefault();
    const line = e.target.closest("tr"),
      own = [...line.querySelectorAll("button.cell")];
    if (e.key === "ArrowLeft" || e.key === "ArrowRight")
      return go(own[own.indexOf(e.target) + (e.key === "ArrowRight" ? 1 : -1)]);
    const lines = [...table.querySelectorAll("tr")].filter((other) => other.querySelector("button.cell"));
    const to = lines[lines.indexOf(line) + (e.key === "ArrowDown" ? 1 : -1)];
    const at = to && [...to.querySelectorAll("button.cell")];
    go(at && (at.find((button) => button.dataset.context === e.target.dataset.context) || at[0]));
  });
}
