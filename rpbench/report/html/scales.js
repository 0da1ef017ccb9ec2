// Scales and their ticks.

function step(from, to, n) {
  const raw = (to - from) / n,
    power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 2.5, 5, 10].find((k) => k * power >= raw * 0.999);
}
function ticks(from, to, n) {
  if (!(to > from)) return [from];
  const by = step(from, to, n),
    found = [];
  for (let k = Math.ceil(from / by - 1e-9); k * by <= to + by * 1e-9; k++) found.push(k * by);
  return found;
}
function tickDigits(from, to, n) {
  const by = to > from ? step(from, to, n) : 1;
  return Math.max(
    0,
    Math.min(6, Math.ceil(-Math.log10(by) - 1e-9) + (/^2\.?5/.test(by.toExponential()) && by < 10 ? 1 : 0)),
  );
}
/** A scale: `at` maps a value to 0..1. */
function linear(from, to, n = 5, format = null) {
  const digits = tickDigits(from, to, n);
  return {
    at: (x) => (to === from ? 0.5 : (x - from) / (to - from)),
    from,
    to,
    ticks: ticks(from, to, n).map((t) => [t, format ? format(t) : fixed(t, digits)]),
  };
}
/** More ticks within less than a decade. */
function finer(from, to) {
  const found = [];
  for (let p = Math.floor(from); p <= to; p++)
    for (const k of [1, 1.5, 2, 3, 4, 5, 7])
      if (Math.log10(k) + p >= from && Math.log10(k) + p <= to) found.push(k * 10 ** p);
  return found;
}
function logarithmic(values, format) {
  const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
  const pad = (high - low || 1) * 0.05,
    from = low - pad,
    to = high + pad;
  const found = [];
  for (let p = Math.floor(from); p <= to; p++)
    for (const k of [1, 2, 5]) if (Math.log10(k) + p >= from && Math.log10(k) + p <= to) found.push(k * 10 ** p);
  if (found.length < 3) found.splice(0, 9, ...finer(from, to));
  const kept = found.length > 7 ? found.filter((t) => /^1e/.test(t.toExponential())) : found;
  return {
    at: (x) => (Math.log10(x) - from) / (to - from),
    from: 10 ** from,
    to: 10 ** to,
    ticks: (kept.length ? kept : found).map((t) => [t, format(t)]),
  };
}
/** Sparsity as it is (the paper's axis) where nets keep 10 % and more, else the logarithm of the density. */
function sparsityScale(densities) {
  const known = [...new Set(densities)].sort((a, b) => b - a);
  const transform = known.at(-1) >= 0.0999 ? (d) => 1 - d : (d) => -Math.log10(d);
  const [low, high] = [transform(known[0]), transform(known.at(-1))],
    pad = (high - low || 1) * 0.08;
  return {
    at: (d) => (transform(d) - low + pad) / (high - low + 2 * pad),
    ticks: known.map((d) => [d, trim((100 * (1 - d)).toFixed(2))]),
  };
}
/** Where the values of a panel lie, with their intervals as far as these do not dwarf them. */
function yScale(series, band, metric) {
  const points = series.flatMap((one) => one.points).filter((p) => p.y !== null);
  const ys = [...points.map((p) => p.y), ...(band ? [band.mean] : [])];
  if (!ys.length) return linear(0, 1);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (!state.whole) {
    // a few rows that fail must not flatten all the others
    const sorted = ys.slice().sort((a, b) => a - b),
      at = (q) => sorted[Math.round(q * (sorted.length - 1))];
    const reach = 3 * Math.max(at(0.75) - at(0.25), 1e-9);
    if (metric.higher) low = Math.max(low, at(0.25) - reach);
    else high = Math.min(high, at(0.75) + reach);
  }
  const room = (high - low || Math.abs(high) * 0.1 || 1) * 0.35;
  const reach = (p, side) => (p.half === null || p.half === undefined ? p.y : p.y + side * Math.min(p.half, room));
  const inside = points.filter((p) => p.y >= low && p.y <= high);
  low = Math.min(
    low,
    ...inside.map((p) => reach(p, -1)),
    ...(band ? [reach({ y: band.mean, half: band.half }, -1)] : []),
  );
  high = Math.max(
    high,
    ...inside.map((p) => reach(p, 1)),
    ...(band ? [reach({ y: band.mean, half: band.half }, 1)] : []),
  );
  const pad = (high - low || 1) * 0.05;
  return linear(low - pad, metric.unit === "%" ? Math.min(high + pad, Math.max(100.4, ...ys)) : high + pad, 6);
}
