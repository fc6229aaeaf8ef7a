// The lines between the columns: from where a passage was to where it is.

const MOST = 10;
const SVG = "http://www.w3.org/2000/svg";

/** Draws a curve from each card of the first column to its card of the second. */
export function drawLinks(board) {
  const canvas = board.querySelector("svg");
  const frame = board.getBoundingClientRect();
  const given = new Map([...board.querySelectorAll(".before .card")].map((card) => [card.dataset.index, card]));
  const lines = [];
  // Lines of the others would end below what can be seen.
  for (const card of [...board.querySelectorAll(".after .card")].slice(0, MOST)) {
    const origin = given.get(card.dataset.index);
    if (origin) lines.push(link(frame, origin.getBoundingClientRect(), card.getBoundingClientRect(), card));
  }
  canvas.replaceChildren(...lines);
}

function link(frame, from, to, card) {
  const path = document.createElementNS(SVG, "path");
  const [x1, x2] = [from.right - frame.left + 4, to.left - frame.left - 4];
  const [y1, y2] = [from.top + from.height / 2 - frame.top, to.top + to.height / 2 - frame.top];
  const bend = (x2 - x1) * 0.5;
  path.setAttribute("d", `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`);
  path.dataset.index = card.dataset.index;
  if (card.querySelector(".move.up")) path.classList.add("up");
  return path;
}
