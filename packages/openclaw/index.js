// secondpass for OpenClaw: memory_search in the order of a local reranker, and documents beside the memory.

import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
import { documentCorpus } from "./documents.js";
import { rerankedResult } from "./rerank.js";

export default definePluginEntry({
  id: "secondpass",
  name: "secondpass",
  description: "Reranks memory_search with a local secondpass server, and searches your documents beside it.",
  register(api) {
    const config = api.pluginConfig ?? {};
    api.registerAgentToolResultMiddleware((event) => rerankedResult(event, config), { runtimes: ["openclaw"] });
    if (config.index) api.registerMemoryCorpusSupplement(documentCorpus(config));
  },
});
