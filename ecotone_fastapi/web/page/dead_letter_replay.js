// All dead letters that a filter means are replayed, however many they are.

import { post } from "./api.js";
import { several } from "./format.js";

const AT_ONCE = 500; // how many are replayed by one request: each answer is a sign of life

/**
 * Replays them, and goes on over those that are refused.
 * @param {Object} filter Which.
 * @param {function(number, number): void} tell Is told after each request how many were replayed, and how many are left.
 * @returns {Promise<{replayed: number, refused: Object, refused_count: number, remaining: number}>} What became of all.
 * @throws {Refusal} A request failed; its message says how many were replayed before.
 */
export async function replayAll(filter, tell) {
  let replayed = 0;
  let answer;
  do {
    try {
      answer = await post("dead-letters/replay", { filter, limit: AT_ONCE });
    } catch (refusal) {
      refusal.message = `${several(replayed, "dead letter")} replayed before this: ${refusal.message}`;
      throw refusal;
    }
    replayed += answer.replayed;
    tell(replayed, answer.remaining);
    // Those that are refused stay, and are tried again with the next ones: the last answer tells about all of them.
  } while (answer.remaining > 0 && answer.replayed > 0);
  return { ...answer, replayed };
}
