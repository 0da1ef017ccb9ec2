// The page around tables and figures.

const host = document.getElementById("page");
const tip = h("div", { id: "tip", role: "status", hidden: true });
const dialog = h("dialog", { id: "details", "aria-labelledby": "details-title" });
document.body.append(tip, dialog);
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

function boardTitle(b) {
  const same = BOARDS.filter((o) => o.board.name === b.board.name).length > 1;
  return same
    ? `${b.board.name}, ${b.metrics[0].title}, equal ${b.order === "flops" ? "FLOPs" : "parameters"}`
    : b.board.name;
}

function draw() {
  if (!BOARDS.length) return void host.replaceChildren(h("p", { class: "note" }, "No board was given."));
  const v = view();
  document.title = `${v.board.board.name} \u2013 rpbench`;
  host.replaceChildren(
    header(v.board),
    controls(v.board),
    h("main", {}, h("div", { id: "tables" }), h("div", { id: "figures" }), h("div", { id: "rest" })),
    footer(v.board),
  );
  drawTables();
  drawFigures();
  drawRest();
}
const redraw = () => {
  drawTables();
  drawFigures();
};

function header(b) {
  const { board } = b;
  const link =
    /^https?:\/\//.test(board.url) &&
    h("a", { href: board.url, rel: "noreferrer noopener", class: "source" }, "source");
  const switcher =
    BOARDS.length > 1 &&
    h(
      "nav",
      { class: "boards", "aria-label": "Boards" },
      BOARDS.map((other, i) =>
        h(
          "button",
          { type: "button", "aria-current": i === state.board ? "page" : null, onclick: () => open(i) },
          boardTitle(other),
        ),
      ),
    );
  return h(
    "header",
    { class: "top" },
    h("div", { class: "line" }, h("span", { class: "brand" }, "rpbench"), switcher, themeButton()),
    h("h1", {}, board.name, h("span", { class: "version" }, ` version ${board.version}`)),
    h("p", { class: "lead" }, sentence(board.summary), " ", link),
    h(
      "dl",
      { class: "facts" },
      facts(b).map(([term, told]) => h("div", {}, h("dt", {}, term), h("dd", {}, told))),
    ),
    b.notes.length > 0 &&
      h(
        "ul",
        { class: "notes", "aria-label": "Notes" },
        b.notes.map((note) => h("li", {}, sentence(note))),
      ),
  );
}
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sentence = (text) => text && `${capital(text)}${/[.!?]$/.test(text) ? "" : "."}`;

function facts(b) {
  const metric = b.metrics[0],
    d = decimals(metric),
    pooled = b.ranked.pooled;
  const tasks = Object.entries(b.tasks).map(([name, t]) => `${name}@${t.version}, ${plural(t.epochs, "epoch")}`);
  const densities = [...new Set(b.contexts.map((c) => c.density))];
  const found = [
    ["Task", tasks.join("; ")],
    [
      "Compared",
      `${plural(b.rows.length, "scheme")} \u00d7 ${plural(b.contexts.length, "cell")} (${plural(b.nets.length, "net")}, densities ${densities.join(", ")})`,
    ],
    ["Protocol", `${b.board.precision}, seeds ${span(b.board.seeds)}, test images opened once, mask fixed`],
    [
      "Score",
      `mean gap to ${b.board.reference} in ${metric.title}, ${metric.unit === "%" ? "points" : metric.higher ? "higher is better" : "lower is better"}, at equal ${b.order === "flops" ? "FLOPs" : "parameters"}`,
    ],
    [
      `${capital(b.board.reference)} (reference)`,
      h(
        "ul",
        {},
        b.dense.cells.map((cell, i) =>
          h(
            "li",
            {},
            `${netName(b, b.nets[i])} `,
            told(summary(cell, metric), d),
            metric.unit && `\u202f${metric.unit}`,
            cell && h("span", { class: "pm" }, ` (n = ${cell.runs.length})`),
          ),
        ),
      ),
    ],
  ];
  if (pooled && pooled.homogeneous)
    found.push(["Seed noise", `sd ${fixed(pooled.sd, d)} ${points(metric)}, pooled (${pooled.df} degrees of freedom)`]);
  return found;
}
const span = (seeds) =>
  seeds.length > 2 && seeds.every((s, i) => s === seeds[0] + i) ? `${seeds[0]}\u2013${seeds.at(-1)}` : seeds.join(", ");

/** Mean \u00b1 half of its interval. */
function told(found, digits) {
  return found ? [fixed(found.mean, digits), pm(found.half, digits)] : "\u2013";
}
const pm = (half, digits) => half !== null && h("span", { class: "pm" }, ` \u00b1\u00a0${fixed(half, digits)}`);

function themeButton() {
  const root = document.documentElement;
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const button = h("button", { type: "button", class: "theme" });
  const show = () => button.replaceChildren(dark() ? "Light theme" : "Dark theme");
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    keep("rpbench-theme", root.dataset.theme);
    show();
  });
  show();
  return button;
}
function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    /* pages from a file may have no storage */
  }
}
function kept(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function open(i) {
  Object.assign(state, { board: i, metric: 0, whole: false });
  for (const set of [state.nets, state.densities, state.pinned, state.sorts]) set.clear();
  history.replaceState(null, "", `#${encodeURIComponent(boardTitle(BOARDS[i]))}`);
  draw();
  host.querySelector("[aria-current]").focus();
}
