/** One candidate in full: preview against clip, all scores, what was decided, and what can be done. */

import * as api from "./api.js";
import { Compare } from "./compare.js";
import { wordOf } from "./decisions.js";
import { byId, closable, icon, make } from "./dom.js";
import { STATUS_WORDS, cost, duration, number, progressLine, when } from "./format.js";

export class Detail {
  /** @type {string | null} */ id = null;
  // What changes with the candidate; inputs stand beside it and stay while somebody writes in them.
  #head = make("div", { class: "facts-part" });
  #buttons = make("div", { class: "buttons" });
  #price = make("p", { class: "soft" });
  #tables = make("div", { class: "facts-part" });
  #note = make("input", {
    type: "text",
    maxlength: "1000",
    placeholder: "Note (kept with the decision)",
    "aria-label": "Note",
  });

  /**
   * @param {import("./store.js").Store} store
   * @param {import("./decisions.js").Decisions} decisions
   * @param {import("./notices.js").Notices} notices
   * @param {{act: (what: string, id: string) => void, closed: (id: string) => void, mine: (ids: string[]) => void,
   *   next: (id: string) => string | undefined}} hooks
   */
  constructor(store, decisions, notices, hooks) {
    this.store = store;
    this.decisions = decisions;
    this.notices = notices;
    this.hooks = hooks;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("detail"));
    this.facts = byId("detail-facts");
    this.compare = new Compare(byId("stage"));
    closable(this.dialog);
    this.dialog.querySelector('[data-do="previous"]')?.addEventListener("click", () => this.step(-1));
    this.dialog.querySelector('[data-do="next"]')?.addEventListener("click", () => this.step(1));
    this.dialog.addEventListener("close", () => {
      this.compare.stop();
      if (this.id) this.hooks.closed(this.id);
      this.id = null;
    });
    store.on("candidate", (event) => event.detail === this.id && this.#fill());
  }

  /** @param {string} id */
  async open(id) {
    if (!this.store.known.has(id)) {
      try {
        this.store.known.set(id, await api.candidate(id));
      } catch (error) {
        this.notices.fail("The candidate cannot be shown", /** @type {Error} */ (error));
        return;
      }
    }
    this.id = id;
    this.#note.value = "";
    if (!this.dialog.open) this.dialog.showModal();
    const decide = make("div", { class: "decide" }, this.#buttons, this.#note, this.#price);
    this.facts.replaceChildren(this.#head, decide, this.#tables, this.#again(/** @type {any} */ (this.#candidate)));
    this.#fill();
    this.facts.focus({ preventScroll: true });
    this.dialog.scrollTop = 0;
  }

  /** @param {number} by */
  step(by) {
    const { order } = this.store;
    const next = order[order.indexOf(this.id ?? "") + by];
    if (next) this.open(next);
  }

  get #candidate() {
    return this.id ? this.store.known.get(this.id) : undefined;
  }

  #fill() {
    const c = this.#candidate;
    if (!c) return;
    const at = this.store.order.indexOf(c.clip_id);
    byId("detail-title").textContent = at < 0 ? "Candidate" : `Candidate ${at + 1} of ${this.store.total}`;
    this.compare.show(c);
    const focused = this.#buttons.contains(document.activeElement)
      ? document.activeElement?.getAttribute("data-do")
      : null;
    this.#head.replaceChildren(...this.#words(c).filter((part) => part !== null));
    this.#buttons.replaceChildren(...this.#actions(c));
    this.#tables.replaceChildren(...this.#numbers(c));
    const { run } = this.store;
    const price = cost(run?.refine_seconds_mean ?? null, run?.price?.per_clip ?? null, run?.price?.currency ?? "");
    const decidable = this.decisions.canDecide(c);
    this.#note.hidden = !decidable;
    this.#price.hidden = !decidable;
    this.#price.textContent = price
      ? `Rendering its clip takes ${price}${run?.refine_approved ? ", and begins once it is approved" : ""}.`
      : `What rendering its clip costs is known after the first one${run?.refine_approved ? "; it begins once it is approved" : ""}.`;
    if (focused)
      /** @type {HTMLElement} */ (this.#buttons.querySelector(`[data-do="${focused}"]`) ?? this.facts).focus();
  }

  /** @param {import("./api.js").Candidate} c */
  #words(c) {
    return [
      make(
        "p",
        { class: "status", "data-status": c.status },
        make("span", { class: "badge" }, STATUS_WORDS[c.status]),
        make("span", { class: "soft" }, this.#why(c)),
      ),
      c.progress && make("p", { class: "soft" }, progressLine(c.progress)),
      c.error ? make("p", { class: "error-box" }, c.error) : null,
      make("p", { class: "full-prompt" }, c.prompt),
      c.negative_prompt ? make("p", { class: "soft" }, `Not: ${c.negative_prompt}`) : null,
      c.unknown_words?.length
        ? make(
            "p",
            { class: "warn-box" },
            "Words that this model does not know: ",
            make("b", {}, c.unknown_words.join(", ")),
            ".",
          )
        : null,
    ];
  }

  /** @param {import("./api.js").Candidate} c */
  #numbers(c) {
    const rank = this.store.run?.rank;
    const scores = Object.entries(c.scores).map(([name, x]) => [name, number(x)]);
    if (c.rank !== null) scores.unshift([rank ? `rank (${rank})` : "rank", number(c.rank)]);
    const made = [
      ["seed", String(c.seed)],
      ["candidate", String(c.candidate + 1)],
      ["preview took", duration(c.seconds.preview)],
      ["preview was", c.memory_notes.preview ?? "–"],
      ["clip took", duration(c.seconds.refine)],
      ["clip was", c.memory_notes.refine ?? "–"],
      ["changed", when(c.at)],
    ].filter(([, value]) => value !== "–");
    return [...(scores.length ? [table("Scores", scores)] : []), table("Made", made)];
  }

  /** @param {import("./api.js").Candidate} c */
  #why(c) {
    const d = c.decision;
    const said = d && d.word !== "cleared" ? `${d.word} by ${d.by}, ${when(d.at)}${d.note ? `: ${d.note}` : ""}` : "";
    return said || c.reason || "";
  }

  /** @param {import("./api.js").Candidate} c */
  #actions(c) {
    const operator = this.store.may("operator");
    const buttons = [];
    if (this.decisions.canDecide(c)) {
      if (c.status !== "approved") buttons.push(this.#button("approve", "good", "check", "Approve", "a"));
      if (c.status !== "rejected") buttons.push(this.#button("reject", "bad", "cross", "Reject", "r"));
      if (wordOf(c) !== "cleared") buttons.push(this.#button("clear", "", "undo", "Clear decision"));
    }
    if (operator && c.status === "approved" && !c.progress)
      buttons.push(this.#button("refine", "primary", "play", "Render now"));
    if (operator && c.status === "failed" && c.preview)
      buttons.push(this.#button("refine", "primary", "play", "Try again"));
    if (operator && c.progress && c.progress.queue_position > 0)
      buttons.push(this.#button("cancel", "", "cross", "Cancel"));
    return buttons;
  }

  /** @param {string} what @param {string} kind @param {string} picture @param {string} text @param {string} [key] */
  #button(what, kind, picture, text, key) {
    return make(
      "button",
      {
        type: "button",
        class: kind,
        "data-do": what,
        "aria-keyshortcuts": key ?? null,
        on: { click: () => this.act(what) },
      },
      icon(picture),
      text,
      key ? make("kbd", { "aria-hidden": "true" }, key) : null,
    );
  }

  /** Do something about the candidate that is shown. @param {string} what */
  async act(what) {
    const c = this.#candidate;
    if (!c) return;
    const word = { approve: "approved", reject: "rejected", clear: "cleared" }[what];
    if (word) {
      const note = this.#note.value.trim();
      this.#note.value = "";
      if (word !== "cleared" && !this.decisions.canDecide(c)) return;
      const next = word === "cleared" ? c.clip_id : this.hooks.next(c.clip_id);
      const stored = this.decisions.decide([c.clip_id], /** @type {api.Word} */ (word), note || undefined);
      if (next && next !== c.clip_id) this.open(next);
      await stored;
      return;
    }
    const calls = {
      refine: () => api.refine({ clip_ids: [c.clip_id] }),
      cancel: () => api.cancel(c.clip_id),
      reseed: () => api.reseed(c.clip_id),
    };
    try {
      const answer = await calls[what]();
      if (what === "reseed") this.#queued(answer);
      else this.notices.say(what === "refine" ? "Queued for rendering." : "Cancelled.");
    } catch (error) {
      this.notices.fail("It was not done", /** @type {Error} */ (error));
    }
  }

  /** @param {import("./api.js").Candidate} c */
  #again(c) {
    const side = make(
      "button",
      { type: "button", on: { click: () => this.hooks.act("siblings", c.clip_id) } },
      icon("columns"),
      "Side by side",
      make("kbd", { "aria-hidden": "true" }, "c"),
    );
    if (!this.store.may("operator") || !this.store.run?.accepting)
      return make("div", { class: "again" }, make("div", { class: "buttons" }, side));
    const text = make("textarea", { rows: "3", maxlength: "2000", "aria-label": "Changed prompt" });
    text.value = c.prompt;
    const send = make("button", { type: "button", class: "primary" }, "Make a preview of it");
    send.addEventListener("click", async () => {
      try {
        this.#queued(await api.reprompt(c.clip_id, text.value.trim()));
      } catch (error) {
        this.notices.fail("It was not queued", /** @type {Error} */ (error));
      }
    });
    return make(
      "div",
      { class: "again" },
      make("div", { class: "buttons" }, side, this.#button("reseed", "", "plus", "Another seed")),
      make("details", { class: "fold" }, make("summary", {}, "Change the prompt, keep the seed"), text, send),
    );
  }

  /** @param {{items: {clip_id: string}[]}} answer */
  #queued(answer) {
    this.notices.say("A new preview is queued.");
    this.hooks.mine(answer.items.map((item) => item.clip_id));
  }
}

/** @param {string} caption @param {string[][]} rows */
function table(caption, rows) {
  const lines = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  return make("table", { class: "scores-table" }, make("caption", {}, caption), make("tbody", {}, ...lines));
}
