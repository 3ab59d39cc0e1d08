// Channels and what empties them; the outbox; and what else runs beside the application.

import { post } from "./api.js";
import { attempt, confirm, notice } from "./dialogs.js";
import { Keyed, button, el, say } from "./dom.js";
import { NOTHING, duration, number, rate, relative, several } from "./format.js";
import { cell, rowHead, state, table } from "./tables.js";

const TONES = { running: "good", paused: "warn", waiting: "bad", starting: "warn", stopped: "warn" };
const WORDS = { waiting: "broken off, tries again" };

/** Shows channels, the outbox and the other runnables. */
export function open(place) {
  const heading = el("h1", { id: "channels" }, "Channels");
  const channels = channelTable({ actions: true, heading });
  const outbox = outboxTable();
  const others = othersTable();
  const whose = el("p", { class: "faint" });
  place.append(el("div", { class: "heading" }, heading), whose, channels.node, outbox.node, others.node);
  return {
    update: (now) => {
      // Several may answer in turn behind one address.
      say(whose, `Consumers, relays and runners are those of the process ${now.process}, with their rates and counts. What other processes run is not shown here; what waits is what waits for all of them.`);
      channels.update(now);
      outbox.update(now);
      others.update(now);
    },
  };
}

/**
 * Makes the table of channels.
 * @param {{actions: boolean, only: string|undefined, heading: Element|undefined}} given Whether they can be paused here; the
 *   only one that is shown; what stands above it and says already what it is about.
 */
export function channelTable({ actions, only, heading }) {
  const columns = ["Channel", { name: "Waiting", class: "number" }, "Oldest ready", "Consumer", { name: "Rate", class: "number" },
    { name: "Handled", class: "number" }, { name: "Failed", class: "number" }];
  if (actions) {
    columns.push({ name: "Actions", hidden: true });
  }
  const made = table(heading ?? "Channels", columns, only === undefined ? "This application has no channels." : "There is no such channel.");
  const rows = new Keyed(made.body, (one) => one.name, (one) => channelRow(one, actions));
  return {
    node: made.node,
    update: (now) => {
      const shown = now.channels.filter((one) => only === undefined || one.name === only);
      rows.show(shown);
      made.showEmpty(shown.length === 0);
    },
  };
}

function channelRow(first, actions) {
  const depth = cell("Waiting", { class: "number" });
  const oldest = cell("Oldest ready", { class: "when" });
  const condition = el("span", { class: "state" });
  const reason = el("span", { class: "second" });
  const speed = cell("Rate", { class: "number" });
  const handled = cell("Handled", { class: "number" });
  const failed = cell("Failed", { class: "number" });
  const pause = button("Pause", () => pauseOrResume(pause, first.name), { "aria-label": `Pause ${first.name}` });
  const node = el("tr", {}, rowHead(el("a", { href: `#/channels/${encodeURIComponent(first.name)}` }, first.name), el("span", { class: "second" }, first.type)), depth, oldest,
    cell("Consumer", { class: "wide" }, condition, reason), speed, handled, failed, actions && cell("Actions", { class: "doing" }, pause));
  return {
    node,
    update: (one) => {
      say(depth, one.problem === null ? (one.depth === null ? "not told" : number(one.depth)) : "?");
      say(oldest, one.oldest_age === null ? NOTHING : duration(one.oldest_age));
      say(speed, rate(one.consumer?.rate));
      say(handled, number(one.consumer?.handled));
      say(failed, number(one.consumer?.failed));
      showConsumer(condition, reason, one.consumer);
      if (one.problem !== null && !one.consumer?.reason) {
        say(reason, one.problem);
      }
      const paused = one.consumer?.paused ?? false;
      pause.hidden = one.consumer === null;
      pause.dataset.paused = String(paused);
      say(pause, paused ? "Resume" : "Pause");
      pause.setAttribute("aria-label", `${paused ? "Resume" : "Pause"} ${one.name}`);
    },
  };
}

function showConsumer(condition, reason, consumer) {
  if (consumer === null) {
    state(condition, "no consumer", null);
    say(reason, "");
    return;
  }
  const told = consumer.paused ? "paused" : consumer.condition;
  state(condition, told === null ? "not in this process" : (WORDS[told] ?? told), TONES[told] ?? null);
  const since = consumer.pauses.length > 0 ? `, since ${relative(consumer.pauses[0].since)}` : "";
  say(reason, consumer.reason === null ? "" : consumer.reason + since);
}

async function pauseOrResume(pressed, name) {
  if (pressed.dataset.paused === "true") {
    if (await attempt(pressed, () => post(`channels/${encodeURIComponent(name)}/resume`))) {
      notice(`The consumers of ${name} go on.`);
    }
    return;
  }
  const reason = el("input", { type: "text", id: "reason", maxlength: "200" });
  const given = await confirm({
    title: `Pause the consumers of ${name}?`,
    text: [
      "They finish what is under way and receive nothing until they are resumed. Messages wait in the channel meanwhile.",
      el("p", {}, el("label", { for: "reason" }, "Why, for those who come after you "), reason),
    ],
    yes: "Pause",
    answer: () => ({ reason: reason.value.trim() }),
  });
  if (given && (await attempt(pressed, () => post(`channels/${encodeURIComponent(name)}/pause`, given.reason ? given : {})))) {
    notice(`The consumers of ${name} pause.`);
  }
}

function outboxTable() {
  const made = table("Outbox", ["On its way to", { name: "Waiting", class: "number" }, "Oldest ready", "Emptied by"], "");
  const section = el("section", {}, el("h2", {}, "Outbox"), made.node);
  const rows = new Keyed(made.body, (one) => one.channel, (first) => {
    const depth = cell("Waiting", { class: "number" });
    const oldest = cell("Oldest ready", { class: "when" });
    const emptied = el("span");
    const trouble = el("span", { class: "second" });
    const relay = cell("Emptied by", { class: "wide" }, emptied, trouble);
    return {
      node: el("tr", {}, rowHead(first.channel), depth, oldest, relay),
      update: (one) => {
        say(depth, one.problem === null ? number(one.depth) : "?");
        say(oldest, one.oldest_age === null ? NOTHING : duration(one.oldest_age));
        say(emptied, one.problem ?? one.relay ?? "nobody in this application");
        say(trouble, one.failures > 0 ? `cannot be reached, ${several(one.failures, "attempt")}: ${one.last_error}` : "");
      },
    };
  });
  return {
    node: section,
    update: (now) => {
      section.hidden = now.outbox.length === 0;
      rows.show(now.outbox);
    },
  };
}

function othersTable() {
  const columns = ["Name", "State", { name: "Rate", class: "number" }, { name: "Handled", class: "number" }, { name: "Failed", class: "number" }];
  const made = table("What else runs beside the application", columns, "");
  const section = el("section", {}, el("h2", {}, "Relays, projections and others"), made.node);
  const rows = new Keyed(made.body, (one) => one.name, (first) => {
    const condition = el("span", { class: "state" });
    const reason = el("span", { class: "second" });
    const speed = cell("Rate", { class: "number" });
    const handled = cell("Handled", { class: "number" });
    const failed = cell("Failed", { class: "number" });
    const head = rowHead(first.name, el("span", { class: "second" }, first.type));
    return {
      node: el("tr", {}, head, cell("State", { class: "wide" }, condition, reason), speed, handled, failed),
      update: (one) => {
        showConsumer(condition, reason, one);
        say(speed, rate(one.rate));
        say(handled, number(one.handled));
        say(failed, number(one.failed));
      },
    };
  });
  return {
    node: section,
    update: (now) => {
      const consumers = new Set(now.channels.map((one) => one.consumer?.name));
      const others = now.runnables.filter((one) => !consumers.has(one.name));
      section.hidden = others.length === 0;
      rows.show(others);
    },
  };
}
