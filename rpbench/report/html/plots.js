// One panel of a figure, its labels and tooltips.

let drawn = 0;

/**
 * One panel. `series`: [{style, label, points: [{x, y, half, wide, cell, text}], line}], with half and wide as halves of
 * intervals in y and x; `x`, `y`: scales; `band`: the reference's {mean, half, name}; `labels`: whether lines are named at
 * their ends; `dodge`: pixels by which series stand apart sideways; `sparse`: the side of the sparsest nets.
 */
function plot(spec) {
  const { width, height, title, xName, yName, series, x, y, band = null, labels = false, sparse = "right" } = spec;
  const room = { left: 46, right: labels ? 118 : 14, top: 26, bottom: 38 };
  const w = width - room.left - room.right,
    tall = height - room.top - room.bottom;
  const at = { room, w, tall, px: (v) => room.left + x.at(v) * w, py: (v) => room.top + (1 - y.at(v)) * tall };
  const clip = `clip${drawn++}`,
    spots = [];
  const area = svg("g", { "clip-path": `url(#${clip})` });
  if (spec.diagonal)
    area.append(svg("line", { x1: at.px(x.from), y1: at.py(x.from), x2: at.px(x.to), y2: at.py(x.to), class: "same" }));
  if (band) area.append(...bandMarks(band, at));
  area.append(...series.map((one, i) => seriesMarks(one, at, apartBy(i, series.length, spec.dodge || 0), spots)));
  const root = svg(
    "svg",
    {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "group",
      "aria-label": `${title}: ${yName} against ${xName}`,
      class: "plot",
    },
    svg(
      "defs",
      {},
      svg("clipPath", { id: clip }, svg("rect", { x: room.left - 4, y: room.top - 4, width: w + 8, height: tall + 8 })),
    ),
    svg("text", { x: room.left, y: 13, class: "panel" }, clipped(title, Math.max(12, Math.floor(w / 6.5)))),
    axes(spec, at),
    svg("text", { x: room.left + w / 2, y: height - 5, "text-anchor": "middle" }, xName),
    area,
  );
  if (labels) root.append(endLabels(series, spots, at, band));
  else if (band) root.append(bandName(band, at, sparse));
  explore(root, spots, at);
  return root;
}
function axes({ x, y }, { room, w, tall, px, py }) {
  const foot = room.top + tall;
  const across = ([t, text]) => [
    svg("line", { x1: room.left, x2: room.left + w, y1: py(t), y2: py(t), class: "grid" }),
    svg("text", { x: room.left - 6, y: py(t) + 3.5, "text-anchor": "end" }, text),
  ];
  const below = ([t, text]) => [
    svg("line", { x1: px(t), x2: px(t), y1: foot, y2: foot + 4, class: "tick" }),
    svg("text", { x: px(t), y: foot + 15, "text-anchor": "middle" }, text),
  ];
  return [
    y.ticks.map(across),
    spaced(x.ticks, px, 7).map(below),
    svg("line", { x1: room.left, x2: room.left + w, y1: foot, y2: foot, class: "axis" }),
  ];
}
function bandMarks({ mean, half }, { room, w, py }) {
  const level = svg("line", { x1: room.left, x2: room.left + w, y1: py(mean), y2: py(mean), class: "level" });
  if (half === null) return [level];
  return [
    svg("rect", {
      x: room.left,
      width: w,
      y: py(mean + half),
      height: Math.max(0, py(mean - half) - py(mean + half)),
      class: "band",
    }),
    level,
  ];
}
/** The reference's name on its line, on the side where points are far from it. */
function bandName({ mean, name }, { room, w, py }, sparse) {
  const [x, anchor] = sparse === "left" ? [room.left + 5, "start"] : [room.left + w - 4, "end"];
  return svg(
    "text",
    { x, y: py(mean) - room.top < 14 ? py(mean) + 12 : py(mean) - 5, "text-anchor": anchor, class: "level-name" },
    name,
  );
}
const apartBy = (i, count, dodge) => (count > 1 ? (i - (count - 1) / 2) * Math.min(dodge, (dodge * 12) / count) : 0);

/** A line through the points of a series, their intervals and markers; the markers go to `spots` as well. */
function seriesMarks(one, { room, tall, px, py }, shift, spots) {
  const foot = room.top + tall,
    stroke = { stroke: one.style.color };
  const points = one.points.map((p) => ({ ...p, px: px(p.x) + shift, py: py(p.y), one }));
  const whisker = (x1, y1, x2, y2) => svg("line", { x1, y1, x2, y2, class: "whisker", css: stroke });
  const d = points.map((p, k) => `${k ? "L" : "M"}${p.px.toFixed(1)} ${p.py.toFixed(1)}`).join("");
  const whiskers = points.filter((p) => p.py >= room.top - 2 && p.py <= foot + 2);
  const markers = points.map((p) => {
    // what lies beyond the panel is an arrow at its edge
    const mark = whiskers.includes(p)
      ? marker(one.style, p.px, p.py, one.size || 3.6)
      : edgeMark(one.style, p.px, p.py > foot ? foot : room.top, p.py > foot);
    const spot = svg(
      "g",
      { class: "spot", role: p.cell ? "button" : "img", tabindex: "-1", "aria-label": p.text.join(", ") },
      mark,
    );
    spot.point = { ...p, py: Math.max(room.top, Math.min(foot, p.py)) };
    return spot;
  });
  spots.push(...markers);
  return svg(
    "g",
    { class: "series", "data-id": one.style.id },
    one.line !== false &&
      points.length > 1 &&
      svg("path", { d, class: "line", "stroke-dasharray": one.style.dash, css: stroke }),
    whiskers.map((p) => [
      p.half && whisker(p.px, py(p.y - p.half), p.px, py(p.y + p.half)),
      p.wide && whisker(px(p.x - p.wide), p.py, px(p.x + p.wide), p.py),
    ]),
    markers,
  );
}
const edgeMark = (style, x, y, down) =>
  svg("path", {
    d: down ? `M${x - 4} ${y - 7}h8l-4 6z` : `M${x - 4} ${y + 7}h8l-4 -6z`,
    class: "marker edge",
    css: { stroke: style.color, fill: style.color },
  });

/** Ticks whose labels do not run into each other. */
function spaced(list, at, size) {
  const found = [];
  let end = -Infinity;
  for (const [t, text] of list.slice().sort((a, b) => at(a[0]) - at(b[0]))) {
    const room = (text.length * size) / 2;
    if (at(t) - room < end) continue;
    end = at(t) + room + 3;
    found.push([t, text]);
  }
  return found;
}
/** Sets `at` of things in the order of `from`: at least `gap` apart, as near to `from` as that allows, within the ends. */
function apart(all, gap, low, high) {
  const groups = [],
    reach = (g) => ((g.members.length - 1) * gap) / 2;
  for (const one of all) {
    groups.push({ members: [one], middle: one.from });
    for (;;) {
      const last = groups.at(-1),
        before = groups.at(-2);
      last.middle = Math.max(low + reach(last), Math.min(high - reach(last), mean(last.members.map((m) => m.from))));
      if (!before || last.middle - reach(last) - (before.middle + reach(before)) >= gap) break;
      groups.splice(-2, 2, { members: [...before.members, ...last.members], middle: 0 });
    }
  }
  for (const g of groups)
    g.members.forEach((one, i) => {
      one.at = g.middle + (i - (g.members.length - 1) / 2) * gap;
    });
}
/** Names at the right end of lines, moved apart, with thin leaders. */
function endLabels(series, spots, { room, w, tall, py }, band) {
  const inside = (y) => Math.min(room.top + tall, Math.max(room.top, y)),
    gap = 12.5;
  const ends = series
    .map((one) => {
      const last = spots.filter((spot) => spot.point.one === one).at(-1)?.point;
      return (
        last && { id: one.style.id, x: last.px + 5, from: inside(last.py), label: one.label, color: one.style.color }
      );
    })
    .filter(Boolean);
  if (band)
    ends.push({ id: null, x: room.left + w, from: inside(py(band.mean)), label: band.name, color: "var(--ink)" });
  if (ends.length * gap > tall + 20) return "";
  ends.sort((a, b) => a.from - b.from);
  apart(ends, gap, room.top - 6, room.top + tall + 6);
  const x = room.left + w + 18;
  return svg(
    "g",
    { class: "ends" },
    ends.map((e) =>
      svg(
        "g",
        { class: e.id === null ? null : "series", "data-id": e.id },
        svg("path", {
          d: `M${e.x} ${e.from}L${room.left + w + 4} ${e.from}L${x - 5} ${e.at}H${x - 2}`,
          class: "leader",
          css: { stroke: e.color },
        }),
        svg("text", { x, y: e.at + 3.5, class: e.id === null ? "level-name" : null }, clipped(e.label, 16)),
      ),
    ),
  );
}

/** Tooltips by pointer (the nearest point) and by keyboard: one stop of the Tab key per panel, arrows go on. */
function explore(root, spots, { room, w, tall }) {
  if (!spots.length) return;
  const stop = (at) => spots.forEach((spot) => spot.setAttribute("tabindex", spot === at ? "0" : "-1"));
  const tell = (spot) => (spot ? showTip(spot) : hideTip(), light(spot ? [spot.point.one.style.id] : null));
  const choose = (spot) => {
    if (!spot?.point.cell) return;
    hideTip();
    details(view(), spot.point.cell);
  };
  const near = (event) => {
    const box = root.getBoundingClientRect(),
      k = root.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * k,
      y = (event.clientY - box.top) * k;
    if (x < room.left - 12 || x > room.left + w + 12 || y > room.top + tall + 12) return null;
    const far = (spot) => (spot.point.px - x) ** 2 + (spot.point.py - y) ** 2;
    const best = spots
      .filter((spot) => !spot.closest(".faint"))
      .reduce((a, b) => (a && far(a) <= far(b) ? a : b), null);
    return best && far(best) < 22 ** 2 ? best : null;
  };
  stop(spots[0]);
  let over = null;
  root.addEventListener("pointermove", (event) => {
    const spot = near(event);
    if (spot === over) return;
    over = spot;
    root.classList.toggle("hot", Boolean(spot?.point.cell));
    tell(spot);
  });
  root.addEventListener("pointerleave", () => tell((over = null)));
  root.addEventListener("click", (event) => choose(near(event)));
  root.addEventListener("focusin", (event) => event.target.point && tell(event.target));
  root.addEventListener("focusout", () => tell(null));
  root.addEventListener("keydown", (event) => {
    const spot = event.target,
      i = spots.indexOf(spot);
    if (i < 0) return;
    if (event.key === "Escape") return hideTip();
    const to = {
      ArrowRight: () => spots[i + 1],
      ArrowLeft: () => spots[i - 1],
      ArrowUp: () => beside(spots, spot, -1),
      ArrowDown: () => beside(spots, spot, 1),
    }[event.key];
    if (!to && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (!to) return choose(spot);
    const next = to();
    if (!next) return;
    stop(next);
    next.focus();
  });
}
/** The next spot above or below one, among those of the same x. */
function beside(spots, spot, by) {
  const here = spots.filter((other) => other.point.x === spot.point.x).sort((a, b) => a.point.py - b.point.py);
  return here[here.indexOf(spot) + by];
}
function showTip(spot) {
  const [head, ...lines] = spot.point.text;
  tip.replaceChildren(h("strong", {}, swatch(spot.point.one.style), head), ...lines.map((line) => h("div", {}, line)));
  tip.hidden = false;
  const at = spot.getBoundingClientRect(),
    size = tip.getBoundingClientRect(),
    width = document.documentElement.clientWidth;
  const left = Math.max(6, Math.min(width - size.width - 6, at.left + at.width / 2 - size.width / 2));
  const above = at.top - size.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
}
const hideTip = () => {
  tip.hidden = true;
};

/** Dims every series but these (and the pinned ones); null: none but what is pinned. */
function light(ids) {
  const on = new Set([...(ids || []), ...state.pinned]);
  for (const g of document.querySelectorAll("#figures .series"))
    g.classList.toggle("faint", on.size > 0 && Number(g.dataset.id) >= 0 && !on.has(Number(g.dataset.id)));
}
