/**
 * What the page knows: the run, the filter, the list of candidates in a stable order, and the newest word on each.
 *
 * A card that no longer matches the filter (it was just approved) stays where it is until the list is loaded anew, so
 * that nothing jumps under a reviewer's hands.
 *
 * Events: `run`, `filter`, `list` (the order or length changed), `candidate` (detail: id), `load` (loading or its error).
 *
 * @typedef {import("./api.js").Candidate} Candidate
 * @typedef {{status: string, q: string, prompt_id: string, sort: string, bounds: Record<string, number>}} Query
 */

import * as api from "./api.js";

/** The status tabs: what each shows. */
export const TABS = {
  all: [],
  review: ["previewed"],
  working: ["queued", "previewing", "approved", "refining"],
  rendered: ["rendered"],
  rejected: ["rejected"],
  failed: ["failed", "skipped", "cancelled"],
};

const PAGE = 120;
const NEWEST = "-made";

/** @returns {Query} */
export const emptyQuery = () => ({ status: "all", q: "", prompt_id: "", sort: NEWEST, bounds: {} });

export class Store extends EventTarget {
  /** @type {any} */ run = null;
  /** @type {{name: string | null, role: string | null, login_needed: boolean} | null} */ me = null;
  /** @type {Query} */ query = emptyQuery();
  /** @type {string[]} */ order = [];
  /** @type {Map<string, Candidate>} */ known = new Map();
  /** @type {string | null} */ next = null;
  total = 0;
  unseen = 0;
  loading = false;
  loaded = false;
  /** @type {Error | null} */ error = null;
  #generation = 0;
  /** Candidates that are known, and that the list had no place for when it was loaded. @type {Set<string>} */ #out = new Set();
  /** What came while a part of the list was on its way, which may not know of it. @type {Candidate[]} */ #meanwhile = [];
  /** What the list was loaded for. @type {string} */ #shown = "";

  /** @param {string} type @param {unknown} [detail] */
  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** @param {string} type @param {(event: any) => void} listener */
  on(type, listener) {
    this.addEventListener(type, listener);
  }

  /** @param {"viewer" | "reviewer" | "operator"} role */
  may(role) {
    const roles = ["viewer", "reviewer", "operator"];
    return roles.indexOf(this.me?.role ?? "") >= roles.indexOf(role);
  }

  /** Whether the list is what the filter says: not another one's that is still there, nor one that could not be loaded. */
  get current() {
    return this.loaded && !this.error && this.#shown === this.#asked;
  }

  get #asked() {
    return JSON.stringify([this.filter(), this.query.sort]);
  }

  /** The filter as the API takes it. @returns {import("./api.js").Filter} */
  filter() {
    const { status, q, prompt_id, bounds } = this.query;
    /** @type {import("./api.js").Filter} */ const filter = { ...bounds };
    if (TABS[status].length) filter.status = TABS[status];
    if (q) filter.q = q;
    if (prompt_id) filter.prompt_id = prompt_id;
    return filter;
  }

  /** @param {Candidate} c */
  matches(c) {
    const { status, q, prompt_id, bounds } = this.query;
    if (TABS[status].length && !TABS[status].includes(c.status)) return false;
    if (prompt_id && c.prompt_id !== prompt_id) return false;
    if (q && !c.prompt.toLowerCase().includes(q.toLowerCase())) return false;
    return Object.entries(bounds).every(([name, bound]) => {
      const score = name.slice(4);
      const value = score === "rank" ? c.rank : c.scores[score];
      if (value === null || value === undefined) return false;
      return name.startsWith("min_") ? value >= bound : value <= bound;
    });
  }

  /** @param {Partial<Query>} change */
  setQuery(change) {
    this.query = { ...this.query, ...change };
    this.tell("filter");
    return this.reload();
  }

  /** Load the list from its beginning. */
  async reload() {
    const generation = ++this.#generation;
    const asked = this.#asked;
    this.loading = true;
    this.error = null;
    this.tell("load");
    try {
      const page = await api.candidates(this.filter(), { sort: this.query.sort, limit: PAGE });
      if (generation !== this.#generation) return;
      for (const c of page.items) this.known.set(c.clip_id, c);
      this.#show(
        asked,
        page.items.map((c) => c.clip_id),
        page.next,
        page.total,
      );
    } catch (error) {
      if (generation !== this.#generation) return;
      this.error = /** @type {Error} */ (error);
      if (asked !== this.#shown) this.#show("", [], null, 0); // cards of another filter would be taken for this one's
    }
    this.#end();
  }

  #end() {
    this.loading = false;
    for (const c of this.#meanwhile.splice(0)) this.put(c);
    this.tell("list");
    this.tell("load");
  }

  /** @param {string} asked @param {string[]} order @param {string | null} next @param {number} total */
  #show(asked, order, next, total) {
    this.#shown = asked;
    this.order = order;
    this.next = next;
    this.total = total;
    this.unseen = 0;
    this.loaded = asked !== "";
    this.#out = new Set([...this.known.values()].filter((c) => !this.matches(c)).map((c) => c.clip_id));
  }

  /** Load the next page, if there is one. */
  async more() {
    if (this.loading || !this.next || this.error) return;
    const generation = this.#generation;
    this.loading = true;
    this.tell("load");
    try {
      const page = await api.candidates(this.filter(), { sort: this.query.sort, cursor: this.next, limit: 200 });
      if (generation !== this.#generation) return;
      const here = new Set(this.order);
      for (const c of page.items) {
        this.known.set(c.clip_id, c);
        this.#out.delete(c.clip_id);
        if (!here.has(c.clip_id)) this.order.push(c.clip_id);
      }
      this.next = page.next;
    } catch (error) {
      if (generation !== this.#generation) return;
      this.error = /** @type {Error} */ (error);
    }
    this.#end();
  }

  /** Run and list anew, after a lost connection or a failure. */
  async refresh() {
    try {
      this.setRun(await api.run());
    } catch (error) {
      this.error = /** @type {Error} */ (error);
      this.tell("load");
      return;
    }
    await this.reload();
  }

  /** @param {any} run */
  setRun(run) {
    this.run = run;
    this.tell("run");
  }

  /** Take in a newer state of a candidate. @param {Candidate} c */
  put(c) {
    const isKnown = this.known.has(c.clip_id);
    if (this.loading) this.#meanwhile.push(c);
    if (this.loading && !isKnown) return;
    this.known.set(c.clip_id, c);
    if (isKnown) this.tell("candidate", c.clip_id);
    // In a list that is not loaded to its end, one that somebody decided about may just be further down.
    if (!isKnown && !(this.next && (c.decision || c.clip))) this.#out.add(c.clip_id);
    if (!this.current || !this.matches(c)) return;
    if (this.next ? !this.#out.delete(c.clip_id) : this.order.includes(c.clip_id)) return;
    this.total += 1;
    if (this.next) {
      this.unseen += 1;
      this.tell("load");
    } else {
      this.order.push(c.clip_id); // all are here: it goes to the end, where it moves nothing
      this.tell("list");
    }
  }

  /** Candidates that this page asked for come first, whatever is sorted how. @param {Candidate[]} mine */
  putFirst(mine) {
    const ids = mine.map((c) => c.clip_id);
    for (const c of mine) {
      this.known.set(c.clip_id, c);
      this.#out.delete(c.clip_id);
    }
    const here = new Set(this.order);
    this.total += ids.filter((id) => !here.has(id)).length;
    this.order = [...ids, ...this.order.filter((id) => !ids.includes(id))];
    this.tell("list");
  }

  /** @param {{clip_id: string} & NonNullable<Candidate["progress"]>} progress */
  putProgress({ clip_id, ...progress }) {
    const c = this.known.get(clip_id);
    if (!c) return;
    const status = progress.queue_position > 0 ? c.status : progress.stage === "refine" ? "refining" : "previewing";
    this.known.set(clip_id, { ...c, status, progress });
    this.tell("candidate", clip_id);
  }
}
