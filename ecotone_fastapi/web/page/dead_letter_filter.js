// Which dead letters are shown: a form, whose content is in the address, so that it can be sent to somebody else.

import { button, el } from "./dom.js";
import { moment, now } from "./format.js";

const FIELDS = ["handler", "error", "channel", "text", "tenant"];
const PERIODS = { "": "At any time", 900: "Last 15 minutes", 3600: "Last hour", 86400: "Last day", 604800: "Last week", between: "Between …" };

const LABELS = { handler: "handler", error: "error", channel: "channel", text: "text", tenant: "tenant" };

/** Writes a filter into an address. */
export function filterAddress(filter) {
  const query = new URLSearchParams(Object.entries(filter).filter(([, value]) => value !== ""));
  return `#/dead-letters${query.size > 0 ? `?${query}` : ""}`;
}

/** Says a filter in words, for those who are about to do something to all that it means. */
export function inWords(filter) {
  const told = FIELDS.filter((name) => filter[name]).map((name) => `${LABELS[name]} is “${filter[name]}”`.replace("text is", "containing"));
  if (filter.since) {
    told.push(`parked since ${moment(filter.since)}`);
  }
  if (filter.until) {
    told.push(`parked before ${moment(filter.until)}`);
  }
  return told.join(", ");
}

/**
 * Makes the form.
 * @param {URLSearchParams} query What the address says.
 * @param {function(): void} changed Is called when something else is meant.
 */
export function filterForm(query, changed) {
  const inputs = {
    handler: field("text", "Id of the handler", "known-handlers"),
    error: field("text", "KeyError"),
    channel: field("text", "Name of the channel", "known-channels"),
    text: field("search", "In payload, headers, error, traceback"),
    tenant: field("text", "Header “tenant”"),
  };
  const period = el("select", {}, Object.entries(PERIODS).sort(byOrder).map(([value, name]) => el("option", { value }, name)));
  const since = el("input", { type: "datetime-local", step: "1" });
  const until = el("input", { type: "datetime-local", step: "1" });
  const between = [labelled("From", since), labelled("Until", until)];
  const handlers = el("datalist", { id: "known-handlers" });
  const channels = el("datalist", { id: "known-channels" });

  for (const name of FIELDS) {
    inputs[name].value = query.get(name) ?? "";
  }
  if (query.get("within")) {
    period.value = query.get("within");
  } else if (query.get("since") || query.get("until")) {
    period.value = "between";
    since.value = localInput(query.get("since"));
    until.value = localInput(query.get("until"));
  }
  const showBetween = () => {
    for (const one of between) {
      one.hidden = period.value !== "between";
    }
  };
  showBetween();

  const clear = button("Clear the filter", () => {
    form.reset();
    for (const input of [...Object.values(inputs), since, until]) {
      input.value = "";
    }
    period.value = "";
    showBetween();
    changed();
    inputs.handler.focus();
  });
  const form = el(
    "form",
    { class: "filter", role: "search", "aria-label": "Filter of dead letters" },
    labelled("Handler", inputs.handler),
    labelled("Error", inputs.error),
    labelled("Channel", inputs.channel),
    labelled("Text", inputs.text),
    labelled("Tenant", inputs.tenant),
    labelled("Parked", period),
    between,
    el("button", { type: "submit", class: "primary" }, "Filter"),
    clear,
    handlers,
    channels,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    changed();
  });
  period.addEventListener("change", () => {
    showBetween();
    if (period.value !== "between") {
      changed();
    }
  });

  const kept = () => {
    const filter = Object.fromEntries(FIELDS.map((name) => [name, inputs[name].value.trim()]));
    if (period.value === "between") {
      return { ...filter, since: fromInput(since), until: fromInput(until) };
    }
    return { ...filter, within: period.value };
  };
  return {
    node: form,
    /** What is written into the address: "the last hour" stays that. */
    kept,
    /** What the API is asked for: "the last hour" becomes a moment. */
    asked: () => {
      const { within, ...filter } = kept();
      return within ? { ...filter, since: new Date(now() - Number(within) * 1000).toISOString() } : filter;
    },
    suggest: (handlerIds, channelNames) => {
      handlers.replaceChildren(...handlerIds.map((value) => el("option", { value })));
      channels.replaceChildren(...channelNames.map((value) => el("option", { value })));
    },
  };
}

function byOrder([one], [other]) {
  const order = (value) => (value === "" ? -1 : value === "between" ? Infinity : Number(value));
  return order(one) - order(other);
}

function field(type, placeholder, list = null) {
  return el("input", { type, placeholder, list, autocomplete: "off", spellcheck: "false" });
}

function labelled(text, input) {
  return el("label", {}, text, input);
}

function localInput(text) {
  const parsed = new Date(text ?? "");
  if (Number.isNaN(parsed.getTime())) {
    return "";
  }
  return new Date(parsed.getTime() - parsed.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

function fromInput(input) {
  return input.value === "" ? "" : new Date(input.value).toISOString();
}
