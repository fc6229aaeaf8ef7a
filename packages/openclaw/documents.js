// An index of documents, served by `secondpass serve --index NAME`, as a corpus beside the host's memory.

import { DEFAULTS } from "./rerank.js";

async function asked(path, body, config) {
  const { baseUrl, timeoutMs } = { ...DEFAULTS, ...config };
  const headers = { "content-type": "application/json" };
  if (config.apiKey) headers.authorization = `Bearer ${config.apiKey}`;
  const answer = await fetch(`${baseUrl.replace(/\/+$/, "")}/index/${path}`, {
    method: "POST",
    headers,
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(timeoutMs),
  });
  return answer.ok ? answer.json() : null;
}

/** A corpus supplement: search answers [] and get null where the server does not answer in time. */
export function documentCorpus(config) {
  return {
    async search({ query, maxResults = DEFAULTS.maxResults }) {
      try {
        const found = await asked("search", { query, top_n: maxResults }, config);
        return (found?.results ?? []).map((hit) => ({
          corpus: "secondpass",
          path: `${hit.file}#${hit.id}`, // get is asked for by path
          title: hit.heading,
          kind: "document",
          score: hit.probability ?? 0,
          snippet: hit.text,
          id: String(hit.id),
          startLine: hit.line,
          endLine: hit.last_line,
        }));
      } catch {
        return [];
      }
    },
    async get({ lookup }) {
      try {
        const id = /^(?:.*#)?(\d+)$/.exec(lookup)?.[1]; // a path of search's, or an id; others are another corpus's
        if (!id) return null;
        const found = await asked("get", { id: Number(id) }, config);
        if (found === null) return null;
        const { file, heading, text, line, last_line: last } = found;
        return { corpus: "secondpass", path: file, title: heading, content: text, fromLine: line, lineCount: last - line + 1 };
      } catch {
        return null;
      }
    },
  };
}
