/**
 * The service's HTTP API, one function a call.
 *
 * @typedef {"approved" | "rejected" | "cleared"} Word
 * @typedef {object} Candidate
 * @property {string} clip_id
 * @property {string} prompt_id
 * @property {string} prompt
 * @property {string | null} negative_prompt
 * @property {number} seed
 * @property {number} candidate
 * @property {keyof typeof import("./format.js").STATUS_WORDS} status
 * @property {string | null} reason
 * @property {number | null} rank
 * @property {Record<string, number | null>} scores
 * @property {{word: Word, by: string, at: string, note: string | null} | null} decision
 * @property {string | null} preview
 * @property {string | null} poster
 * @property {string | null} clip
 * @property {string | null} clip_poster
 * @property {{preview: number | null, refine: number | null}} seconds
 * @property {{preview: string | null, refine: string | null}} memory_notes what was done otherwise than asked
 * @property {string | null} error
 * @property {string[]} unknown_words
 * @property {{stage: string, done: number | null, total: number | null, seconds_left: number | null,
 *   queue_position: number} | null} progress
 * @property {string} at
 * @property {string} made
 * @typedef {{word: Word, by?: string | null, note?: string | null}} Said what stood about a candidate
 * @typedef {{clip_id: string, word: Word, before: Said}} Step a decision that was made, and what stood before it
 * @typedef {Record<string, string | number | string[]>} Filter
 * @typedef {{clips: number, removed: number, seconds: number | null, money: number | null, currency: string}} Estimate
 */

const BASE = "/api/v1";
const MOST = 1000; // decisions in one call
const BODY_BYTES = 240 * 1024;

/** A call that the service refused, or that never reached it (`status` 0). */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {{field: string, message: string}[]} errors @param {number | null} retryAfter */
  constructor(status, message, errors = [], retryAfter = null) {
    super(message);
    this.status = status;
    this.errors = errors;
    this.retryAfter = retryAfter;
  }
}

/** @param {string} method @param {string} path @param {unknown} [body] @param {Record<string, string>} [headers] */
async function call(method, path, body, headers = {}) {
  let response;
  try {
    response = await fetch(BASE + path, {
      method,
      credentials: "same-origin",
      headers: {
        ...(method === "GET" ? {} : { "X-Requested-With": "flashvideo-ray" }),
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, "The service cannot be reached. Is it still running?");
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After"));
  throw new ApiError(
    response.status,
    problem.detail || problem.title || `The service answered ${response.status}.`,
    problem.errors || [],
    wait > 0 ? wait : null,
  );
}

/** @param {Filter} filter */
function query(filter) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(filter)) {
    for (const each of Array.isArray(value) ? value : [value]) params.append(name, String(each));
  }
  return params;
}

export const me = () => call("GET", "/me");
/** @param {string} token */
export const logIn = (token) => call("POST", "/session", { token });
export const logOut = () => call("DELETE", "/session");
export const run = () => call("GET", "/run");

/**
 * A page of candidates.
 * @param {Filter} filter
 * @param {{sort?: string, cursor?: string | null, limit?: number}} [page]
 * @returns {Promise<{items: Candidate[], next: string | null, total: number}>}
 */
export function candidates(filter, { sort, cursor, limit } = {}) {
  const params = query(filter);
  for (const [name, value] of Object.entries({ sort, cursor, limit })) if (value) params.set(name, String(value));
  return call("GET", `/candidates?${params}`);
}

/** Every candidate that a filter matches. @param {Filter} filter @param {string} [sort] */
export async function allCandidates(filter, sort) {
  const found = [];
  let cursor = null;
  do {
    const page = await candidates(filter, { sort, cursor, limit: 200 });
    found.push(...page.items);
    cursor = page.next;
  } while (cursor);
  return found;
}

/** @param {string} id @returns {Promise<Candidate>} */
export const candidate = (id) => call("GET", `/candidates/${id}`);

/** @param {object} body @param {string} key the same one when the same submission is sent again */
export const submit = (body, key) => call("POST", "/prompts", body, { "Idempotency-Key": key });

/** @param {{clip_id: string, word: Word, note?: string}[]} decisions @returns {Promise<{items: Candidate[]}>} */
export async function decide(decisions) {
  const items = [];
  for (const some of portions(decisions)) items.push(...(await call("POST", "/decisions", { decisions: some })).items);
  return { items };
}

/** Take back own decisions. `left` are those that stay: somebody else decided since, or its clip is made.
 * @param {Step[]} steps @returns {Promise<{items: Candidate[], left: string[]}>} */
export async function undo(steps) {
  /** @type {{items: Candidate[], left: string[]}} */ const done = { items: [], left: [] };
  for (const some of portions(steps)) {
    const { items, left } = await call("POST", "/decisions/undo", { decisions: some });
    done.items.push(...items);
    done.left.push(...left);
  }
  return done;
}

/** As many at a time as one call may hold. @template T @param {T[]} all @returns {T[][]} */
function portions(all) {
  /** @type {T[][]} */ const found = [[]];
  let size = 0;
  for (const each of all) {
    const bytes = 4 * JSON.stringify(each).length; // at most, in UTF-8
    const last = /** @type {T[]} */ (found.at(-1));
    if (last.length && (last.length === MOST || size + bytes > BODY_BYTES)) {
      found.push([]);
      size = 0;
    }
    /** @type {T[]} */ (found.at(-1)).push(each);
    size += bytes;
  }
  return found;
}

/** @param {Filter} filter @param {Word} word @param {number} expect @returns {Promise<{items: Candidate[]}>} */
export const decideAll = (filter, word, expect) => call("POST", "/decisions", { filter, word, expect });

/** @param {{clip_ids: string[]} | {filter: Filter}} chosen @returns {Promise<Estimate>} */
export const estimate = (chosen) => call("POST", "/estimate", chosen);

/** @param {{clip_ids: string[]} | {filter: Filter}} chosen @returns {Promise<{queued: number, left: number}>} */
export const refine = (chosen) => call("POST", "/refine", chosen);

/** @param {string} id */
export const reseed = (id) => call("POST", `/candidates/${id}/reseed`);
/** @param {string} id @param {string} prompt */
export const reprompt = (id, prompt) => call("POST", `/candidates/${id}/reprompt`, { prompt });
/** @param {string} id */
export const cancel = (id) => call("POST", `/candidates/${id}/cancel`);

export const EVENTS = `${BASE}/events`;
