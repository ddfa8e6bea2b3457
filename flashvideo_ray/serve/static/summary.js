/** What the run is and what it has cost. */

import { byId, make, visible, write } from "./dom.js";
import { cost, count, counted, duration, money } from "./format.js";

/** @param {import("./store.js").Store} store */
export function showSummary(store) {
  const figures = byId("figures");
  store.on("run", () => {
    const { run } = store;
    write(byId("run-name"), run.name);
    document.title = `${visible(run.name)}: FlashVideo review`;
    const { spent, price } = run;
    const clip = cost(run.refine_seconds_mean, price.per_clip, price.currency);
    const rows = [
      ["Candidates", `${count(run.candidates)} of ${counted(run.prompts, "prompt")}`],
      [
        "Spent",
        [
          `${duration(spent.preview_seconds)} on previews`,
          `${duration(spent.refine_seconds)} on clips`,
          money(spent.money, price.currency),
        ]
          .filter(Boolean)
          .join(", "),
      ],
      [
        "One clip costs",
        (clip || "not known before the first") + (run.refine_approved ? ", from the moment it is approved" : ""),
      ],
      ...(run.saved_seconds ? [["Saved by rejecting", `about ${duration(run.saved_seconds)}`]] : []),
      ...(run.require.length ? [["Rule", run.require.join(" and ")]] : []),
    ];
    if (run.waiting_for) rows.unshift(["Waiting for", String(run.waiting_for)]);
    const key = JSON.stringify(rows);
    if (figures.dataset.key === key) return;
    figures.dataset.key = key;
    figures.replaceChildren(
      ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
  });
}
