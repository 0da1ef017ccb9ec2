// Columns of the tables: their heads, what they sort by, and their cells. `first` is the way that a first click sorts.

function columnsOf(v, given) {
  const { contexts, parts } = given,
    { board: b, metric } = v;
  const columns = [rankColumn(v, given), schemeColumn(b)];
  // over the cells that are shown, the reference's mean counts as often as its net does
  const shown = contexts.filter((c) => v.contexts.includes(c));
  const absolute = (m) => {
    const found = meanOf(shown, (c) => summary(b.dense.cells[c.net], m)?.mean);
    return h(
      "td",
      { class: "number", title: `Mean of ${b.board.reference} over the nets of these cells, not a gap` },
      h("span", { class: "absolute" }, fixed(found, decimals(m)), found !== null && m.unit && `\u202f${m.unit}`),
    );
  };
  if (parts.includes("score")) columns.push(gapColumn(v, given, absolute(metric)), stepColumn(v, given));
  if (parts.includes("axes")) for (const i of b.axes) columns.push(axisColumn(v, b.metrics[i], given, absolute));
  if (parts.includes("cost")) columns.push(...costColumns(v, shown));
  if (parts.includes("cells"))
    v.contexts.forEach((c, k) => columns.push(cellColumn(v, c, k === 0 || v.contexts[k - 1].net !== c.net)));
  return columns;
}
const betterFirst = (metric) => (metric.higher ? "descending" : "ascending");
const arrow = (metric) =>
  h(
    "span",
    { class: "way", title: metric.higher ? "higher is better" : "lower is better" },
    metric.higher ? "\u2191" : "\u2193",
  );
const grey = (v) => (v.filtered || !v.main ? " grey" : "");

function rankColumn(v, { places }) {
  const title = (rank) =>
    rank ? `${rank[1] - 1} rows above it and ${places.length - rank[2]} below it for certain` : null;
  return {
    id: "rank",
    head: "Rank",
    title: "The row\u2019s place, or the places that the data allow it",
    group: "",
    class: "rank",
    sort: (e) => (e.place?.rank ? e.i : null),
    cell: (e) => h("td", { class: `rank${grey(v)}`, title: title(e.place?.rank) }, rankText(e.place?.rank)),
    dense: () => h("td", { class: "rank" }),
  };
}
function rankText(rank) {
  if (!rank) return "\u2013";
  const [, low, high] = rank;
  return low === high ? String(low) : `${low}\u2013${high}`;
}

function schemeColumn(b) {
  const cell = (row, style, marks) =>
    h(
      "th",
      { scope: "row", class: "name" },
      swatch(style),
      h("span", { class: "label", title: row }, row),
      marks.map((mark) => h("span", { class: "mark" }, mark)),
    );
  return {
    id: "scheme",
    head: "Scheme",
    title: "Scheme, with its sampler where that is not \u201cexact\u201d",
    group: "",
    class: "name",
    sort: (e) => e.row.label.toLowerCase(),
    cell: (e) => cell(e.row.label, STYLES.get(e.row.label), e.row.marks),
    dense: () => cell(b.board.reference, null, ["reference"]),
  };
}

function gapColumn(v, { places, rest, contexts }, absolute) {
  const { board: b, metric } = v,
    value = (e) => gapIn(v, metric, e, contexts);
  const bars = barScale([...places, ...rest].map(value));
  return {
    id: "gap",
    span: 2,
    class: "gap",
    first: betterFirst(metric),
    below: bars.axis(),
    group: `${v.filtered ? "Shown cells" : "Score"}: ${metric.title}`,
    head: ["Gap to ", b.board.reference, h("span", { class: "unit" }, metric.unit === "%" ? " points" : "")],
    title: v.filtered ? "Plain mean of the gaps of the shown cells" : "Mean gap over the cells, with its 95 % interval",
    sort: (e) => value(e)[0],
    cell: (e) => gapCells(v, e, value(e), bars),
    dense: () => [absolute, h("td", { class: "bar" }, bars.draw(null))],
  };
}
function gapCells(v, entry, gap, bars) {
  const d = decimals(v.metric),
    [value, low, high] = gap,
    { lacks } = entry.row;
  if (value === null && !entry.place) {
    const more = lacks.length > 1 ? ` and ${lacks.length - 1} more` : "";
    const why = lacks.length
      ? `${v.board.order === "flops" ? "" : "lacks "}${clipped(lacks[0], 60)}${more}`
      : v.filtered
        ? "infeasible on some of the shown cells"
        : "infeasible on some cells: see table 2";
    return h("td", { colspan: 2, class: "lacks" }, h("span", { title: lacks.join("; ") || null }, why));
  }
  const p = v.main && !v.filtered ? (entry.place?.p ?? null) : null;
  const against = p === null ? "" : `; p ${p < 1e-4 ? "< 0.0001" : `= ${p.toPrecision(2)}`} against no gap (Holm)`;
  const title = low === null ? "no interval" : `from ${signed(low, d)} to ${signed(high, d)}${against}`;
  return [
    h("td", { class: "number strong", title }, estimate(gap, d)),
    h("td", { class: "bar" }, bars.draw(gap, STYLES.get(entry.row.label))),
  ];
}
/** A gap with half of its interval, where it has one. */
function estimate(e, digits) {
  return e && e[0] !== null ? [signed(e[0], digits), pm(half(e), digits)] : "\u2013";
}

function stepColumn(v, { block, places }) {
  const d = decimals(v.board.metrics[0]);
  return {
    id: "step",
    head: "Step to next",
    class: "step",
    first: "descending",
    group: `${v.filtered ? "Shown cells" : "Score"}: ${v.metric.title}`,
    title: "This row less the one ranked next, with the 95 % interval of the difference",
    sort: (e) => (e.place && block.steps[e.i]?.[0]) ?? null,
    cell: (e) => {
      const step = e.place && block.steps[e.i],
        next = places[e.i + 1];
      if (!step || !next || step[0] === null) return h("td", {});
      const told = `${e.row.label} less ${next.row.label}: ${step[3] ? "separated" : "cannot be separated"}`;
      return h(
        "td",
        { class: `step${grey(v)}`, title: told },
        h("span", { class: step[3] ? "apart" : "tied", "aria-hidden": "true" }, step[3] ? "\u227b" : "\u2248"),
        unseen(step[3] ? "separated: " : "not separated: "),
        fixed(step[0], d),
        pm(half(step), d),
      );
    },
    dense: () => h("td", {}),
  };
}

function axisColumn(v, metric, { contexts }, absolute) {
  const value = (e) => gapIn(v, metric, e, contexts);
  return {
    id: `axis-${metric.key}`,
    head: [metric.title, arrow(metric)],
    class: "axis",
    first: betterFirst(metric),
    group: `Gap to ${v.board.board.reference} on the other axes`,
    title: `Mean gap in ${metric.title}${metric.unit === "%" ? ", points" : ""}; ${metric.higher ? "higher" : "lower"} is better`,
    sort: (e) => value(e)[0],
    cell: (e) => h("td", { class: "number" }, estimate(value(e), decimals(metric))),
    dense: () => absolute(metric),
  };
}

function costColumns(v, shown) {
  const { board: b } = v,
    group = "Cost, mean over the cells";
  const column = (id, head, title, get, show, dense = "", faint = false) => ({
    id,
    head,
    title,
    group,
    class: "cost",
    sort: get,
    dense: () => h("td", { class: "number" }, dense),
    cell: (e) => h("td", { class: `number${faint && v.filtered ? " grey" : ""}` }, show(get(e))),
  });
  const mean = (key) => (e) => (v.filtered ? meanOf(shown, (c) => e.row.cells[c.i][key]) : e.row[key]);
  const plain = (digits) => (x) => (x === null ? "\u2013" : trim(x.toFixed(digits)));
  const found = [
    column(
      "flops",
      "FLOPs",
      "Multiply-adds of the sparse nets over those of the dense ones, as drawn",
      mean("flops"),
      (x) => percent(x),
      percent(1, 0),
    ),
    column(
      "effective",
      "Effective density",
      "Weights on a path from input to output, over all prunable ones",
      mean("effective"),
      plain(4),
      "1",
    ),
    column(
      "scheme_seconds",
      "Scheme",
      "Seconds that the scheme itself took",
      (e) => e.row.scheme_seconds,
      seconds,
      "",
      true,
    ),
    column(
      "batches",
      "Batches",
      "Labelled batches that the scheme looked at",
      (e) => e.row.batches,
      plain(1),
      "",
      true,
    ),
  ];
  const level = column(
    "level",
    "Level",
    "How far the records have been checked",
    (e) => e.row.level,
    (x) => x,
  );
  return new Set(b.rows.map((row) => row.level)).size > 1 ? [...found, level] : found;
}

function cellColumn(v, context, first) {
  const { board: b, metric } = v,
    net = b.nets[context.net],
    side = `cell${first ? " first" : ""}`;
  const shown = v.contexts.filter((c) => c.net === context.net).length,
    dense = b.dense.cells[context.net];
  return {
    id: `cell-${context.i}`,
    head: String(context.density),
    class: side,
    first: betterFirst(metric),
    group: netName(b, net),
    title: `${net.task} ${net.model} at density ${context.density} (sparsity ${sparsity(context.density)})`,
    sort: (e) => summary(e.row.cells[context.i], metric)?.mean ?? null,
    cell: (e) => h("td", { class: side }, cellButton(v, e.row.cells[context.i])),
    dense: () => first && h("td", { class: side, colspan: shown }, dense && cellButton(v, dense)),
  };
}
function cellButton(v, cell) {
  const found = summary(cell, v.metric),
    d = decimals(v.metric),
    net = v.board.nets[cell.net];
  const where = `${cell.row.label}, ${net.model}${cell.row.reference ? "" : `, density ${cell.density}`}`;
  const few =
    cell.missing.length > 0 &&
    !cell.row.marks.includes("1 seed") &&
    h("span", { class: "few" }, ` n=${cell.runs.length}`);
  const text = found
    ? [fixed(found.mean, d), pm(found.half, d), few]
    : h("span", { class: "none" }, cell.runs.length ? "\u2013" : cell.state);
  const title = found
    ? `${where}: n = ${found.n}${found.sd === null ? "" : `, sd ${fixed(found.sd, d)}`}`
    : `${where}: ${cell.state}${cell.reason ? `, ${cell.reason}` : ""}`;
  return h(
    "button",
    {
      type: "button",
      class: "cell",
      title,
      "data-context": cell.context ?? `net${cell.net}`,
      "aria-haspopup": "dialog",
      onclick: () => details(v, cell),
    },
    text,
  );
}
