/** Decisions that show at once, are sent, come back when that failed, and can be undone. */

import * as api from "./api.js";
import { counted } from "./format.js";

/** What a decision makes of a candidate's status, before the service says. */
const STATUS_OF = { approved: "approved", rejected: "rejected", cleared: "previewed" };
export const DECIDABLE = ["previewed", "approved", "rejected"];
const KEPT = 50; // steps that can be undone

/** @typedef {import("./api.js").Word} Word */

export class Decisions {
  /** Calls go one after the other, so that undo never overtakes what it undoes. @type {Promise<unknown>} */ #last =
    Promise.resolve();
  #unanswered = 0;
  /** What was before each step. @type {{clip_id: string, word: Word}[][]} */ #done = [];

  /** @param {import("./store.js").Store} store @param {import("./notices.js").Notices} notices */
  constructor(store, notices) {
    this.store = store;
    this.notices = notices;
    addEventListener("beforeunload", (event) => this.#unanswered && event.preventDefault());
  }

  get canUndo() {
    return this.#done.length > 0;
  }

  /** @param {import("./api.js").Candidate | undefined} c */
  canDecide(c) {
    return Boolean(c && this.store.may("reviewer") && (c.preview || c.poster) && DECIDABLE.includes(c.status));
  }

  /**
   * Decide about some candidates. Resolves to whether it was stored.
   * @param {string[]} ids @param {Word} word @param {string} [note]
   */
  decide(ids, word, note) {
    return this.#send(ids.map((clip_id) => ({ clip_id, word, ...(note ? { note } : {}) })));
  }

  /** Different words at once, undone at once. @param {{clip_id: string, word: Word, note?: string}[]} made */
  decideEach(made) {
    return this.#send(made);
  }

  /**
   * One word about all that a filter matches.
   * @param {import("./api.js").Filter} filter @param {Word} word @param {number} expect
   * @param {{clip_id: string, word: Word}[] | null} before former words; null: none of them was decided
   */
  async decideAll(filter, word, expect, before) {
    const { items } = await api.decideAll(filter, word, expect);
    for (const c of items) this.store.put(c);
    this.#remember(before ?? items.map((c) => ({ clip_id: c.clip_id, word: "cleared" })));
    this.#say(items.length, word);
  }

  /** Take back the last step. */
  async undo() {
    const step = this.#done.pop();
    if (!step) {
      this.notices.say("There is nothing to undo.");
      return null;
    }
    const old = this.#paint(step);
    try {
      await this.#inTurn(step);
    } catch (error) {
      this.#restore(old);
      this.#done.push(step);
      this.notices.fail("It was not undone", /** @type {Error} */ (error), () => this.undo());
      return null;
    }
    this.notices.say(`Undone: ${counted(step.length, "decision")} taken back.`);
    return step[0].clip_id;
  }

  /** @param {{clip_id: string, word: Word, note?: string}[]} made */
  async #send(made) {
    made = made.filter(({ clip_id }) => this.canDecide(this.store.known.get(clip_id)));
    if (!made.length) return false;
    const before = made.map(({ clip_id }) => ({ clip_id, word: wordOf(this.store.known.get(clip_id)) }));
    const old = this.#paint(made);
    this.#remember(before); // at once, so that undo means this step even while it is on its way
    try {
      await this.#inTurn(made);
    } catch (error) {
      this.#done = this.#done.filter((step) => step !== before);
      this.#restore(old);
      this.notices.fail("The decision was not stored", /** @type {Error} */ (error), () => this.#send(made));
      return false;
    }
    this.#say(made.length, made[0].word);
    return true;
  }

  /** Send decisions when those before them are answered. @param {{clip_id: string, word: Word, note?: string}[]} made */
  async #inTurn(made) {
    const call = this.#last.then(() => api.decide(made));
    this.#last = call.catch(() => {});
    this.#unanswered += 1;
    try {
      for (const c of (await call).items) this.store.put(c);
    } finally {
      this.#unanswered -= 1;
    }
  }

  /** @param {{clip_id: string, word: Word}[]} before */
  #remember(before) {
    this.#done.push(before);
    if (this.#done.length > KEPT) this.#done.shift();
  }

  /** Show decisions before the service has them; gives what was there. @param {{clip_id: string, word: Word}[]} made */
  #paint(made) {
    const old = [];
    for (const { clip_id, word } of made) {
      const c = this.store.known.get(clip_id);
      if (!c) continue;
      old.push(c);
      this.store.put({ ...c, status: /** @type {any} */ (STATUS_OF[word]), reason: null });
    }
    return old;
  }

  /** @param {import("./api.js").Candidate[]} old */
  #restore(old) {
    for (const c of old) this.store.put(c);
  }

  /** @param {number} n @param {Word} word */
  #say(n, word) {
    const verb = { approved: "Approved", rejected: "Rejected", cleared: "Decision cleared" }[word];
    this.notices.say(n === 1 ? `${verb}.` : `${verb}: ${counted(n, "candidate")}.`, "Undo", () => this.undo());
  }
}

/** @param {import("./api.js").Candidate | undefined} c @returns {Word} */
export const wordOf = (c) => c?.decision?.word ?? "cleared";
