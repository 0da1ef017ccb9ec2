// Numbers as they are written.

const decimals = (metric) => (metric.unit === "%" ? 2 : 3);
function fixed(x, digits) {
  if (x === null || x === undefined) return "\u2013";
  const text = Math.abs(x).toFixed(digits);
  return x < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}
const signed = (x, digits) => (x > 0 && Number(x.toFixed(digits)) !== 0 ? `+${fixed(x, digits)}` : fixed(x, digits));
const percent = (x, digits = 1) => (x === null || x === undefined ? "\u2013" : `${fixed(x * 100, digits)}\u202f%`);
function short(x) {
  if (x === null || x === undefined) return "\u2013";
  const [scale, unit] = [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ].find(([s]) => Math.abs(x) >= s) || [1, ""];
  return `${trim((x / scale).toPrecision(3))}${unit && `\u202f${unit}`}`;
}
const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);
const whole = (x) =>
  x === null || x === undefined
    ? "\u2013"
    : Math.round(x)
        .toString()
        .replace(/\B(?=(\d{3})+$)/g, "\u202f");
function seconds(x) {
  if (x === null || x === undefined) return "\u2013";
  if (x < 0.1) return `${trim((1000 * x).toPrecision(2))}\u202fms`;
  if (x < 600) return `${trim(x.toPrecision(x < 10 ? 2 : 3))}\u202fs`;
  return `${Math.round(x / 60)}\u202fmin`;
}
const sparsity = (density) => `${trim((100 * (1 - density)).toFixed(4))}\u202f%`;
const points = (metric) => (metric.unit === "%" ? "points" : metric.title);
const half = (e) => (e && e[1] !== null ? (e[2] - e[1]) / 2 : null);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const clipped = (text, most = 26) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);
const netName = (board, net) => (Object.keys(board.tasks).length > 1 ? `${net.task} ${net.model}` : net.model);
const metricName = (metric) => (metric.unit === "%" ? `${metric.title}, %` : metric.title);
