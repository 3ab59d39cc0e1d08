// Puts the page together: its sections, the one that is shown, and the state of the connection.

import { door } from "./api.js";
import { announce } from "./dialogs.js";
import { el, say, set } from "./dom.js";
import { duration, number, setClock, several } from "./format.js";
import { Live } from "./live.js";
import * as channel from "./channel.js";
import * as channels from "./channels.js";
import * as deadLetter from "./dead_letter.js";
import * as deadLetters from "./dead_letters.js";
import * as flow from "./flow.js";
import * as handler from "./handler.js";
import * as handlers from "./handlers.js";
import * as overview from "./overview.js";
import * as projections from "./projections.js";
import * as scheduled from "./scheduled.js";

// `one` shows a single thing of a section, whose id follows in the address.
const SECTIONS = {
  overview: { name: "Overview", all: overview },
  channels: { name: "Channels", all: channels, one: channel },
  "dead-letters": { name: "Dead letters", all: deadLetters, one: deadLetter, badge: (now) => now.dead_letters.count },
  scheduled: { name: "Scheduled", all: scheduled },
  projections: { name: "Projections", all: projections },
  handlers: { name: "Handlers", all: handlers, one: handler },
  flow: { name: "Message flow", all: flow },
};

const STATES = {
  connecting: "Connecting",
  live: "Live",
  lost: "Connection lost",
  refused: "Not allowed",
};

const live = new Live();
const view = document.getElementById("view");
const alertPlace = document.getElementById("alert");
const links = {};
const badges = {};
let shown = null;

function drawSections() {
  const list = document.getElementById("sections");
  for (const [id, section] of Object.entries(SECTIONS)) {
    badges[id] = el("span", { class: "badge", hidden: true });
    links[id] = el("a", { href: `#/${id}` }, section.name, " ", badges[id]);
    list.append(el("li", {}, links[id]));
  }
}

/** Reads "#/dead-letters/abc?error=KeyError". */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const at = path.indexOf("/");
  const id = at < 0 ? path : path.slice(0, at);
  const rest = at < 0 ? "" : path.slice(at + 1);
  if (!Object.hasOwn(SECTIONS, id) || (rest !== "" && !SECTIONS[id].one)) {
    return { id: "overview", rest: "", query: new URLSearchParams() };
  }
  return { id, rest: decoded(rest), query: new URLSearchParams(query) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody has cut the address
  }
}

function title() {
  const count = live.overview?.dead_letters.count ?? 0;
  document.title = `${count > 0 ? `(${number(count)}) ` : ""}${SECTIONS[route().id].name} · ${location.host}`;
}

function show({ focus }) {
  const { id, rest, query } = route();
  const section = SECTIONS[id];
  shown?.close?.();
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  view.replaceChildren();
  for (const [other, link] of Object.entries(links)) {
    set(link, "aria-current", other === id ? "page" : null);
  }
  shown = (rest === "" ? section.all : section.one).open(view, { live, query, id: rest });
  if (live.overview !== null) {
    shown.update?.(live.overview);
  }
  title();
  if (focus) {
    window.scrollTo(0, 0);
    const heading = view.querySelector("h1");
    heading?.setAttribute("tabindex", "-1");
    heading?.focus({ preventScroll: true });
  }
}

let counted = null;

function update(now) {
  setClock(now.at);
  shown?.update?.(now);
  for (const [id, section] of Object.entries(SECTIONS)) {
    const count = section.badge?.(now) ?? 0;
    set(badges[id], "hidden", count === 0);
    say(badges[id], count === 0 ? "" : number(count));
  }
  const count = now.dead_letters.count;
  if (counted !== null && count !== null && counted !== count) {
    announce(several(count, "dead letter"));
  }
  counted = count;
  title();
}

function connection() {
  const place = document.getElementById("connection");
  set(place, "data-state", live.state);
  document.documentElement.dataset.connection = live.state;
  const silent = live.heardAt === null ? "" : `, last news ${duration((Date.now() - live.heardAt) / 1000)} ago`;
  say(document.getElementById("connection-text"), STATES[live.state] + (live.state === "lost" ? silent : ""));
}

function refused(refusal) {
  const why = refusal.status === 401 ? "You are not signed in" : "You may not see this";
  alertPlace.replaceChildren(
    el("strong", {}, `${why} (${refusal.status}).`),
    ` ${refusal.message} `,
    el("button", { type: "button", click: () => location.reload() }, "Load the page again"),
  );
  alertPlace.hidden = false;
}

drawSections();
say(document.getElementById("application"), location.host);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the part of the address behind # says which section is shown
  document.getElementById("main").focus();
});
window.addEventListener("hashchange", () => show({ focus: true }));
door.addEventListener("refused", (event) => refused(event.detail));
door.addEventListener("admitted", () => {
  alertPlace.hidden = true;
});
live.addEventListener("overview", (event) => update(event.detail));
live.addEventListener("state", connection);
setInterval(() => live.state === "lost" && connection(), 1000);
show({ focus: false });
connection();
live.start();
