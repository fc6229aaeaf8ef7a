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
  const others = placesOf(result.compared);
  facts(result);
  $("meaning").textContent = meaning(result);
  $("moved").textContent = movement(ranked);
  $("before").replaceChildren(...documents.slice(0, limit).map((text, index) => givenCard(text, index, byIndex.get(index))));
  $("after").replaceChildren(...ranked.slice(0, limit).map((hit, place) => rankedCard(documents[hit.index], hit, place, others)));
  const more = $("all");
  more.hidden = documents.length <= limit;
  more.textContent = `Show all ${number.format(documents.length)}`;
  more.onclick = () => show(result, { all: true });
  $("answer").hidden = false;
  $("found").hidden = true;
  offerWhole();
  drawLinks($("board"));
}

/** Marks the passages below a probability, and says how many reach it. */
export function threshold({ answer }, probability) {
  const reached = new Set(answer.results.filter((hit) => hit.probability >= probability).map((hit) => String(hit.index)));
  for (const card of $("after").children) {
    card.classList.toggle("below", probability > 0 && !reached.has(card.dataset.index));
  }
  const said = probability > 0 ? ` ${reached.size} of ${number.format(answer.results.length)} reach ${percent(probability)}.` : "";
  $("moved").textContent = movement(answer.results) + said;
}

function placesOf(compared) {
  if (!compared) return null;
  const places = compared.results.map((hit, place) => [hit.index, { place, probability: hit.probability }]);
  return { name: compared.model, byIndex: new Map(places) };
}

function meaning({ answer, compared, isCalibrated }) {
  const fitted = isCalibrated
    ? "Percentages are probabilities that were fitted to labelled data."
    : "Percentages are the model’s own scores between 0 and 100, not fitted to your data: compare them with each other.";
  const said = fitted + warned(answer);
  if (!compared) return `Ranked by ${answer.model}. ${said}`;
  const best = (results) => new Set(results.slice(0, 5).map((hit) => hit.index));
  const [mine, theirs] = [best(answer.results), best(compared.results)];
  const shared = [...mine].filter((index) => theirs.has(index)).length;
  return `Ranked by ${answer.model}; ${shared} of its first ${mine.size} are among the first of ${compared.model}. ${said}`;
}

/** What the server says of an answer, as sentences behind others. */
export function warned({ warnings }) {
  return (warnings ?? []).map((warning) => ` Beware: ${warning}.`).join("");
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

function rankedCard(text, hit, place, others) {
  const by = hit.index - place;
  const marks = element("div", { class: "marks" }, [moveBadge(by, hit.index)]);
  if (hit.tokens) marks.append(element("span", {}, count(hit.tokens, "token")));
  const other = others?.byIndex.get(hit.index);
  if (other) marks.append(element("span", { class: "other" }, `${others.name}: place ${other.place + 1}, ${percent(other.probability)}`));
  if (hit.truncated) marks.append(element("span", { class: "cut", title: "windows read all of it" }, "cut: its end was not read"));
  const figures = element("div", { class: "figures" }, [
    element("span", { class: "percent" }, percent(hit.probability)),
    rail(hit.probability),
    element("span", { class: "logit" }, `score ${signed(hit.score)}`),
  ]);
  return element("li", { class: "card", "data-index": hit.index }, [
    element("span", { class: "place" }, String(place + 1)),
    element("div", { class: "body" }, [element("p", { class: "text", dir: "auto" }, withSpan(text, hit.span))]),
    marks,
    figures,
  ]);
}

/** The text with the window that won marked, where that is not all of it. Spans count characters, not UTF-16 units. */
export function withSpan(text, span, title = "the window that was scored") {
  if (!span) return text;
  const characters = Array.from(text);
  const [start, end] = span;
  if (start === 0 && end >= characters.length) return text;
  const part = (from, to) => characters.slice(from, to).join("");
  const lead = start > 120 ? `… ${part(start - 100, start).replace(/^\S{0,20}\s/, "")}` : part(0, start);
  return [document.createTextNode(lead), element("mark", { title }, part(start, end)), document.createTextNode(part(end))];
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

export function rail(probability) {
  const fill = document.createElement("i");
  fill.style.transform = `scaleX(${Math.max(probability, 0.006)})`;
  return element("span", { class: "rail", "aria-hidden": "true" }, [fill]);
}

/** A button on each card whose text does not fit. */
export function offerWhole() {
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

export function element(name, attributes, content = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== "") made.setAttribute(key, value);
  if (typeof content === "string") made.textContent = content;
  else made.append(...content);
  return made;
}

export function count(amount, noun) {
  return `${number.format(amount)} ${noun}${amount === 1 ? "" : "s"}`;
}

export function duration(milliseconds) {
  if (milliseconds < 10) return `${milliseconds.toFixed(1)} ms`;
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

export function percent(probability) {
  const value = probability * 100;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value > 99.9) return "> 99.9 %";
  return `${value.toFixed(1)} %`;
}

export function signed(score) {
  return `${score < 0 ? "−" : "+"}${Math.abs(score).toFixed(2)}`;
}
