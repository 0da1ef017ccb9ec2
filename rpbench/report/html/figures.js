// The figures of a board.

const MAKERS = [sparsityFigure, flopsFigure, keptFigure, widthFigure, layersFigure, reportedFigure];

/** Draw every figure that the shown cells have something for; `paper` is the width of a page that is printed on. */
function drawFigures(paper = null) {
  const v = view(),
    at = document.getElementById("figures");
  drawn = 0;
  const found = MAKERS.map((make) => make(v, paper || Math.floor(at.getBoundingClientRect().width))).filter(Boolean);
  if (!found.length) return at.replaceChildren();
  const figure = ({ panels, text, after, beside }, i) =>
    h(
      "figure",
      { class: beside ? "beside" : null },
      h("div", { class: "panels" }, panels, after),
      h("figcaption", {}, h("b", {}, `Figure ${i + 1}. `), text),
    );
  at.replaceChildren(
    h("h2", { id: "figures-title" }, `Figures: ${v.metric.title} `, arrow(v.metric)),
    legend(v),
    h("div", { class: "sheet" }, found.map(figure)),
  );
  light(null);
}

function legend(v) {
  const zoom = () => {
    state.whole = !state.whole;
    drawFigures();
    document.querySelector("#figures .zoom").focus();
  };
  const one = (row) => {
    const { id } = STYLES.get(row.label);
    const click = (event) => {
      event.currentTarget.setAttribute("aria-pressed", String(pin(id)));
      light(null);
    };
    const on = () => light([id]),
      off = () => light(null);
    return h(
      "button",
      {
        type: "button",
        "aria-pressed": String(state.pinned.has(id)),
        title: row.label,
        onpointerenter: on,
        onpointerleave: off,
        onfocus: on,
        onblur: off,
        onclick: click,
      },
      swatch(STYLES.get(row.label)),
      clipped(row.label),
    );
  };
  return h(
    "div",
    { class: "legend", role: "group", "aria-label": "Schemes: choose some to single them out" },
    v.board.rows.map(one),
    h(
      "button",
      {
        type: "button",
        class: "zoom",
        "aria-pressed": String(state.whole),
        onclick: zoom,
        title: "Plots leave out values far from the others; this shows all",
      },
      "Full range",
    ),
  );
}

/** A point of a plot for a cell, or null where the cell has no value. */
function point(v, cell, x) {
  const found = summary(cell, v.metric),
    net = v.board.nets[cell.net],
    d = decimals(v.metric);
  if (!found || x === null || !(x > 0)) return null;
  const gap = cell.row.reference ? null : gapOf(v.board, cell, v.metric);
  const text = [
    cell.row.label,
    `${net.model}${cell.row.reference ? "" : `, density ${cell.density}`}`,
    `${v.metric.title} ${fixed(found.mean, d)}${found.half === null ? "" : ` \u00b1 ${fixed(found.half, d)}`}${v.metric.unit ? ` ${v.metric.unit}` : ""} (n = ${found.n})`,
    gap !== null &&
      `${signed(gap, d)} ${points(v.metric) === v.metric.title ? "" : "points "}to ${v.board.board.reference}`,
    cell.flops !== null && !cell.row.reference && `${percent(cell.flops)} of its FLOPs`,
  ].filter(Boolean);
  return { x, y: found.mean, half: found.half, cell, text };
}
const order = (list) => list.filter(Boolean).sort((a, b) => a.x - b.x);
function bandOf(v, net) {
  const found = summary(v.board.dense.cells[net], v.metric);
  return found && { ...found, name: v.board.board.reference };
}
const netsOf = (v) => [...new Set(v.contexts.map((c) => c.net))];
/** Panel widths: as many in a line as fit, each at least so wide. */
function grid(width, count, least, most = 3) {
  const fit = Math.max(1, Math.min(count, most, Math.floor((width + 16) / (least + 16))));
  const line = Math.ceil(count / Math.ceil(count / fit));
  return Math.floor((width - 16 * (line - 1)) / line);
}
const seriesOf = (v, net, x) =>
  v.board.rows
    .map((row) => ({
      label: row.label,
      style: STYLES.get(row.label),
      points: order(
        v.contexts
          .filter((c) => c.net === net)
          .map((c) => point(v, row.cells[c.i], x(row.cells[c.i], v.board.nets[net]))),
      ),
    }))
    .filter((one) => one.points.length);

function byNet(v, width, { x, scale, xName, most, dodge = 0, aspect = 0.62, ends = false }) {
  const nets = netsOf(v),
    size = grid(width, nets.length, 300, most);
  return nets
    .map((net) => {
      const series = seriesOf(v, net, x).map((one) => (ends ? { ...one, points: one.points.slice().reverse() } : one)),
        band = bandOf(v, net);
      if (!series.length) return null;
      const labels = ends && size > 520 && series.length <= 22;
      return plot({
        width: size,
        height: Math.min(420, Math.max(230, Math.round(size * aspect))),
        title: netName(v.board, v.board.nets[net]),
        x: scale(net, series),
        y: yScale(series, band, v.metric),
        xName,
        yName: metricName(v.metric),
        series,
        band,
        labels,
        sparse: ends ? "right" : "left",
        dodge: labels ? dodge : dodge / 2,
      });
    })
    .filter(Boolean);
}
const means = (v) =>
  `Points are means over the seeds, bars their 95\u00a0% t-intervals; the dashed line and its band are ${v.board.board.reference}.`;
/** What arrows at an edge stand for, where there are any. */
const edges = (panels) =>
  panels.some((panel) => panel.querySelector(".edge")) ? " Arrows stand for values beyond the panel." : "";

/** Whether a net is shown at several densities: else there is nothing to draw against sparsity. */
const sweeps = (v) =>
  v.contexts.some((c) => v.contexts.some((other) => other.net === c.net && other.density !== c.density));

function sparsityFigure(v, width) {
  if (!sweeps(v)) return null;
  const panels = byNet(v, width, {
    x: (cell) => cell.density,
    scale: (net) => sparsityScale(v.contexts.filter((c) => c.net === net).map((c) => c.density)),
    xName: "sparsity, %",
    dodge: 3.2,
    most: 3,
    aspect: 0.5,
    ends: true,
  });
  return (
    panels.length > 0 && {
      panels,
      text: `${capital(v.metric.title)} against sparsity. ${means(v)} Schemes are set a little apart sideways, so that intervals can be seen.${edges(panels)}`,
    }
  );
}
function flopsFigure(v, width) {
  const nets = netsOf(v),
    alone = nets.length === 1 && width > 760;
  const flops = (cell, net) => (cell.flops !== null && net.dense_macs ? 2 * net.dense_macs * cell.flops : null);
  const panels = byNet(v, alone ? Math.floor((width - 32) / 2) : width, {
    x: flops,
    scale: (_, series) =>
      logarithmic(
        series.flatMap((one) => one.points.map((p) => p.x)),
        short,
      ),
    xName: "FLOPs per image (2 \u00d7 multiply-adds, as drawn)",
    most: 3,
  });
  return (
    panels.length > 0 && {
      panels,
      beside: alone,
      text: `${capital(v.metric.title)} against the FLOPs of the sparse net.${edges(panels)}`,
    }
  );
}
function layersFigure(v, width) {
  // the schemes' order of densities hardly depends on the net: one density each where there are several
  const nets = netsOf(v),
    densities = [...new Set(v.contexts.map((c) => c.density))].sort((a, b) => a - b);
  const contexts = v.contexts
      .filter((c) => nets.length === 1 || c.density === densities[Math.floor(densities.length / 2)])
      .slice(0, 6),
    size = grid(width, contexts.length, 300);
  const marks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1];
  const panels = contexts
    .map((c) => {
      const series = v.board.rows
        .map((row) => {
          const { layers } = row.cells[c.i];
          return {
            label: row.label,
            style: STYLES.get(row.label),
            size: 2.6,
            points: layers.map((y, i) => ({
              x: i + 1,
              y,
              half: null,
              cell: null,
              text: [row.label, `layer ${i + 1} of ${layers.length}`, `density ${y}`],
            })),
          };
        })
        .filter((one) => one.points.length);
      if (!series.length) return null;
      const count = Math.max(...series.map((one) => one.points.length)),
        net = v.board.nets[c.net];
      const y = { at: (d) => Math.sqrt(d), ticks: marks.map((t) => [t, String(t)]) };
      return plot({
        width: size,
        height: Math.round(Math.min(300, Math.max(220, size * 0.5))),
        title: `${netName(v.board, net)}, density ${c.density}`,
        x: linear(0.5, count + 0.5, Math.min(10, count), (t) => String(Math.round(t))),
        y,
        xName: "layer, from input to output",
        yName: "density of the layer",
        series,
      });
    })
    .filter(Boolean);
  const left = v.contexts.length - contexts.length;
  return (
    panels.length > 0 && {
      panels,
      text: `Densities that the schemes give the layers (of each cell\u2019s first seed; square-root scale).${left > 0 ? ` Of ${plural(v.contexts.length, "cell")} ${contexts.length} are drawn; choose nets or densities above to see others.` : ""}`,
    }
  );
}
const published = (r) => [r.source, r.place].filter(Boolean).join(", ");

function reportedFigure(v, width) {
  const { board: b, metric } = v,
    d = decimals(metric);
  const found = DATA.reported
    .filter((r) => r.metric === metric.key)
    .map((r) => {
      const net = b.nets.findIndex((n) => n.task === r.task && n.model === r.model);
      const context = b.contexts.find((c) => c.net === net && c.density === r.density);
      const row = b.rows.find((one) => one.label === r.scheme);
      const cell = r.scheme === b.board.reference ? b.dense.cells[net] : row && context && row.cells[context.i];
      const own = summary(cell, metric);
      return own && { r, cell, own };
    })
    .filter(Boolean);
  if (!found.length) return null;
  const values = found.flatMap(({ r, own }) => [r.value - (r.tolerance || 0), r.value + (r.tolerance || 0), own.mean]);
  const [low, high] = [Math.min(...values), Math.max(...values)],
    pad = (high - low || 1) * 0.06,
    size = Math.min(width, 460);
  const series = [...new Set(found.map(({ r }) => r.scheme))].map((label) => ({
    label,
    line: false,
    style: STYLES.get(label) || INK,
    points: found
      .filter(({ r }) => r.scheme === label)
      .map(({ r, cell, own }) => ({
        x: r.value,
        y: own.mean,
        half: own.half,
        wide: r.tolerance,
        cell,
        text: [
          label,
          `${r.model}, density ${r.density}`,
          `reported ${fixed(r.value, d)}${r.tolerance ? ` \u00b1 ${fixed(r.tolerance, d)}` : ""} (${published(r)})`,
          `measured ${fixed(own.mean, d)}${own.half === null ? "" : ` \u00b1 ${fixed(own.half, d)}`}`,
        ],
      })),
  }));
  const scale = () => linear(low - pad, high + pad, 5);
  const line = ({ r, own }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, r.scheme),
      h("td", {}, r.model),
      h("td", { class: "number" }, String(r.density)),
      h("td", { class: "number" }, fixed(r.value, d), pm(r.tolerance ?? null, d)),
      h("td", { class: "number" }, told(own, d)),
      h("td", { class: "number" }, signed(own.mean - r.value, d)),
      h("td", {}, published(r)),
    );
  const table = h(
    "details",
    { open: found.length <= 20 },
    h("summary", {}, `The ${plural(found.length, "value")}`),
    h(
      "div",
      { class: "box", tabindex: "0", role: "region", "aria-label": "Reported values" },
      h(
        "table",
        { class: "plain" },
        h("caption", {}, `Reported and measured ${metricName(metric)}`),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Scheme", "Net", "Density", "Reported", "Measured", "Difference", "Place"].map((t) =>
              h("th", { scope: "col" }, t),
            ),
          ),
        ),
        h("tbody", {}, found.map(line)),
      ),
    ),
  );
  return {
    panels: [
      plot({
        width: size,
        height: Math.round(size * 0.85),
        title: "reported against measured",
        x: scale(),
        y: scale(),
        xName: `reported ${metricName(metric)}`,
        yName: "measured",
        series,
        diagonal: true,
      }),
    ],
    text: `Measured ${metric.title} against published values; on the line they agree. Horizontal bars: how exactly a value could be read from the publication.`,
    after: table,
  };
}

/** Single a scheme out, or no longer; whether it is now. */
function pin(id) {
  if (state.pinned.delete(id)) return false;
  state.pinned.add(id);
  return true;
}
