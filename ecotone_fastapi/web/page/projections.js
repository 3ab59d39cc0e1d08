// Projections: how far behind they are, and how far they are while they are made anew.

import { post } from "./api.js";
import { attempt, confirm, notice } from "./dialogs.js";
import { Keyed, button, el, say, set } from "./dom.js";
import { NOTHING, duration, number } from "./format.js";
import { cell, rowHead, state, table } from "./tables.js";

/** Shows them. */
export function open(place) {
  const columns = ["Projection", "State", { name: "Version", class: "number" }, { name: "Events behind", class: "number" }, "Lag", "Rebuild", { name: "Actions", hidden: true }];
  const made = table("Projections", columns, "This application has no projections.");
  const rows = new Keyed(made.body, (one) => one.name, makeRow);
  place.append(el("div", { class: "heading" }, el("h1", {}, "Projections")), made.node);
  return {
    update: (now) => {
      rows.show(now.projections);
      made.showEmpty(now.projections.length === 0);
    },
  };
}

const TONES = { live: "good", building: "warn", "stands still": "bad" };

function makeRow(first) {
  const path = `projections/${encodeURIComponent(first.name)}`;
  const condition = el("span", { class: "state" });
  const why = el("span", { class: "second" });
  const runner = el("span", { class: "second" });
  const version = cell("Version", { class: "number" });
  const behind = cell("Events behind", { class: "number" });
  const lag = cell("Lag", { class: "when" });
  const bar = el("progress", { max: "1", "aria-label": `Rebuild of ${first.name}` });
  const left = el("span", { class: "second" });
  const progress = cell("Rebuild", {}, bar, left);
  const rebuild = button("Rebuild …", async () => {
    const sure = await confirm({
      title: `Rebuild ${first.name}?`,
      text: ["All of its events are handled again. A projection with versions stays in use meanwhile; any other is emptied first."],
      yes: "Rebuild",
    });
    if (sure && (await attempt(rebuild, () => post(`${path}/rebuild`)))) {
      notice(`${first.name} is being rebuilt.`);
    }
  }, { "aria-label": `Rebuild ${first.name}` });
  const cancel = button("Cancel the rebuild …", async () => {
    const sure = await confirm({ title: `Cancel the rebuild of ${first.name}?`, text: ["What was built so far is thrown away."], yes: "Cancel the rebuild", danger: true });
    if (sure && (await attempt(cancel, () => post(`${path}/cancel`)))) {
      notice(`The rebuild of ${first.name} was cancelled.`);
    }
  }, { class: "danger", "aria-label": `Cancel the rebuild of ${first.name}` });
  const retry = button("Try again now", async () => {
    if (await attempt(retry, () => post(`${path}/retry`))) {
      notice(`${first.name} tries again.`);
    }
  }, { class: "primary", "aria-label": `Let ${first.name} try again now` });
  const node = el("tr", {}, rowHead(first.name, el("span", { class: "second" }, first.mode ?? "", first.partitioned ? ", partitioned" : "")),
    cell("State", { class: "wide" }, condition, why, runner), version, behind, lag, progress, cell("Actions", { class: "doing" }, el("div", { class: "buttons" }, retry, rebuild, cancel)));
  return {
    node,
    update: (one) => {
      const current = one.versions.find((each) => each.number === one.version);
      const building = one.versions.find((each) => each.done !== null);
      const halt = one.versions.find((each) => each.halt !== null)?.halt ?? null;
      const told = one.problem !== null ? "not told" : halt !== null ? "stands still" : (one.condition ?? "not initialised");
      state(condition, told, one.problem !== null ? "bad" : (TONES[told] ?? null));
      say(why, one.problem ?? halt ?? one.blocked_by);
      // As the database knows it, whichever process that is.
      say(runner, current?.runner ? `run by ${current.runner}` : "");
      say(version, number(one.version));
      say(behind, number(current?.behind));
      say(lag, one.lag === null ? NOTHING : duration(one.lag));
      showProgress(building, bar, left);
      retry.hidden = halt === null;
      cancel.hidden = building === undefined;
      rebuild.hidden = building !== undefined;
    },
  };
}

function showProgress(building, bar, left) {
  bar.hidden = building === undefined;
  if (building === undefined) {
    say(left, "");
    return;
  }
  const part = building.total > 0 ? Math.min(1, building.done / building.total) : 1;
  bar.value = part;
  set(bar, "aria-valuetext", `${Math.floor(part * 100)} %`);
  const rest = building.seconds_left === null ? "" : `, ${duration(building.seconds_left)} left`;
  say(left, `version ${number(building.number)}: ${number(building.done)} of ${number(building.total)} (${Math.floor(part * 100)} %)${rest}`);
}
