// Results of memory_search in the order of a reranker. Every function answers null where the host's order has to stay:
// the server is down or late, the answer is not what was asked for, or there is nothing to order.

export const DEFAULTS = { baseUrl: "http://127.0.0.1:8787/v1", timeoutMs: 2000, maxResults: 6 };
const SOURCE_LINE = /\n*Source: \S+#L\d+\S*\s*$/;

/** The probabilities of documents for a query, by their index; null where the server does not answer in time. */
export async function scores(query, documents, config) {
  const { baseUrl, timeoutMs } = { ...DEFAULTS, ...config };
  const headers = { "content-type": "application/json" };
  if (config.apiKey) headers.authorization = `Bearer ${config.apiKey}`;
  const body = { query, documents };
  if (config.model) body.model = config.model;
  const answer = await fetch(`${baseUrl.replace(/\/+$/, "")}/rerank`, {
    method: "POST",
    headers,
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(timeoutMs),
  });
  if (!answer.ok) return null;
  const found = (await answer.json()).results;
  if (!Array.isArray(found) || found.length !== documents.length) return null;
  const byIndex = new Map(found.map((hit) => [hit.index, hit.relevance_score]));
  const isWhole = documents.every((_, index) => Number.isFinite(byIndex.get(index)));
  return isWhole ? documents.map((_, index) => byIndex.get(index)) : null;
}

/** The text of a memory_search result with its hits reordered and cut, or null. */
export async function reordered(text, query, config) {
  const data = JSON.parse(text);
  if (typeof query !== "string" || !query || !Array.isArray(data.results) || data.results.length < 2) return null;
  const documents = data.results.map((hit) => String(hit.snippet ?? "").replace(SOURCE_LINE, ""));
  const found = await scores(query, documents, config);
  if (found === null) return null;
  const results = data.results
    .map((hit, index) => ({ ...hit, rerankScore: found[index] }))
    .map((hit, index) => ({ hit, index }))
    .sort((a, b) => b.hit.rerankScore - a.hit.rerankScore || a.index - b.index)
    .map(({ hit }) => hit)
    .slice(0, config.maxResults ?? DEFAULTS.maxResults);
  return JSON.stringify({ ...data, results });
}

const textBlock = (content) => content?.find?.((block) => block.type === "text");

/** The tool result in the new order; undefined leaves it as it is. The host calls memory_search itself or through
 * tool_call, whose result holds that of memory_search as JSON inside of JSON. */
export async function rerankedResult(event, config) {
  const isDirect = event.toolName === "memory_search";
  const isNested = event.toolName === "tool_call" && /(^|:)memory_search$/.test(event.args?.id ?? "");
  if (event.isError || (!isDirect && !isNested)) return undefined;
  try {
    const block = textBlock(event.result.content);
    const text = isDirect
      ? await reordered(block.text, event.args.query, config)
      : await nested(block.text, event.args.args?.query, config);
    if (text === null) return undefined;
    const content = event.result.content.map((each) => (each === block ? { ...each, text } : each));
    return { result: { ...event.result, content } };
  } catch {
    return undefined; // the host's order stays: a memory without reranking is better than none
  }
}

async function nested(text, query, config) {
  const outer = JSON.parse(text);
  const inner = textBlock(outer.result.content);
  const changed = await reordered(inner.text, query, config);
  if (changed === null) return null;
  inner.text = changed;
  return JSON.stringify(outer);
}
