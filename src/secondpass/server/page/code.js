// The call on the page as code to copy, which gives the page's scores. A key is never part of it.

import { bodyOf } from "./client.js";

const KEY_VARIABLE = "SECONDPASS_API_KEY";

/** Snippets by name, of {base, query, documents, model, served, hasKey}; model is undefined where there is no choice. */
export const SNIPPETS = { curl, python, cohere };

function curl({ base, hasKey, ...call }) {
  const body = JSON.stringify(bodyOf(call), null, 2);
  const lines = [`curl -sS ${shell(`${base}/api/rank`)} \\`, "  -H 'Content-Type: application/json' \\"];
  if (hasKey) lines.push(`  -H "Authorization: Bearer $${KEY_VARIABLE}" \\`);
  // No line of indented JSON can be the word that ends the text.
  return [...lines, "  --data-binary @- <<'JSON'", body, "JSON"].join("\n");
}

function python({ base, query, documents, model, topN, inWindows, hasKey }) {
  const options = [
    JSON.stringify(base),
    ...(model ? [`model=${literal(model)}`] : []),
    `long_documents="${inWindows ? "chunk" : "truncate"}"`,
  ].join(", ");
  const best = topN ? `, top_n=${topN}` : "";
  return [
    "from secondpass import RemoteReranker",
    "",
    `reranker = RemoteReranker(${options})${hasKey ? `  # the key: in ${KEY_VARIABLE}` : ""}`,
    `ranking = reranker.rank(${literal(query)}, ${list(documents)}${best})`,
    "for hit in ranking:",
    '    print(f"{hit.probability:.3f}  {hit.score:+.2f}  {hit.document.text}")',
  ].join("\n");
}

// Its v2 reads windows, up to max_tokens_per_doc; its v1 may be told to read one, which is the beginning.
function cohere({ base, query, documents, topN, inWindows, served, hasKey }) {
  const key = hasKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return [
    ...(hasKey ? ["import os", ""] : []),
    "import cohere",
    "",
    `client = cohere.${inWindows ? "ClientV2" : "Client"}(${key}, base_url=${JSON.stringify(base)})`,
    "answer = client.rerank(",
    `    model=${literal(served)},`,
    `    query=${literal(query)},`,
    `    documents=${list(documents, "    ")},`,
    ...(topN ? [`    top_n=${topN},`] : []),
    inWindows ? "    max_tokens_per_doc=1_000_000," : "    max_chunks_per_doc=1,",
    ")",
    "for result in answer.results:",
    '    print(f"{result.relevance_score:.3f}  {result.index}")',
  ].join("\n");
}

// Every JSON string is a Python string literal of the same text, but for lone surrogates, which have no UTF-8.
function literal(text) {
  return JSON.stringify(text.toWellFormed ? text.toWellFormed() : text);
}

function list(texts, indent = "") {
  return `[\n${texts.map((text) => `${indent}    ${literal(text)},\n`).join("")}${indent}]`;
}

function shell(text) {
  return `'${text.replaceAll("'", `'"'"'`)}'`;
}
