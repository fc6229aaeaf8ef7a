// Joins the parts: what is typed, what is asked, what is shown.

import { Problem, base, judge, rank, search, served } from "./client.js";
import { SNIPPETS } from "./code.js";
import { EXAMPLES } from "./examples.js";
import { drawLinks } from "./links.js";
import { guess, passagesOf } from "./parse.js";
import { showFound, spokenFound } from "./search.js";
import { pick, show, spoken, threshold } from "./view.js";

const $ = (id) => document.getElementById(id);
const KEY = "secondpass-key";
const MAX_FILE_BYTES = 20 * 1024 * 1024;
const number = new Intl.NumberFormat("en");
let running = null; // the AbortController of the call under way
let last = null; // what was asked last
let calibrated = new Set(); // names of models whose probabilities were fitted to data

// --- what is typed

function mode() {
  return document.querySelector('input[name="mode"]:checked').value;
}

function setMode(value) {
  document.querySelector(`input[name="mode"][value="${value}"]`).checked = true;
}

function recount() {
  const counter = $("count");
  counter.classList.remove("wrong");
  try {
    const amount = passagesOf($("passages").value, mode()).length;
    counter.textContent = amount ? `${number.format(amount)} passage${amount === 1 ? "" : "s"}` : "No passages";
  } catch (error) {
    counter.textContent = error.message;
    counter.classList.add("wrong");
  }
}

function fill(text, name = "") {
  $("passages").value = text;
  setMode(guess(text, name));
  recount();
}

async function load(files) {
  const texts = [];
  for (const file of files) {
    if (file.size > MAX_FILE_BYTES) return complain(new Problem("That file is too large", `${file.name} has more than 20 MB.`));
    texts.push((await file.text()).trim());
  }
  if (texts.length) fill(texts.join(texts.some((text) => guess(text) === "paragraphs") ? "\n\n" : "\n"), files[0].name);
}

function loadExample(index) {
  const { query, passages } = EXAMPLES[index];
  $("query").value = query;
  fill(passages.join("\n"));
  return run();
}

// --- what is asked

function isSearch() {
  return document.querySelector('input[name="source"]:checked').value === "index";
}

function asked() {
  const query = $("query").value.trim();
  const documents = isSearch() ? [] : passagesOf($("passages").value, mode());
  if (!query) throw Object.assign(new Problem("There is no query", "Say what is being looked for."), { field: $("query") });
  if (!documents.length && !isSearch()) {
    throw Object.assign(new Problem("There are no passages", "Paste some, or drop a file."), { field: $("passages") });
  }
  const topN = $("top").value === "" ? undefined : Math.trunc(Number($("top").value));
  if (topN !== undefined && !(topN >= 1)) {
    throw Object.assign(new Problem("That is no number of passages", "Give 1 or more, or leave it empty for all."), { field: $("top") });
  }
  if (isSearch()) return { query, topN, ...filters() };
  return {
    query,
    documents,
    model: $("model").hidden ? undefined : $("model").value,
    topN,
    inWindows: $("windows").checked,
  };
}

function filters() {
  return {
    path: $("path").value.trim(),
    since: $("since").value,
    isWeighed: $("weigh").checked,
    isSpread: $("spread").checked,
  };
}

async function run() {
  if (running) return running.abort();
  let call;
  try {
    call = asked();
  } catch (error) {
    complain(error instanceof Problem ? error : new Problem("That is not JSONL", error.message));
    (error.field ?? $("passages")).focus();
    return;
  }
  busy(new AbortController());
  try {
    await (isSearch() ? runSearch(call) : runRank(call));
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "Stopped.";
    else complain(error instanceof Problem ? error : new Problem("The page failed", error.message));
  } finally {
    busy(null);
  }
}

async function runRank(call) {
  const key = $("key").value.trim();
  const { answer, milliseconds } = await rank(call, key, running.signal);
  const other = $("other").value;
  const compared = other && (await rank({ ...call, model: other, topN: undefined }, key, running.signal)).answer;
  present({ ...call, answer, milliseconds, compared, isCalibrated: calibrated.has(answer.model) });
}

async function runSearch(call) {
  const { answer, milliseconds } = await search(call, $("key").value.trim(), running.signal);
  $("idle").hidden = $("answer").hidden = true;
  showFound({ answer, milliseconds }, (id, kind) => judge(call.query, id, kind, $("key").value.trim()).catch(complain));
  $("status").textContent = spokenFound({ answer, milliseconds });
  bringUp();
}

function busy(controller) {
  running = controller;
  $("run-label").textContent = controller ? "Stop" : isSearch() ? "Search" : "Rank";
  $("results").setAttribute("aria-busy", String(Boolean(controller)));
  if (controller) {
    $("problem").hidden = true;
    $("status").textContent = isSearch() ? "Searching." : "Ranking.";
  }
}

// --- what is shown

function present(result) {
  last = result;
  $("idle").hidden = true;
  show(result);
  mark();
  showCode();
  $("status").textContent = spoken(result);
  bringUp();
}

function bringUp() {
  if (matchMedia("(max-width: 1060px)").matches) $("results").scrollIntoView({ block: "start" });
}

function mark() {
  const percent = Number($("threshold").value);
  $("threshold-value").textContent = percent ? `${percent} %` : "none";
  if (last) threshold(last, percent / 100);
}

function complain({ title, detail, needsKey, mayPass }) {
  const hasNoKey = needsKey && !$("key").value.trim();
  $("problem-title").textContent = title;
  $("problem-detail").textContent = hasNoKey ? "Enter it under “API key” and try again." : detail;
  $("again").hidden = !mayPass;
  $("problem").hidden = false;
  $("status").textContent = "";
  if (needsKey) {
    $("key-box").open = true;
    $("key").focus();
  }
  if (matchMedia("(max-width: 1060px)").matches) $("problem").scrollIntoView({ block: "center" });
}

function snippet() {
  const name = document.querySelector('[role="tab"][aria-selected="true"]').id.slice("tab-".length);
  return SNIPPETS[name]({ ...last, base, served: last.answer.model, hasKey: Boolean($("key").value.trim()) });
}

function showCode() {
  const text = snippet();
  const most = 20_000;
  $("code").firstElementChild.textContent = text.length > most ? `${text.slice(0, most)}\n… (Copy takes all of it)` : text;
}

function choose(tab) {
  for (const other of document.querySelectorAll('[role="tab"]')) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  $("code").setAttribute("aria-labelledby", tab.id);
  showCode();
}

function step(event) {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const next = tabs[(tabs.indexOf(event.target) + move + tabs.length) % tabs.length];
  choose(next);
  next.focus();
}

async function copy() {
  const button = $("copy");
  try {
    await navigator.clipboard.writeText(snippet());
    button.textContent = "Copied";
    $("status").textContent = "Copied.";
  } catch {
    // Without HTTPS a browser has no clipboard: what is selected can be copied by hand.
    getSelection().selectAllChildren($("code"));
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2500);
}

async function askModels() {
  try {
    const { models: found, index } = await served($("key").value.trim());
    $("sources").hidden = !index;
    $("index-name").textContent = index ?? "";
    const picker = $("model");
    picker.replaceChildren(...found.map(({ name }) => new Option(name, name)));
    $("model-label").hidden = picker.hidden = found.length < 2;
    const about = ({ name, engine, dtype, max_length }) => `${name} · ${engine}, ${dtype}, reads ${max_length} tokens`;
    $("model-name").textContent = found.length === 1 ? about(found[0]) : "";
    $("other").replaceChildren(new Option("nothing", ""), ...found.map(({ name }) => new Option(name, name)));
    $("other-label").hidden = found.length < 2;
    calibrated = new Set(found.filter((model) => model.is_calibrated).map(({ name }) => name));
    $("problem").hidden = true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.needsKey && !$("key").value.trim()) $("key-box").open = true;
    else complain(error);
  }
}

// --- the key: in memory, and in this tab's storage only when that is ticked

function keepKey() {
  if ($("keep").checked) sessionStorage.setItem(KEY, $("key").value);
  else sessionStorage.removeItem(KEY);
}

function recallKey() {
  const kept = sessionStorage.getItem(KEY);
  if (!kept) return;
  $("key").value = kept;
  $("keep").checked = $("key-box").open = true;
}

// --- events

function suitSource() {
  const hasIndex = isSearch();
  for (const id of ["drop", "example-box", "threshold-label", "windows-label"]) $(id).hidden = hasIndex;
  $("other-label").hidden = hasIndex || $("other").length < 3;
  $("filters").hidden = !hasIndex;
  $("top").placeholder = hasIndex ? "10" : "all";
  $("run-label").textContent = hasIndex ? "Search" : "Rank";
}

function listenToForm() {
  for (const radio of document.querySelectorAll('input[name="source"]')) radio.addEventListener("change", suitSource);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    event.preventDefault();
    if (!running) run();
  });
  $("passages").addEventListener("input", recount);
  $("passages").addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (!$("passages").value.trim() && text) setMode(guess(text));
  });
  for (const radio of document.querySelectorAll('input[name="mode"]')) radio.addEventListener("change", recount);
  $("clear").addEventListener("click", () => {
    fill("");
    $("passages").focus();
  });
  $("key").addEventListener("change", () => {
    keepKey();
    askModels();
    if (last) showCode();
  });
  $("keep").addEventListener("change", keepKey);
  $("threshold").addEventListener("input", mark);
}

function listenToFiles() {
  const zone = $("drop");
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async (event) => {
    await load([...event.target.files]);
    event.target.value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) zone.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const { files } = event.dataTransfer;
    if (files.length) load([...files]);
    else fill(event.dataTransfer.getData("text/plain"));
  });
}

function listenToResults() {
  $("again").addEventListener("click", run);
  $("try").addEventListener("click", () => loadExample(0));
  $("example").append(...EXAMPLES.map(({ name }, index) => new Option(name, index)));
  $("example").addEventListener("change", async (event) => {
    const index = event.target.value;
    event.target.value = "";
    if (index !== "" && !running) await loadExample(Number(index));
  });
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", step);
  }
  $("copy").addEventListener("click", copy);
  $("board").addEventListener("pointerover", (event) => pick(event.target.closest("li.card")?.dataset.index ?? null));
  $("board").addEventListener("pointerleave", () => pick(null));
  new ResizeObserver(() => drawLinks($("board"))).observe($("board"));
}

listenToForm();
listenToFiles();
listenToResults();
recallKey();
recount();
askModels();
