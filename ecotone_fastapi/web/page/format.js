// Numbers, times and texts as people read them.

const NUMBER = new Intl.NumberFormat();
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const ZONE = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" });

export const NOTHING = "–";

export function number(value) {
  return value === null || value === undefined ? NOTHING : NUMBER.format(value);
}

/** "1 dead letter", "3 dead letters". */
export function several(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** Messages a second, or a minute when there are few. */
export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) {
    return NOTHING;
  }
  if (perSecond === 0) {
    return "0/s";
  }
  return perSecond >= 1 ? `${NUMBER.format(Math.round(perSecond * 10) / 10)}/s` : `${Math.round(perSecond * 600) / 10}/min`;
}

/** A time in its two largest units: "3 h 5 min". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) {
    return NOTHING;
  }
  if (seconds < 1) {
    return seconds <= 0 ? "0 s" : "< 1 s";
  }
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.round(seconds);
  const told = [];
  for (const [name, size] of units) {
    const much = Math.floor(rest / size);
    if (much > 0) {
      told.push(`${much} ${name}`);
      rest -= much * size;
    }
    if (told.length === 2 || (told.length === 1 && much === 0)) {
      break;
    }
  }
  return told.join(" ");
}

let ahead = 0; // milliseconds by which the clock of the server is ahead of this one

/** Learns what time it is at the server: ages are told by its clock, whatever this one shows. */
export function setClock(text) {
  const told = Date.parse(text);
  ahead = Number.isNaN(told) ? 0 : told - Date.now();
}

/** What time it is at the server, in milliseconds. */
export function now() {
  return Date.now() + ahead;
}

/** Milliseconds since a moment as the server writes it; NaN when it is none. */
export function age(text) {
  return now() - Date.parse(text);
}

/** "5 min ago", "in 2 h". */
export function relative(text) {
  const passed = age(text) / 1000;
  if (Number.isNaN(passed)) {
    return NOTHING;
  }
  if (Math.abs(passed) < 1) {
    return "now";
  }
  return passed > 0 ? `${duration(passed)} ago` : `in ${duration(-passed)}`;
}

/** A moment in the time of the reader. */
export function moment(text) {
  const parsed = Date.parse(text ?? "");
  return Number.isNaN(parsed) ? NOTHING : MOMENT.format(parsed);
}

/** The name of the time zone in which moments are written. */
export function zone() {
  return ZONE.formatToParts(new Date()).find((part) => part.type === "timeZoneName")?.value ?? "local time";
}

/** The last part of a dotted name: what people call a class or a function. */
export function shortName(name) {
  const parts = (name ?? "").split(/[.:]/);
  return parts[parts.length - 1];
}

/** A text that is not longer than so many characters. */
export function shortened(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}
