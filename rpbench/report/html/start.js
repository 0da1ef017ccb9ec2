// Start.

const theme = kept("rpbench-theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
const asked = BOARDS.findIndex((b) => `#${encodeURIComponent(boardTitle(b))}` === location.hash);
if (asked >= 0) state.board = asked;
draw();

let across = document.documentElement.clientWidth,
  printing = false;
for (const table of host.querySelectorAll(".bare")) table.classList.remove("bare");
addEventListener("resize", () => {
  if (printing || document.documentElement.clientWidth === across) return;
  across = document.documentElement.clientWidth;
  requestAnimationFrame(() => BOARDS.length && drawFigures());
});

// On paper everything is open, figures are as wide as the sheet, and so are tables that are wider.
const PAPER = 1035; // CSS pixels of A4 landscape less its margins
addEventListener("beforeprint", () => {
  printing = true;
  for (const part of host.querySelectorAll("details")) part.open = true;
  for (const table of host.querySelectorAll(".box > table")) {
    // too wide to be read where it must shrink: there means stand alone
    table.classList.toggle("bare", PAPER / table.scrollWidth < 0.6);
    table.style.setProperty("--fit", Math.min(0.72, PAPER / table.scrollWidth).toFixed(3));
  }
  if (BOARDS.length) drawFigures(PAPER);
});
addEventListener("afterprint", () => {
  printing = false;
  for (const table of host.querySelectorAll(".bare")) table.classList.remove("bare");
  if (BOARDS.length) drawFigures();
});
