/** New prompts: one a line, with what they will make said before they are sent. */

import * as api from "./api.js";
import { byId, closable, make, write } from "./dom.js";
import { counted, duration } from "./format.js";

const MOST_PROMPTS = 100;
const LONGEST = 2000; // characters
const FETCHED = 32; // new candidates that are shown before the service tells of them

export class Submit {
  #key = "";

  /**
   * @param {import("./store.js").Store} store
   * @param {import("./notices.js").Notices} notices
   */
  constructor(store, notices) {
    this.store = store;
    this.notices = notices;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("submit"));
    this.text = /** @type {HTMLTextAreaElement} */ (byId("prompts"));
    this.negative = /** @type {HTMLTextAreaElement} */ (byId("negative"));
    this.count = /** @type {HTMLInputElement} */ (byId("count"));
    this.seed = /** @type {HTMLInputElement} */ (byId("seed"));
    this.refine = /** @type {HTMLInputElement} */ (byId("refine"));
    this.send = /** @type {HTMLButtonElement} */ (byId("submit-send"));
    closable(this.dialog);
    byId("submit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    for (const field of [this.text, this.count, this.refine, this.negative, this.seed])
      field.addEventListener("input", () => this.#changed());
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#submit();
    });
  }

  /** @param {string} [prompt] to begin with */
  open(prompt) {
    if (!this.store.may("operator") || !this.store.run?.accepting) {
      this.notices.say(
        this.store.may("operator") ? "This run takes no prompts." : "New prompts need the role operator.",
      );
      return;
    }
    if (prompt) this.text.value = prompt;
    byId("examples").replaceChildren(
      ...(this.store.run.example_prompts ?? [])
        .slice(0, 4)
        .map((/** @type {string} */ example) =>
          make("button", { type: "button", class: "chip", on: { click: () => this.#fill(example) } }, example),
        ),
    );
    this.#changed();
    this.dialog.showModal();
    this.text.focus();
  }

  /** @param {string} example */
  #fill(example) {
    const lines = this.#prompts();
    this.text.value = [...lines, example].join("\n");
    this.text.focus();
    this.#changed();
  }

  #prompts() {
    return this.text.value
      .split("\n")
      .map((line) => line.trim())
      .filter(Boolean);
  }

  #changed() {
    this.#key = ""; // another submission
    const prompts = this.#prompts();
    const wrong =
      prompts.length > MOST_PROMPTS
        ? `These are ${counted(prompts.length, "prompt")}; ${MOST_PROMPTS} may be sent at once.`
        : prompts.some((prompt) => prompt.length > LONGEST)
          ? `A prompt may have ${LONGEST} characters.`
          : !this.count.checkValidity()
            ? "Candidates a prompt: 1 to 16."
            : !this.seed.checkValidity()
              ? "A seed is a whole number, 0 or more."
              : "";
    this.#fail(wrong);
    const previews = prompts.length * Number(this.count.value || 1);
    const mean = this.store.run?.preview_seconds_mean;
    const time = mean ? `, about ${duration(previews * mean)} of preview time` : "";
    byId("prompts-hint").textContent = prompts.length
      ? `${counted(prompts.length, "prompt")}, ${counted(previews, "preview")}${time}.`
      : "";
    this.send.disabled = Boolean(wrong) || !prompts.length;
  }

  /** @param {string} text */
  #fail(text) {
    write(byId("prompts-error"), text);
    this.text.toggleAttribute("aria-invalid", Boolean(text));
  }

  async #submit() {
    const prompts = this.#prompts();
    if (!prompts.length || this.send.disabled) return;
    this.#key ||= newKey();
    const seed = this.seed.value === "" ? {} : { seed: Number(this.seed.value) };
    const negative = this.negative.value.trim() ? { negative_prompt: this.negative.value.trim() } : {};
    this.send.disabled = true;
    try {
      const answer = await api.submit(
        {
          prompts: prompts.map((prompt) => ({ prompt, ...seed, ...negative })),
          candidates: Number(this.count.value),
          refine: this.refine.checked,
        },
        this.#key,
      );
      this.dialog.close();
      this.text.value = "";
      this.notices.say(`${counted(answer.items.length, "preview")} queued.`);
      await this.mine(answer.items.map((/** @type {{clip_id: string}} */ item) => item.clip_id));
    } catch (error) {
      const { message, errors, retryAfter } = /** @type {api.ApiError} */ (error);
      const fields = (errors ?? []).map((each) => `${each.field}: ${each.message}`);
      this.#fail(
        [message, ...fields, retryAfter ? `Try again in ${duration(retryAfter)}.` : ""].filter(Boolean).join(" "),
      );
    }
    this.send.disabled = false;
  }

  /** Show new candidates first. @param {string[]} ids */
  async mine(ids) {
    const found = await Promise.allSettled(ids.slice(0, FETCHED).map((id) => api.candidate(id)));
    this.store.putFirst(found.flatMap((each) => (each.status === "fulfilled" ? [each.value] : [])));
  }
}

/** `randomUUID` is not there on a page that came over plain HTTP from another machine. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
