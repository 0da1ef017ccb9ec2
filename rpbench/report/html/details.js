// Every seed of a cell, and its commands.

function details(v, cell) {
  const { board: b } = v,
    net = b.nets[cell.net];
  const gap =
    cell.gap && !cell.row.reference
      ? [
          h("dt", {}, `gap to ${b.board.reference}`),
          h("dd", {}, estimate(cell.gap, decimals(b.metrics[0])), ` ${points(b.metrics[0])}`),
        ]
      : [];
  const fact = (name, value) => value !== null && value !== undefined && [h("dt", {}, name), h("dd", {}, value)];
  const order = [v.metric, ...b.metrics.filter((m) => m !== v.metric)].filter((m) =>
    cell.runs.some((run) => run.values[m.i] !== null),
  );
  const facts = [
    ["epoch selected", (run) => run.epoch],
    ["top-1 of the last epoch, %", (run) => fixed(run.last_top1, 2)],
    ["weights kept", (run) => whole(run.kept)],
    ["FLOPs per image", (run) => `${short(run.sparse_macs === null ? null : 2 * run.sparse_macs)}`],
    ["seconds", (run) => seconds(run.seconds)],
    ["training images/s", (run) => whole(run.images_per_s)],
    ["device", (run) => run.device || "\u2013"],
    ["warnings", (run) => run.warnings.join("; ") || "none"],
    ["record", (run) => h("code", {}, run.record)],
  ];
  const seeds = cell.runs.map((run) => h("th", { scope: "col" }, `seed ${run.seed}`));
  dialog.replaceChildren(
    h(
      "div",
      { class: "head" },
      h(
        "h2",
        { id: "details-title" },
        swatch(STYLES.get(cell.row.label) || null),
        cell.row.label,
        h("small", {}, ` ${net.task} ${net.model}${cell.row.reference ? "" : `, density ${cell.density}`}`),
      ),
      h(
        "button",
        { type: "button", class: "close", onclick: () => dialog.close(), "aria-label": "Close the details" },
        "\u00d7",
      ),
    ),
    h(
      "dl",
      { class: "pairs" },
      fact(
        "state",
        `${cell.state}${cell.runs.length ? `, ${plural(cell.runs.length, "seed")}` : ""}${cell.missing.length ? `; missing: ${cell.missing.join(", ")}` : ""}`,
      ),
      cell.reason && fact("reason", cell.reason),
      gap,
      fact(
        "density",
        cell.realised !== null &&
          `realised ${trim(cell.realised.toPrecision(5))}, effective ${cell.effective === null ? "\u2013" : trim(cell.effective.toPrecision(5))}`,
      ),
      fact("FLOPs", cell.flops !== null && `${percent(cell.flops)} of ${b.board.reference}`),
    ),
    cell.runs.length > 0 &&
      h(
        "div",
        { class: "box", tabindex: "0", role: "region", "aria-label": "Every seed" },
        h(
          "table",
          { class: "seeds" },
          h(
            "caption",
            {},
            "Every seed; rates in percent. The last column is the mean with the 95\u00a0% t-interval of these seeds alone.",
          ),
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "metric"), seeds, h("th", { scope: "col" }, "mean"))),
          h(
            "tbody",
            {},
            order.map((m) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, `${m.title} `, h("span", { class: "way" }, m.higher ? "\u2191" : "\u2193")),
                cell.runs.map((run) => h("td", {}, fixed(run.values[m.i], decimals(m)))),
                h("td", { class: "mean" }, told(summary(cell, m), decimals(m))),
              ),
            ),
          ),
          h(
            "tbody",
            {},
            facts.map(([name, get]) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, name),
                cell.runs.map((run) => h("td", {}, get(run))),
                h("td", {}),
              ),
            ),
          ),
        ),
      ),
    cell.runs.length > 0 &&
      h(
        "section",
        { class: "commands" },
        h("h3", {}, "Commands"),
        cell.runs.map((run) => command(run)),
      ),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
}

function command(run) {
  const text = h("code", { tabindex: "0" }, run.command);
  const button = h("button", { type: "button", "aria-label": `Copy the command of seed ${run.seed}` }, "Copy");
  button.addEventListener("click", async () => {
    const said = (await copied(run.command, text)) ? "Copied" : "Selected";
    button.textContent = said;
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1500);
  });
  return h("div", { class: "command" }, text, button);
}
/** Puts text on the clipboard; where the browser does not allow that, the text is left selected. */
async function copied(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    try {
      return document.execCommand("copy");
    } catch {
      return false;
    }
  }
}
