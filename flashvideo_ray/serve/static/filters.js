/** What is to be seen: status tabs, search, sorting, bounds of scores. The address of the page holds it, so it can be sent. */

import { byId, make } from "./dom.js";
import { count } from "./format.js";
import { TABS, emptyQuery } from "./store.js";

const TYPING_MS = 250;
const TAB_WORDS = {
  all: "All",
  review: "To review",
  working: "Working",
  rendered: "Rendered",
  rejected: "Rejected",
  failed: "Failed",
};

export class Filters {
  /** Set as long as somebody types and what they wrote does not count yet. */ #timer = 0;
  /** @type {string | null} */ #scores = null;

  /** @param {import("./store.js").Store} store */
  constructor(store) {
    this.store = store;
    this.tabs = byId("tabs");
    this.q = /** @type {HTMLInputElement} */ (byId("q"));
    this.sort = /** @type {HTMLSelectElement} */ (byId("sort"));
    this.promptChip = byId("prompt-chip");
    this.clear = byId("clear-filter");
    this.menu = /** @type {HTMLDetailsElement} */ (byId("bounds-menu"));
    for (const name of Object.keys(TABS)) {
      this.tabs.append(
        make(
          "button",
          {
            type: "button",
            "data-tab": name,
            "aria-pressed": "false",
            on: { click: () => store.setQuery({ status: name }) },
          },
          TAB_WORDS[name],
          make("span", { class: "pill" }),
        ),
      );
    }
    byId("toolbar").addEventListener("submit", (event) => event.preventDefault());
    for (const field of [this.q, byId("bounds")]) field.addEventListener("input", () => this.#typed());
    this.sort.addEventListener("change", () => store.setQuery({ sort: this.sort.value }));
    this.promptChip.addEventListener("click", () => store.setQuery({ prompt_id: "" }));
    this.clear.addEventListener("click", () => this.reset());
    document.addEventListener("click", (event) => {
      if (this.menu.open && !this.menu.contains(/** @type {Node} */ (event.target))) this.menu.open = false;
    });
    this.menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.menu.open = false;
      this.menu.querySelector("summary")?.focus();
    });
    store.on("run", () => this.#runChanged());
    store.on("filter", () => this.#show());
  }

  /** Filter by tab and by nothing else. */
  reset() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.store.setQuery({ ...emptyQuery(), sort: this.store.query.sort, status: this.store.query.status });
  }

  /** Whether anything but the tab narrows the list. */
  get narrowed() {
    const { q, prompt_id, bounds } = this.store.query;
    return Boolean(q || prompt_id || Object.keys(bounds).length);
  }

  /** What the address of the page says. */
  static fromAddress() {
    const query = emptyQuery();
    for (const [name, value] of new URLSearchParams(location.search)) {
      if (name === "status" && value in TABS) query.status = value;
      else if (name === "q" || name === "prompt_id" || name === "sort") query[name] = value;
      else if (/^m(in|ax)_/.test(name) && value !== "" && Number.isFinite(Number(value)))
        query.bounds[name] = Number(value);
    }
    return query;
  }

  #toAddress() {
    const params = new URLSearchParams();
    const { bounds, ...rest } = this.store.query;
    const blank = emptyQuery();
    for (const [name, value] of Object.entries(rest)) if (value && value !== blank[name]) params.set(name, value);
    for (const [name, value] of Object.entries(bounds)) params.set(name, String(value));
    const text = params.toString();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
  }

  #runChanged() {
    const { status, scores, rank } = this.store.run;
    for (const tab of /** @type {NodeListOf<HTMLElement>} */ (this.tabs.querySelectorAll("[data-tab]"))) {
      const wanted = TABS[tab.dataset.tab ?? "all"];
      const n = wanted.length ? wanted.reduce((sum, each) => sum + (status[each] ?? 0), 0) : this.store.run.candidates;
      const pill = /** @type {HTMLElement} */ (tab.querySelector(".pill"));
      pill.textContent = count(n);
      pill.dataset.zero = String(n === 0);
    }
    const names = [...(rank ? ["rank"] : []), ...scores];
    if (names.join() === this.#scores) return;
    this.#scores = names.join();
    this.sort.replaceChildren(
      new Option("Newest first", "-made"),
      new Option("Changed last", "-at"),
      new Option("Prompt", "prompt"),
      ...names.flatMap((name) => [
        new Option(`${name}, high to low`, `-${name}`),
        new Option(`${name}, low to high`, name),
      ]),
    );
    byId("bounds").replaceChildren(
      names.length
        ? make("p", { class: "soft" }, "Only candidates with scores between")
        : make("p", { class: "soft" }, "There are no scores yet."),
      ...names.map((name) =>
        make(
          "div",
          { class: "bound" },
          make("span", {}, name),
          this.#bound(`min_${name}`, "from"),
          this.#bound(`max_${name}`, "to"),
        ),
      ),
    );
    this.#show();
  }

  /** @param {string} name @param {string} word */
  #bound(name, word) {
    return make("input", {
      type: "number",
      step: "any",
      placeholder: word,
      "data-bound": name,
      "aria-label": `${name.slice(4)} ${word}`,
      inputmode: "decimal",
    });
  }

  /** Somebody types: when they pause, what they wrote counts. */
  #typed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      const inputs = /** @type {NodeListOf<HTMLInputElement>} */ (byId("bounds").querySelectorAll("[data-bound]"));
      const given = [...inputs].filter((input) => Number.isFinite(input.valueAsNumber));
      const bounds = Object.fromEntries(given.map((input) => [input.dataset.bound, input.valueAsNumber]));
      this.store.setQuery({ q: this.q.value.trim(), bounds });
    }, TYPING_MS);
  }

  #show() {
    const { status, q, prompt_id, sort, bounds } = this.store.query;
    for (const tab of this.tabs.querySelectorAll("[data-tab]"))
      tab.setAttribute("aria-pressed", String(tab.getAttribute("data-tab") === status));
    this.sort.value = sort;
    if (!this.#timer) {
      // Otherwise the fields are ahead of the filter: they say what is about to be looked for.
      const inputs = /** @type {NodeListOf<HTMLInputElement>} */ (byId("bounds").querySelectorAll("[data-bound]"));
      const show = (/** @type {HTMLInputElement} */ input, /** @type {string} */ text) => {
        if (document.activeElement !== input) input.value = text;
      };
      show(this.q, q);
      for (const input of inputs) show(input, String(bounds[input.dataset.bound ?? ""] ?? ""));
    }
    const n = Object.keys(bounds).length;
    byId("bounds-count").textContent = count(n);
    byId("bounds-count").hidden = n === 0;
    this.promptChip.hidden = !prompt_id;
    this.promptChip.textContent = "One prompt only ✕";
    this.promptChip.setAttribute("aria-label", "Show the candidates of all prompts");
    this.clear.hidden = !this.narrowed;
    this.#toAddress();
  }
}
