// Markers: with colour and dash, one look per scheme.

const SHAPES = [
  (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  (r) => `M${-0.9 * r} ${-0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
  (r) => `M0 ${-1.2 * r}L${1.15 * r} ${0.85 * r}H${-1.15 * r}z`,
  (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0z`,
  (r) => `M0 ${1.2 * r}L${1.15 * r} ${-0.85 * r}H${-1.15 * r}z`,
  (r) =>
    `M${-0.45 * r} ${-1.25 * r}h${0.9 * r}v${0.8 * r}h${0.8 * r}v${0.9 * r}h${-0.8 * r}v${0.8 * r}h${-0.9 * r}v${-0.8 * r}h${-0.8 * r}v${-0.9 * r}h${0.8 * r}z`,
];
const INK = { id: -1, color: "var(--ink)", shape: 3, hollow: true, dash: "" };
function marker(style, x, y, r = 3.4) {
  return svg("path", {
    d: SHAPES[style.shape](r),
    transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`,
    class: "marker",
    css: { stroke: style.color, fill: style.hollow ? "var(--paper)" : style.color },
  });
}
function swatch(style) {
  const look = style || INK;
  return svg(
    "svg",
    { width: 26, height: 12, viewBox: "0 0 26 12", class: "swatch", "aria-hidden": "true" },
    svg("line", {
      x1: 1,
      x2: 25,
      y1: 6,
      y2: 6,
      "stroke-dasharray": look.dash,
      "stroke-width": 1.6,
      css: { stroke: look.color },
    }),
    marker(look, 13, 6, 3.4),
  );
}
