// What happens now: the overview by server-sent events, and whether it still comes.

import { address, door, get } from "./api.js";

// How often news come, when the address of the page says so: page?seconds=10. The server has its own idea otherwise.
const WISH = Number(new URLSearchParams(location.search).get("seconds"));
const INTERVAL = WISH > 0 ? Math.min(10, Math.max(0.2, WISH)) : null;
// Milliseconds without news after which the connection counts as lost; unless told otherwise, news come every 2 s.
const SILENCE = 8000 + 2000 * (INTERVAL ?? 0);
const AGAIN = [300, 1000, 2000, 4000, 8000]; // milliseconds before each attempt to connect anew

/**
 * Dispatches "overview", with the overview, whenever one arrives, and "state" whenever `state` has changed:
 * "connecting", "live", "lost" or "refused".
 */
export class Live extends EventTarget {
  constructor() {
    super();
    this.state = "connecting";
    this.overview = null;
    this.heardAt = null;
    this.attempts = 0;
    this.source = null;
    this.timer = null;
  }

  /** Connects, and stays connected. */
  start() {
    this.connect();
    setInterval(() => this.watch(), 1000);
    door.addEventListener("changed", () => this.look());
    window.addEventListener("online", () => this.connect());
    // A browser has few connections to one server for all of its pages: one that nobody sees gives its own away.
    document.addEventListener("visibilitychange", () => (document.hidden ? this.rest() : this.connect()));
  }

  /** Connects anew, at once. */
  connect() {
    this.rest();
    this.openedAt = Date.now();
    const source = new EventSource(address("live", { seconds: INTERVAL }));
    this.source = source;
    source.addEventListener("overview", (event) => this.hear(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      // By itself it would wait for seconds, and give up where it is answered with an error.
      if (source === this.source) {
        this.later();
      }
    });
  }

  rest() {
    clearTimeout(this.timer);
    this.timer = null;
    this.source?.close();
    this.source = null;
  }

  hear(overview) {
    this.attempts = 0;
    this.heardAt = Date.now();
    this.become("live");
    this.tell(overview);
  }

  /** Asks how everything is after something was changed, instead of waiting for the news. */
  async look() {
    try {
      this.tell(await get("overview"));
    } catch {
      return; // the connection tells by itself what is wrong
    }
  }

  tell(overview) {
    this.overview = overview;
    this.dispatchEvent(new CustomEvent("overview", { detail: overview }));
  }

  /** Notices silence. */
  watch() {
    const since = Math.max(this.heardAt ?? 0, this.openedAt);
    if (this.source !== null && this.timer === null && Date.now() - since > SILENCE) {
      this.later();
    }
  }

  async later() {
    this.source.close();
    const pause = AGAIN[Math.min(this.attempts, AGAIN.length - 1)];
    this.attempts += 1;
    this.timer = setTimeout(() => {
      this.timer = null;
      this.connect();
    }, pause);
    if (this.attempts === 1 && this.heardAt !== null) {
      return; // connections do end from time to time; the next one may be there at once
    }
    // An EventSource does not tell why it was refused; a request does.
    try {
      await get("overview");
      this.become("lost");
    } catch (refusal) {
      this.become(refusal.closed ? "refused" : "lost");
    }
  }

  become(state) {
    if (state !== this.state) {
      this.state = state;
      this.dispatchEvent(new CustomEvent("state", { detail: state }));
    }
  }
}
