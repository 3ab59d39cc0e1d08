// Questions before something is done, and notices after it. The focus goes back to where it came from.

import { button, el, say } from "./dom.js";
import { number } from "./format.js";

let questions = 0;

/**
 * Asks for a confirmation; Escape and "Cancel" refuse it, and "Cancel" has the focus where something would be lost.
 * @param {Object} question
 * @param {string} question.title What is asked.
 * @param {Array<Node|string>} [question.text] What that means.
 * @param {string} question.yes What the button says: what will be done.
 * @param {boolean} [question.danger] Whether it cannot be undone.
 * @param {string} [question.type] What has to be typed before it can be done.
 * @param {function(): *} [question.answer] What is returned instead of true.
 * @returns {Promise<*>} The answer, or false.
 */
export function confirm({ title, text = [], yes, danger = false, type = null, answer = () => true }) {
  questions += 1;
  const heading = el("h2", { id: `question-${questions}` }, title);
  const typed = type === null ? null : el("input", { type: "text", autocomplete: "off", spellcheck: "false", id: `typed-${questions}` });
  const go = el("button", { type: "submit", class: danger ? "danger" : "primary" }, yes);
  const cancel = button("Cancel", () => dialog.close());
  const form = el(
    "form",
    {},
    heading,
    text.map((one) => (one instanceof Node ? one : el("p", {}, one))),
    typed && el("p", {}, el("label", { for: typed.id }, "Type ", el("strong", {}, type), " to go on"), typed),
    el("div", { class: "buttons" }, cancel, go),
  );
  const dialog = el("dialog", { "aria-labelledby": heading.id }, form);
  let given = false;
  if (typed !== null) {
    go.disabled = true;
    typed.addEventListener("input", () => {
      go.disabled = typed.value.trim() !== type;
    });
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!go.disabled) {
      given = answer();
      dialog.close();
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  const first = typed ?? form.querySelector("input, textarea, select") ?? (danger ? cancel : go);
  first.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(given);
    });
  });
}

const LASTS = 12000; // milliseconds

/** Tells what was done, for a while; what went wrong stays until it is closed. */
export function notice(text, { bad = false } = {}) {
  const place = document.getElementById("notices");
  const closed = () => {
    const focused = one.contains(document.activeElement);
    one.remove();
    if (focused) {
      document.getElementById("main").focus();
    }
  };
  const one = el(
    "div",
    { class: bad ? "notice bad" : "notice", role: bad ? "alert" : "status" },
    el("span", {}, text),
    button("Close", closed, { class: "quiet" }),
  );
  for (const before of place.children) {
    if (before.firstElementChild.textContent === text) {
      before.remove(); // said once more, not twice
    }
  }
  place.append(one);
  for (const before of [...place.querySelectorAll(".notice:not(.working)")].slice(0, -4)) {
    before.remove();
  }
  if (!bad) {
    setTimeout(() => one.isConnected && !one.contains(document.activeElement) && one.remove(), LASTS);
  }
}

/**
 * Shows how far something is that takes a while, whichever section is shown meanwhile, with a button that ends it.
 * @param {string} title What it is.
 * @returns {{tell: function(number, number): void, isEnded: function(): boolean, close: function(): void}} Is told how
 *   many are done, and of how many; whether somebody has ended it; takes it away.
 */
export function progress(title) {
  const bar = el("progress", { max: "1", "aria-label": title });
  const told = el("span", { class: "second" }, "…");
  const end = button("Stop", () => {
    end.setAttribute("aria-disabled", "true");
    say(end, "Stopping");
  });
  const node = el("div", { class: "notice working", role: "group", "aria-label": title }, el("div", {}, title, bar, told), end);
  document.getElementById("notices").prepend(node);
  return {
    tell: (done, total) => {
      bar.value = total > 0 ? done / total : 1;
      say(told, `${number(done)} of ${number(total)}`);
    },
    isEnded: () => end.getAttribute("aria-disabled") === "true",
    close: () => {
      const focused = node.contains(document.activeElement);
      node.remove();
      if (focused) {
        document.getElementById("main").focus();
      }
    },
  };
}

/** Lets those who do not see the page know what has changed in it. */
export function announce(text) {
  say(document.getElementById("announcement"), text);
}

/**
 * Does something while its button is out of use, and tells when it fails.
 * @returns {Promise<boolean>} Whether it was done.
 */
export async function attempt(pressed, work) {
  if (pressed.getAttribute("aria-disabled") === "true") {
    return false; // it is at work already
  }
  // Not `disabled`: a button that is would lose the focus.
  pressed.setAttribute("aria-disabled", "true");
  try {
    await work();
    return true;
  } catch (refusal) {
    notice(refusal.message, { bad: true });
    return false;
  } finally {
    pressed.removeAttribute("aria-disabled");
  }
}
