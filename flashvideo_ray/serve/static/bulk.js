/** Decisions about all that the filter shows, and the rendering of what is approved: never before the cost was seen. */

import * as api from "./api.js";
import { DECIDABLE, saidOf } from "./decisions.js";
import { byId, closable, write } from "./dom.js";
import { cost, count, counted } from "./format.js";
import { TABS } from "./store.js";

export class Bulk {
  /** @type {() => Promise<void>} */ #go = async () => {};

  /**
   * @param {import("./store.js").Store} store
   * @param {import("./decisions.js").Decisions} decisions
   * @param {import("./notices.js").Notices} notices
   */
  constructor(store, decisions, notices) {
    this.store = store;
    this.decisions = decisions;
    this.notices = notices;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("confirm"));
    this.yes = /** @type {HTMLButtonElement} */ (byId("confirm-yes"));
    closable(this.dialog);
    this.yes.addEventListener("click", () => this.#confirmed());
    byId("bulk-approve").addEventListener("click", () => this.#decide("approved"));
    byId("bulk-reject").addEventListener("click", () => this.#decide("rejected"));
    byId("bulk-refine").addEventListener("click", () => this.#refine());
    for (const event of ["run", "list", "load", "filter", "candidate"]) store.on(event, () => this.#schedule());
  }

  #frame = 0;

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#show();
    });
  }

  /** The statuses that are meant: those of the tab that can be decided about; of all, those that wait for a review. */
  #statuses() {
    const tab = TABS[this.store.query.status];
    return tab.length ? tab.filter((each) => DECIDABLE.includes(each)) : ["previewed"];
  }

  #show() {
    const { run, query } = this.store;
    const decide = this.store.may("reviewer") && run && this.store.current && this.#statuses().length > 0 && query.status !== "working";
    const some =
      decide && this.store.order.some((id) => this.#statuses().includes(this.store.known.get(id)?.status ?? ""));
    byId("bulk-approve").hidden = !some;
    byId("bulk-reject").hidden = !some || query.status === "rejected";
    const n = run ? this.#statuses().reduce((sum, each) => sum + (run.status[each] ?? 0), 0) : 0;
    const which = Object.keys(this.store.filter()).some((name) => name !== "status")
      ? "all that match"
      : `all ${count(n)}`;
    byId("bulk-approve").textContent = `Approve ${which} …`;
    byId("bulk-reject").textContent = `Reject ${which} …`;
    const waiting = [...this.store.known.values()].filter((c) => c.status === "approved" && c.progress).length;
    const approved = (run?.status.approved ?? 0) - waiting;
    byId("bulk-refine").hidden = approved <= 0 || run.refine_approved || !this.store.may("operator");
    byId("bulk-refine").textContent = `Render ${counted(approved, "approved candidate")} …`;
  }

  /** @param {"approved" | "rejected"} word */
  async #decide(word) {
    const filter = { ...this.store.filter(), status: this.#statuses() };
    const approving = word === "approved";
    await this.#ask(approving ? "Approve" : "Reject", async () => {
      const [page, price] = await Promise.all([api.candidates(filter, { limit: 1 }), api.estimate({ filter })]);
      const n = page.total;
      this.#say(
        `${approving ? "Approve" : "Reject"} ${counted(n, "candidate")}?`,
        approving
          ? this.#price(price)
          : `Not rendering them saves ${cost(price.seconds, price.money, price.currency) || "the time of their clips"}.`,
        "These are all that match the filter, those further down included. " +
          (approving && this.store.run?.refine_approved
            ? "Rendering begins at once: undone is only what has not begun."
            : "It can be undone."),
        `${approving ? "Approve" : "Reject"} ${counted(n, "candidate")}`,
        !n,
      );
      this.#go = async () => {
        const known = filter.status.length === 1 && filter.status[0] === "previewed";
        const before = new Map(
          known ? [] : (await api.allCandidates(filter)).filter((c) => c.decision).map((c) => [c.clip_id, saidOf(c)]),
        );
        await this.decisions.decideAll(filter, word, n, before);
      };
    });
  }

  async #refine() {
    const filter = { status: ["approved"] };
    await this.#ask("Render", async () => {
      const price = await api.estimate({ filter });
      this.#say(
        `Render ${counted(price.clips, "clip")}?`,
        this.#price(price),
        "These are all approved candidates without a clip." +
          (price.removed ? ` Of ${counted(price.removed, "other")} the latents were removed: render makes them anew.` : ""),
        `Render ${counted(price.clips, "clip")}`,
        !price.clips,
      );
      this.#go = async () => {
        const { queued, left } = await api.refine({ filter });
        this.notices.say(
          `${counted(queued, "clip")} queued for rendering.` +
            (left ? ` The queue has no room for ${counted(left, "clip")} more: order them when it has.` : ""),
        );
      };
    });
  }

  /** @param {import("./api.js").Estimate} price */
  #price(price) {
    const words = cost(price.seconds, price.money, price.currency);
    return words
      ? `Rendering ${counted(price.clips, "clip")} takes ${words}.`
      : `Rendering ${counted(price.clips, "clip")}: how long that takes is known after the first clip.`;
  }

  /** @param {string} what @param {() => Promise<void>} prepare */
  async #ask(what, prepare) {
    byId("confirm-error").textContent = "";
    try {
      await prepare();
      this.prepare = prepare;
      this.dialog.showModal();
      this.yes.focus();
    } catch (error) {
      this.notices.fail(`${what}: the cost cannot be told`, /** @type {Error} */ (error));
    }
  }

  /** @param {string} title @param {string} price @param {string} text @param {string} yes @param {boolean} nothing */
  #say(title, price, text, yes, nothing) {
    byId("confirm-title").textContent = title;
    byId("confirm-cost").textContent = price;
    byId("confirm-text").textContent = text;
    this.yes.textContent = yes;
    this.yes.disabled = nothing;
  }

  async #confirmed() {
    this.yes.disabled = true;
    try {
      await this.#go();
      this.dialog.close();
    } catch (error) {
      const { message, status } = /** @type {api.ApiError} */ (error);
      if (status === 409) await this.prepare?.().catch(() => {}); // other numbers now: they are shown, and asked about again
      write(byId("confirm-error"), message);
    }
    this.yes.disabled = false;
  }
}
