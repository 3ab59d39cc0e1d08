// JSON with lines and indents, in which every number and every text stays exactly as it was written.

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const INDENT = "  ";

/** Returns the parts of a text that is JSON, or null when it is none. */
export function tokens(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  return text.match(TOKEN);
}

/** Returns JSON with its lines and indents, or null when the text is none. */
export function pretty(text) {
  const found = tokens(text);
  if (found === null) {
    return null;
  }
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
      depth -= empty ? 0 : 1;
      written += empty ? token : newLine(depth) + token;
    } else if (token === ",") {
      written += token + newLine(depth);
    } else {
      written += token === ":" ? ": " : token;
    }
  }
  return written;
}

function newLine(depth) {
  return `\n${INDENT.repeat(depth)}`;
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
