/**
 * The candidates as a grid of which only what can be seen is in the document, however many there are.
 *
 * One card at a time can be reached by Tab; arrows go from card to card. The row of that card stays in the document when it
 * is scrolled away, so that the focus is not lost.
 */

import { Card } from "./card.js";
import { canHover, make, stillPictures } from "./dom.js";

const OVERSCAN = 2; // rows above and below what is seen
const HOVER_MS = 90; // crossing a card on the way to another one starts nothing
const AHEAD = 2.5; // screens: how early the next page is loaded

export class Grid {
  /** @type {Map<string, Card>} */ #cards = new Map();
  /** @type {Map<number, HTMLElement>} */ #rows = new Map();
  /** @type {string | null} */ #playing = null;
  /** @type {string | null} */ active = null;
  #columns = 1;
  #width = 240;
  #pitch = 0; // pixels from row to row
  #ratio = 4 / 3;
  #ratioKnown = false;
  #hover = 0;
  #frame = 0;

  /**
   * @param {HTMLElement} element
   * @param {import("./store.js").Store} store
   * @param {{canDecide: (c: any) => boolean, act: (what: string, id: string) => void}} hooks
   */
  constructor(element, store, hooks) {
    this.element = element;
    this.store = store;
    this.hooks = hooks;
    this.probe = make("div", { class: "probe", "aria-hidden": "true" });
    document.body.append(this.probe);
    store.on("list", () => this.#listChanged());
    store.on("run", () => this.#schedule());
    store.on("candidate", (event) => this.#cards.get(event.detail)?.update(this.#candidate(event.detail)));
    new ResizeObserver(() => this.layout()).observe(element);
    addEventListener("scroll", () => this.#schedule(), { passive: true });
    addEventListener("resize", () => this.#schedule(), { passive: true });
    element.addEventListener("keydown", (event) => this.#key(event));
    element.addEventListener("click", (event) => this.#click(event));
    element.addEventListener("focusin", (event) => this.#focused(event));
    element.addEventListener("pointerover", (event) => this.#hovered(event));
    element.addEventListener("pointerleave", () => this.#left());
    element.addEventListener("load", (event) => this.#pictureLoaded(event), true);
  }

  /** @param {number} width of a card at least, pixels */
  setWidth(width) {
    this.#width = width;
    this.layout();
  }

  /** Columns and heights anew. */
  layout() {
    const gap = 12;
    const wide = this.element.clientWidth;
    const columns = Math.max(1, Math.floor((wide + gap) / (Math.min(this.#width, wide) + gap)));
    const cell = (wide - gap * (columns - 1)) / columns;
    const frame = Math.round(cell / this.#ratio);
    const pitch = frame + this.probe.offsetHeight + gap;
    if (columns !== this.#columns || pitch !== this.#pitch) {
      this.#columns = columns;
      this.#pitch = pitch;
      this.element.style.setProperty("--columns", String(columns));
      this.element.style.setProperty("--frame", `${frame}px`);
      this.#clearRows();
    }
    this.#render();
  }

  /** @param {string} id */
  card(id) {
    return this.#cards.get(id);
  }

  /** Focus a candidate, wherever it stands. @param {string} id */
  focus(id) {
    const index = this.store.order.indexOf(id);
    if (index < 0) return;
    this.#setActive(id);
    this.#render();
    const element = this.#cards.get(id)?.element;
    element?.scrollIntoView({ block: "nearest" });
    element?.focus({ preventScroll: true });
  }

  /** The next one after `id` that `wanted` says yes to. @param {string} id @param {(c: any) => boolean} wanted */
  nextAfter(id, wanted) {
    const { order, known } = this.store;
    const start = order.indexOf(id);
    return [...order.slice(start + 1), ...order.slice(0, Math.max(0, start))].find((each) => wanted(known.get(each)));
  }

  /** @param {string} id */
  toggle(id) {
    const card = this.#cards.get(id);
    if (card?.playing) card.pause();
    else this.#play(id);
  }

  /** @param {string} id of a candidate in the list */
  #candidate(id) {
    return /** @type {import("./api.js").Candidate} */ (this.store.known.get(id));
  }

  #listChanged() {
    const here = new Set(this.store.order);
    if (this.active && !here.has(this.active)) this.active = null;
    if (!this.active && this.store.order.length) this.active = this.store.order[0];
    this.#clearRows();
    this.#render();
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#render();
    });
  }

  #clearRows() {
    const focused =
      document.activeElement instanceof HTMLElement && this.element.contains(document.activeElement)
        ? this.active
        : null;
    for (const row of this.#rows.values()) row.remove();
    this.#rows.clear();
    if (focused) queueMicrotask(() => this.#cards.get(focused)?.element.focus({ preventScroll: true }));
  }

  /** Put the rows into the document that are to be seen, and take out the others. */
  #render() {
    const { order, total } = this.store;
    const rows = Math.ceil(order.length / this.#columns);
    this.element.hidden = rows === 0;
    this.element.style.setProperty("height", `${Math.max(0, rows * this.#pitch - 12)}px`);
    this.element.setAttribute("aria-rowcount", String(Math.ceil(total / this.#columns)));
    this.element.setAttribute("aria-colcount", String(this.#columns));
    if (!rows || !this.#pitch) return this.#drop(new Set());
    const top = -this.element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / this.#pitch) - OVERSCAN);
    const last = Math.min(rows - 1, Math.floor((top + innerHeight) / this.#pitch) + OVERSCAN);
    const wanted = new Set();
    for (let row = first; row <= last; row += 1) wanted.add(row);
    const at = this.active ? order.indexOf(this.active) : -1;
    if (at >= 0) wanted.add(Math.floor(at / this.#columns));
    this.#drop(wanted);
    for (const row of wanted) if (!this.#rows.has(row)) this.#addRow(row);
    if (rows * this.#pitch - top < innerHeight * AHEAD) this.store.more();
  }

  /** @param {Set<number>} wanted */
  #drop(wanted) {
    for (const [index, row] of this.#rows) {
      if (wanted.has(index)) continue;
      row.remove();
      this.#rows.delete(index);
    }
    const shown = new Set(
      [...this.#rows.values()].flatMap((row) => [...row.children].map((cell) => cell.getAttribute("data-id"))),
    );
    for (const [id, card] of this.#cards) {
      if (shown.has(id) || (wanted.size && this.#isIn(id, wanted))) continue;
      card.stop();
      this.#cards.delete(id);
    }
  }

  /** @param {string} id @param {Set<number>} rows */
  #isIn(id, rows) {
    const index = this.store.order.indexOf(id);
    return index >= 0 && rows.has(Math.floor(index / this.#columns));
  }

  /** @param {number} index */
  #addRow(index) {
    const row = make("div", { class: "row", role: "row", "aria-rowindex": index + 1 });
    row.style.setProperty("transform", `translateY(${index * this.#pitch}px)`);
    const ids = this.store.order.slice(index * this.#columns, (index + 1) * this.#columns);
    ids.forEach((id, column) => {
      const c = this.#candidate(id);
      let card = this.#cards.get(id);
      if (!card) {
        card = new Card(c, this.hooks.canDecide, this.store.run?.rank ?? null);
        this.#cards.set(id, card);
      } else card.update(c);
      card.element.setAttribute("aria-colindex", String(column + 1));
      card.element.tabIndex = id === this.active ? 0 : -1;
      row.append(card.element);
    });
    // In reading order, whatever order rows came into view.
    const after = [...this.#rows.keys()].filter((other) => other > index).sort((a, b) => a - b)[0];
    this.element.insertBefore(row, this.#rows.get(after) ?? null);
    this.#rows.set(index, row);
  }

  /** @param {string} id */
  #setActive(id) {
    if (this.active) {
      const card = this.#cards.get(this.active);
      if (card) card.element.tabIndex = -1;
    }
    this.active = id;
    const card = this.#cards.get(id);
    if (card) card.element.tabIndex = 0;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.altKey || event.metaKey) return;
    const { order } = this.store;
    const at = this.active ? order.indexOf(this.active) : 0;
    const column = at % this.#columns;
    const screen = Math.max(1, Math.floor(innerHeight / this.#pitch)) * this.#columns;
    const to = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      ArrowDown: at + this.#columns,
      ArrowUp: at - this.#columns,
      PageDown: Math.min(at + screen, order.length - 1),
      PageUp: Math.max(at - screen, 0),
      Home: event.ctrlKey ? 0 : at - column,
      End: event.ctrlKey ? order.length - 1 : Math.min(at - column + this.#columns - 1, order.length - 1),
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to >= order.length) this.store.more();
    else if (to >= 0) this.focus(order[to]);
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const target = /** @type {Element} */ (event.target);
    const id = target.closest(".card")?.getAttribute("data-id");
    const what = target.closest("[data-do]")?.getAttribute("data-do");
    if (!id) return;
    this.#setActive(id);
    if (what === "play") this.toggle(id);
    else if (what) this.hooks.act(what, id);
  }

  /** @param {FocusEvent} event */
  #focused(event) {
    const card = /** @type {Element} */ (event.target).closest(".card");
    const id = card?.getAttribute("data-id");
    if (!id) return;
    this.#setActive(id);
    if (card?.matches(":focus-visible") && !stillPictures.matches) this.#play(id);
  }

  /** @param {PointerEvent} event */
  #hovered(event) {
    if (!canHover.matches || stillPictures.matches || event.pointerType === "touch") return;
    const id = /** @type {Element} */ (event.target).closest(".card")?.getAttribute("data-id");
    clearTimeout(this.#hover);
    if (id && id !== this.#playing) this.#hover = setTimeout(() => this.#play(id), HOVER_MS);
  }

  #left() {
    clearTimeout(this.#hover);
    if (stillPictures.matches || !canHover.matches) return;
    if (this.#playing && this.#playing !== this.active) this.#halt();
  }

  /** @param {string} id */
  #play(id) {
    if (this.#playing !== id) this.#halt();
    this.#playing = id;
    this.#cards.get(id)?.start();
  }

  #halt() {
    if (this.#playing) this.#cards.get(this.#playing)?.stop();
    this.#playing = null;
  }

  /** The first picture says which shape all have. @param {Event} event */
  #pictureLoaded(event) {
    const picture = event.target;
    if (this.#ratioKnown || !(picture instanceof HTMLImageElement) || !picture.naturalHeight) return;
    this.#ratioKnown = true;
    this.#ratio = picture.naturalWidth / picture.naturalHeight;
    document.documentElement.style.setProperty("--ratio", String(this.#ratio));
    this.layout();
  }
}
