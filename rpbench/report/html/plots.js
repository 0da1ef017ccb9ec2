// One panel of a figure, its labels and tooltips.

let drawn = 0;

/** One panel. `series`: [{style, label, points: [{x, y, half, wide, cell, text}], line}]; a point's x is in the scale's unit. */
function plot({
  width,
  height,
  title,
  x,
  y,
  xName,
  yName,
  series,
  band = null,
  diagonal = false,
  labels = false,
  dodge = 0,
  step: stairs = false,
}) {
  const room = { left: 46, right: labels ? 118 : 14, top: 26, bottom: 38 };
  const w = width - room.left - room.right,
    tall = height - room.top - room.bottom;
  const px = (v) => room.left + x.at(v) * w,
    py = (v) => room.top + (1 - y.at(v)) * tall;
  const clip = `clip${drawn++}`,
    count = series.length;
  const shifted = (i) => (count > 1 ? (i - (count - 1) / 2) * Math.min(dodge, (dodge * 12) / count) : 0);
  const root = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "group",
    "aria-label": `${title}: ${yName} against ${xName}`,
    class: "plot",
  });
  root.append(
    svg(
      "defs",
      {},
      svg("clipPath", { id: clip }, svg("rect", { x: room.left, y: room.top - 2, width: w, height: tall + 4 })),
    ),
    svg("text", { x: room.left, y: 13, class: "panel" }, clipped(title, Math.max(12, Math.floor(w / 6.5)))),
    ...y.ticks.map(([t, text]) =>
      svg(
        "g",
        {},
        svg("line", { x1: room.left, x2: room.left + w, y1: py(t), y2: py(t), class: "grid" }),
        svg("text", { x: room.left - 6, y: py(t) + 3.5, "text-anchor": "end" }, text),
      ),
    ),
    ...spaced(x.ticks, px, 7).map(([t, text]) =>
      svg(
        "g",
        {},
        svg("line", { x1: px(t), x2: px(t), y1: room.top + tall, y2: room.top + tall + 4, class: "tick" }),
        svg("text", { x: px(t), y: room.top + tall + 15, "text-anchor": "middle" }, text),
      ),
    ),
    svg("line", { x1: room.left, x2: room.left + w, y1: room.top + tall, y2: room.top + tall, class: "axis" }),
    svg("text", { x: room.left + w / 2, y: height - 5, "text-anchor": "middle", class: "name" }, xName),
  );
  const area = svg("g", { "clip-path": `url(#${clip})` });
  if (diagonal) area.append(svg("line", { x1: px(x.from), y1: py(x.from), x2: px(x.to), y2: py(x.to), class: "same" }));
  if (band) {
    const at = py(band.mean);
    if (band.half !== null)
      area.append(
        svg("rect", {
          x: room.left,
          width: w,
          y: py(band.mean + band.half),
          height: Math.max(0, py(band.mean - band.half) - py(band.mean + band.half)),
          class: "band",
        }),
      );
    area.append(svg("line", { x1: room.left, x2: room.left + w, y1: at, y2: at, class: "level" }));
  }
  const spots = [];
  const groups = series.map((one, i) => {
    const g = svg("g", { class: "series", "data-id": one.style.id });
    const found = one.points
      .filter((p) => p.y !== null)
      .map((p) => ({ ...p, px: px(p.x) + shifted(i), py: py(p.y), one }));
    if (one.line !== false && found.length > 1) {
      const d = found
        .map((p, k) =>
          k === 0
            ? `M${p.px.toFixed(1)} ${p.py.toFixed(1)}`
            : stairs
              ? `H${p.px.toFixed(1)}V${p.py.toFixed(1)}`
              : `L${p.px.toFixed(1)} ${p.py.toFixed(1)}`,
        )
        .join("");
      g.append(svg("path", { d, class: "line", "stroke-dasharray": one.style.dash, css: { stroke: one.style.color } }));
    }
    for (const p of found) {
      if (p.half)
        g.append(
          svg("line", {
            x1: p.px,
            x2: p.px,
            y1: py(p.y - p.half),
            y2: py(p.y + p.half),
            class: "whisker",
            css: { stroke: one.style.color },
          }),
        );
      if (p.wide)
        g.append(
          svg("line", {
            x1: px(p.x - p.wide),
            x2: px(p.x + p.wide),
            y1: p.py,
            y2: p.py,
            class: "whisker",
            css: { stroke: one.style.color },
          }),
        );
    }
    for (const p of found) {
      const spot = svg(
        "g",
        { class: "spot", role: p.cell ? "button" : "img", tabindex: "-1", "aria-label": p.text.join(", ") },
        marker(one.style, p.px, p.py, one.size || 3.6),
      );
      spot.point = p;
      spots.push(spot);
      g.append(spot);
    }
    return g;
  });
  area.append(...groups);
  root.append(area);
  if (labels) root.append(endLabels(series, spots, room, w, tall, band && { label: band.name, y: py(band.mean) }));
  else if (band)
    root.append(
      svg(
        "text",
        {
          x: room.left + w - 4,
          y: py(band.mean) - room.top < 14 ? py(band.mean) + 12 : py(band.mean) - 5,
          "text-anchor": "end",
          class: "level-name",
        },
        band.name,
      ),
    );
  explore(root, spots, room, w, tall);
  return root;
}
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
function endLabels(series, spots, room, w, tall, level) {
  const inside = (y) => Math.min(room.top + tall, Math.max(room.top, y));
  const ends = series
    .map((one) => {
      const last = spots.filter((spot) => spot.point.one === one).at(-1)?.point;
      return last && { one, x: last.px + 5, from: inside(last.py), label: one.label, color: one.style.color };
    })
    .filter(Boolean);
  if (level) ends.push({ one: null, x: room.left + w, from: inside(level.y), label: level.label, color: "var(--ink)" });
  ends.sort((a, b) => a.from - b.from);
  const gap = 12.5;
  if (ends.length * gap > tall + 20) return svg("g");
  apart(ends, gap, room.top - 6, room.top + tall + 6);
  const x = room.left + w + 18;
  return svg(
    "g",
    { class: "ends" },
    ends.map((e) =>
      svg(
        "g",
        { class: e.one ? "series" : null, "data-id": e.one ? e.one.style.id : null },
        svg("path", {
          d: `M${e.x} ${e.from}L${room.left + w + 4} ${e.from}L${x - 5} ${e.at}H${x - 2}`,
          class: "leader",
          css: { stroke: e.color },
        }),
        svg("text", { x, y: e.at + 3.5, class: e.one ? null : "level-name" }, clipped(e.label, 16)),
      ),
    ),
  );
}

/** Tooltips by pointer (the nearest point) and by keyboard: one stop of the Tab key per panel, arrows go on. */
function explore(root, spots, room, w, tall) {
  if (!spots.length) return;
  spots[0].tabIndex = 0;
  const near = (event) => {
    const box = root.getBoundingClientRect(),
      k = root.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * k, (event.clientY - box.top) * k];
    if (x < room.left - 12 || x > room.left + w + 12 || y > room.top + tall + 12) return null;
    let best = null,
      least = 22 ** 2;
    for (const spot of spots) {
      const far = (spot.point.px - x) ** 2 + (spot.point.py - y) ** 2;
      if (far < least && !spot.closest(".faint")) [best, least] = [spot, far];
    }
    return best;
  };
  let over = null;
  root.addEventListener("pointermove", (event) => {
    const spot = near(event);
    if (spot === over) return;
    over = spot;
    root.classList.toggle("hot", Boolean(spot?.point.cell));
    if (spot) {
      showTip(spot);
      light([spot.point.one.style.id]);
    } else {
      hideTip();
      light(null);
    }
  });
  root.addEventListener("pointerleave", () => {
    over = null;
    hideTip();
    light(null);
  });
  root.addEventListener("click", (event) => {
    const spot = near(event);
    if (spot?.point.cell) {
      hideTip();
      details(view(), spot.point.cell);
    }
  });
  const move = (to) => {
    spots.forEach((spot) => spot.setAttribute("tabindex", spot === to ? "0" : "-1"));
    to.focus();
  };
  root.addEventListener("focusin", (event) => {
    if (event.target.point) {
      showTip(event.target);
      light([event.target.point.one.style.id]);
    }
  });
  root.addEventListener("focusout", () => {
    hideTip();
    light(null);
  });
  root.addEventListener("keydown", (event) => {
    const spot = event.target,
      i = spots.indexOf(spot);
    if (i < 0) return;
    if ((event.key === "Enter" || event.key === " ") && spot.point.cell) {
      event.preventDefault();
      hideTip();
      return details(view(), spot.point.cell);
    }
    if (event.key === "Escape") return hideTip();
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by && spots[i + by]) {
      event.preventDefault();
      return move(spots[i + by]);
    }
    const turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!turn) return;
    event.preventDefault();
    const here = spots.filter((other) => other.point.x === spot.point.x).sort((a, b) => a.point.py - b.point.py);
    const to = here[here.indexOf(spot) + turn];
    if (to) move(to);
  });
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
