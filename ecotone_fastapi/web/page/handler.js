// One handler: the whole way of a message to it, with everything that stands in between.

import { get } from "./api.js";
import { el, say } from "./dom.js";
import { cell, rowHead, table } from "./tables.js";

const STAGES = { dispatch: "Dispatched", handle: "Handled", send: "Sent", receive: "Received", channel: "Channel" };

/** Shows it. */
export function open(place, { id }) {
  const request = new AbortController();
  const content = el("div");
  const heading = el("h1", {}, "Handler");
  place.append(
    el("p", {}, el("a", { href: "#/handlers" }, "← All handlers")),
    el("div", { class: "heading" }, heading, el("p", { class: "faint mono" }, id)),
    content,
  );
  get(`handlers/${encodeURIComponent(id)}`, {}, request.signal).then(
    (journey) => {
      say(heading, journey.label);
      content.append(...drawn(journey));
    },
    (error) => error.name !== "AbortError" && content.append(el("p", { class: "failure" }, error.message)),
  );
  return { close: () => request.abort() };
}

function drawn(journey) {
  const place = journey.file === null ? null : `${journey.file}:${journey.line}`;
  const told = [
    ["Handles", `the ${journey.kind} ${journey.route ?? ""}`],
    ["Runs", journey.runs],
    ["Marks", journey.marks.length > 0 ? journey.marks.map((one) => el("div", { class: "mono" }, one)) : null],
    ["Injected", journey.injected.length > 0 ? journey.injected.map((one) => el("div", { class: "mono" }, one)) : null],
    ["Written in", place && el("span", { class: "mono" }, place)],
  ];
  return [
    el("dl", { class: "facts" }, told.filter(([, value]) => value !== null).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("p", {}, el("a", { href: `#/dead-letters?${new URLSearchParams({ handler: journey.id })}` }, "Dead letters of this handler")),
    el("h2", {}, "The way of a message to it"),
    el("ol", { class: "stations" }, journey.stations.map(station)),
  ];
}

function station(one) {
  const name = STAGES[one.stage] ?? one.stage;
  const notes = one.notes.map((note) => el("span", { class: "second" }, note));
  if (one.interceptors.length === 0) {
    return el("li", {}, el("strong", {}, name), ` ${one.where}`, notes);
  }
  const made = table(`What stands around it, the outermost first`, ["Place", "Interceptor", "Does"], "");
  made.body.append(...one.interceptors.map((each) => el(
    "tr",
    {},
    cell("Place", { class: "when" }, `${each.order} ${each.order_name}`),
    rowHead(each.name, el("span", { class: "second mono" }, each.line === null ? each.module : `${each.module}:${each.line}`)),
    cell("Does", { class: "wide" }, each.does ?? "", each.settings && el("span", { class: "second mono" }, each.settings)),
  )));
  return el("li", {}, el("strong", {}, name), ` ${one.where}`, notes, made.node);
}
