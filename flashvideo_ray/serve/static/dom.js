/** Elements from text, never from HTML: what a prompt says is shown, not interpreted. */

// Control characters other than those that break a line, and those that change the direction of what stands around them.
const UNSEEN = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** The text with such characters as escapes (`\x1b`, `\u202e`), as in the report. @param {string} text */
export const visible = (text) =>
  text.replace(UNSEEN, (found) => {
    const code = found.charCodeAt(0);
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });

/** Say something in an element that is there. @param {HTMLElement} element @param {string} text */
export function write(element, text) {
  element.textContent = visible(text);
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [attributes] `class`, `data-…`, `aria-…`, and `on` with listeners; null leaves one out
 * @param {...(Node | string | null)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, visible(String(value)));
  }
  for (const child of children) if (child !== null) element.append(typeof child === "string" ? visible(child) : child);
  return element;
}

/** @param {string} name of a symbol in the page */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** @template {HTMLElement} T @param {string} id @returns {T} */
export const byId = (id) => /** @type {T} */ (document.getElementById(id));

/** A dialog's close buttons and its backdrop close it. @param {HTMLDialogElement} dialog */
export function closable(dialog) {
  for (const button of dialog.querySelectorAll('[data-do="close"]')) {
    button.addEventListener("click", () => dialog.close());
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

/** What stands in the place of media that do not come. @param {string} what the preview, the clip */
export const lost = (what) => make("p", { class: "lost" }, `The ${what} cannot be shown: it is not in the store.`);

/** A muted, looping video that plays in place. @param {string} address @param {Record<string, any>} [attributes] */
export function video(address, attributes = {}) {
  const element = make("video", { playsinline: true, loop: true, preload: "auto", ...attributes });
  element.muted = true; // the attribute alone does not count for a video made by a script
  element.src = address;
  return element;
}

export const stillPictures = matchMedia("(prefers-reduced-motion: reduce)");
export const canHover = matchMedia("(hover: hover)");
