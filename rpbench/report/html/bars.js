// Intervals as small bars on one scale.

/** Draws gaps on one scale; what lies beyond its end (far below the middle of the rows) is cut off with an arrow. */
function barScale(scores) {
  const known = scores.filter((e) => e[0] !== null);
  const lows = known.map((e) => Math.min(e[1] ?? e[0], 0)),
    highs = known.map((e) => Math.max(e[2] ?? e[0], 0));
  const [low, high] = [robust(lows, -1), robust(highs, 1)];
  const [from, to] = low === high ? [low - 1, high + 1] : [low - (high - low) * 0.04, high + (high - low) * 0.04];
  const width = 150,
    x = (value) => 4 + ((value - from) / (to - from)) * (width - 8);
  const cut = (value) => Math.max(2, Math.min(width - 2, x(value)));
  const zero = () => svg("line", { x1: x(0), x2: x(0), y1: 0, y2: 22, class: "zero" });
  const draw = (e, style) => {
    const kids = [zero()];
    if (e) {
      const [value, a, b] = e;
      if (a !== null && b >= from && a <= to)
        kids.push(
          svg("line", { x1: cut(a), x2: cut(b), y1: 11, y2: 11, class: "interval", css: { stroke: style.color } }),
        );
      if (value < from || value > to)
        kids.push(svg("path", { d: value < from ? "M2 11l7-4v8z" : `M${width - 2} 11l-7-4v8z`, class: "beyond" }));
      else kids.push(marker(style, x(value), 11, 3.6));
    }
    return svg("svg", { width, height: 22, viewBox: `0 0 ${width} 22`, "aria-hidden": "true", class: "forest" }, kids);
  };
  const axis = () =>
    svg(
      "svg",
      { width, height: 14, viewBox: `0 0 ${width} 14`, "aria-hidden": "true", class: "forest axis" },
      ticks(from, to, 4).map((t) => [
        svg("line", { x1: x(t), x2: x(t), y1: 11, y2: 14, class: "tick" }),
        svg(
          "text",
          { x: Math.max(9, Math.min(width - 9, x(t))), y: 9, "text-anchor": "middle" },
          fixed(t, tickDigits(from, to, 4)),
        ),
      ]),
    );
  return { draw, axis };
}
/** The extreme of some values, unless it lies more than four times as far out as their median does. */
function robust(values, side) {
  if (!values.length) return side > 0 ? 1 : -1;
  const out = values.map((x) => x * side).sort((a, b) => a - b);
  const typical = out[Math.floor(out.length / 2)],
    limit = Math.max(typical * 4, out[Math.floor(out.length * 0.75)] * 1.2);
  return side * Math.min(out.at(-1), limit > 0 ? limit : out.at(-1));
}
