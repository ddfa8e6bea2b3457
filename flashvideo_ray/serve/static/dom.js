/** Elements from text, never from HTML: what a prompt says is shown, not interpreted. */

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
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
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
