// The call on the page as code to copy. A key is never part of it.

const KEY_VARIABLE = "SECONDPASS_API_KEY";

/** Snippets by name, of {base, query, documents, model, served, hasKey}; model is undefined where there is no choice. */
export const SNIPPETS = { curl, python, cohere };

function curl({ base, query, documents, model, hasKey }) {
  const body = JSON.stringify({ ...(model && { model }), query, documents }, null, 2);
  const lines = [`curl -sS ${shell(`${base}/v2/rerank`)} \\`, "  -H 'Content-Type: application/json' \\"];
  if (hasKey) lines.push(`  -H "Authorization: Bearer $${KEY_VARIABLE}" \\`);
  // No line of indented JSON can be the word that ends the text.
  return [...lines, "  --data-binary @- <<'JSON'", body, "JSON"].join("\n");
}

function python({ base, query, documents, model, hasKey }) {
  const options = [JSON.stringify(base), ...(model ? [`model=${literal(model)}`] : [])].join(", ");
  return [
    "from secondpass import RemoteReranker",
    "",
    `reranker = RemoteReranker(${options})${hasKey ? `  # the key: in ${KEY_VARIABLE}` : ""}`,
    `ranking = reranker.rank(${literal(query)}, ${list(documents)})`,
    "for hit in ranking:",
    '    print(f"{hit.probability:.3f}  {hit.score:+.2f}  {hit.document.text}")',
  ].join("\n");
}

function cohere({ base, query, documents, served, hasKey }) {
  const key = hasKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return [
    ...(hasKey ? ["import os", ""] : []),
    "import cohere",
    "",
    `client = cohere.ClientV2(${key}, base_url=${JSON.stringify(base)})`,
    "answer = client.rerank(",
    `    model=${literal(served)},`,
    `    query=${literal(query)},`,
    `    documents=${list(documents, "    ")},`,
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
