/** The keyboard: which key does what, where. */

import { byId, closable } from "./dom.js";
import { TABS } from "./store.js";

const STORED = "single-keys";

/**
 * @param {{grid: import("./grid.js").Grid, detail: import("./detail.js").Detail, siblings: import("./siblings.js").Siblings,
 *   store: import("./store.js").Store, act: (what: string, id: string) => void, undo: () => void, submit: () => void}} page
 */
export function listenToKeys({ grid, detail, siblings, store, act, undo, submit }) {
  const help = /** @type {HTMLDialogElement} */ (byId("help"));
  const single = /** @type {HTMLInputElement} */ (byId("single-keys"));
  closable(help);
  byId("open-help").addEventListener("click", () => help.showModal());
  single.checked = localStorage.getItem(STORED) !== "off";
  single.addEventListener("change", () => localStorage.setItem(STORED, single.checked ? "on" : "off"));

  /** @type {Record<string, (id: string) => void>} */
  const inGrid = {
    a: (id) => act("approve", id),
    r: (id) => act("reject", id),
    c: (id) => act("siblings", id),
    Enter: (id) => act("open", id),
    " ": (id) => grid.toggle(id),
  };
  const anywhere = { u: undo, n: submit, "/": () => byId("q").focus(), "?": () => help.showModal() };
  const inDetail = {
    a: () => detail.act("approve"),
    r: () => detail.act("reject"),
    c: () => detail.id && act("siblings", detail.id),
    u: undo,
    " ": () => detail.compare.toggle(),
    ArrowLeft: () => detail.step(-1),
    ArrowRight: () => detail.step(1),
  };
  const inSiblings = {
    a: () => siblings.act("approve"),
    r: () => siblings.act("reject"),
    k: () => siblings.act("keep"),
    u: undo,
    " ": () => siblings.playAll(),
    ArrowLeft: () => siblings.step(-1),
    ArrowRight: () => siblings.step(1),
  };

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = /** @type {Element} */ (event.target);
    if (target.matches("textarea, select, input:not([type=range], [type=checkbox])")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!single.checked && /^[a-z0-9/?]$/.test(key)) return;
    // Buttons and sliders keep the keys that they themselves answer to.
    if ((key === " " || key === "Enter") && target.closest("button, a, summary, [type=checkbox]")) return;
    if (key.startsWith("Arrow") && target.matches("[type=range]")) return;
    if (event.repeat && !key.startsWith("Arrow")) return;

    /** @type {(() => void) | undefined} */ let doing;
    if (siblings.dialog.open) doing = inSiblings[key];
    else if (detail.dialog.open) doing = inDetail[key];
    else if (document.querySelector("dialog[open]")) return;
    else if (key in inGrid) {
      const id = grid.active;
      const there = target === document.body || grid.element.contains(target);
      if (id && there) doing = () => inGrid[key](id);
    } else if (key.startsWith("Arrow") && target === document.body)
      doing = () => grid.active && grid.focus(grid.active);
    else if (/^[1-6]$/.test(key)) doing = () => store.setQuery({ status: Object.keys(TABS)[Number(key) - 1] });
    else doing = anywhere[key];
    if (!doing) return;
    event.preventDefault();
    doing();
  });
}
