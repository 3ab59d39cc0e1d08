// All handlers.

import { getAll } from "./api.js";
import { el, say } from "./dom.js";
import { several, shortName } from "./format.js";
import { cell, rowHead, table } from "./tables.js";

/** Shows them. */
export function open(place) {
  const request = new AbortController();
  const counter = el("p", { class: "faint", role: "status" });
  const search = el("input", { type: "search", placeholder: "Part of a name, message or channel", spellcheck: "false", autocomplete: "off" });
  const made = table("Handlers", ["Handler", "Handles", "Message", "Channels"], "No handler is meant by this.");
  place.append(
    el("div", { class: "heading" }, el("h1", {}, "Handlers"), counter),
    el("form", { class: "filter", role: "search", "aria-label": "Filter of handlers" }, el("label", {}, "Find", search)),
    made.node,
  );
  let rows = [];
  const show = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.node.hidden = !row.text.includes(wanted);
      count += row.node.hidden ? 0 : 1;
    }
    say(counter, several(count, "handler"));
    made.showEmpty(count === 0);
  };
  search.addEventListener("input", show);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  getAll("handlers", request.signal).then(
    (found) => {
      rows = found.map(makeRow);
      made.body.append(...rows.map((row) => row.node));
      show();
    },
    (error) => error.name !== "AbortError" && made.showEmpty(true, error.message),
  );
  return { close: () => request.abort() };
}

function makeRow(one) {
  const channels = one.channels.join(" → ");
  const node = el(
    "tr",
    {},
    rowHead(el("a", { href: `#/handlers/${encodeURIComponent(one.id)}` }, one.label), one.id === one.label ? null : el("span", { class: "second mono" }, one.id)),
    cell("Handles", {}, one.kind),
    cell("Message", { class: "wide" }, shortName(one.route), one.route !== shortName(one.route) && el("span", { class: "second mono" }, one.route)),
    cell("Channels", {}, channels || "in line"),
  );
  return { node, text: `${one.id} ${one.label} ${one.kind} ${one.route ?? ""} ${channels}`.toLowerCase() };
}
