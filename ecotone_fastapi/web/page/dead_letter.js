// One dead letter: what it says, why it failed, and what is done about it.

import { get, post, remove } from "./api.js";
import { edit } from "./dead_letter_edit.js";
import { filterAddress } from "./dead_letter_filter.js";
import { attempt, confirm, notice } from "./dialogs.js";
import { button, el, say } from "./dom.js";
import { NOTHING, moment, number, relative, several, shortName } from "./format.js";
import { pretty } from "./json.js";
import { cell, rowHead, table } from "./tables.js";

/** Shows it. */
export function open(place, { id, live }) {
  const path = `dead-letters/${encodeURIComponent(id)}`;
  const request = new AbortController();
  const content = el("div", { "aria-busy": "true" });
  const heading = el("h1", {}, "Dead letter");
  place.append(
    el("p", {}, el("a", { href: "#/dead-letters", click: back }, "← All dead letters")),
    el("div", { class: "heading" }, heading, el("p", { class: "faint mono" }, id)),
    content,
  );
  const load = () => get(path, {}, request.signal).then(
    (found) => {
      content.removeAttribute("aria-busy");
      const type = shortName(found.type);
      say(heading, type ? `Dead letter: ${type}` : "Dead letter");
      content.replaceChildren(...drawn(found, path, live, load));
    },
    (error) => {
      if (error.name !== "AbortError") {
        content.removeAttribute("aria-busy");
        content.replaceChildren(el("p", { class: "failure" }, error.status === 404 ? "It is not there any more: it was replayed or deleted." : error.message));
      }
    },
  );
  load();
  return { close: () => request.abort() };
}

/** Goes back to the list as it was filtered, when that is where the reader comes from. */
function back(event) {
  if (sessionStorage.getItem("ecotone-list")) {
    event.preventDefault();
    location.hash = sessionStorage.getItem("ecotone-list");
  }
}

function leave(event) {
  if (event) {
    back(event);
  } else {
    location.hash = sessionStorage.getItem("ecotone-list") || "#/dead-letters";
  }
}

function drawn(found, path, live, anew) {
  const editor = el("div");
  // As it is shown here: what somebody else has made of it meanwhile is looked at first.
  const seen = { revision: found.revision };
  const replay = button("Replay", async () => {
    let refusal = null;
    const work = () => post(`${path}/replay`, seen).catch((error) => {
      refusal = error;
      throw error;
    });
    await act(replay, work, "The dead letter was replayed.");
    if (refusal?.status === 409) {
      await anew();
    }
  }, { class: "primary" });
  const change = button("Edit and replay …", () => edit(editor, found, path, { channels: (live.overview?.channels ?? []).map((one) => one.name), done: () => leave(), anew }));
  const drop = button("Delete …", async () => {
    if (await confirm({ title: "Delete this dead letter?", text: ["It cannot be brought back."], yes: "Delete it", danger: true })) {
      await act(drop, () => remove(path), "The dead letter was deleted.");
    }
  }, { class: "danger" });
  return [
    el("p", { class: "failure" }, el("strong", {}, found.error_type), found.error_message),
    el("div", { class: "buttons" }, replay, change, drop),
    editor,
    facts(found),
    ...payload(found),
    el("h2", {}, "Traceback"),
    traceback(found.traceback),
    headers(found),
  ];
}

async function act(pressed, work, done) {
  if (await attempt(pressed, work)) {
    notice(done);
    leave();
  }
}

function facts(found) {
  const link = (name, value, text = value) =>
    value === null ? "unknown" : [el("span", {}, text), " ", el("a", { href: filterAddress({ [name]: value }), "aria-label": `All dead letters with the ${name} ${text}` }, "all of these")];
  const told = [
    ["Message", found.type ?? NOTHING],
    ["Message id", found.message_id ?? NOTHING],
    ["Handler", link("handler", found.endpoint)],
    ["Channel", link("channel", found.channel)],
    ["Error", link("error", found.error_type, shortName(found.error_type))],
    ["Attempts", number(found.attempts)],
    ["Lent to consumers", several(found.deliveries, "time")],
    ["Replayed before", found.replays === 0 ? "never" : several(found.replays, "time")],
    ["First failed", time(found.first_failed_at)],
    ["Parked", time(found.parked_at)],
  ];
  return el("dl", { class: "facts" }, told.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function time(text) {
  return text === null ? NOTHING : el("time", { datetime: text }, `${moment(text)} (${relative(text)})`);
}

function payload(found) {
  const told = [`${number(found.payload_length)} bytes`];
  if (found.payload_encoding === "base64") {
    told.push("not text, shown as base64");
  }
  if (found.payload_cut) {
    told.push("only the beginning is shown");
  }
  const text = found.payload_encoding === "text" && !found.payload_cut ? (pretty(found.payload) ?? found.payload) : found.payload;
  return [
    el("div", { class: "beside" }, el("h2", {}, "Payload"), el("span", { class: "faint" }, told.join(", ")), copying(found.payload)),
    found.payload === "" ? el("p", { class: "faint" }, "It is empty.") : readable(text, "Payload"),
  ];
}

function copying(text) {
  if (!navigator.clipboard) {
    return null; // browsers offer it to secure pages only
  }
  const pressed = button("Copy", () => attempt(pressed, async () => {
    await navigator.clipboard.writeText(text);
    notice("The payload was copied.");
  }), { class: "quiet" });
  return pressed;
}

function traceback(text) {
  if (text === "") {
    return el("p", { class: "faint" }, "There is none: the handler never ran.");
  }
  const shown = readable(text, "Traceback");
  // Its end tells most.
  requestAnimationFrame(() => shown.scrollTo(0, shown.scrollHeight));
  return shown;
}

/** A text that can be scrolled with the keyboard. */
function readable(text, label) {
  return el("pre", { tabindex: "0", role: "region", "aria-label": label }, text);
}

function headers(found) {
  const made = table("Headers", ["Name", "Value"], "It has no headers.");
  const entries = Object.entries(found.headers);
  made.body.append(...entries.map(([name, value]) => el("tr", {}, rowHead(name), cell("Value", { class: "wide mono" }, value))));
  made.showEmpty(entries.length === 0);
  return el("section", {}, el("h2", {}, "Headers"), made.node);
}
