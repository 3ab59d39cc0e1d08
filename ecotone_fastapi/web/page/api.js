// Asks the operations API, which is served beside the page, wherever that is.

const base = new URL("../", import.meta.url);
// A name and password in the address are sent by the browser itself; a request whose address has them is refused.
base.username = "";
base.password = "";

/** An answer that is not what was asked for. */
export class Refusal extends Error {
  /**
   * @param {number} status The HTTP status; 0 when nothing answered.
   * @param {string} message What the server says about it.
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether the caller may not do this, or nobody knows who it is. */
  get closed() {
    return this.status === 401 || this.status === 403;
  }
}

/**
 * Is told about every answer that says 401 or 403: "refused", with the `Refusal`; "admitted" about all others; and
 * "changed" when something was changed.
 */
export const door = new EventTarget();

/** Returns the address of a part of the API. */
export function address(path, query = {}) {
  const url = new URL(path, base);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") {
      url.searchParams.set(name, value);
    }
  }
  return url;
}

/**
 * Asks, and returns the answer.
 * @throws {Refusal} The server refuses, fails, or does not answer.
 */
export async function ask(method, path, { query = {}, body, signal } = {}) {
  const request = { method, signal, headers: { Accept: "application/json" }, credentials: "same-origin" };
  if (method !== "GET") {
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body ?? {});
  }
  let response;
  try {
    response = await fetch(address(path, query), request);
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Refusal(0, "The application does not answer.");
  }
  if (!response.ok) {
    const refusal = new Refusal(response.status, await told(response));
    if (refusal.closed) {
      door.dispatchEvent(new CustomEvent("refused", { detail: refusal }));
    }
    throw refusal;
  }
  // Something in front of the application may send callers who are not known to a page of its own.
  const isOurs = response.status === 204 || (response.headers.get("Content-Type") ?? "").includes("json");
  if (response.redirected || !isOurs) {
    throw new Refusal(response.status, "The answer is not from the operations API; you may have to sign in again.");
  }
  door.dispatchEvent(new CustomEvent("admitted"));
  if (method !== "GET") {
    door.dispatchEvent(new CustomEvent("changed"));
  }
  return response.status === 204 ? null : response.json();
}

/** Returns what an answer says about its failure, in whichever of FastAPI's shapes. */
async function told(response) {
  let detail;
  try {
    detail = (await response.json()).detail;
  } catch {
    return `${response.status} ${response.statusText}`.trim();
  }
  if (typeof detail === "string") {
    return detail;
  }
  if (Array.isArray(detail)) {
    return detail.map((one) => `${(one.loc ?? []).join(".")}: ${one.msg ?? JSON.stringify(one)}`).join("; ");
  }
  return detail === undefined ? `${response.status} ${response.statusText}`.trim() : JSON.stringify(detail);
}

/** Returns all items of a list that comes in pages. */
export async function getAll(path, signal) {
  const items = [];
  let after = null;
  do {
    const page = await get(path, { after }, signal);
    items.push(...page.items);
    after = page.next;
  } while (after !== null);
  return items;
}

export const get = (path, query, signal) => ask("GET", path, { query, signal });
export const post = (path, body) => ask("POST", path, { body });
export const remove = (path) => ask("DELETE", path);
