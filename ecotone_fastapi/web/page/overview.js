// The overview: what needs attention, and how much of everything there is.

import { get } from "./api.js";
import { channelTable } from "./channels.js";
import { concerns } from "./concerns.js";
import { Keyed, el, say, set } from "./dom.js";
import { duration, number, rate } from "./format.js";

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const oldest = (values) => values.reduce((most, value) => (value !== null && (most === null || value > most) ? value : most), null);

/** The tiles: each returns its number, what is written beneath it, and its tone. */
const TILES = [
  {
    name: "Waiting",
    section: "channels",
    tell: (now) => {
      const age = oldest(now.channels.map((one) => one.oldest_age));
      const untold = now.channels.some((one) => one.problem !== null);
      const told = age === null ? "none is ready" : `oldest ready for ${duration(age)}`;
      return [number(sum(now.channels.map((one) => one.depth))), untold ? "not all channels answer" : told, untold ? "bad" : null];
    },
  },
  {
    name: "Consumers",
    section: "channels",
    tell: (now) => {
      const here = now.runnables.filter((one) => one.condition !== null);
      const running = here.filter((one) => one.condition === "running" && !one.paused).length;
      const paused = here.filter((one) => one.paused).length;
      const broken = here.filter((one) => one.condition === "waiting").length;
      const told = [paused && `${number(paused)} paused`, broken && `${number(broken)} broken off`].filter(Boolean);
      const more = here.length === 0 ? "none runs in this process" : told.join(", ") || "running in this process";
      return [here.length === 0 ? "0" : `${number(running)} of ${number(here.length)}`, more, broken ? "bad" : paused ? "warn" : null];
    },
  },
  {
    name: "Handled",
    section: "channels",
    tell: (now) => [
      rate(sum(now.runnables.map((one) => one.rate))),
      `${number(sum(now.runnables.map((one) => one.handled)))} since the start, ${number(sum(now.runnables.map((one) => one.failed)))} failed`,
      null,
    ],
  },
  { name: "Dead letters", section: "dead-letters", tell: (now) => counted(now.dead_letters, "given up", "bad") },
  {
    name: "Outbox",
    section: "channels",
    tell: (now) => {
      const age = oldest(now.outbox.map((one) => one.oldest_age));
      const more = now.outbox.length === 0 ? "no outbox" : age === null ? "nothing waits" : `oldest ready for ${duration(age)}`;
      return [number(sum(now.outbox.map((one) => one.depth))), more, age > 60 ? "bad" : null];
    },
  },
  { name: "Scheduled", section: "scheduled", tell: (now) => counted(now.scheduled, "under a key", null) },
  {
    name: "Projections",
    section: "projections",
    tell: (now) => {
      const lag = oldest(now.projections.map((one) => one.lag));
      const building = now.projections.filter((one) => one.versions.some((version) => version.done !== null)).length;
      const halted = now.projections.filter((one) => one.versions.some((version) => version.halt !== null)).length;
      const told = [halted && `${number(halted)} ${halted === 1 ? "stands" : "stand"} still`, building && `${number(building)} rebuilding`].filter(Boolean);
      const more = told.join(", ") || (lag === null ? "" : lag > 0 ? `at most ${duration(lag)} behind` : "up to date");
      return [number(now.projections.length), more, halted ? "bad" : null];
    },
  },
];

function counted(count, more, tone) {
  return count.problem === null ? [number(count.count), more, count.count > 0 ? tone : null] : ["?", count.problem, "bad"];
}

const BETWEEN = 10000; // milliseconds after which the servers are asked again

/** Shows the overview. */
export function open(place, { live }) {
  const list = el("ul", { class: "concerns", "aria-label": "What needs attention" });
  const keyed = new Keyed(list, (one) => one.key, makeConcern);
  const tiles = TILES.map(makeTile);
  const heading = el("h2", { id: "channels" }, "Channels");
  const channels = channelTable({ actions: false, heading });
  place.append(
    el("div", { class: "heading" }, el("h1", {}, "Overview")),
    list,
    el("ul", { class: "tiles" }, tiles.map((one) => one.node)),
    heading,
    channels.node,
  );
  const request = new AbortController();
  let servers = {};
  const ask = async () => {
    try {
      servers = (await get("health", {}, request.signal)).servers;
    } catch {
      return; // what is wrong with the connection is told above
    }
    if (live.overview !== null) {
      showConcerns(live.overview);
    }
  };
  const showConcerns = (now) => {
    const found = concerns(now, servers);
    keyed.show(found.length > 0 ? found : [{ key: "", tone: "good", text: "Nothing needs attention.", section: null }]);
  };
  const timer = setInterval(ask, BETWEEN);
  ask();
  return {
    close: () => {
      clearInterval(timer);
      request.abort();
    },
    update: (now) => {
      showConcerns(now);
      for (const tile of tiles) {
        tile.update(now);
      }
      channels.update(now);
    },
  };
}

function makeConcern(first) {
  const text = first.section === null ? el("span") : el("a", { href: `#/${first.section}` });
  const node = el("li", {}, text);
  return {
    node,
    update: (one) => {
      say(text, one.text);
      set(node, "data-tone", one.tone);
    },
  };
}

function makeTile({ name, section, tell }) {
  const value = el("span", { class: "value" });
  const more = el("span", { class: "more" });
  const link = el("a", { class: "tile", href: `#/${section}` }, el("span", { class: "label" }, name), value, more);
  return {
    node: el("li", {}, link),
    update: (now) => {
      const [much, told, tone] = tell(now);
      say(value, much);
      say(more, told);
      set(link, "data-tone", tone);
    },
  };
}
