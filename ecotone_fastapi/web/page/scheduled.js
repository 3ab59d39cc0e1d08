// Messages that wait under a key.

import { get, post } from "./api.js";
import { attempt, confirm, notice } from "./dialogs.js";
import { Keyed, button, el, say } from "./dom.js";
import { moment, relative, several, shortName, shortened, zone } from "./format.js";
import { cell, rowHead, table } from "./tables.js";

const PAGE = 100;
const SHOWN = 120; // characters of a key; what is asked for has all of them

/** Shows them. */
export function open(place, { live }) {
  const list = new List(place, live);
  list.load();
  return { update: (now) => list.compare(now), close: () => list.request.abort() };
}

class List {
  constructor(place, live) {
    this.live = live;
    this.items = [];
    this.next = null;
    this.seen = null;
    this.request = new AbortController();
    this.counter = el("p", { class: "faint" });
    this.more = button("Show more", () => this.fetch({ limit: PAGE, after: this.next }, (page) => [...this.items, ...page.items]));
    this.table = table("Scheduled messages, the next one first", ["Key", "Handler", "Channel", `Due (${zone()})`, { name: "Actions", hidden: true }], "Nothing waits under a key.");
    this.rows = new Keyed(this.table.body, (one) => `${one.key} ${one.message_id} ${one.endpoint} ${one.channel}`, (one) => this.makeRow(one));
    place.append(el("div", { class: "heading" }, el("h1", {}, "Scheduled"), this.counter), this.table.node, el("div", { class: "buttons" }, this.more));
    this.more.hidden = true;
  }

  async load() {
    this.seen = this.live.overview?.scheduled.count ?? null;
    await this.fetch({ limit: Math.max(PAGE, Math.min(this.items.length, 500)) }, (page) => page.items);
  }

  compare(now) {
    this.rows.show(this.items); // "in 5 min" becomes "in 4 min"
    if (now.scheduled.count !== null && now.scheduled.count !== this.seen) {
      this.seen = now.scheduled.count;
      this.load();
    }
  }

  async fetch(page, itemsOf) {
    try {
      const found = await get("scheduled", page, this.request.signal);
      this.items = itemsOf(found);
      this.next = found.next;
      say(this.counter, several(found.total, "message"));
      this.rows.show(this.items);
      this.table.showEmpty(this.items.length === 0);
      this.more.hidden = !this.next;
    } catch (error) {
      if (error.name !== "AbortError") {
        this.table.showEmpty(this.items.length === 0, error.message);
        notice(error.message, { bad: true });
      }
    }
  }

  makeRow(item) {
    const shown = shortened(item.key, SHOWN);
    const due = el("time");
    const exact = el("span", { class: "second" });
    const later = button("Reschedule …", async () => {
      const when = el("input", { type: "datetime-local", id: "due", step: "1", required: true });
      const given = await confirm({
        title: `When shall ${shown} be due?`,
        text: [el("p", {}, el("label", { for: "due" }, `Moment (${zone()}) `), when)],
        yes: "Reschedule",
        answer: () => new Date(when.value).toISOString(),
      });
      if (given && (await attempt(later, () => post("scheduled/reschedule", { key: item.key, due_at: given })))) {
        notice(`${shown} is due ${moment(given)}.`);
        await this.load();
      }
    }, { "aria-label": `Reschedule ${shown}` });
    const cancel = button("Cancel …", async () => {
      const sure = await confirm({ title: `Cancel what waits under ${shown}?`, text: ["It will not be handled, and cannot be brought back."], yes: "Cancel it", danger: true });
      if (sure && (await attempt(cancel, () => post("scheduled/cancel", { key: item.key })))) {
        notice(`What waited under ${shown} was cancelled.`);
        await this.load();
        document.getElementById("main").focus();
      }
    }, { class: "danger", "aria-label": `Cancel ${shown}` });
    const node = el(
      "tr",
      {},
      rowHead(el("span", { title: item.key }, shown), el("span", { class: "second" }, shortName(item.type))),
      cell("Handler", {}, item.endpoint ?? "unknown"),
      cell("Channel", {}, item.channel),
      cell("Due", { class: "when" }, due, exact),
      cell("Actions", { class: "doing" }, el("div", { class: "buttons" }, later, cancel)),
    );
    return {
      node,
      update: (one) => {
        due.setAttribute("datetime", one.due_at);
        say(due, relative(one.due_at));
        say(exact, moment(one.due_at));
      },
    };
  }
}
