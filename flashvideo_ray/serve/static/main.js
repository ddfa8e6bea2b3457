/** Puts the page together. */

import * as api from "./api.js";
import { Bulk } from "./bulk.js";
import { Decisions } from "./decisions.js";
import { Detail } from "./detail.js";
import { byId, make } from "./dom.js";
import { Live } from "./events.js";
import { Filters } from "./filters.js";
import { counted } from "./format.js";
import { Grid } from "./grid.js";
import { listenToKeys } from "./keys.js";
import { enter } from "./login.js";
import { Notices } from "./notices.js";
import { Siblings } from "./siblings.js";
import { Store } from "./store.js";
import { Submit } from "./submit.js";
import { showSummary } from "./summary.js";

const store = new Store();
store.query = Filters.fromAddress();
const notices = new Notices();
const decisions = new Decisions(store, notices);
const submit = new Submit(store, notices);
const grid = new Grid(byId("grid"), store, { canDecide: (c) => decisions.canDecide(c), act });
const detail = new Detail(store, decisions, notices, {
  act,
  closed: (id) => grid.focus(id),
  mine: (ids) => submit.mine(ids),
  next: nextToReview,
});
const siblings = new Siblings(store, decisions, notices, { closed: (id) => grid.focus(id) });
const filters = new Filters(store);
new Bulk(store, decisions, notices);
showSummary(store);
listenToKeys({ grid, detail, siblings, store, act, undo, submit: () => submit.open() });

/** Something is to be done about a candidate of the grid. @param {string} what @param {string} id */
function act(what, id) {
  if (what === "open") detail.open(id);
  else if (what === "siblings") {
    if (detail.dialog.open) detail.dialog.close();
    siblings.open(id);
  } else if (what === "approve" || what === "reject") {
    if (!decisions.canDecide(store.known.get(id))) {
      notices.announce(
        store.may("reviewer") ? "There is nothing to decide about it now." : "Decisions need the role reviewer.",
      );
      return;
    }
    decisions.decide([id], what === "approve" ? "approved" : "rejected");
    grid.focus(nextToReview(id) ?? id);
  }
}

/** The next one that nobody has decided about. @param {string} id */
function nextToReview(id) {
  return grid.nextAfter(id, (c) => c?.status === "previewed");
}

async function undo() {
  const id = await decisions.undo();
  if (!id) return;
  if (detail.dialog.open) detail.open(id);
  else if (!document.querySelector("dialog[open]")) grid.focus(id);
}

/** The words above the grid, and what stands in its place when it is empty. */
function describeList() {
  const { run, error, loading, loaded, total, order, unseen } = store;
  byId("result-count").textContent = !loaded
    ? ""
    : `${counted(total, "candidate")}${filters.narrowed || store.query.status !== "all" ? " match" : ""}`;
  for (const name of ["toolbar", "result", "figures"]) byId(name).hidden = Boolean(run && !run.candidates && !error);
  byId("more").hidden = !(loading && order.length && store.next);
  byId("grid").classList.toggle("stale", !store.current);
  const fresh = byId("show-new");
  fresh.hidden = !unseen;
  fresh.textContent = `Show ${counted(unseen, "new one")}`;
  const message = byId("message");
  const parts = error
    ? failure(error)
    : !loaded
      ? [make("p", {}, "Loading …")]
      : order.length
        ? null
        : run && !run.candidates
          ? welcome()
          : nothing();
  message.hidden = !parts;
  message.classList.toggle("bad", Boolean(error));
  message.replaceChildren(...(parts ?? []));
}

const tryAgain = () => (store.run ? store.refresh() : location.reload());

/** @param {Error} error */
function failure(error) {
  return [
    make("h2", {}, "The candidates cannot be shown"),
    make("p", {}, error.message),
    /** @type {api.ApiError} */ (error).status === 401
      ? make("button", { type: "button", class: "primary", on: { click: () => location.reload() } }, "Sign in")
      : make("button", { type: "button", class: "primary", on: { click: tryAgain } }, "Try again"),
  ];
}

function welcome() {
  const { run } = store;
  if (!store.may("operator") || !run.accepting)
    return [make("h2", {}, "No previews yet"), make("p", {}, "They appear here as soon as there are some.")];
  return [
    make("h2", {}, "No previews yet"),
    make("p", {}, "Write a prompt. Its preview comes first; only what you approve is rendered."),
    make("button", { type: "button", class: "primary", on: { click: () => submit.open() } }, "Write a prompt"),
    ...(run.example_prompts.length ? [make("p", { class: "soft" }, "or begin with one of these")] : []),
    make(
      "div",
      { class: "examples" },
      ...run.example_prompts
        .slice(0, 4)
        .map((/** @type {string} */ text) =>
          make("button", { type: "button", class: "chip", on: { click: () => submit.open(text) } }, text),
        ),
    ),
  ];
}

function nothing() {
  return [
    make("h2", {}, filters.narrowed ? "Nothing matches" : "Nothing here"),
    make(
      "p",
      {},
      filters.narrowed
        ? "No candidate matches this filter."
        : store.query.status === "review"
          ? "Everything is reviewed."
          : "No candidate has this status now.",
    ),
    ...(filters.narrowed
      ? [make("button", { type: "button", on: { click: () => filters.reset() } }, "Clear filter")]
      : []),
  ];
}

const LIVE_WORDS = { live: "live", polling: "asking every few seconds", lost: "connection lost, trying again" };
/** @param {"live" | "polling" | "lost"} state */
function showLive(state) {
  const live = byId("live");
  if (live.dataset.state === state) return;
  live.dataset.state = state;
  live.textContent = LIVE_WORDS[state];
}

/** Spoken when work begins, goes on or ends, not at each decision of somebody. @type {number | null} */
let inWork = null;
function speakProgress() {
  const { status } = store.run;
  const working = ["queued", "previewing", "refining"].reduce((sum, each) => sum + (status[each] ?? 0), 0);
  if (inWork !== null && working !== inWork)
    notices.report(
      working
        ? `${counted(working, "candidate")} in work.`
        : `Nothing in work. ${counted(status.previewed ?? 0, "candidate")} to review.`,
    );
  inWork = working;
}

const size = /** @type {HTMLInputElement} */ (byId("size"));
size.value = localStorage.getItem("card-size") ?? size.value;
size.addEventListener("input", () => {
  localStorage.setItem("card-size", size.value);
  showSize();
});
function showSize() {
  size.setAttribute("aria-valuetext", `${size.value} pixels`);
  grid.setWidth(Number(size.value));
}

byId("open-submit").addEventListener("click", () => submit.open());
byId("show-new").addEventListener("click", () => store.reload());
for (const event of ["list", "load", "run", "filter"]) store.on(event, describeList);
store.on("run", () => {
  byId("open-submit").hidden = !store.may("operator") || !store.run.accepting;
  speakProgress();
});

async function start() {
  try {
    await enter(store);
    await new Live(store, showLive).open();
    store.setRun(await api.run());
  } catch (error) {
    store.error = /** @type {Error} */ (error);
    describeList();
    return;
  }
  showSize();
  await store.setQuery({});
}

start();
