// Every seed of a cell, and its commands.

function details(v, cell) {
  const { board: b } = v,
    net = b.nets[cell.net],
    where = `${net.task} ${net.model}${cell.row.reference ? "" : `, density ${cell.density}`}`;
  const close = h(
    "button",
    { type: "button", class: "close", onclick: () => dialog.close(), "aria-label": "Close the details" },
    "\u00d7",
  );
  dialog.replaceChildren(
    h(
      "div",
      { class: "head" },
      h(
        "h2",
        { id: "details-title" },
        swatch(STYLES.get(cell.row.label) || null),
        cell.row.label,
        h("small", {}, ` ${where}`),
      ),
      close,
    ),
    h(
      "dl",
      { class: "pairs" },
      cellFacts(b, cell)
        .filter(([, told]) => told)
        .map(([name, told]) => [h("dt", {}, name), h("dd", {}, told)]),
    ),
  );
  if (cell.runs.length)
    dialog.append(seedTable(v, cell), layerBars(cell), h("h3", {}, "Records and commands"), ...cell.runs.map(command));
  dialog.showModal();
  dialog.scrollTop = 0;
}
function cellFacts(b, cell) {
  const [first] = b.metrics,
    digits = (x) => (x === null ? "\u2013" : trim(x.toPrecision(5)));
  const missing = cell.missing.length ? `; seeds missing: ${cell.missing.join(", ")}` : "";
  return [
    ["State", `${cell.state}${cell.runs.length ? `, ${plural(cell.runs.length, "seed")}` : ""}${missing}`],
    ["Reason", cell.reason],
    [
      `Gap to ${b.board.reference}`,
      cell.gap && !cell.row.reference && [estimate(cell.gap, decimals(first)), ` ${points(first)}`],
    ],
    [
      "Density",
      cell.realised !== null &&
        !cell.row.reference &&
        `realised ${digits(cell.realised)}, effective ${digits(cell.effective)}`,
    ],
    ["FLOPs", cell.flops !== null && !cell.row.reference && `${percent(cell.flops)} of ${b.board.reference}`],
  ];
}

function seedTable(v, cell) {
  const metrics = sorted(v.board).filter((m) => cell.runs.some((run) => run.values[m.i] !== null));
  const facts = [
    ["epoch selected", (run) => run.epoch],
    ["top-1 of the last epoch", (run) => fixed(run.last_top1, 2)],
    ["weights kept", (run) => whole(run.kept)],
    ["FLOPs per image", (run) => short(run.sparse_macs === null ? null : 2 * run.sparse_macs)],
    ["time", (run) => seconds(run.seconds)],
    ["training images/s", (run) => whole(run.images_per_s)],
    ["device", (run) => run.device || "\u2013"],
    ["warnings", (run) => run.warnings.join("; ") || "none"],
  ];
  const line = (m) =>
    h(
      "tr",
      { class: m === v.metric ? "chosen" : null },
      h("th", { scope: "row" }, m.title, arrow(m)),
      cell.runs.map((run) => h("td", {}, fixed(run.values[m.i], decimals(m)))),
      h("td", { class: "mean" }, told(summary(cell, m), decimals(m))),
    );
  const fact = ([name, get]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      cell.runs.map((run) => h("td", {}, get(run))),
      h("td", { class: "mean" }),
    );
  const heads = ["metric", ...cell.runs.map((run) => `seed ${run.seeds}`), "mean"];
  return box(
    "Every seed",
    h(
      "table",
      { class: "seeds" },
      h("caption", {}, "Rates in percent"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((head) => h("th", { scope: "col" }, head)),
        ),
      ),
      h("tbody", {}, metrics.map(line)),
      h("tbody", {}, facts.map(fact)),
    ),
  );
}

/** The density of each layer as a bar, on the square root's scale. */
function layerBars({ layers }) {
  if (!layers.length) return "";
  const wide = Math.max(3, Math.min(26, Math.floor(840 / layers.length))),
    tall = 44;
  const bars = layers.map((d, i) => {
    const height = Math.max(0.5, Math.sqrt(d) * tall);
    return svg(
      "rect",
      { x: i * wide, y: tall - height, width: wide - (wide > 5 ? 2 : 1), height, class: "layer" },
      svg("title", {}, `layer ${i + 1}: ${d}`),
    );
  });
  const label = `Densities of the layers, from input to output: ${layers.join(", ")}`;
  const width = wide * layers.length;
  return h(
    "figure",
    { class: "layers" },
    svg(
      "svg",
      { width, height: tall + 1, viewBox: `0 0 ${width} ${tall + 1}`, role: "img", "aria-label": label },
      svg("line", { x1: 0, x2: width, y1: tall + 0.5, y2: tall + 0.5, class: "axis" }),
      bars,
    ),
    h(
      "figcaption",
      {},
      `Densities of the ${plural(layers.length, "layer")} from input to output, ${Math.min(...layers)} to ${Math.max(...layers)} (square-root scale).`,
    ),
  );
}

function command(run) {
  const text = h("code", { tabindex: "0" }, run.command);
  const button = h("button", { type: "button", "aria-label": `Copy the command of seed ${run.seeds}` }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(run.command, text)) ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return h("div", { class: "command" }, h("div", { class: "record" }, `seed ${run.seeds}: `, run.record), text, button);
}
/** Puts text on the clipboard; where the browser does not allow that, the text is left selected. */
async function copied(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
  }
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  }
}
