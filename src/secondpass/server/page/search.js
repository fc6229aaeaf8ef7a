// What the index found: each hit with what every stage thought of it, as bars. Texts are only ever set as text.

import { count, duration, element, offerWhole, percent, rail, signed, warned, withSpan } from "./view.js";

const $ = (id) => document.getElementById(id);
const TERMS = {
  recency: ["Recency", "newer than most", "older than most"],
  frequency: ["Use", "used before", "never used"],
  confidence: ["Confidence", "confirmed", "contradicted"],
  entities: ["Names", "has names of the question", "lacks names of the question"],
  importance: ["Importance", "marked as important", "marked as unimportant"],
};

/** Shows {answer, milliseconds}; judge(id, kind) tells the index that a hit was used or rejected. */
export function showFound({ answer, milliseconds }, judge) {
  const hits = answer.results;
  const most = (stage) => Math.max(...hits.map((hit) => hit.parts?.[`${stage}_score`] ?? 0), 1e-9);
  const read = answer.usage.rows ? `, ${count(answer.usage.rows, "candidate")} read with the question` : "";
  const said = hits.length
    ? `${count(hits.length, "passage")} in ${duration(milliseconds)}${read}.`
    : "Nothing was found. Other words may be in the files, or a filter leaves them out.";
  $("found-line").textContent = said + warned(answer);
  $("found-title").hidden = !hits.length;
  $("hits").replaceChildren(...hits.map((hit, place) => card(hit, place, most, judge)));
  $("found").hidden = false;
  offerWhole();
}

/** One sentence for people who listen. */
export function spokenFound({ answer, milliseconds }) {
  const [first] = answer.results;
  const what = `${count(answer.results.length, "passage")} found in ${duration(milliseconds)}.`;
  return first ? `${what} First: ${first.heading || first.file}.` : what;
}

function card(hit, place, most, judge) {
  const isRead = hit.probability !== null;
  const body = element("div", { class: "body" }, [
    element("p", { class: "where", dir: "auto" }, [
      element("strong", {}, hit.heading || hit.file.split(/[\\/]/).pop()),
      element("span", { class: "file" }, `${hit.file}:${hit.line}`),
    ]),
    element("p", { class: "text", dir: "auto" }, withSpan(hit.text, hit.sentence, "the sentence that answers best")),
  ]);
  const figures = element("div", { class: "figures" }, [
    element("span", { class: "percent" }, isRead ? percent(hit.probability) : "not read"),
    rail(hit.probability ?? 0),
  ]);
  const marks = element("div", { class: "marks" }, [verdict("Useful", "used", hit, judge), verdict("Not useful", "rejected", hit, judge)]);
  for (const copy of hit.fields.copies ?? []) marks.append(element("span", {}, `also in ${copy}`));
  return element("li", { class: "card", "data-index": hit.id }, [
    element("span", { class: "place" }, String(place + 1)),
    body,
    marks,
    figures,
    why(hit, place, most),
  ]);
}

function verdict(label, kind, hit, judge) {
  const button = element("button", { type: "button", class: "plain" }, label);
  button.onclick = async () => {
    if (!(await judge(hit.id, kind))) return;
    for (const other of button.parentElement.querySelectorAll("button")) other.disabled = true;
    button.textContent = "Noted";
  };
  return button;
}

/** Why a hit stands here: a sentence, and below it a bar for each stage. */
function why(hit, place, most) {
  const box = element("details", { class: "why" }, [
    element("summary", {}, `Why: ${reason(hit)}`),
    element("table", {}, [element("caption", { class: "hidden" }, "What every stage thought"), element("tbody", {}, rows(hit, most))]),
  ]);
  box.open = place === 0; // the others say it in a sentence
  return box;
}

function reason({ parts, probability }) {
  const found = [
    parts.bm25_rank && `${ordinal(parts.bm25_rank)} by its words`,
    parts.dense_rank && `${ordinal(parts.dense_rank)} by its meaning`,
    parts.sparse_rank && `${ordinal(parts.sparse_rank)} by its weighed tokens`,
    parts.colbert_rank && `${ordinal(parts.colbert_rank)} token by token`,
  ].filter(Boolean);
  const first = relevance(parts, probability);
  const read = first === null ? "not read with the question" : `${percent(first)} after reading it with the question`;
  const said = [...found, read].join(", ");
  if (parts.superseded) return `${said}; a newer one has taken its place.`;
  const [strongest] = terms(parts).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  if (!strongest || !parts.gate) return `${said}.`;
  return `${said}; ${strongest.value > 0 ? strongest.more : strongest.less}.`;
}

function rows(hit, most) {
  const { parts } = hit;
  const first = relevance(parts, hit.probability);
  const shown = [
    stage("Words", parts.bm25_rank, parts.bm25_score, parts.bm25_score / most("bm25")),
    stage("Meaning", parts.dense_rank, parts.dense_score, parts.dense_score),
    ...[["sparse", "Weighed tokens"], ["colbert", "Token by token"]]
      .filter(([name]) => parts[`${name}_rank`])
      .map(([name, label]) => stage(label, parts[`${name}_rank`], parts[`${name}_score`], parts[`${name}_score`] / most(name))),
    row("Joined", bar(parts.fused), parts.fused?.toFixed(2) ?? ""),
    row("Read together", bar(first ?? 0), first === null ? "not read" : `${percent(first)}, score ${signed(parts.logit ?? hit.score)}`),
    ...terms(parts).map(({ name, value }) => row(name, sides(value), signed(value))),
  ];
  const added = (parts.final ?? 0) - (parts.relevance ?? 0);
  if (Math.abs(added) >= 0.005) shown.push(row("In all", sides(added), `${signed(added)} to the score: ${percent(hit.probability)}`));
  return shown;
}

function terms(parts) {
  return Object.entries(TERMS)
    .filter(([name]) => Math.abs(parts[name] ?? 0) >= 0.005)
    .map(([name, [title, more, less]]) => ({ name: title, value: parts[name], more, less }));
}

/** The probability that reading alone gave; null where a hit was not read. */
function relevance(parts, probability) {
  return parts.relevance === undefined ? probability : 1 / (1 + Math.exp(-parts.relevance));
}

function stage(name, rank, score, share) {
  return rank ? row(name, bar(share), `${ordinal(rank)}, ${score.toFixed(2)}`) : row(name, bar(0), "not among the first");
}

function row(name, shape, figure) {
  return element("tr", {}, [element("th", { scope: "row" }, name), element("td", { class: "shape" }, [shape]), element("td", { class: "figure" }, figure)]);
}

const bar = (share) => rail(Math.min(Math.max(share || 0, 0), 1));

/** A bar from the middle: to the right what speaks for a hit, to the left what speaks against it. */
function sides(value) {
  const fill = document.createElement("i");
  const share = Math.min(Math.abs(value), 1) / 2;
  fill.style.width = `${100 * share}%`;
  fill.style.marginInlineStart = `${100 * (value < 0 ? 0.5 - share : 0.5)}%`;
  return element("span", { class: value < 0 ? "rail sides less" : "rail sides", "aria-hidden": "true" }, [fill]);
}

function ordinal(rank) {
  const ends = { 1: "st", 2: "nd", 3: "rd" };
  const isTeen = Math.floor((rank % 100) / 10) === 1;
  return `${rank}${isTeen ? "th" : (ends[rank % 10] ?? "th")}`;
}
