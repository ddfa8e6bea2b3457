/** Numbers and words as people read them. Every number has its unit. */

export const NBSP = "\u00a0";

/** @param {number} n */
export function count(n) {
  return n.toLocaleString("en-GB").replaceAll(",", "\u202f");
}

/** @param {number} n @param {string} one @param {string} [many] */
export function counted(n, one, many = `${one}s`) {
  return `${count(n)}${NBSP}${n === 1 ? one : many}`;
}

/** A score: three significant digits, a dash for what is missing. @param {number | null | undefined} x */
export function number(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  return Math.abs(x) >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(3)));
}

/** Sizes in seconds. @type {[number, string, number, string][]} */
const UNITS = [
  [86400, "d", 3600, "h"],
  [3600, "h", 60, "min"],
  [60, "min", 1, "s"],
];

/** Two units at most: 0.82 s, 41 s, 3 min 20 s, 2 h 5 min. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds > 0 && seconds < 0.01) return `${Number((1000 * seconds).toPrecision(2))}${NBSP}ms`;
  if (seconds < 59.5) return `${seconds < 10 ? Number(seconds.toPrecision(2)) : seconds.toFixed(0)}${NBSP}s`;
  for (const [size, unit, smaller, small] of UNITS) {
    const rounded = Math.round(seconds / smaller) * smaller;
    if (rounded < size) continue;
    const rest = (rounded % size) / smaller;
    return `${Math.floor(rounded / size)}${NBSP}${unit}` + (rest ? ` ${rest}${NBSP}${small}` : "");
  }
  return "–";
}

/** @param {number | null | undefined} amount @param {string} currency */
export function money(amount, currency) {
  if (amount === null || amount === undefined) return "";
  const digits = amount !== 0 && Math.abs(amount) < 1 ? 4 : 2;
  return `${amount.toFixed(digits)}${NBSP}${currency}`;
}

/** Seconds and, where a price is known, money. @param {number | null} seconds @param {number | null} amount @param {string} currency */
export function cost(seconds, amount, currency) {
  const parts = [];
  if (seconds !== null && seconds !== undefined) parts.push(`about ${duration(seconds)}`);
  if (amount !== null && amount !== undefined) parts.push(money(amount, currency));
  return parts.join(", ");
}

/** A moment in the reader's own time zone. @param {string} iso */
export function when(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.valueOf()) ? iso : at.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

/** What a candidate's status is called on the page. */
export const STATUS_WORDS = {
  queued: "Queued",
  previewing: "Previewing",
  previewed: "To review",
  approved: "Approved",
  refining: "Rendering",
  rendered: "Rendered",
  rejected: "Rejected",
  failed: "Failed",
  skipped: "Skipped",
  cancelled: "Cancelled",
};

const STAGE_WORDS = {
  text: "reading the prompt",
  preview: "preview",
  score: "scoring",
  rate: "scoring",
  refine: "clip",
};

/** How far a candidate is, as one line. @param {NonNullable<import("./api.js").Candidate["progress"]>} p */
export function progressLine(p) {
  const what = STAGE_WORDS[p.stage] ?? p.stage;
  const left =
    p.seconds_left === null || p.seconds_left === undefined ? "" : `, about ${duration(p.seconds_left)} left`;
  if (p.total && p.done !== null && p.done !== undefined && p.queue_position === 0) {
    return `${what}: step ${p.done} of ${p.total}${left}`;
  }
  if (p.queue_position) return `place ${count(p.queue_position)} in the queue${left}`;
  return `${what}: starting${left}`;
}
