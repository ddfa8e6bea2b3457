/** Decisions that show at once, are sent, come back when that failed, and can be undone. */

import * as api from "./api.js";
import { counted } from "./format.js";

/** What a decision makes of a candidate's status, before the service says. */
const STATUS_OF = { approved: "approved", rejected: "rejected", cleared: "previewed" };
const VERBS = { approved: "Approved", rejected: "Rejected", cleared: "Decision cleared" };
export const DECIDABLE = ["previewed", "approved", "rejected"];
const KEPT = 50; // steps that can be undone

/** @typedef {import("./api.js").Word} Word */
/** @typedef {import("./api.js").Step} Step */

export class Decisions {
  /** Calls go one after the other, so that undo never overtakes what it undoes. @type {Promise<unknown>} */ #last =
    Promise.resolve();
  #unanswered = 0;
  /** @type {Step[][]} */ #done = [];

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
   * @param {Map<string, import("./api.js").Said>} before what stood, where anybody had decided
   */
  async decideAll(filter, word, expect, before) {
    const { items } = await api.decideAll(filter, word, expect);
    for (const c of items) this.store.put(c);
    const nothing = /** @type {import("./api.js").Said} */ ({ word: "cleared" });
    this.#remember(items.map(({ clip_id }) => ({ clip_id, word, before: before.get(clip_id) ?? nothing })));
    this.#say(items.map(() => word));
  }

  /** Take back the last step, where nobody has decided since. */
  async undo() {
    const step = this.#done.pop();
    if (!step) {
      this.notices.say("There is nothing to undo.");
      return null;
    }
    const old = this.#paint(step.map(({ clip_id, before }) => ({ clip_id, ...before })));
    let left;
    try {
      ({ left } = await this.#inTurn(() => api.undo(step)));
    } catch (error) {
      this.#restore(old);
      this.#done.push(step);
      this.notices.fail("It was not undone", /** @type {Error} */ (error), () => this.undo());
      return null;
    }
    const back = step.length - left.length;
    this.notices.say(
      [
        back ? `Undone: ${counted(back, "decision")} taken back.` : "Nothing was undone.",
        left.length ? `${counted(left.length, "candidate")} stayed as others decided since, or is being rendered.` : "",
      ]
        .filter(Boolean)
        .join(" "),
    );
    return step[0].clip_id;
  }

  /** @param {{clip_id: string, word: Word, note?: string}[]} made */
  async #send(made) {
    made = made.filter(({ clip_id }) => this.canDecide(this.store.known.get(clip_id)));
    if (!made.length) return false;
    const steps = made.map(({ clip_id, word }) => ({ clip_id, word, before: saidOf(this.store.known.get(clip_id)) }));
    const old = this.#paint(made);
    this.#remember(steps); // at once, so that undo means this step even while it is on its way
    try {
      await this.#inTurn(() => api.decide(made));
    } catch (error) {
      this.#done = this.#done.filter((step) => step !== steps);
      this.#restore(old);
      this.notices.fail("The decision was not stored", /** @type {Error} */ (error), () => this.#send(made));
      return false;
    }
    this.#say(made.map(({ word }) => word));
    return true;
  }

  /**
   * Send decisions when those before them are answered.
   * @template {{items: import("./api.js").Candidate[]}} T @param {() => Promise<T>} send
   */
  async #inTurn(send) {
    const call = this.#last.then(send);
    this.#last = call.catch(() => {});
    this.#unanswered += 1;
    try {
      const answer = await call;
      for (const c of answer.items) this.store.put(c);
      return answer;
    } finally {
      this.#unanswered -= 1;
    }
  }

  /** @param {Step[]} steps */
  #remember(steps) {
    this.#done.push(steps);
    if (this.#done.length > KEPT) this.#done.shift();
  }

  /** Show decisions before the service has them; gives what was there. @param {({clip_id: string} & import("./api.js").Said)[]} made */
  #paint(made) {
    const old = [];
    const [me, at] = [this.store.me?.name ?? "", new Date().toISOString()];
    for (const { clip_id, word, by, note } of made) {
      const c = this.store.known.get(clip_id);
      if (!c) continue;
      old.push(c);
      const decision = word === "cleared" ? null : { word, by: by ?? me, at, note: note ?? null };
      this.store.put({ ...c, status: /** @type {any} */ (STATUS_OF[word]), reason: null, decision });
    }
    return old;
  }

  /** @param {import("./api.js").Candidate[]} old */
  #restore(old) {
    for (const c of old) this.store.put(c);
  }

  /** @param {Word[]} words of each candidate that was decided about */
  #say(words) {
    const parts = Object.entries(VERBS).flatMap(([word, verb]) => {
      const n = words.filter((each) => each === word).length;
      return n ? [words.length === 1 ? `${verb}.` : `${verb}: ${counted(n, "candidate")}.`] : [];
    });
    this.notices.say(parts.join(" "), "Undo", () => this.undo());
  }
}

/** @param {import("./api.js").Candidate | undefined} c @returns {Word} */
export const wordOf = (c) => c?.decision?.word ?? "cleared";

/** What stands about a candidate now. @param {import("./api.js").Candidate | undefined} c @returns {import("./api.js").Said} */
export const saidOf = (c) =>
  c?.decision ? { word: c.decision.word, by: c.decision.by, note: c.decision.note } : { word: "cleared" };
