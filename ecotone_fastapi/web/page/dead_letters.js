// The dead letter: which messages were given up, and what is done about many of them.

import { get, getAll, post } from "./api.js";
import { attempt, confirm, notice } from "./dialogs.js";
import { Keyed, button, el, say } from "./dom.js";
import { filterAddress, filterForm, inWords } from "./dead_letter_filter.js";
import { replayAll, replayOnes } from "./dead_letter_replay.js";
import { moment, now, number, relative, several, shortName, shortened, zone } from "./format.js";
import { cell, rowHead, table } from "./tables.js";

const PAGE = 50;

/** Shows the list. */
export function open(place, { live, query }) {
  const list = new List(place, live, query);
  list.load();
  return { update: (overview) => list.compare(overview), close: () => list.close() };
}

class List {
  constructor(place, live, query) {
    this.live = live;
    this.items = [];
    this.selected = new Set();
    this.total = null;
    this.next = null;
    this.seen = null; // how many dead letters there were in all when this list was compared with that last
    this.life = new AbortController(); // of the list
    this.request = new AbortController(); // of what it asks for at the moment
    this.filter = filterForm(query, () => this.refilter());
    this.counter = el("p", { class: "faint", id: "dead-letter-count" });
    this.stale = el("p", { class: "stale", hidden: true, role: "status" }, el("span"), button("Show it as it is now", () => this.load()));
    this.all = el("input", { type: "checkbox", "aria-label": "Select all that are shown" });
    this.all.addEventListener("change", () => this.selectAll(this.all.checked));
    this.replaySelected = button("", () => this.replayOnes(), { class: "primary", id: "replay-selected" });
    this.deleteSelected = button("", () => this.deleteOnes(), { class: "danger", id: "delete-selected" });
    this.replayAll = button("", () => this.replayMatching(), { id: "replay-all" });
    this.deleteAll = button("", () => this.deleteMatching(), { class: "danger", id: "delete-all" });
    this.more = button("Show more", () => this.loadMore());
    this.table = table(
      "Dead letters, the newest first",
      [{ name: "Selected", hidden: true, class: "tick" }, "Message", "Error", "Handler", "Channel", { name: "Attempts", class: "number" }, `Parked (${zone()})`],
      "There are no dead letters.",
    );
    this.table.node.querySelector("th.tick").append(this.all);
    this.rows = new Keyed(this.table.body, (one) => one.id, (one) => this.makeRow(one));
    place.append(
      el("div", { class: "heading" }, el("h1", {}, "Dead letters"), this.counter),
      this.filter.node,
      this.stale,
      el("div", { class: "buttons acting", role: "group", "aria-label": "What to do with them" }, this.replaySelected, this.deleteSelected,
        el("span", { class: "gap" }), this.replayAll, this.deleteAll),
      this.table.node,
      el("div", { class: "buttons" }, this.more),
    );
    this.show();
    this.suggest();
    this.remember();
  }

  /** Keeps the address of the list for those who come back from one of its dead letters. */
  remember() {
    sessionStorage.setItem("ecotone-list", location.hash);
  }

  close() {
    this.life.abort();
    this.request.abort();
  }

  async suggest() {
    try {
      const ids = (await getAll("handlers", this.life.signal)).map((one) => one.id);
      this.filter.suggest(ids, (this.live.overview?.channels ?? []).map((one) => one.name));
    } catch {
      return; // suggestions are a comfort; what is wrong is told where the list is loaded
    }
  }

  refilter() {
    history.replaceState(null, "", filterAddress(this.filter.kept()));
    this.remember();
    this.selected.clear();
    this.load();
  }

  async load() {
    this.request.abort();
    this.request = new AbortController();
    this.seen = this.live.overview?.dead_letters.count ?? null;
    await this.fetch({ limit: Math.max(PAGE, Math.min(this.items.length, 500)) }, (page) => page.items);
  }

  async loadMore() {
    const focusedAt = this.items.length;
    await this.fetch({ limit: PAGE, after: this.next }, (page) => [...this.items, ...page.items]);
    this.table.body.children[focusedAt]?.querySelector("a")?.focus();
  }

  async fetch(page, itemsOf) {
    this.table.node.setAttribute("aria-busy", "true");
    try {
      const found = await get("dead-letters", { ...this.filter.asked(), ...page }, this.request.signal);
      this.items = itemsOf(found);
      this.next = found.next;
      this.total = found.total;
      this.selected = new Set([...this.selected].filter((id) => this.items.some((one) => one.id === id)));
      this.stale.hidden = true;
      this.show();
      this.table.node.removeAttribute("aria-busy");
    } catch (error) {
      if (error.name !== "AbortError") {
        this.table.node.removeAttribute("aria-busy");
        this.table.showEmpty(this.items.length === 0, error.message);
        notice(error.message, { bad: true });
      }
    }
  }

  /** Compares the list with what there is now. It does not move under the hands of its reader. */
  async compare(overview) {
    const count = overview.dead_letters.count;
    if (count === null || count === this.seen || this.total === null) {
      return;
    }
    this.seen = count;
    let found;
    try {
      found = await get("dead-letters", { ...this.filter.asked(), limit: 1 }, this.request.signal);
    } catch {
      this.seen = null; // it is compared again with the next news
      return;
    }
    if (found.total === this.total && found.items[0]?.id === this.items[0]?.id) {
      return;
    }
    const inUse = this.selected.size > 0 || this.table.node.matches(":hover") || this.table.node.contains(document.activeElement);
    if (!inUse || this.items.length === 0) {
      await this.load();
      return;
    }
    this.total = found.total;
    this.show();
    say(this.stale.firstElementChild, `The dead letter has changed: ${several(found.total, "message")} now.`);
    this.stale.hidden = false;
  }

  show() {
    const words = inWords(this.filter.asked());
    const known = this.total !== null;
    say(this.counter, known ? `${several(this.total, "message")}${words ? " with this filter" : ""}` : "");
    this.rows.show(this.items);
    this.table.showEmpty(known && this.items.length === 0, words ? "No dead letter is meant by this filter." : "There are no dead letters.");
    this.more.hidden = !this.next;
    const many = this.selected.size;
    say(this.replaySelected, `Replay selected (${number(many)})`);
    say(this.deleteSelected, `Delete selected (${number(many)})`);
    say(this.replayAll, `Replay all ${number(this.total ?? 0)}${words ? " of this filter" : ""} …`);
    say(this.deleteAll, `Delete all ${number(this.total ?? 0)}${words ? " of this filter" : ""} …`);
    this.replaySelected.disabled = many === 0;
    this.deleteSelected.disabled = many === 0;
    this.replayAll.disabled = !this.total;
    this.deleteAll.disabled = !this.total;
    this.all.checked = many > 0 && many === this.items.length;
    this.all.indeterminate = many > 0 && many < this.items.length;
    this.all.disabled = this.items.length === 0;
  }

  makeRow(item) {
    const tick = el("input", { type: "checkbox", "aria-label": `Select ${shortName(item.type)} ${item.id}` });
    tick.addEventListener("change", () => {
      this.selected[tick.checked ? "add" : "delete"](item.id);
      this.show();
    });
    const attempts = cell("Attempts", { class: "number" });
    const parked = el("time", { datetime: item.parked_at, title: moment(item.parked_at) });
    const node = el(
      "tr",
      {},
      el("td", { class: "tick" }, tick),
      rowHead(el("a", { href: `#/dead-letters/${encodeURIComponent(item.id)}` }, shortName(item.type) || "Message"), el("span", { class: "second mono one-line", title: item.id }, item.id)),
      cell("Error", { class: "wide" }, el("strong", { title: item.error_type }, shortName(item.error_type)), el("span", { class: "second" }, shortened(item.error_message, 200))),
      cell("Handler", { class: "short" }, el("span", { title: item.endpoint }, item.endpoint === null ? "unknown" : item.endpoint)),
      cell("Channel", { class: "short" }, item.channel),
      attempts,
      cell("Parked", { class: "when" }, parked, el("span", { class: "second" }, moment(item.parked_at))),
    );
    return {
      node,
      update: (one) => {
        tick.checked = this.selected.has(one.id);
        say(attempts, number(one.attempts));
        say(parked, relative(one.parked_at));
      },
    };
  }

  selectAll(wanted) {
    this.selected = new Set(wanted ? this.items.map((one) => one.id) : []);
    this.show();
  }

  // ------------------------------------------------------------------------------------------------- what is done

  async replayOnes() {
    await this.replay(this.replaySelected, () => replayOnes(this.chosen()));
  }

  async deleteOnes() {
    const many = several(this.selected.size, "dead letter");
    const sure = await confirm({ title: `Delete ${many}?`, text: ["They cannot be brought back."], yes: `Delete ${many}`, danger: true });
    if (sure) {
      await attempt(this.deleteSelected, async () => {
        const answer = await post("dead-letters/delete", { ids: this.chosen() });
        await this.afterwards(answer.deleted, "deleted");
      });
    }
  }

  /** The ids of those that are selected, the oldest first: the order in which they are replayed. */
  chosen() {
    return this.items.map((one) => one.id).filter((id) => this.selected.has(id)).reverse();
  }

  async replayMatching() {
    const filter = this.uptoNow();
    const text = "Each goes back to the channel that it failed on, the oldest first. Those that fail again come back.";
    if (!(await this.askAboutAll(this.replayAll, "Replay", filter, text))) {
      return;
    }
    await this.replay(this.replayAll, () => replayAll(said(filter), this.total));
  }

  async replay(pressed, work) {
    await attempt(pressed, async () => {
      let told;
      try {
        told = await work();
      } catch (refusal) {
        await this.load();
        throw refusal;
      }
      if (told !== null) {
        await this.afterwards(told.replayed, "replayed", told);
      }
    });
  }

  async deleteMatching() {
    const filter = this.uptoNow();
    if (await this.askAboutAll(this.deleteAll, "Delete", filter, "They cannot be brought back.", true)) {
      await attempt(this.deleteAll, async () => {
        const answer = await post("dead-letters/delete", { filter: said(filter) });
        await this.afterwards(answer.deleted, "deleted");
      });
    }
  }

  /** The filter, without what is parked after this moment: nobody has seen that when it is decided. */
  uptoNow() {
    const filter = this.filter.asked();
    const moment = new Date(now()).toISOString();
    return { ...filter, until: filter.until && filter.until < moment ? filter.until : moment };
  }

  async askAboutAll(pressed, verb, filter, text, danger = false) {
    let total = 0;
    if (!(await attempt(pressed, async () => ({ total } = await get("dead-letters", { ...filter, limit: 1 }))))) {
      return false;
    }
    const words = inWords(this.filter.asked());
    const many = several(total, "dead letter");
    return confirm({
      title: `${verb} ${many}?`,
      text: [words ? `Meant are those whose ${words}.` : "Meant are all that there are.", text],
      yes: `${verb} ${many}`,
      danger,
      type: danger ? String(total) : null,
    });
  }

  async afterwards(count, done, { refused = {}, refused_count: refusals = 0, remaining = 0 } = {}) {
    const rest = remaining > 0 ? `, ${number(remaining)} not tried` : "";
    if (refusals > 0) {
      const why = [...new Set(Object.values(refused))].slice(0, 3).join(" · ");
      notice(`${number(count)} ${done}, ${number(refusals)} refused${rest}: ${why}`, { bad: true });
    } else {
      notice(`${several(count, "dead letter")} ${done}${rest}.`);
    }
    await this.load();
  }
}

/** A filter without what it does not say. */
function said(filter) {
  return Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== ""));
}
