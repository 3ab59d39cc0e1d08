// One channel, and what waits on it.

import { get } from "./api.js";
import { channelTable } from "./channels.js";
import { button, el, say } from "./dom.js";
import { number, several, shortName } from "./format.js";
import { pretty } from "./json.js";
import { cell, rowHead, table } from "./tables.js";

const MOST = 50;

/** Shows it. */
export function open(place, { id: name }) {
  const request = new AbortController();
  const channel = channelTable({ actions: true, only: name });
  const counter = el("span", { class: "faint" });
  const made = table("Messages that wait", ["Message", "Handler", "Payload"], "Nothing waits on it.");
  const load = async () => {
    try {
      const found = await get(`channels/${encodeURIComponent(name)}/messages`, { limit: MOST }, request.signal);
      made.body.replaceChildren(...found.items.map(makeRow));
      made.showEmpty(found.items.length === 0);
      say(counter, found.more ? `the next ${number(MOST)}` : several(found.items.length, "message"));
    } catch (error) {
      if (error.name !== "AbortError") {
        made.body.replaceChildren();
        made.showEmpty(true, error.message);
      }
    }
  };
  place.append(
    el("p", {}, el("a", { href: "#/channels" }, "← All channels")),
    el("div", { class: "heading" }, el("h1", {}, `Channel ${name}`)),
    channel.node,
    el("p", {}, el("a", { href: `#/dead-letters?${new URLSearchParams({ channel: name })}` }, "Dead letters of this channel")),
    el("div", { class: "beside" }, el("h2", {}, "What waits on it"), counter, button("Look again", load, { class: "quiet" })),
    made.node,
  );
  load();
  return { update: channel.update, close: () => request.abort() };
}

function makeRow(one) {
  const text = one.payload_encoding === "text" && !one.payload_cut ? (pretty(one.payload) ?? one.payload) : one.payload;
  const headers = Object.entries(one.headers).map(([name, value]) => `${name}: ${value}`).join("\n");
  return el(
    "tr",
    {},
    rowHead(shortName(one.headers.type) || "Message", el("span", { class: "second mono one-line", title: one.id }, one.id ?? "without an id")),
    cell("Handler", { class: "short" }, one.endpoint ?? "unknown"),
    cell("Payload", { class: "wide" }, el("span", { class: "mono" }, one.payload.slice(0, 120)), el("details", {}, el("summary", {}, "Payload and headers"), el("pre", {}, text), el("pre", {}, headers))),
  );
}
