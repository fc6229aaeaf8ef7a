// Talks to the server that the page came from; failures become words for people.

const BASE = new URL(".", document.baseURI);

/** The server's address without a slash at its end, as other programs are given it. */
export const base = BASE.href.replace(/\/$/, "");

/** A failure in words: what happened, what to do, and whether trying again may help. */
export class Problem extends Error {
  constructor(title, detail, { needsKey = false, mayPass = false } = {}) {
    super(title);
    Object.assign(this, { title, detail, needsKey, mayPass });
  }
}

const WORDS = {
  400: "The server could not read that",
  401: "This server asks for a key",
  403: "The server does not allow this",
  404: "The server does not know that",
  413: "That is more than this server takes at once",
  422: "The server could not use that",
  429: "The server is busy",
  499: "Stopped",
  503: "The server is not ready",
  504: "It took too long",
};

/** What is served: {models: [{name, max_length}] that can rank, index: a name or null}. */
export async function served(key) {
  const { models, index } = await ask("api/models", { headers: headers(key) });
  return { models: models.filter((model) => model.is_reranker), index };
}

/** Ranks; gives the answer and the milliseconds that it took from here. */
export function rank(call, key, signal) {
  return post("api/rank", bodyOf(call), key, signal);
}

/** Searches the served index, with all that makes a hit's place; as rank. */
export function search({ query, topN, path, since, isWeighed, isSpread }, key, signal) {
  const options = { ...(path && { path }), ...(since && { since }), ...(isSpread && { diversity: "file" }) };
  const body = { query, top_n: topN ?? 10, cognitive: isWeighed, explain: true, sentences: true, ...options };
  return post("v1/index/search", body, key, signal);
}

/** Tells the index that a hit was of use, or not. */
export function judge(query, id, kind, key) {
  return post("v1/index/feedback", { query, id, kind }, key);
}

async function post(path, body, key, signal) {
  const started = performance.now();
  const answer = await ask(path, {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  return { answer, milliseconds: performance.now() - started };
}

/** The body of a call, the same here and in the code that the page shows. */
export function bodyOf({ query, documents, model, topN, inWindows }) {
  return {
    ...(model && { model }),
    query,
    documents,
    ...(topN && { top_n: topN }),
    long_documents: inWindows ? "chunk" : "truncate",
  };
}

function headers(key) {
  return key ? { Accept: "application/json", Authorization: `Bearer ${key}` } : { Accept: "application/json" };
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, BASE), { credentials: "same-origin", cache: "no-store", redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("No answer from the server", "Is it running, and can this device reach it?", { mayPass: true });
  }
  const body = await read(response);
  if (!response.ok) throw refusal(response, body);
  if (!body) throw new Problem("The answer could not be read", "Something between this page and the server changed it.");
  return body;
}

async function read(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return null;
  }
}

function refusal(response, body) {
  const status = response.status;
  const said = body?.error?.message ?? body?.message ?? body?.detail;
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  const wait = seconds ? `Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.` : "";
  const title = WORDS[status] ?? `The server failed (${status})`;
  const detail = [typeof said === "string" ? sentence(said) : "", wait].filter(Boolean).join(" ");
  return new Problem(title, detail, { needsKey: status === 401, mayPass: status === 429 || status >= 500 });
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
