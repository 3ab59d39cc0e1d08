// A dead letter is mended: another payload, other headers, and back it goes.

import { get, post } from "./api.js";
import { attempt, notice } from "./dialogs.js";
import { button, el, say, set } from "./dom.js";
import { fault, pretty } from "./json.js";

/**
 * Shows the form.
 * @param {Element} place Where.
 * @param {Object} found The dead letter.
 * @param {string} path Where it is in the API.
 * @param {Object} given
 * @param {string[]} given.channels The channels that it can go to.
 * @param {function(): void} given.done Is called when something was done.
 * @param {function(): void} given.anew Loads the dead letter as it is now.
 */
export function edit(place, found, path, { channels, done, anew }) {
  if (place.firstChild !== null) {
    place.querySelector("textarea, input, button").focus();
    return;
  }
  const payload = payloadField(found);
  const headers = headerFields(found.headers);
  const to = channelField(found.channel, channels);
  const conflict = el(
    "div",
    { class: "failure", role: "alert", hidden: true },
    el("strong", {}, "Somebody else has changed this dead letter meanwhile."),
    el("p", {}, "Nothing of yours was done. What you typed is still here; it is given up when the dead letter is loaded anew."),
    button("Load it anew", anew),
  );
  const sent = async (body) => {
    try {
      await post(`${path}/edit`, body);
    } catch (refusal) {
      // The same status says that there is no such channel or handler.
      if (refusal.status !== 409 || (await get(path)).revision === found.revision) {
        throw refusal;
      }
      conflict.hidden = false;
    }
  };
  const go = (replay) => async (event) => {
    const pressed = event.currentTarget;
    const problem = payload.fault();
    if (problem !== null) {
      payload.input.focus();
      return;
    }
    const body = { replay, headers: headers.changed(), revision: found.revision };
    if (replay && to.input.value !== "") {
      body.to = to.input.value;
    }
    if (payload.changed() !== undefined) {
      body.payload = payload.changed();
    }
    conflict.hidden = true;
    if (await attempt(pressed, () => sent(body)) && conflict.hidden) {
      notice(replay ? "The dead letter was replayed as edited." : "The dead letter was kept as edited.");
      done();
    }
  };
  const close = () => {
    place.replaceChildren();
    place.previousElementSibling?.querySelectorAll("button")[1]?.focus();
  };
  const form = el(
    "section",
    { "aria-label": "Edit the dead letter" },
    el("h2", {}, "Edit"),
    payload.node,
    el("h3", {}, "Headers"),
    headers.node,
    to.node,
    conflict,
    el("div", { class: "buttons" }, button("Replay as edited", go(true), { class: "primary" }), button("Keep as edited", go(false)), button("Cancel", close)),
  );
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      close();
    }
  });
  place.append(form);
  (payload.input ?? form.querySelector("input, button")).focus();
}

function payloadField(found) {
  if (found.payload_encoding !== "text" || found.payload_cut) {
    const why = found.payload_cut ? "It is too long to be edited here." : "It is no text, and cannot be edited here.";
    return { node: el("p", { class: "faint" }, `${why} Its headers can.`), input: null, changed: () => undefined, fault: () => null };
  }
  const before = pretty(found.payload) ?? found.payload;
  const isJson = pretty(found.payload) !== null || (found.headers.content_type ?? "").includes("json");
  const input = el("textarea", { id: "edited-payload", rows: String(Math.min(24, Math.max(5, before.split("\n").length + 1))), spellcheck: "false", "aria-describedby": "payload-fault" });
  input.value = before;
  const place = el("p", { class: "fault", id: "payload-fault", role: "status" });
  const check = () => {
    const why = isJson ? fault(input.value) : null;
    say(place, why === null ? "" : `This is no JSON: ${why}`);
    set(input, "aria-invalid", why === null ? null : "true");
    return why;
  };
  input.addEventListener("input", check);
  return {
    node: el("div", {}, el("label", { for: "edited-payload" }, "Payload"), input, place),
    input,
    // What nobody has touched goes back byte for byte.
    changed: () => (input.value === before ? undefined : input.value),
    fault: check,
  };
}

/** Where it goes: to the channel that it came from, unless that is gone, or another application shall handle it. */
function channelField(own, channels) {
  const others = channels.filter((name) => name !== own);
  const input = el("select", { id: "edited-channel" }, el("option", { value: "" }, own), others.map((name) => el("option", { value: name }, name)));
  return { node: el("p", {}, el("label", { for: "edited-channel" }, "Replayed to the channel "), input), input };
}

function headerFields(given) {
  const rows = [];
  const node = el("div", { class: "headers-edited" });
  const add = button("Add a header", () => addRow("", "").name.focus());
  node.append(add);

  function addRow(name, value) {
    const row = {
      name: el("input", { type: "text", "aria-label": "Name of the header", spellcheck: "false", autocomplete: "off" }),
      value: el("input", { type: "text", "aria-label": name ? `Value of ${name}` : "Value of the header", spellcheck: "false", autocomplete: "off" }),
    };
    row.name.value = name;
    row.value.value = value;
    row.name.readOnly = name !== "";
    const drop = button("Remove", () => {
      rows.splice(rows.indexOf(row), 1);
      row.node.remove();
      add.focus();
    }, { "aria-label": `Remove the header ${name}` });
    row.node = el("div", {}, row.name, row.value, drop);
    rows.push(row);
    node.insertBefore(row.node, add);
    return row;
  }

  for (const [name, value] of Object.entries(given)) {
    addRow(name, value);
  }
  return {
    node,
    /** What differs from what was given: a value, or null for what was taken away. */
    changed: () => {
      const now = new Map(rows.filter((row) => row.name.value.trim() !== "").map((row) => [row.name.value.trim(), row.value.value]));
      const different = {};
      for (const [name, value] of now) {
        if (given[name] !== value) {
          different[name] = value;
        }
      }
      for (const name of Object.keys(given)) {
        if (!now.has(name)) {
          different[name] = null;
        }
      }
      return different;
    },
  };
}
