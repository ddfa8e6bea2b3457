/** Preview and clip of a candidate on one stage, in step, with a slider between them where both are there. */

import { icon, lost, make, stillPictures, video } from "./dom.js";
import { duration } from "./format.js";

const APART = 0.04; // seconds that the preview may be off the clip
const MIDDLE = 50;

export class Compare {
  /** @type {HTMLVideoElement | null} */ #leader = null;
  /** @type {HTMLVideoElement | null} */ #follower = null;
  /** @type {string} */ #shown = "";
  #tick = 0;

  /** @param {HTMLElement} stage */
  constructor(stage) {
    this.stage = stage;
    this.playButton = make(
      "button",
      { type: "button", class: "quiet square", "aria-label": "Play or pause", on: { click: () => this.toggle() } },
      icon("play"),
    );
    this.seek = make("input", {
      type: "range",
      min: "0",
      max: "1000",
      value: "0",
      "aria-label": "Position",
      on: { input: () => this.#seekTo() },
    });
    this.time = make("output", { class: "num soft" });
    this.split = make("input", {
      type: "range",
      class: "split",
      min: "0",
      max: "100",
      value: String(MIDDLE),
      "aria-label": "Slider between preview and clip",
      on: { input: () => this.#setSplit(Number(this.split.value)) },
    });
    this.picture = make("div", { class: "pair" });
    this.picture.addEventListener("pointerdown", (event) => this.#drag(event));
    this.bar = make("div", { class: "stage-bar" }, this.playButton, this.seek, this.time);
  }

  /** @param {import("./api.js").Candidate} c */
  show(c) {
    const key = [c.clip_id, c.preview, c.clip].join();
    if (key === this.#shown) return;
    const sameCandidate = this.#shown.startsWith(c.clip_id);
    this.stop();
    this.#shown = key;
    const main = c.clip ?? c.preview;
    if (!main) {
      this.stage.replaceChildren(make("div", { class: "pair blank" }, make("p", { class: "soft" }, "No preview yet.")));
      return;
    }
    const label = c.clip ? "Clip" : "Preview";
    this.#leader = video(main, {
      class: "leader",
      "aria-label": `${label}: ${c.prompt}`,
      poster: c.clip_poster ?? c.poster,
      on: { error: () => this.#lost(label.toLowerCase(), "right") },
    });
    const both = Boolean(c.clip && c.preview);
    this.picture.classList.toggle("both", both);
    if (both) {
      this.#follower = video(/** @type {string} */ (c.preview), {
        class: "follower",
        "aria-label": `Preview: ${c.prompt}`,
        poster: c.poster,
        on: { error: () => this.#lost("preview", "left") },
      });
      this.picture.replaceChildren(
        this.#follower,
        this.#leader,
        make("span", { class: "tag left" }, "preview"),
        make("span", { class: "tag right" }, "clip"),
        make("span", { class: "handle", "aria-hidden": "true" }),
        this.split,
      );
      this.#setSplit(MIDDLE);
    } else {
      this.picture.replaceChildren(this.#leader, make("span", { class: "tag left" }, label.toLowerCase()));
    }
    this.stage.replaceChildren(this.picture, this.bar);
    for (const type of ["play", "pause"]) this.#leader.addEventListener(type, () => this.#playChanged());
    this.#leader.addEventListener("loadedmetadata", () => this.#describe());
    if (!stillPictures.matches || sameCandidate) this.play();
    this.#playChanged();
    this.#loop();
  }

  /** @param {string} what @param {string} side where both are there */
  #lost(what, side) {
    const note = lost(what);
    note.classList.add(side);
    this.picture.append(note);
  }

  play() {
    this.#leader?.play().catch(() => {});
  }

  toggle() {
    if (this.#leader?.paused) this.play();
    else this.#leader?.pause();
  }

  stop() {
    cancelAnimationFrame(this.#tick);
    for (const each of [this.#leader, this.#follower]) {
      each?.removeAttribute("src");
      each?.load();
    }
    this.#leader = this.#follower = null;
    this.#shown = "";
    this.stage.replaceChildren();
  }

  #playChanged() {
    if (!this.#leader) return;
    if (this.#leader.paused) this.#follower?.pause();
    else this.#follower?.play().catch(() => {});
    this.playButton.replaceChildren(icon(this.#leader.paused ? "play" : "pause"));
  }

  /** Keep both in step and the position up to date, as long as they are shown. */
  #loop() {
    const leader = this.#leader;
    if (!leader) return;
    if (leader.duration) {
      if (document.activeElement !== this.seek || !leader.paused)
        this.seek.value = String(Math.round((1000 * leader.currentTime) / leader.duration));
      this.time.textContent = `${leader.currentTime.toFixed(1)} of ${duration(leader.duration)}`;
      this.seek.setAttribute("aria-valuetext", `${leader.currentTime.toFixed(1)} seconds`);
      const follower = this.#follower;
      if (follower?.duration && !follower.seeking) {
        const wanted = Math.min(leader.currentTime, follower.duration - 0.001);
        if (Math.abs(follower.currentTime - wanted) > APART) follower.currentTime = wanted;
      }
    }
    this.#tick = requestAnimationFrame(() => this.#loop());
  }

  #seekTo() {
    if (this.#leader?.duration)
      this.#leader.currentTime = (Number(this.seek.value) / 1000) * this.#leader.duration * 0.999;
  }

  #describe() {
    const { videoWidth: w, videoHeight: h } = /** @type {HTMLVideoElement} */ (this.#leader);
    this.picture.style.setProperty("aspect-ratio", `${w} / ${h}`);
    this.picture.style.setProperty("--shape", String(w / h));
  }

  /** @param {number} percent of the width that shows the preview */
  #setSplit(percent) {
    this.split.value = String(percent);
    this.split.setAttribute("aria-valuetext", `${Math.round(percent)} % preview, ${Math.round(100 - percent)} % clip`);
    this.picture.style.setProperty("--split", `${percent}%`);
  }

  /** @param {PointerEvent} event */
  #drag(event) {
    if (!this.#follower || event.button !== 0) return;
    const move = (/** @type {PointerEvent} */ at) => {
      const box = this.picture.getBoundingClientRect();
      this.#setSplit(Math.min(100, Math.max(0, (100 * (at.clientX - box.left)) / box.width)));
    };
    event.preventDefault();
    this.split.focus();
    this.picture.setPointerCapture(event.pointerId);
    this.picture.addEventListener("pointermove", move);
    this.picture.addEventListener("lostpointercapture", () => this.picture.removeEventListener("pointermove", move), {
      once: true,
    });
    move(event);
  }
}
