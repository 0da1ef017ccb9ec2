// What is chosen of a board: a metric, and the cells of the picked nets and densities (of all where none is picked).

function view() {
  const board = BOARDS[state.board];
  const picked = (set, key) => set.size === 0 || set.has(key);
  const shown = board.contexts.filter((c) => picked(state.nets, c.net) && picked(state.densities, c.density));
  const contexts = shown.length ? shown : board.contexts;
  return {
    board,
    metric: board.metrics[state.metric],
    contexts,
    filtered: contexts.length < board.contexts.length,
    main: state.metric === 0,
  };
}

/** A row's mean gap in a metric, [value, low, high]: the board's where all cells are shown, else a plain mean. */
function gapIn(v, metric, entry, contexts) {
  if (!v.filtered && entry.place) return (metric.i === 0 ? entry.place.score : entry.place.axes[metric.i]) || NONE;
  const shown = v.filtered ? contexts.filter((c) => v.contexts.includes(c)) : [];
  return [meanOf(shown, (c) => gapOf(v.board, entry.row.cells[c.i], metric)), null, null];
}
const NONE = [null, null, null];

/** The mean of f over a list; null where the list is empty or f has nothing to tell of one. */
function meanOf(list, f) {
  const found = list.map(f);
  return found.length && found.every((x) => x !== null && x !== undefined) ? mean(found) : null;
}
