/** One candidate in the grid: picture, status, prompt, scores, and what can be done with it. */

import { icon, lost, make, video, visible, write } from "./dom.js";
import { STATUS_WORDS, number, progressLine } from "./format.js";

const SCORES = 3; // on a card; all are in the detail view
const STATUS_ICONS = { approved: "check", rendered: "play", rejected: "cross", failed: "cross" };

/** @typedef {import("./api.js").Candidate} Candidate */

export class Card {
  /** @type {HTMLVideoElement | null} */ #video = null;
  /** @type {string | null} */ #shown = null;
  /** @type {HTMLElement | null} */ #note = null;

  /** @param {Candidate} c @param {(c: Candidate) => boolean} canDecide @param {string | null} rank what the run ranks by */
  constructor(c, canDecide, rank) {
    this.candidate = c;
    this.canDecide = canDecide;
    this.rank = rank;
    this.picture = make("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false" });
    this.lost = lost("picture");
    this.picture.addEventListener("error", () => this.#found(false));
    this.picture.addEventListener("load", () => this.#found(true));
    this.#found(true);
    this.badge = make("span", { class: "badge" });
    this.bar = make("progress", { class: "bar", "aria-hidden": "true" });
    this.frame = make("div", { class: "frame", "data-do": "open" }, this.picture, this.lost, this.badge, this.bar);
    this.prompt = make("p", { class: "prompt", "data-do": "open" });
    this.line = make("p", { class: "line" });
    this.scores = make("p", { class: "scores" });
    this.approve = action("approve", "check", "Approve");
    this.reject = action("reject", "cross", "Reject");
    this.play = action("play", "play", "Play or pause");
    this.actions = make("div", { class: "actions" }, this.approve, this.reject, this.play);
    this.element = make(
      "div",
      { class: "card", role: "gridcell", tabindex: "-1", "data-id": c.clip_id },
      this.frame,
      make("div", { class: "words" }, this.prompt, this.line, this.scores),
      this.actions,
    );
    this.update(c);
  }

  /** @param {Candidate} c */
  update(c) {
    this.candidate = c;
    const word = STATUS_WORDS[c.status];
    const poster = c.clip_poster ?? c.poster;
    if (poster && this.picture.getAttribute("src") !== poster) {
      this.#found(true);
      this.picture.src = poster;
    }
    this.picture.hidden = !poster || !this.lost.hidden;
    this.element.dataset.status = c.status;
    const mark = STATUS_ICONS[c.status];
    this.badge.replaceChildren(...(mark ? [icon(mark)] : []), word);
    write(this.prompt, c.prompt);
    this.prompt.title = visible(c.prompt);
    write(this.line, lineOf(c));
    this.line.title = this.line.textContent;
    this.scores.replaceChildren(
      ...scoresOf(c, this.rank).map(([name, x]) => make("span", {}, `${name} `, make("b", {}, number(x)))),
    );
    this.bar.hidden = !c.progress;
    if (c.progress?.total && c.progress.queue_position === 0) {
      this.bar.max = c.progress.total;
      this.bar.value = c.progress.done ?? 0;
    } else this.bar.removeAttribute("value");
    this.approve.hidden = !this.canDecide(c) || c.status === "approved";
    this.reject.hidden = !this.canDecide(c) || c.status === "rejected";
    this.play.hidden = !(c.preview || c.clip);
    this.element.setAttribute(
      "aria-label",
      [visible(c.prompt), `candidate ${c.candidate + 1}`, word, this.line.textContent].filter(Boolean).join(". "),
    );
    if (this.#video && this.#shown !== (c.clip ?? c.preview)) {
      this.stop();
      this.start();
    }
  }

  /** Whether there is a picture, as far as is known. @param {boolean} there */
  #found(there) {
    this.lost.hidden = there;
    this.picture.hidden = !there;
  }

  get playing() {
    return Boolean(this.#video && !this.#video.paused);
  }

  /** Play the clip, or the preview as long as there is none. */
  start() {
    const address = this.candidate.clip ?? this.candidate.preview;
    if (!address) return;
    if (!this.#video) {
      this.#shown = address;
      const what = this.candidate.clip ? "clip" : "preview";
      const failed = () => this.#video?.after((this.#note = lost(what)));
      this.#video = video(address, { "aria-hidden": "true", tabindex: "-1", on: { error: failed } });
      this.picture.after(this.#video);
    }
    this.#video.play().catch(() => {}); // it was stopped before it began
  }

  pause() {
    this.#video?.pause();
  }

  /** Take the video out of the page: only the one that plays is there. */
  stop() {
    if (!this.#video) return;
    this.#video.removeAttribute("src");
    this.#video.load(); // ends its download
    this.#video.remove();
    this.#video = null;
    this.#note?.remove();
    this.#note = null;
  }
}

/** @param {string} name @param {string} picture @param {string} label */
function action(name, picture, label) {
  return make(
    "button",
    { type: "button", class: `act ${name}`, tabindex: "-1", "data-do": name, "aria-label": label, title: label },
    icon(picture),
  );
}

/** What there is to say beyond the status. @param {Candidate} c */
function lineOf(c) {
  if (c.progress) return progressLine(c.progress);
  if (c.error) return c.error;
  if (c.decision && c.decision.word !== "cleared")
    return `by ${c.decision.by}${c.decision.note ? `: ${c.decision.note}` : ""}`;
  if (c.reason) return c.reason;
  if (c.unknown_words?.length) return `not in the model's vocabulary: ${c.unknown_words.join(", ")}`;
  return "";
}

/** The rank first, then the first scores. @param {Candidate} c @param {string | null} rank @returns {[string, number | null][]} */
function scoresOf(c, rank) {
  /** @type {[string, number | null][]} */ const known = Object.entries(c.scores).filter(([, x]) => x !== null);
  if (rank && c.rank !== null && !(rank in c.scores)) known.unshift(["rank", c.rank]);
  if (rank) known.sort(([a], [b]) => Number(b === rank) - Number(a === rank));
  return known.slice(0, SCORES);
}
