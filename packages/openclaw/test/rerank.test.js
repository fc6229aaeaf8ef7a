// Results of OpenClaw's memory_search against a loopback server, in order and in trouble.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, beforeEach, test } from "node:test";
import { documentCorpus } from "../documents.js";
import { rerankedResult } from "../rerank.js";

const HITS = [
  { path: "MEMORY.md", startLine: 1, endLine: 2, score: 0.6, snippet: "Beans need water.\n\nSource: MEMORY.md#L1-L2" },
  { path: "memory/a.md", startLine: 4, endLine: 5, score: 0.5, snippet: "Beans cook for ninety minutes." },
  { path: "memory/b.md", startLine: 1, endLine: 1, score: 0.4, snippet: "The car is red." },
];
const recorded = JSON.parse(readFileSync(new URL("recorded.json", import.meta.url), "utf-8"));
let server, config, answer, seen;

before(async () => {
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (part) => (body += part));
    request.on("end", () => {
      seen.push({ url: request.url, headers: request.headers, body: JSON.parse(body) });
      answer(response, JSON.parse(body));
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  config = { baseUrl: `http://127.0.0.1:${server.address().port}/v1/`, apiKey: "key", timeoutMs: 10000 };
});
after(() => server.closeAllConnections() ?? server.close());
beforeEach(() => {
  seen = [];
  answer = (response, body) => {
    const results = body.documents.map((text, index) => ({ index, relevance_score: text.includes("ninety") ? 0.9 : 0.1 }));
    response.end(JSON.stringify({ results }));
  };
});

const direct = (results = HITS) => ({
  toolName: "memory_search",
  args: { query: "how long do beans cook" },
  result: { content: [{ type: "text", text: JSON.stringify({ results, provider: "x" }) }] },
});
const nested = () => {
  const inner = direct();
  return {
    toolName: "tool_call",
    args: { id: "core:memory_search", args: inner.args },
    result: { content: [{ type: "text", text: JSON.stringify({ tool: "memory_search", result: inner.result }) }] },
  };
};
const pathsOf = (text) => JSON.parse(text).results.map((hit) => hit.path);

test("a direct result is reordered, the source line is not scored", async () => {
  const changed = await rerankedResult(direct(), config);
  assert.deepEqual(pathsOf(changed.result.content[0].text), ["memory/a.md", "MEMORY.md", "memory/b.md"]);
  assert.equal(JSON.parse(changed.result.content[0].text).provider, "x");
  assert.equal(seen[0].url, "/v1/rerank");
  assert.equal(seen[0].headers.authorization, "Bearer key");
  assert.equal(seen[0].body.documents[0], "Beans need water.");
});

test("a result inside of tool_call is reordered", async () => {
  const changed = await rerankedResult(nested(), config);
  const outer = JSON.parse(changed.result.content[0].text);
  assert.equal(outer.tool, "memory_search");
  assert.equal(pathsOf(outer.result.content[0].text)[0], "memory/a.md");
});

test("the result is cut after reranking", async () => {
  const changed = await rerankedResult(direct(), { ...config, maxResults: 1 });
  assert.deepEqual(pathsOf(changed.result.content[0].text), ["memory/a.md"]);
});

test("other tools, errors and single hits are left alone", async () => {
  assert.equal(await rerankedResult({ ...direct(), toolName: "read" }, config), undefined);
  assert.equal(await rerankedResult({ ...direct(), isError: true }, config), undefined);
  assert.equal(await rerankedResult(direct(HITS.slice(0, 1)), config), undefined);
  assert.equal(seen.length, 0);
});

for (const [name, bad] of Object.entries({
  "an error": (response) => response.writeHead(503).end("{}"),
  "no JSON": (response) => response.end("<html>"),
  "too few results": (response) => response.end(JSON.stringify({ results: [{ index: 0, relevance_score: 1 }] })),
  "an index twice": (response, { documents }) =>
    response.end(JSON.stringify({ results: documents.map(() => ({ index: 0, relevance_score: 1 })) })),
  "scores that are no numbers": (response, { documents }) =>
    response.end(JSON.stringify({ results: documents.map((_, index) => ({ index, relevance_score: null })) })),
  "no answer in time": () => {},
  "an answer that does not end": (response) => response.write('{"results": ['),
})) {
  test(`the host's order stays after ${name}`, async () => {
    answer = bad;
    const hasty = /in time|not end/.test(name) ? { ...config, timeoutMs: 100 } : config;
    assert.equal(await rerankedResult(direct(), hasty), undefined);
    assert.equal(await rerankedResult(nested(), hasty), undefined);
  });
}

test("the host's order stays when there is no server", async () => {
  assert.equal(await rerankedResult(direct(), { ...config, baseUrl: "http://127.0.0.1:9/v1" }), undefined);
});

test("documents are a corpus of their own", async () => {
  const hit = { id: 7, file: "/n/a.md", heading: "A > B", text: "t", line: 3, last_line: 5, probability: 0.8 };
  answer = (response, body) => response.end(JSON.stringify(body.query ? { results: [hit] } : hit));
  const corpus = documentCorpus(config);
  const [found] = await corpus.search({ query: "q", maxResults: 2 });
  assert.deepEqual([found.path, found.score, found.id, found.startLine], ["/n/a.md#7", 0.8, "7", 3]);
  assert.deepEqual(seen[0].body, { query: "q", top_n: 2 });
  assert.equal((await corpus.get({ lookup: "/n/a.md#7" })).lineCount, 3);
  assert.deepEqual(seen.at(-1).body, { id: 7 });
  assert.equal(await corpus.get({ lookup: "memory/note7" }), null);
  answer = (response) => response.writeHead(500).end();
  assert.deepEqual(await corpus.search({ query: "q" }), []);
  assert.equal(await corpus.get({ lookup: "7" }), null);
});

test("what OpenClaw 2026.9.6 gave is reordered where it lies, and the rest of it stays", async () => {
  const event = {
    toolName: "tool_call",
    args: { id: "memory_search", args: { query: recorded.query } },
    result: { content: [{ type: "text", text: recorded.text }] },
  };
  const changed = JSON.parse((await rerankedResult(event, config)).result.content[0].text);
  const [before, after] = [JSON.parse(recorded.text), changed].map((outer) => JSON.parse(outer.result.content[0].text));
  assert.deepEqual(before.results.map((hit) => hit.path), ["MEMORY.md", "memory/2026-11-01.md"]);
  assert.deepEqual(after.results.map((hit) => hit.path), ["memory/2026-11-01.md", "MEMORY.md"]);
  assert.deepEqual({ ...after, results: [] }, { ...before, results: [] });
  assert.deepEqual(changed.tool, JSON.parse(recorded.text).tool);
  assert.deepEqual(seen[0].body.documents, [
    "# Memory\n\nBeans need a pot, and a long spoon. Bo is the cook.",
    "# Kitchen\n\nDry beans cook for ninety minutes in salted water.",
  ]);
});
