/** Outcomes: spoken to screen readers, and shown for a while with what can be done about them. */

import { byId, make, write } from "./dom.js";

const SHOWN_MS = 6000;
const SHOWN = 3; // failures; of the others the newest one

export class Notices {
  #box = byId("toasts");
  #announcer = byId("announcer");
  #news = byId("news");
  #alarm = byId("alarm");

  constructor() {
    document.addEventListener("close", () => this.#place(), true);
  }

  /** A modal dialog makes all else inert, silent too, so notices stand in it while it is open. */
  #place() {
    const place = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
    if (this.#box.parentElement !== place) place.append(this.#box, this.#announcer, this.#news, this.#alarm);
  }

  /** Something went well. @param {string} text @param {string} [action] @param {() => void} [act] */
  say(text, action, act) {
    this.announce(text);
    this.#show(text, "", action, act);
  }

  /** Something failed: it stays until it is closed. @param {string} what @param {Error} error @param {() => void} [again] */
  fail(what, error, again) {
    this.#place();
    const text = `${what}: ${error.message}`;
    write(this.#alarm, text);
    this.#show(text, "bad", again ? "Try again" : undefined, again);
  }

  /** News of the run, for screen readers alone: it does not take the place of an answer. @param {string} text */
  report(text) {
    this.#place();
    write(this.#news, text);
  }

  /** An answer to what somebody did, for screen readers alone. @param {string} text */
  announce(text) {
    this.#place();
    this.#announcer.textContent = "";
    requestAnimationFrame(() => write(this.#announcer, text)); // the same words twice are said twice
  }

  /** @param {string} text @param {string} kind @param {string} [action] @param {() => void} [act] */
  #show(text, kind, action, act) {
    const toast = make("div", { class: `toast ${kind}` }, make("span", {}, text));
    const close = () => toast.remove();
    if (action && act) {
      toast.append(make("button", { type: "button", on: { click: () => (close(), act()) } }, action));
    }
    if (kind === "bad") toast.append(make("button", { type: "button", on: { click: close } }, "Close"));
    else setTimeout(close, SHOWN_MS);
    for (const old of this.#box.querySelectorAll(".toast:not(.bad)")) old.remove();
    this.#box.append(toast);
    while (this.#box.children.length > SHOWN) this.#box.firstElementChild?.remove();
  }
}
