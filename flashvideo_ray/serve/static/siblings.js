/** All candidates of a prompt side by side, playing together. */

import * as api from "./api.js";
import { byId, closable, icon, lost, make, stillPictures, video, write } from "./dom.js";
import { STATUS_WORDS, number } from "./format.js";

const SHOWN = 16; // as many as a prompt may have in one submission

export class Siblings {
  /** @type {string[]} */ #ids = [];
  /** @type {string | null} */ active = null;

  /**
   * @param {import("./store.js").Store} store
   * @param {import("./decisions.js").Decisions} decisions
   * @param {import("./notices.js").Notices} notices
   */
  constructor(store, decisions, notices, hooks) {
    this.store = store;
    this.decisions = decisions;
    this.notices = notices;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("siblings"));
    this.side = byId("side");
    closable(this.dialog);
    this.dialog.addEventListener("close", () => {
      for (const each of this.side.querySelectorAll("video")) {
        each.removeAttribute("src");
        each.load();
      }
      this.side.replaceChildren();
      if (this.active) hooks.closed(this.active);
    });
    this.side.addEventListener("focusin", (event) => {
      const id = /** @type {Element} */ (event.target).closest("[data-id]")?.getAttribute("data-id");
      if (id) this.active = id;
    });
    store.on(
      "candidate",
      (event) => this.dialog.open && this.#ids.includes(event.detail) && this.#update(event.detail),
    );
  }

  /** @param {string} id */
  async open(id) {
    const chosen = this.store.known.get(id);
    if (!chosen) return;
    let page;
    try {
      page = await api.candidates({ prompt_id: chosen.prompt_id }, { limit: SHOWN });
    } catch (error) {
      this.notices.fail("The candidates cannot be shown", /** @type {Error} */ (error));
      return;
    }
    const items = page.items.sort((a, b) => a.candidate - b.candidate || a.seed - b.seed);
    for (const c of items) this.store.known.set(c.clip_id, c);
    this.#ids = items.map((c) => c.clip_id);
    const more = page.total > items.length ? ` (${items.length} of ${page.total} shown)` : "";
    write(byId("siblings-prompt"), chosen.prompt + more);
    this.side.replaceChildren(...items.map((c) => this.#cell(c)));
    if (!this.dialog.open) this.dialog.showModal();
    this.focus(id);
    if (!stillPictures.matches) this.playAll(true);
  }

  /** @param {string} id */
  focus(id) {
    this.active = id;
    this.#element(id)?.focus();
  }

  /** @param {number} by */
  step(by) {
    const next = this.#ids[this.#ids.indexOf(this.active ?? "") + by];
    if (next) this.focus(next);
  }

  /** Play all from the beginning, or pause all. @param {boolean} [play] by default the other of what they do now */
  playAll(play) {
    const videos = [...this.side.querySelectorAll("video")];
    const start = play ?? videos.every((each) => each.paused);
    for (const each of videos) {
      if (start) {
        each.currentTime = 0;
        each.play().catch(() => {});
      } else each.pause();
    }
  }

  /** @param {string} what approve, reject or keep */
  async act(what) {
    const id = this.active;
    if (!id) return;
    if (what !== "keep") {
      await this.decisions.decide([id], what === "approve" ? "approved" : "rejected");
      return;
    }
    await this.decisions.decideEach(
      this.#ids.map((each) => ({ clip_id: each, word: each === id ? "approved" : "rejected" })),
    );
  }

  /** @param {string} id @returns {HTMLElement | null} */
  #element(id) {
    return this.side.querySelector(`[data-id="${id}"]`);
  }

  /** @param {import("./api.js").Candidate} c */
  #cell(c) {
    const address = c.clip ?? c.preview;
    const failed = (/** @type {Event} */ event) =>
      /** @type {Element} */ (event.target).replaceWith(lost(c.clip ? "clip" : "preview"));
    const button = (
      /** @type {string} */ what,
      /** @type {string} */ kind,
      /** @type {string} */ picture,
      /** @type {string} */ text,
    ) =>
      make(
        "button",
        {
          type: "button",
          class: kind,
          "data-do": what,
          on: { click: () => ((this.active = c.clip_id), this.act(what)) },
        },
        icon(picture),
        text,
      );
    return make(
      "article",
      {
        class: "side-cell",
        tabindex: "0",
        "data-id": c.clip_id,
        "data-status": c.status,
        "aria-label": `Candidate ${c.candidate + 1}, ${STATUS_WORDS[c.status]}`,
      },
      make(
        "div",
        { class: "frame" },
        address
          ? video(address, { "aria-hidden": "true", tabindex: "-1", poster: c.clip_poster ?? c.poster, on: { error: failed } })
          : make("p", { class: "soft" }, "No preview yet."),
        make("span", { class: "badge" }, STATUS_WORDS[c.status]),
      ),
      make("p", { class: "soft num" }, `candidate ${c.candidate + 1}, seed ${c.seed}`),
      make(
        "p",
        { class: "scores" },
        ...Object.entries(c.scores)
          .filter(([, x]) => x !== null)
          .slice(0, 6)
          .map(([name, x]) => make("span", {}, `${name} `, make("b", {}, number(x)))),
      ),
      this.decisions.canDecide(c)
        ? make(
            "div",
            { class: "buttons" },
            button("approve", "good", "check", "Approve"),
            button("reject", "bad", "cross", "Reject"),
            button("keep", "", "expand", "Keep only this"),
          )
        : null,
    );
  }

  /** Status and scores anew; the video goes on. @param {string} id */
  #update(id) {
    const c = this.store.known.get(id);
    const old = this.#element(id);
    if (!c || !old) return;
    const playing = old.querySelector("video");
    const focused = old.contains(document.activeElement)
      ? (document.activeElement?.getAttribute("data-do") ?? "")
      : null;
    const cell = this.#cell(c);
    const fresh = cell.querySelector("video");
    if (playing && fresh && playing.getAttribute("src") === fresh.getAttribute("src")) fresh.replaceWith(playing);
    old.replaceWith(cell);
    cell
      .querySelector("video")
      ?.play()
      .catch(() => {});
    if (focused !== null) /** @type {HTMLElement} */ (cell.querySelector(`[data-do="${focused}"]`) ?? cell).focus();
  }
}
