// The image on the screen with its name, rank and score.

import { Unreachable } from "./api.js";
import { updateControls } from "./controls.js";
import { by, element } from "./dom.js";
import { connectionLost } from "./notices.js";
import { classEntry, pictures, queue, state, viewer } from "./state.js";
import { labelWords, number, pNumber, pWords } from "./words.js";

/** @import { Item } from "../types.d.ts" */

/**
 * Put an image on the screen.
 * @param {Item | null} item  null empties the screen
 */
export function showItem(item) {
  state.current = item;
  classEntry.close();
  showVerdict(item);
  updateControls();
  viewer.show(item, Boolean(state.status?.model), (error) => {
    if (error instanceof Unreachable) { connectionLost(); }
    updateControls();
    preload();
  });
}

/**
 * Show name, rank, label and score.
 * @param {Item | null} item
 */
function showVerdict(item) {
  by("name").textContent = item ? item.name : "\u00a0";
  const count = state.status?.scored || queue.items.length;
  const place = item ? [item.rank ? `Rank ${item.rank} of ${count}` : "", labelWords(item)] : [];
  by("place").textContent = place.filter(Boolean).join(", ");
  by("why").textContent = item?.why ? `${item.why}.` : "";
  by("score").replaceChildren();
  by("p-words").textContent = "";
  if (!item) { return; }
  const model = state.status?.model;
  if (item.anomaly_score === null) {
    by("score").textContent = item.reason ? "No score" : model ? "Not scored yet" : "No score without a model";
    return;
  }
  const flag = element("span", item.abnormal ? "badge abnormal" : "badge plain", item.abnormal ? "flagged" : "not flagged");
  by("score").append(flag, "score", element("strong", "", number(item.anomaly_score)), `p ${pNumber(item.p_value)}`);
  by("p-words").textContent = pWords(item.p_value, model?.held_out);
}

/** Fetch the pictures of the next two images while this one is looked at. */
function preload() {
  for (const item of queue.items.slice(queue.at + 1, queue.at + 3)) {
    if (item.reason) { continue; }
    pictures.get(item.id, "radiograph").catch(() => {});
    if (state.status?.model && item.anomaly_score !== null) { pictures.get(item.id, "map").catch(() => {}); }
  }
}
