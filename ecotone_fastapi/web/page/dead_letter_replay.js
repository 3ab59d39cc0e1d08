// Many dead letters are replayed, however many they are: step by step, so that it is seen how far it is, and can end.

import { post } from "./api.js";
import { notice, progress } from "./dialogs.js";
import { several } from "./format.js";

const PACE = 1000; // milliseconds that a step shall take about: each is a sign of life
const FIRST = 50; // dead letters
const MOST = 2000;

let isUnderWay = false; // whichever list has begun it

/** Replays all that a filter means. Those that are refused are tried once, as are those that fail again meanwhile. */
export function replayAll(filter, total) {
  let after = null;
  return stepByStep(total, async (limit) => {
    const answer = await post("dead-letters/replay", after === null ? { filter, limit } : { filter, limit, after });
    after = answer.next;
    return answer;
  });
}

/** Replays those with these ids, in this order. */
export function replayOnes(ids) {
  let begun = 0;
  return stepByStep(ids.length, async (limit) => {
    const some = ids.slice(begun, begun + limit);
    begun += some.length;
    return { ...(await post("dead-letters/replay", { ids: some })), remaining: ids.length - begun };
  });
}

/**
 * Takes steps until nothing remains, or somebody ends it.
 * @param {number} total How many there are to be tried.
 * @param {function(number): Promise<Object>} step Tries so many at most, and returns what became of them.
 * @returns {Promise<Object|null>} What became of all; null when another replay is under way.
 * @throws {Refusal} A request failed; its message says how many were replayed before.
 */
async function stepByStep(total, step) {
  if (isUnderWay) {
    notice("A replay is under way already; wait for its end, or end it.", { bad: true });
    return null;
  }
  isUnderWay = true;
  const shown = progress("Replaying dead letters");
  const all = { replayed: 0, refused: {}, refused_count: 0, remaining: total };
  let size = FIRST;
  try {
    while (all.remaining > 0 && !shown.isEnded()) {
      const began = performance.now();
      const answer = await step(size);
      all.replayed += answer.replayed;
      all.refused_count += answer.refused_count;
      Object.assign(all.refused, answer.refused);
      all.remaining = answer.remaining;
      const tried = all.replayed + all.refused_count;
      shown.tell(tried, tried + all.remaining);
      const pace = PACE / Math.max(1, performance.now() - began);
      size = Math.round(Math.min(MOST, Math.max(1, size * Math.min(2, Math.max(0.5, pace)))));
    }
  } catch (refusal) {
    refusal.message = `${several(all.replayed, "dead letter")} replayed before this: ${refusal.message}`;
    throw refusal;
  } finally {
    shown.close();
    isUnderWay = false;
  }
  return all;
}
