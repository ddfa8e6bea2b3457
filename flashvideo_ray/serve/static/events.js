/** Live changes: server-sent events, and where they do not come through, questions every few seconds. */

import * as api from "./api.js";

const POLL_MS = 4000;
const RETRY_MS = 3000;
const FAILURES = 2; // of the stream in a row, before questions are asked instead
const HELLO_MS = 3000; // after which the page is shown without the stream: a proxy may hold it back
const ASKED = 20; // candidates in work that one round of questions asks about

export class Live {
  #failures = 0;
  /** @type {EventSource | null} */ #source = null;
  #asking = false;
  /** Called when the stream is there, or has failed. */ #heard = () => {};

  /**
   * @param {import("./store.js").Store} store
   * @param {(state: "live" | "polling" | "lost") => void} tell
   */
  constructor(store, tell) {
    this.store = store;
    this.tell = tell;
  }

  /** Open the stream, before anything is loaded: what changes meanwhile is told by it. One that comes late loads anew. */
  async open() {
    const heard = new Promise((resolve) => (this.#heard = () => resolve(true)));
    const late = new Promise((resolve) => setTimeout(() => resolve(false), HELLO_MS));
    this.#start();
    if (!(await Promise.race([heard, late]))) this.#failures += 1;
  }

  #start() {
    this.#source?.close();
    const source = new EventSource(api.EVENTS);
    this.#source = source;
    const data = (/** @type {MessageEvent} */ event) => JSON.parse(event.data);
    source.addEventListener("hello", () => {
      const wasAway = this.#failures > 0;
      this.#failures = 0;
      this.tell("live");
      this.#heard();
      if (wasAway) this.store.refresh();
    });
    source.addEventListener("candidate", (event) => this.store.put(data(event)));
    source.addEventListener("progress", (event) => this.store.putProgress(data(event)));
    source.addEventListener("run", (event) => this.store.setRun(data(event)));
    source.addEventListener("reload", () => this.store.refresh());
    source.onerror = () => {
      this.#failures += 1;
      this.#heard();
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.#start(), RETRY_MS);
      if (this.#failures < FAILURES || this.#asking) return;
      this.tell("lost");
      this.#ask();
    };
  }

  /** Rounds of questions with a pause after each, until the stream is there again. */
  async #ask() {
    this.#asking = true;
    while (this.#failures >= FAILURES) {
      await this.#askOnce();
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    this.#asking = false;
  }

  async #askOnce() {
    try {
      this.store.setRun(await api.run());
      const open = this.store.order.filter((id) => this.store.known.get(id)?.progress).slice(0, ASKED);
      for (const id of open) this.store.put(await api.candidate(id));
      const { known } = this.store;
      const newest = [...known.values()].reduce((last, c) => (c.at > last ? c.at : last), "");
      const page = await api.candidates(this.store.filter(), { sort: "-at", limit: 60 });
      for (const c of page.items) if (known.has(c.clip_id) || c.at > newest) this.store.put(c);
      this.tell("polling");
    } catch {
      this.tell("lost");
    }
  }
}
