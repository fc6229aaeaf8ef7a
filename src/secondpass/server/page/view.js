// The answer as two columns of cards. Texts of people are only ever set as text, never as markup.

import { drawLinks } from "./links.js";

const FIRST = 60; // cards of a column before "show all"
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

/** Shows {query, documents, answer, milliseconds, model}. */
export function show(result, { all = false } = {}) {
  const { documents, answer } = result;
  const ranked = answer.results;
  const byIndex = new Map(ranked.map((hit, place) => [hit.index, { ...hit, place }]));
  const limit = all ? documents.length : FIRST;
  facts(result);
  $("moved").textContent = movement(ranked);
  $("before").replaceChildren(...documents.slice(0, limit).map((text, index) => givenCard(text, index, byIndex.get(index))));
  $("after").replaceChildren(...ranked.slice(0, limit).map((hit, place) => rankedCard(documents[hit.index], hit, place)));
  const more = $("all");
  more.hidden = documents.length <= limit;
  more.textContent = `Show all ${number.format(documents.length)}`;
  more.onclick = () => show(result, { all: true });
  $("answer").hidden = false;
  offerWhole();
  drawLinks($("board"));
}

/** One sentence for people who listen. */
export function spoken({ documents, answer, milliseconds }) {
  const first = answer.results[0];
  const what = `${count(documents.length, "passage")} ranked in ${duration(milliseconds)}.`;
  return first ? `${what} First: passage ${first.index + 1}, ${percent(first.probability)}.` : what;
}

function facts({ documents, answer, milliseconds }) {
  const compute = answer.timing?.compute;
  const shown = [
    [number.format(documents.length), documents.length === 1 ? "passage" : "passages"],
    [duration(milliseconds), compute ? `${duration(compute * 1000)} of it in the model` : "from here and back"],
    [number.format(answer.usage.tokens), "tokens read"],
    [number.format(answer.usage.truncated), answer.usage.truncated === 1 ? "passage cut" : "passages cut", answer.usage.truncated > 0],
  ];
  $("facts").replaceChildren(
    ...shown.map(([value, name, isWarning]) =>
      element("div", { class: isWarning ? "warn" : "" }, [element("dd", {}, value), element("dt", {}, name)]),
    ),
  );
}

function movement(ranked) {
  const jumps = ranked.map((hit, place) => ({ ...hit, place, by: hit.index - place }));
  const moved = jumps.filter((hit) => hit.by !== 0);
  if (!moved.length) return "Nothing moved: the order was right already.";
  const best = jumps.reduce((a, b) => (b.by > a.by ? b : a));
  const rest = ranked.length - moved.length;
  const kept = rest ? `, ${rest} stayed` : "";
  return `${count(moved.length, "passage")} moved${kept}. The largest rise is from ${best.index + 1} to ${best.place + 1}.`;
}

function givenCard(text, index, hit) {
  const card = element("li", { class: "card", "data-index": index }, [
    element("span", { class: "place" }, String(index + 1)),
    element("p", { class: "text", dir: "auto" }, text),
  ]);
  if (hit) card.append(rail(hit.probability));
  return card;
}

function rankedCard(text, hit, place) {
  const by = hit.index - place;
  const marks = element("div", { class: "marks" }, [moveBadge(by, hit.index)]);
  if (hit.tokens) marks.append(element("span", {}, count(hit.tokens, "token")));
  if (hit.truncated) marks.append(element("span", { class: "cut" }, "cut: its end was not read"));
  const figures = element("div", { class: "figures" }, [
    element("span", { class: "percent" }, percent(hit.probability)),
    rail(hit.probability),
    element("span", { class: "logit" }, `score ${signed(hit.score)}`),
  ]);
  return element("li", { class: "card", "data-index": hit.index }, [
    element("span", { class: "place" }, String(place + 1)),
    element("div", { class: "body" }, [element("p", { class: "text", dir: "auto" }, text)]),
    marks,
    figures,
  ]);
}

function moveBadge(by, index) {
  const kind = by > 0 ? "move up" : "move";
  const sign = by > 0 ? `↑ ${by}` : by < 0 ? `↓ ${-by}` : "=";
  const words = by > 0 ? `up ${by}, was ${index + 1}` : by < 0 ? `down ${-by}, was ${index + 1}` : "did not move";
  return element("span", { class: kind, title: words }, [
    element("span", { "aria-hidden": "true" }, by ? `${sign} · was ${index + 1}` : sign),
    element("span", { class: "hidden" }, words),
  ]);
}

function rail(probability) {
  const fill = document.createElement("i");
  fill.style.transform = `scaleX(${Math.max(probability, 0.006)})`;
  return element("span", { class: "rail", "aria-hidden": "true" }, [fill]);
}

/** A button on each card whose text does not fit. */
function offerWhole() {
  for (const text of document.querySelectorAll(".after .text")) {
    if (text.scrollHeight <= text.clientHeight + 2) continue;
    const button = element("button", { type: "button", class: "plain", "aria-expanded": "false" }, "Show more");
    button.onclick = () => {
      const isWhole = text.classList.toggle("whole");
      button.setAttribute("aria-expanded", String(isWhole));
      button.textContent = isWhole ? "Show less" : "Show more";
      drawLinks($("board"));
    };
    text.closest(".card").querySelector(".marks").append(button);
  }
}

/** The pair of cards and the line between them that belong to one passage. */
export function pick(index) {
  const board = $("board");
  board.classList.toggle("picked", index !== null);
  for (const part of board.querySelectorAll("[data-index]")) part.classList.toggle("on", part.dataset.index === index);
}

function element(name, attributes, content = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== "") made.setAttribute(key, value);
  if (typeof content === "string") made.textContent = content;
  else made.append(...content);
  return made;
}

function count(amount, noun) {
  return `${number.format(amount)} ${noun}${amount === 1 ? "" : "s"}`;
}

function duration(milliseconds) {
  if (milliseconds < 10) return `${milliseconds.toFixed(1)} ms`;
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

function percent(probability) {
  const value = probability * 100;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value > 99.9) return "> 99.9 %";
  return `${value.toFixed(1)} %`;
}

function signed(score) {
  return `${score < 0 ? "−" : "+"}${Math.abs(score).toFixed(2)}`;
}
