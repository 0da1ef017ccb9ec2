// What is embedded, as objects; means over seeds with their intervals.

const DATA = JSON.parse(document.getElementById("data").textContent);
const BOARDS = DATA.boards.map(unpack);
const STYLES = styles(BOARDS);
// nets and densities: what is picked (nothing: all); sorts: by table, which column and whether upwards
const state = {
  board: 0,
  metric: 0,
  nets: new Set(),
  densities: new Set(),
  pinned: new Set(),
  whole: false,
  sorts: new Map(),
};

function unpack(raw) {
  const named = (fields, values) => Object.fromEntries(fields.map((field, i) => [field, values[i]]));
  const metrics = raw.metrics.map(([key, title, unit, higher], i) => ({
    i,
    key,
    title,
    unit,
    higher: Boolean(higher),
    kind: kindOf(key),
  }));
  const nets = raw.nets.map((net, i) => ({ ...net, i }));
  const contexts = raw.contexts.map(([net, density], i) => ({ i, net, density }));
  const readCell = (values, row, net) => {
    const cell = named(DATA.fields.cell, values);
    const join = (shared, middle) => shared[0] + middle + shared[1];
    cell.row = row;
    cell.layers = cell.layers.map((density) => density / 10000);
    cell.command = [cell.command[0].map((word) => DATA.words[word]).join(" "), cell.command[1]];
    cell.net = net === undefined ? contexts[cell.context].net : net;
    cell.density = net === undefined ? contexts[cell.context].density : 1;
    cell.runs = cell.runs.map((run) => {
      const found = named(DATA.fields.run, run);
      found.record = join(cell.record, found.record);
      found.command = join(cell.command, found.command);
      found.device = DATA.words[found.device];
      found.warnings = found.warnings.map((w) => DATA.words[w]);
      return found;
    });
    return cell;
  };
  const dense = { i: -1, label: raw.board.reference, reference: true, marks: [], lacks: [] };
  const rows = raw.rows.map((values, i) => {
    const row = named(DATA.fields.row, values);
    row.i = i;
    row.cells = values.at(-1).map((cell) => readCell(cell, row));
    return row;
  });
  dense.cells = raw.reference.map((cell, i) => (cell ? readCell(cell, dense, i) : null));
  return { ...raw, metrics, nets, contexts, rows, dense };
}

/** What a metric measures: a place in KINDS. */
function kindOf(key) {
  return [/^top/, /^(ece|nll|brier)/, /^(ood|auroc|aupr|fpr95)/, /^robust/, /./].findIndex((pattern) =>
    pattern.test(key),
  );
}
const KINDS = ["accuracy", "calibration", "out of distribution", "robustness", "other"];

/** One look per label, the same on every board of the page: colour, marker and dash together tell 48 of them apart. */
function styles(boards) {
  const labels = [...new Set(boards.flatMap((b) => b.rows.map((row) => row.label)))].sort();
  return new Map(labels.map((label, i) => [label, look(i)]));
}
function look(i) {
  const turn = Math.floor(i / 6);
  return {
    id: i,
    color: `var(--c${i % 6})`,
    shape: (i + turn) % 6,
    hollow: turn % 2 === 1,
    dash: ["", "5 3", "1.5 2.5", "7 2 2 2"][turn % 4],
  };
}

/** Mean of a cell's seeds, half the 95 % t-interval of these seeds alone, and their number; null where not all have it. */
function summary(cell, metric) {
  const xs = cell ? cell.runs.map((run) => run.values[metric.i]) : [];
  if (!xs.length || xs.some((x) => x === null)) return null;
  const n = xs.length,
    mean = xs.reduce((a, b) => a + b, 0) / n;
  const sd = n > 1 ? Math.sqrt(xs.reduce((a, x) => a + (x - mean) ** 2, 0) / (n - 1)) : null;
  return { mean, sd, n, half: n > 1 ? (DATA.t[n - 1] * sd) / Math.sqrt(n) : null };
}
function gapOf(board, cell, metric) {
  const own = summary(cell, metric),
    dense = summary(board.dense.cells[cell.net], metric);
  return own && dense ? own.mean - dense.mean : null;
}
const mean = (xs) => (xs.length ? xs.reduce((a, b) => a + b, 0) / xs.length : null);
