// Texts to passages: by line, by paragraph, or JSONL.

export const MODES = ["lines", "paragraphs", "jsonl"];
const FIELDS = ["text", "content", "passage", "document", "body", "contents"];

/** Passages of a text; throws an Error that names the line at fault. */
export function passagesOf(text, mode) {
  if (mode === "jsonl") return fromJson(text);
  const parts = mode === "lines" ? text.split(/\r\n|\r|\n/) : text.split(/(?:\r\n|\r|\n)[^\S\r\n]*(?:\r\n|\r|\n)+/);
  return parts.map((part) => part.trim()).filter(Boolean);
}

/** The mode that a pasted or dropped text is most likely meant in. */
export function guess(text, name = "") {
  const start = text.trimStart();
  if (/\.(jsonl|ndjson|json)$/i.test(name)) return "jsonl";
  if (start.startsWith("{") || start.startsWith("[") || start.startsWith('"')) {
    try {
      if (fromJson(text).length) return "jsonl";
    } catch {
      // No JSON: prose may begin with a bracket.
    }
  }
  return /\n[^\S\n]*\n/.test(text.trim().replace(/\r\n?/g, "\n")) ? "paragraphs" : "lines";
}

function fromJson(text) {
  const whole = text.trim();
  if (whole.startsWith("[")) {
    try {
      const list = JSON.parse(whole);
      if (Array.isArray(list)) return list.map((value, index) => textOf(value, `Item ${index + 1}`));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
  }
  const passages = [];
  text.split(/\r\n|\r|\n/).forEach((line, index) => {
    if (line.trim()) passages.push(textOf(parse(line, index + 1), `Line ${index + 1}`));
  });
  return passages;
}

function parse(line, number) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Error(`Line ${number} is not JSON.`);
  }
}

function textOf(value, where) {
  if (typeof value === "string") return value;
  if (value && typeof value === "object") {
    const name = FIELDS.find((field) => typeof value[field] === "string");
    if (name) return value[name];
  }
  throw new Error(`${where} has no “text”.`);
}
