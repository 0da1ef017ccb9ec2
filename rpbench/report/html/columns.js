// Columns of the tables: their heads, what they sort by, and their cells.

function columnsOf(v, { block, places, rest, contexts, parts }) {
  const { board: b, metric } = v,
    d = decimals(metric);
  const grey = v.filtered || !v.main ? " grey" : "";
  const value = (entry) => score(v, entry, contexts);
  const all = [...places, ...rest];
  const bars = barScale(all.map(value), metric);
  const better = metric.higher ? "descending" : "ascending";
  const group = `${v.filtered ? "Shown cells" : "Score"}: ${metric.title}`;
  const average = (f) =>
    mean(contexts.map((c) => f(b.dense.cells[c.net], c)).filter((x) => x !== null && x !== undefined));
  const denseMean = (m) => average((cell) => summary(cell, m)?.mean ?? null);
  const columns = [
    {
      id: "rank",
      head: "Rank",
      title: "Place of the row, or places where it shares them",
      group: "",
      class: "rank",
      sort: (e) => (e.place?.rank ? e.i : null),
      cell: (e) =>
        h(
          "td",
          {
            class: `rank${grey}`,
            title: e.place?.rank
              ? `${e.place.rank[1] - 1} above and ${places.length - e.place.rank[2]} below it for certain`
              : null,
          },
          rank(e.place),
        ),
      dense: () => h("td", { class: "rank" }),
    },
    {
      id: "scheme",
      head: "Scheme",
      title: "Scheme, with its sampler where that is not \u201cexact\u201d",
      group: "",
      class: "name",
      sort: (e) => e.row.label.toLowerCase(),
      cell: (e) =>
        h(
          "th",
          { scope: "row", class: "name" },
          swatch(STYLES.get(e.row.label)),
          h("span", { class: "label", title: e.row.label }, e.row.label),
          e.row.marks.map((m) => h("span", { class: "mark" }, m)),
        ),
      dense: () =>
        h(
          "th",
          { scope: "row", class: "name" },
          swatch(null),
          h("span", { class: "label" }, b.board.reference),
          h("span", { class: "mark" }, "reference"),
        ),
    },
  ];
  if (parts.includes("score"))
    columns.push(
      {
        id: "gap",
        span: 2,
        group,
        class: "gap",
        first: better,
        head: ["Gap to ", b.board.reference, h("span", { class: "unit" }, metric.unit === "%" ? " points" : "")],
        title: v.filtered
          ? "Plain mean of the gaps of the shown cells"
          : "Mean gap over the cells, with its 95 % interval",
        below: bars.axis(),
        sort: (e) => value(e)[0],
        cell: (e) => gapCells(v, e, value(e), bars),
        dense: () => [
          h(
            "td",
            { class: "number", title: `Mean of ${b.board.reference} over the nets of these cells, not a gap` },
            h("span", { class: "absolute" }, fixed(denseMean(metric), d), metric.unit && `\u202f${metric.unit}`),
          ),
          h("td", { class: "bar" }, bars.draw(null)),
        ],
      },
      {
        id: "step",
        head: "Step to next",
        group,
        class: "step",
        first: "descending",
        title: "This row less the one ranked next, with the 95 % interval of the difference",
        sort: (e) => block.steps[e.i]?.[0] ?? null,
        cell: (e) => stepCell(b, block, places, e, grey),
        dense: () => h("td", {}),
      },
    );
  for (const i of parts.includes("axes") ? b.axes : []) {
    const m = b.metrics[i],
      digits = decimals(m);
    columns.push({
      id: `axis-${m.key}`,
      head: [m.title, h("span", { class: "way", "aria-hidden": "true" }, m.higher ? "\u2191" : "\u2193")],
      group: `Gap to ${b.board.reference} on the other axes`,
      class: "axis",
      first: m.higher ? "descending" : "ascending",
      title: `Mean gap in ${m.title}${m.unit === "%" ? ", points" : ""}; ${m.higher ? "higher" : "lower"} is better`,
      sort: (e) => e.place?.axes[i]?.[0] ?? null,
      cell: (e) => h("td", { class: `number${v.filtered ? " grey" : ""}` }, estimate(e.place?.axes[i], digits)),
      dense: () =>
        h(
          "td",
          { class: "number" },
          h("span", { class: "absolute" }, fixed(denseMean(m), digits), m.unit && `\u202f${m.unit}`),
        ),
    });
  }
  if (parts.includes("cost")) columns.push(...costColumns(b, average));
  if (parts.includes("cells"))
    v.contexts.forEach((c, k) => columns.push(cellColumn(v, c, k === 0 || v.contexts[k - 1].net !== c.net)));
  return columns;
}

function rank(place) {
  if (!place?.rank) return "\u2013";
  const [, low, high] = place.rank;
  return low === high ? String(low) : `${low}\u2013${high}`;
}
function estimate(e, digits) {
  if (!e || e[0] === null) return "\u2013";
  return [signed(e[0], digits), pm(half(e), digits)];
}
function gapCells(v, entry, [x, low, high], bars) {
  const d = decimals(v.metric);
  if (x === null && entry.row.lacks.length)
    return h(
      "td",
      { colspan: 2, class: "lacks" },
      h(
        "span",
        { title: entry.row.lacks.join("; ") },
        `lacks ${clipped(entry.row.lacks[0], 60)}${entry.row.lacks.length > 1 ? ` and ${entry.row.lacks.length - 1} more` : ""}`,
      ),
    );
  if (x === null && !entry.place)
    return h(
      "td",
      { colspan: 2, class: "lacks" },
      v.filtered ? "infeasible on some of the shown cells" : "infeasible on some cells: see table 2",
    );
  const p = v.main && !v.filtered ? entry.place?.p : null;
  const title =
    low === null
      ? "no interval"
      : `from ${signed(low, d)} to ${signed(high, d)}${p === null || p === undefined ? "" : `; p = ${p < 1e-4 ? "below 0.0001" : p.toPrecision(2)} against no gap (Holm)`}`;
  return [
    h("td", { class: "number strong", title }, estimate([x, low, high], d)),
    h("td", { class: "bar" }, bars.draw([x, low, high], STYLES.get(entry.row.label))),
  ];
}
function stepCell(b, block, places, entry, grey) {
  const step = entry.place && block.steps[entry.i],
    next = places[entry.i + 1];
  if (!step || !next) return h("td", {});
  const d = decimals(b.metrics[0]),
    apart = step[3];
  return h(
    "td",
    {
      class: `step${grey}`,
      title: `${entry.row.label} less ${next.row.label}: ${apart ? "separated" : "cannot be separated"}`,
    },
    h("span", { class: apart ? "apart" : "tied", "aria-hidden": "true" }, apart ? "\u227b" : "\u2248"),
    only(apart ? "separated: " : "not separated: "),
    step[0] === null ? "\u2013" : [fixed(step[0], d), pm(half(step), d)],
  );
}

function costColumns(b, average) {
  const group = "Cost, mean over the cells";
  const levels = new Set(b.rows.map((row) => row.level));
  const column = (id, head, title, get, show, dense) => ({
    id,
    head,
    title,
    group,
    class: "cost",
    sort: get,
    cell: (e) => h("td", { class: "number" }, show(get(e))),
    dense: () => h("td", { class: "number" }, dense),
  });
  const dense = (cell) => (cell && cell.flops !== null ? cell.flops : 1);
  const found = [
    column(
      "flops",
      "FLOPs",
      "Multiply-adds of the sparse nets over those of the dense ones, as drawn",
      (e) => e.row.flops,
      (x) => percent(x),
      percent(average(dense)),
    ),
    column(
      "effective",
      "Eff. density",
      "Weights on a path from input to output over all prunable ones",
      (e) => e.row.effective,
      (x) => (x === null ? "\u2013" : trim(x.toFixed(4))),
      "1",
    ),
    column("scheme_seconds", "Scheme", "Seconds that the scheme itself took", (e) => e.row.scheme_seconds, seconds, ""),
    column(
      "batches",
      "Batches",
      "Labelled batches that the scheme looked at",
      (e) => e.row.batches,
      (x) => (x === null ? "\u2013" : trim(x.toFixed(1))),
      "",
    ),
  ];
  if (levels.size > 1)
    found.push({
      ...column(
        "level",
        "Level",
        "How far the records have been checked",
        (e) => e.row.level,
        (x) => x,
        "",
      ),
      cell: (e) => h("td", {}, e.row.level),
    });
  return found;
}

function cellColumn(v, context, first) {
  const { board: b, metric } = v,
    net = b.nets[context.net];
  const shown = v.contexts.filter((c) => c.net === context.net).length;
  return {
    id: `cell-${context.i}`,
    head: String(context.density),
    class: "cell",
    first: metric.higher ? "descending" : "ascending",
    title: `${net.task} ${net.model} at density ${context.density} (sparsity ${sparsity(context.density)})`,
    group: netName(b, net),
    sort: (e) => summary(e.row.cells[context.i], metric)?.mean ?? null,
    cell: (e) => h("td", { class: `cell${first ? " first" : ""}` }, cellButton(v, e.row.cells[context.i])),
    dense: () =>
      first &&
      h(
        "td",
        { class: "cell first", colspan: shown },
        b.dense.cells[context.net] && cellButton(v, b.dense.cells[context.net]),
      ),
  };
}
function cellButton(v, cell) {
  const found = summary(cell, v.metric),
    d = decimals(v.metric),
    net = v.board.nets[cell.net];
  const where = `${cell.row.label}, ${net.model}${cell.row.reference ? "" : `, density ${cell.density}`}`;
  const few = cell.missing.length > 0 && cell.runs.length > 0 && !cell.row.marks.includes("1 seed");
  const text = found
    ? [told(found, d), few && h("span", { class: "few" }, ` n=${found.n}`)]
    : h("span", { class: "none" }, cell.runs.length ? "\u2013" : cell.state);
  const title = found
    ? `${where}: n = ${found.n}${found.sd === null ? "" : `, sd ${fixed(found.sd, d)}`}`
    : `${where}: ${cell.state}${cell.reason ? `, ${cell.reason}` : ""}`;
  return h(
    "button",
    {
      type: "button",
      class: "cell",
      tabindex: "-1",
      title,
      "data-context": cell.context ?? `net${cell.net}`,
      "aria-haspopup": "dialog",
      onclick: () => details(v, cell),
    },
    text,
  );
}
