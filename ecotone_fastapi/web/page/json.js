// JSON with lines and indents, in which every number and every text stays exactly as it was written.

const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const INDENT = "  ";
const DEEPEST = 50; // levels that have lines of their own; what lies deeper stays in one
const LONGER = 4; // how many times as long as the text its lines and indents make it at most
const ANYWAY = 262144; // characters that are never too many

/** Returns the parts of a text that is JSON, or null when it is none. */
function tokens(text) {
  try {
    JSON.parse(text);
    return text.match(TOKEN);
  } catch {
    return null; // or it is more than the browser can take
  }
}

/** Returns JSON with its lines and indents, the text itself where these would be too many, or null when it is no JSON. */
export function pretty(text) {
  const found = tokens(text);
  if (found === null) {
    return null;
  }
  const most = Math.max(LONGER * text.length, ANYWAY);
  let depth = 0;
  let written = "";
  for (let at = 0; at < found.length; at += 1) {
    const token = found[at];
    const next = found[at + 1];
    if (token === "{" || token === "[") {
      const empty = next === "}" || next === "]";
      depth += empty ? 0 : 1;
      written += empty ? token : token + newLine(depth);
    } else if (token === "}" || token === "]") {
      const empty = found[at - 1] === "{" || found[at - 1] === "[";
      written += empty ? token : newLine(depth, -1) + token;
      depth -= empty ? 0 : 1;
    } else if (token === ",") {
      written += token + newLine(depth);
    } else {
      written += token === ":" ? ": " : token;
    }
    if (written.length > most) {
      return text;
    }
  }
  return written;
}

/** Begins a line in brackets so deep, or the one that closes them. */
function newLine(depth, beside = 0) {
  return depth > DEEPEST ? "" : `\n${INDENT.repeat(depth + beside)}`;
}

/** Says why a text is no JSON, or null when it is. */
export function fault(text) {
  try {
    JSON.parse(text);
    return null;
  } catch (error) {
    return error.message;
  }
}
