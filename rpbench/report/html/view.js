// What is chosen of a board.

function view() {
  const board = BOARDS[state.board],
    metric = board.metrics[state.metric];
  const shown = board.contexts.filter((c) => !state.nets.has(c.net) && !state.densities.has(c.density));
  const contexts = shown.length ? shown : board.contexts;
  return { board, metric, contexts, filtered: contexts.length < board.contexts.length, main: state.metric === 0 };
}

/** The mean gap of a block's row in what is shown: [value, low, high, whether it is a plain mean of shown cells]. */
function score(v, entry, contexts) {
  if (!v.filtered && entry.place)
    return [...((v.main ? entry.place.score : entry.place.axes[v.metric.i]) || [null, null, null]), false];
  const gaps = contexts
    .filter((c) => v.contexts.includes(c))
    .map((c) => gapOf(v.board, entry.row.cells[c.i], v.metric));
  const known = v.filtered && gaps.length && gaps.every((g) => g !== null);
  return [known ? mean(gaps) : null, null, null, true];
}
