// Tables whose rows can be sorted by every column.

function drawTables() {
  const v = view(),
    b = v.board;
  const places = b.ranked.rows.map((place, i) => ({ row: b.rows[place.row], place, i }));
  const ranked = new Set(places.map((entry) => entry.row));
  const rest = b.rows.filter((row) => !ranked.has(row)).map((row) => ({ row, place: null, i: null }));
  const all = { block: b.ranked, places, rest, contexts: b.contexts };
  const section = (id, title, text, ...kids) =>
    h(
      "section",
      { "aria-labelledby": id },
      h("h2", { id, tabindex: "-1" }, title),
      h("p", { class: "about" }, text),
      kids,
    );
  const found = [
    section(
      "ranking",
      "Ranking",
      about(v),
      h("p", { class: "status", role: "status" }, status(v)),
      scoreTable(v, {
        ...all,
        name: "Table 1",
        title: `Schemes by their mean gap to ${b.board.reference}`,
        parts: ["score", "axes", "cost"],
      }),
      b.not_run.length > 0 && h("p", { class: "note" }, "Not run: ", b.not_run.join(", "), "."),
    ),
  ];
  if (b.common) {
    const contexts = b.common.contexts.map((i) => b.contexts[i]);
    const common = {
      block: b.common,
      places: b.common.rows.map((place, i) => ({ row: b.rows[place.row], place, i })),
      rest: [],
      contexts,
    };
    const text =
      "Schemes that cannot meet some of the budgets have no place above; here every scheme is ranked on the cells that all can meet.";
    found.push(
      section(
        "common",
        "Ranking on the common cells",
        contexts.length ? text : "No cell can be met by all schemes.",
        contexts.length > 0 &&
          scoreTable(v, {
            ...common,
            name: "Table 2",
            title: `Every scheme on ${b.common.title}`,
            parts: ["score", "axes"],
          }),
      ),
    );
  }
  const text =
    "Means over the seeds with the 95\u00a0% t-interval of these seeds alone. Choose a cell for every seed, all metrics and the commands; arrow keys go from cell to cell.";
  found.push(
    section(
      "cells",
      "Cells",
      text,
      scoreTable(v, {
        ...all,
        name: `Table ${found.length + 1}`,
        title: `${capital(metricName(v.metric))}, by net and density`,
        parts: ["cells"],
      }),
    ),
  );
  document.getElementById("tables").replaceChildren(...found);
}

function status(v) {
  const { board: b } = v,
    first = b.metrics[0].title;
  if (v.filtered)
    return `${v.contexts.length} of ${b.contexts.length} cells are shown: gaps are plain means over them, without intervals; what is grey is of the whole board.`;
  if (v.main) return "";
  return `Gaps in ${v.metric.title} over all cells${b.order === "flops" ? ", at equal parameters" : ""}; ranks and steps are those of ${first}.`;
}
function about(v) {
  if (!v.board.rows.length) return "No scheme has a record yet.";
  const levels = [...new Set(v.board.rows.map((row) => row.level))];
  const level = levels.length === 1 && levels[0] ? ` All rows are of level \u201c${levels[0]}\u201d.` : "";
  return `Rows that share ranks cannot be told apart (all pairs, Holm, 5\u00a0%). \u227b marks a step to the next row that is separated, \u2248 one that is not. Intervals are 95\u00a0%; the first row has the means of ${v.board.board.reference} itself, in italics.${level}`;
}

/** A table of the rows of a block, `places`, and of rows without a rank, `rest`, with the columns of its `parts`. */
function scoreTable(v, given) {
  const { name, title, places, rest } = given,
    columns = columnsOf(v, given);
  const line = (entry) => {
    const found = h(
      "tr",
      {},
      columns.map((c) => c.cell(entry)),
    );
    found.entry = entry;
    return found;
  };
  const rule = () =>
    h(
      "tr",
      { class: "rule" },
      h(
        "th",
        { scope: "rowgroup", colspan: columns.length + 1 },
        h("span", {}, "Without a rank: not there on every cell"),
      ),
    );
  const bodies = [];
  if (places.length) bodies.push(h("tbody", { class: "ranked" }, places.map(line)));
  if (rest.length) bodies.push(h("tbody", { class: "rest" }, places.length > 0 && rule(), rest.map(line)));
  const heads = columns.map((c) =>
    h(
      "th",
      { scope: "col", colspan: c.span, class: c.class, "aria-sort": "none" },
      h(
        "button",
        { type: "button", title: c.title, onclick: () => sort(c) },
        c.head,
        h("span", { class: "arrow", "aria-hidden": "true" }),
      ),
      c.below,
    ),
  );
  const table = h(
    "table",
    { class: places.length + rest.length > 30 ? "score tall" : "score" },
    h("caption", {}, h("b", {}, `${name}. `), title),
    h("thead", {}, h("tr", { class: "groups" }, groupHeads(columns)), h("tr", {}, heads)),
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
  const apply = (column, up) => {
    heads.forEach((head, i) =>
      head.setAttribute("aria-sort", columns[i] !== column ? "none" : up ? "ascending" : "descending"),
    );
    for (const body of bodies) {
      const lines = [...body.rows].filter((row) => row.entry);
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
  const sort = (column) => {
    const now = heads[columns.indexOf(column)].getAttribute("aria-sort");
    const up = now === "none" ? column.first !== "descending" : now === "descending";
    state.sorts.set(name, [column.id, up]);
    apply(column, up);
  };
  const [id, up] = state.sorts.get(name) || ["rank", true],
    kept = columns.find((c) => c.id === id);
  apply(kept || columns[0], kept ? up : true);
  roam(table);
  return box(name, table);
}
const box = (name, ...kids) => h("div", { class: "box", role: "region", "aria-label": name, tabindex: "0" }, kids);

/** Heads over columns that follow each other in one group. */
function groupHeads(columns) {
  const found = [];
  for (const c of columns) {
    if (found.at(-1)?.name !== c.group) found.push({ name: c.group, width: 0 });
    found.at(-1).width += c.span || 1;
  }
  return found.map(({ name, width }) =>
    name ? h("th", { scope: "colgroup", colspan: width }, h("span", {}, name)) : h("td", { colspan: width }),
  );
}
/** Rows without a value come last, whichever way the column is sorted. */
function compare(a, b, up) {
  if (a === null || b === null) return (a === null) - (b === null);
  return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
}

/** One stop of the Tab key for all cells of a table; arrow keys go from cell to cell. */
function roam(table) {
  const cells = (within) => [...within.querySelectorAll("button.cell")];
  const stop = (at) => cells(table).forEach((button) => (button.tabIndex = button === at ? 0 : -1));
  stop(cells(table)[0]);
  table.addEventListener("focusin", (event) => event.target.matches("button.cell") && stop(event.target));
  table.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key],
      from = event.target;
    if (!by || !from.matches("button.cell")) return;
    event.preventDefault();
    const line = from.closest("tr"),
      own = cells(line);
    let to = own[own.indexOf(from) + by];
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const lines = [...table.rows].filter((row) => cells(row).length),
        next = lines[lines.indexOf(line) + by];
      const below = next ? cells(next) : [];
      to = below.find((button) => button.dataset.context === from.dataset.context) || below[0];
    }
    to?.focus();
  });
}
