// What an operator should look at, told from the overview; the worst comes first.

import { duration, relative, several } from "./format.js";

const TOO_OLD = 60; // seconds that a message may wait, or a projection be behind, before that is worth a word

/**
 * @param {Object} now The overview.
 * @param {Object<string, string>} servers How the servers are: "ok", or why not.
 * @returns {Array<{key: string, tone: string, text: string, section: string}>}
 */
export function concerns(now, servers) {
  // Why a consumer has broken off says more than that its channel or its server does not answer.
  const told = new Set(now.runnables.filter((one) => one.condition === "waiting").map((one) => one.name));
  const found = [...ofServers(servers, told), ...ofRunnables(now), ...ofChannels(now, told), ...ofOutbox(now, told), ...ofMessages(now), ...ofProjections(now)];
  return [...found.filter((one) => one.tone === "bad"), ...found.filter((one) => one.tone !== "bad")];
}

function* ofServers(servers, told) {
  for (const [name, answer] of Object.entries(servers)) {
    if (answer !== "ok" && !told.has(name)) {
      yield concern("bad", "channels", `server ${name}`, `The server ${name} does not answer: ${answer}`);
    }
  }
}

function* ofRunnables(now) {
  for (const one of now.runnables) {
    if (one.paused) {
      const since = one.pauses.length > 0 ? `, since ${relative(one.pauses[0].since)}` : "";
      yield concern("warn", "channels", `runnable ${one.name}`, `${one.name} is paused: ${one.reason ?? "no reason given"}${since}`);
    } else if (one.condition === "waiting") {
      const times = several(one.failures, "failure");
      yield concern("bad", "channels", `runnable ${one.name}`, `${one.name} has broken off and tries again (${times}): ${one.reason ?? one.last_error}`);
    } else if (one.condition === "stopped") {
      yield concern("warn", "channels", `runnable ${one.name}`, `${one.name} has been stopped`);
    }
  }
}

function* ofChannels(now, told) {
  for (const one of now.channels) {
    if (one.problem !== null && !told.has(one.name)) {
      yield concern("bad", "channels", `channel ${one.name}`, `Channel ${one.name} cannot be asked: ${one.problem}`);
    } else if (one.oldest_age > TOO_OLD) {
      yield concern("warn", "channels", `channel ${one.name}`, `The oldest message of ${one.name} has been ready for ${duration(one.oldest_age)}`);
    }
  }
}

function* ofOutbox(now, told) {
  for (const one of now.outbox) {
    if (one.problem !== null) {
      yield concern("bad", "channels", `outbox ${one.channel}`, `The outbox for ${one.channel} cannot be asked: ${one.problem}`);
    } else if (one.failures > 0 && !told.has(one.channel)) {
      yield concern("bad", "channels", `outbox ${one.channel}`, `Messages for ${one.channel} cannot be sent (${several(one.failures, "attempt")}): ${one.last_error}`);
    } else if (one.oldest_age > TOO_OLD) {
      yield concern("bad", "channels", `outbox ${one.channel}`, `The outbox for ${one.channel} does not empty: its oldest message is ${duration(one.oldest_age)} old`);
    } else if (one.depth > 0 && one.relay === null) {
      yield concern("warn", "channels", `outbox ${one.channel}`, `Nobody in this application empties the outbox for ${one.channel}`);
    }
  }
}

function* ofMessages(now) {
  if (now.dead_letters.problem !== null) {
    yield concern("bad", "dead-letters", "count", `The dead letter cannot be asked: ${now.dead_letters.problem}`);
  } else if (now.dead_letters.count > 0) {
    yield concern("warn", "dead-letters", "count", `${several(now.dead_letters.count, "message")} in the dead letter`);
  }
  if (now.scheduled.problem !== null) {
    yield concern("bad", "scheduled", "count", `Scheduled messages cannot be told: ${now.scheduled.problem}`);
  }
}

function* ofProjections(now) {
  for (const one of now.projections) {
    const halted = one.versions.find((version) => version.halt !== null);
    if (one.problem !== null) {
      yield concern("bad", "projections", `projection ${one.name}`, `Projection ${one.name} cannot be asked: ${one.problem}`);
    } else if (halted !== undefined) {
      yield concern("bad", "projections", `projection ${one.name}`, `Projection ${one.name} stands still: ${halted.halt}`);
    } else if (one.lag > TOO_OLD) {
      yield concern("warn", "projections", `projection ${one.name}`, `Projection ${one.name} is ${duration(one.lag)} behind`);
    }
    if (one.blocked_by) {
      yield concern("warn", "projections", `view of ${one.name}`, `Projection ${one.name} cannot see newer events: ${one.blocked_by}`);
    }
  }
}

/** @param {string} about What tells it from all others, whatever its text says at the moment. */
function concern(tone, section, about, text) {
  return { key: `${section} ${about}`, tone, section, text };
}
