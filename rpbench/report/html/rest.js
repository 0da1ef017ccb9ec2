// Below the figures: how far nets can be pruned, where luck comes from, what is missing, and how to read the page.

function drawRest() {
  const b = BOARDS[state.board],
    first = b.common ? 4 : 3;
  const sections = [matchingTable, luckTable]
    .filter((make) => make(b, ""))
    .map((make, i) => make(b, `Table ${first + i}. `));
  const lists = [lackingList(b), leftOut(b)].filter(Boolean);
  document.getElementById("rest").replaceChildren(...sections, ...lists);
}

/** A section with a table whose lines are [row of the board, cells]. */
function plainSection(id, heading, text, number, title, heads, lines) {
  const line = ([row, cells]) =>
    h(
      "tr",
      {},
      h(
        "th",
        { scope: "row", class: "name" },
        swatch(STYLES.get(row.label)),
        h("span", { class: "label", title: row.label }, row.label),
      ),
      cells.map((cell) => h("td", { class: "number" }, cell)),
    );
  return h(
    "section",
    { "aria-labelledby": id },
    h("h2", { id }, heading),
    h("p", { class: "about" }, text),
    box(
      title,
      h(
        "table",
        { class: "plain" },
        h("caption", {}, h("b", {}, number), title),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col", class: "name" }, "Scheme"),
            heads.map((head) => h("th", { scope: "col" }, head)),
          ),
        ),
        h("tbody", {}, lines.map(line)),
      ),
    ),
  );
}

function matchingTable(b, number) {
  const rows = b.rows.filter((row) => row.matching.length),
    [first] = b.metrics;
  if (!rows.length) return null;
  const percents = (x) => trim((100 * x).toFixed(1));
  const ends = ({ low, high }) => {
    if (low === null) return "";
    return high === null ? (low > 0 ? ` (from ${percents(low)})` : "") : ` (${percents(low)}\u2013${percents(high)})`;
  };
  const cell = (row, net) => {
    const found = row.matching.find((m) => m.task === net.task && m.model === net.model);
    if (!found) return "\u2013";
    const value = found.censored === "none matching" ? "none" : found.censored ? "all" : percents(found.sparsity);
    return [value, h("span", { class: "pm" }, ends(found))];
  };
  const text = `The largest sparsity, in percent, whose ${first.title} stays within ${b.board.margin} ${points(first)} of ${b.board.reference}: where a monotone fit through the cells crosses that margin, with its 95\u00a0% interval. \u201cNone\u201d: the least sparsity here is beyond it; \u201call\u201d: the largest is not.`;
  return plainSection(
    "matching",
    "How far nets can be pruned",
    text,
    number,
    "Largest matching sparsity, %",
    b.nets.map((net) => netName(b, net)),
    rows.map((row) => [row, b.nets.map((net) => cell(row, net))]),
  );
}

function luckTable(b, number) {
  const rows = b.rows.filter((row) => Object.keys(row.luck).length),
    [first] = b.metrics,
    d = decimals(first);
  if (!rows.length) return null;
  const streams = ["mask", "init", "order", "total"].filter((name) => rows.some((row) => row.luck[name]));
  const cell = (found) =>
    found
      ? [
          fixed(found.sd, d),
          h("span", { class: "pm" }, ` (${fixed(found.low, d)}\u2013${fixed(found.high, d)}; ${found.df} df)`),
        ]
      : "\u2013";
  const text = `Standard deviation of ${first.title} between runs that differ in one stream of random numbers alone, and in all of them, with 95\u00a0% interval.`;
  return plainSection(
    "luck",
    "Where luck comes from",
    text,
    number,
    `Standard deviations by stream, ${points(first)}`,
    streams,
    rows.map((row) => [row, streams.map((name) => cell(row.luck[name]))]),
  );
}

function lackingList(b) {
  const rows = b.rows.filter((row) => row.lacks.length);
  const list = rows.map((row) => [h("dt", {}, row.label), row.lacks.map((lack) => h("dd", {}, lack))]);
  return (
    rows.length > 0 &&
    h("details", {}, h("summary", {}, `Incomplete: ${plural(rows.length, "row")}`), h("dl", { class: "list" }, list))
  );
}
function leftOut(b) {
  const more = b.all_left_out - b.left_out.length;
  const list = b.left_out.map(([record, why]) => [h("dt", {}, record), h("dd", {}, why)]);
  return (
    b.all_left_out > 0 &&
    h(
      "details",
      {},
      h("summary", {}, `Left out: ${plural(b.all_left_out, "record")}`),
      h("dl", { class: "list" }, list),
      more > 0 && h("p", {}, `\u2026 and ${more} more: the JSON report lists all.`),
    )
  );
}

function footer(b) {
  const tasks = Object.entries(b.tasks).map(
    ([name, t]) => `task ${name}@${t.version}, specification ${t.spec.slice(0, 12)}`,
  );
  const noise =
    b.board.pairing === "seed"
      ? "its interval from the seeds\u2019 own gaps, as runs of equal seeds are compared"
      : "its interval from the seed variance of its own cells and of the reference alone";
  return h(
    "footer",
    {},
    h("h2", {}, "How to read this"),
    h(
      "p",
      {},
      `A cell is one scheme in one net at one density; its interval is Student\u2019s over its own seeds. A row\u2019s gap is the mean over its cells less that of ${b.board.reference} in the same nets, ${noise}; no other row can move it. Steps and ranks pool the variance over all rows where it is homogeneous, and compare every pair (Holm).`,
    ),
    h(
      "p",
      {},
      `Rates are in percent, gaps between rates in points. FLOPs are 2 \u00d7 multiply-adds, theoretical. Board ${b.board.name}@${b.board.version}, definition ${b.board.hash.slice(0, 12)}; ${tasks.join("; ")}.`,
    ),
    h(
      "p",
      {},
      "Generated by rpbench from records; the same records give the same page. Nothing is loaded from elsewhere.",
    ),
  );
}
