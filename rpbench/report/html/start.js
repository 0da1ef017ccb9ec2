// Start.

const theme = kept("rpbench-theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
const asked = BOARDS.findIndex((b) => `#${encodeURIComponent(boardTitle(b))}` === location.hash);
if (asked >= 0) state.board = asked;
draw();

let last = document.documentElement.clientWidth;
addEventListener("resize", () => {
  if (document.documentElement.clientWidth === last) return;
  last = document.documentElement.clientWidth;
  requestAnimationFrame(() => BOARDS.length && drawFigures());
});
addEventListener("beforeprint", () =>
  document.querySelectorAll("#page details").forEach((part) => {
    part.open = true;
  }),
);
