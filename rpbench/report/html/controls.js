// Choosing a metric, nets and densities.

function controls(b) {
  const kinds = [
    ["accuracy", /^top/],
    ["calibration", /^(ece|nll|brier)/],
    ["out of distribution", /^(ood|auroc|aupr|fpr95)/],
    ["robustness", /^robust/],
    ["other", /./],
  ];
  const kind = (metric) => kinds.find(([, pattern]) => pattern.test(metric.key))[0];
  const select = h(
    "select",
    {
      id: "metric",
      onchange: (e) => {
        state.metric = Number(e.target.value);
        redraw();
      },
    },
    kinds.map(([name]) => {
      const found = b.metrics.filter((m) => kind(m) === name);
      return (
        found.length > 0 &&
        h(
          "optgroup",
          { label: name },
          found.map((m) =>
            h("option", { value: m.i, selected: m.i === state.metric }, `${m.title} ${m.higher ? "\u2191" : "\u2193"}`),
          ),
        )
      );
    }),
  );
  const densities = [...new Set(b.contexts.map((c) => c.density))];
  return h(
    "section",
    { class: "controls", "aria-label": "What is shown" },
    h("label", {}, h("span", {}, "Metric"), select),
    b.nets.length > 1 &&
      chips(
        "Nets",
        b.nets.map((net) => [netName(b, net), !state.nets.has(net.i), () => toggle(state.nets, net.i)]),
      ),
    densities.length > 1 &&
      chips(
        "Densities",
        densities.map((d) => [String(d), !state.densities.has(d), () => toggle(state.densities, d)]),
      ),
  );
}
function chips(name, options) {
  return h(
    "fieldset",
    { class: "chips" },
    h("legend", {}, name),
    options.map(([label, on, act]) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(on),
          onclick: (e) => {
            e.target.setAttribute("aria-pressed", String(act()));
            redraw();
          },
        },
        label,
      ),
    ),
  );
}
/** Turn one entry of a set of hidden things; true where it is shown now. */
function toggle(set, key) {
  const shown = set.delete(key);
  if (!shown) set.add(key);
  return shown;
}
