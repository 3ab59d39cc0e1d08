// Tables, whose cells say by themselves which column they are in, for narrow screens.

import { el, say, set } from "./dom.js";

/**
 * Makes a table.
 * @param {string|Element} caption What is in it; or the heading that says so, which has an id.
 * @param {Array<string|{name: string, class?: string, hidden?: boolean}>} columns Its columns.
 * @param {string} nothing What is said when there is nothing in it.
 * @returns {{node: Element, body: Element, showEmpty: function(boolean): void}}
 */
export function table(caption, columns, nothing) {
  const body = el("tbody");
  const empty = el("p", { class: "empty", hidden: true }, nothing);
  const heads = columns.map((one) => {
    const { name, class: kind, hidden } = typeof one === "string" ? { name: one } : one;
    return el("th", { scope: "col", class: kind }, hidden ? el("span", { class: "unseen" }, name) : name);
  });
  const isHeading = caption instanceof Element;
  const inner = el("table", { class: "cards", "aria-labelledby": isHeading ? caption.id : null }, isHeading ? null : el("caption", {}, caption), el("thead", {}, el("tr", {}, heads)), body);
  const node = el("div", { class: "table" }, inner, empty);
  return {
    node,
    body,
    showEmpty: (isEmpty, text = nothing) => {
      say(empty, text);
      empty.hidden = !isEmpty;
    },
  };
}

/** Makes a cell with its column's name, for screens on which there are no columns. */
export function cell(label, given = {}, ...children) {
  return el("td", { "data-label": label, ...given }, ...children);
}

/** Makes the heading of a row. */
export function rowHead(...children) {
  return el("th", { scope: "row" }, ...children);
}

/** Shows a state in words, with a mark whose colour and shape go with them. */
export function state(node, text, tone) {
  say(node, text);
  set(node, "data-tone", tone);
}
