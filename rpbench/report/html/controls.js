// Choosing a metric, nets and densities.

function controls(b) {
  const option = (m) =>
    h("option", { value: m.i, selected: m.i === state.metric }, `${m.title} ${m.higher ? "\u2191" : "\u2193"}`);
  const groups = KINDS.map((label, kind) => [label, sorted(b).filter((m) => m.kind === kind)]).filter(
    ([, found]) => found.length,
  );
  const choose = (event) => {
    state.metric = Number(event.target.value);
    redraw();
  };
  const densities = [...new Set(b.contexts.map((c) => c.density))];
  return h(
    "section",
    { class: "controls", "aria-label": "What is shown" },
    h(
      "label",
      {},
      h("span", {}, "Metric"),
      h(
        "select",
        { id: "metric", onchange: choose },
        groups.map(([label, found]) => h("optgroup", { label }, found.map(option))),
      ),
    ),
    b.nets.length > 1 &&
      chips(
        "Nets",
        state.nets,
        b.nets.map((net) => [net.i, netName(b, net)]),
      ),
    densities.length > 1 &&
      chips(
        "Densities",
        state.densities,
        densities.map((d) => [d, String(d)]),
      ),
  );
}

/** Metrics by what they measure, those of the axes first. */
function sorted(b) {
  const place = (m) => (m.i === 0 ? -1 : b.axes.includes(m.i) ? 0 : 1);
  return b.metrics.slice().sort((x, y) => x.kind - y.kind || place(x) - place(y) || x.i - y.i);
}

/** Buttons that pick some of a list; none picked is all. */
function chips(name, set, options) {
  const all = h("button", { type: "button", onclick: () => pick(() => set.clear()) }, "all");
  const each = options.map(([key, label]) => [
    key,
    h("button", { type: "button", onclick: () => pick(() => set.delete(key) || set.add(key)) }, label),
  ]);
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const show = () => {
    press(all, set.size === 0);
    for (const [key, button] of each) press(button, set.has(key));
  };
  const pick = (change) => {
    change();
    if (set.size === options.length) set.clear();
    show();
    redraw();
  };
  show();
  return h(
    "fieldset",
    { class: "chips" },
    h("legend", {}, name),
    all,
    each.map(([, button]) => button),
  );
}
