// Figures that compare nets of different sizes.

const keptOf = (cell, net) => (net.prunable ? (cell.realised ?? cell.density) * net.prunable : null);
function keptFigure(v, width) {
  const nets = netsOf(v);
  if (nets.length === 1) {
    if (!sweeps(v)) return null;
    const alone = width > 760;
    const panels = byNet(v, alone ? Math.floor((width - 32) / 2) : width, {
      x: keptOf,
      scale: (_, series) =>
        logarithmic(
          series.flatMap((one) => one.points.map((p) => p.x)),
          short,
        ),
      xName: "weights kept",
      dodge: 2.4,
    });
    return (
      panels.length > 0 && {
        panels,
        beside: alone,
        text: `${capital(v.metric.title)} against the parameters that are kept.${edges(panels)}`,
      }
    );
  }
  // one panel per scheme: whether a large sparse net is better than a small dense one of as many weights
  const size = grid(width, v.board.rows.length, 250, 4);
  const dense = {
    label: v.board.board.reference,
    style: INK,
    size: 4.2,
    points: order(
      nets.map((net) => v.board.dense.cells[net] && point(v, v.board.dense.cells[net], v.board.nets[net].prunable)),
    ),
  };
  const all = v.board.rows
    .map((row) => [
      row,
      nets
        .map((net, i) => ({
          label: v.board.nets[net].model,
          style: { ...look(i), id: -2 - i },
          points: order(
            v.contexts
              .filter((c) => c.net === net)
              .map((c) => point(v, row.cells[c.i], keptOf(row.cells[c.i], v.board.nets[net]))),
          ),
        }))
        .filter((one) => one.points.length),
    ])
    .filter(([, series]) => series.length);
  if (!all.length) return null;
  const flat = all.flatMap(([, series]) => series);
  const x = logarithmic(
      [...flat, dense].flatMap((one) => one.points.map((p) => p.x)),
      short,
    ),
    y = yScale([...flat, dense], null, v.metric);
  const panels = all.map(([row, series]) =>
    plot({
      width: size,
      height: Math.round(size * 0.72),
      title: row.label,
      x,
      y,
      xName: "weights kept",
      yName: metricName(v.metric),
      series: [...series, dense],
    }),
  );
  const key = h(
    "p",
    { class: "key" },
    [...nets.map((net, i) => [look(i), netName(v.board, v.board.nets[net])]), [INK, v.board.board.reference]].map(
      ([style, name]) => h("span", {}, swatch(style), name),
    ),
  );
  return {
    panels,
    text: `${capital(v.metric.title)} against the parameters that are kept, by scheme: nets of different sizes beside the dense ones.`,
    after: key,
  };
}
function widthFigure(v, width) {
  const { board: b } = v,
    families = new Map();
  for (const i of netsOf(v)) {
    const net = b.nets[i];
    if (net.width === null) continue;
    const key = `${net.task} depth ${net.depth}`;
    families.set(key, [...(families.get(key) || []), net]);
  }
  const panels = [],
    found = [...families].filter(([, nets]) => new Set(nets.map((n) => n.width)).size > 1);
  const wanted = found.flatMap(([, nets]) =>
    [...new Set(v.contexts.filter((c) => nets.some((n) => n.i === c.net)).map((c) => c.density))].map((density) => [
      nets,
      density,
    ]),
  );
  const size = grid(width, wanted.length, 300);
  for (const [nets, density] of wanted) {
    const sorted = nets.slice().sort((a, b) => a.width - b.width);
    const series = b.rows
      .map((row) => ({
        label: row.label,
        style: STYLES.get(row.label),
        points: order(
          sorted.map((net) => {
            const c = v.contexts.find((o) => o.net === net.i && o.density === density);
            return c && point(v, row.cells[c.i], net.width);
          }),
        ),
      }))
      .filter((one) => one.points.length);
    const dense = {
      label: b.board.reference,
      style: INK,
      size: 4.2,
      points: order(sorted.map((net) => b.dense.cells[net.i] && point(v, b.dense.cells[net.i], net.width))),
    };
    const widths = sorted.map((net) => net.width),
      pad = (widths.at(-1) - widths[0]) * 0.08;
    const x = { ...linear(widths[0] - pad, widths.at(-1) + pad), ticks: widths.map((t) => [t, String(t)]) };
    if (series.length)
      panels.push(
        plot({
          width: size,
          height: Math.round(size * 0.62),
          title: `depth ${nets[0].depth}, sparsity ${sparsity(density)}`,
          x,
          y: yScale([...series, dense], null, v.metric),
          xName: "width of the first stage",
          yName: metricName(v.metric),
          series: [...series, dense],
          dodge: 1.6,
        }),
      );
  }
  return panels.length > 0 && { panels, text: `${capital(v.metric.title)} against width, by density.` };
}
