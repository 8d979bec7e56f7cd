// Entry point of the labelling page: connect the controls with what they do, and start watching the server.

import { by } from "./dom.js";
import { listenToKeys } from "./keyboard.js";
import { askClass, labelAbnormal, labelNormal, skip, undo } from "./labelling.js";
import { changeStrategy, choose, loadMore, next, previous } from "./navigation.js";
import { classEntry, queue, state } from "./state.js";
import { refresh, train, watch } from "./updates.js";

/** @import { Strategy } from "../types.d.ts" */

function listen() {
  by("normal").addEventListener("click", labelNormal);
  by("abnormal").addEventListener("click", askClass);
  by("skip").addEventListener("click", skip);
  by("undo").addEventListener("click", undo);
  by("train").addEventListener("click", train);
  by("previous").addEventListener("click", previous);
  by("next").addEventListener("click", next);
  by("more").addEventListener("click", loadMore);
  by("help-open").addEventListener("click", () => by("help").showModal());
  by("help-close").addEventListener("click", () => by("help").close());
  by("gone-retry").addEventListener("click", refresh);
  queue.listen(choose);
  classEntry.listen(labelAbnormal);
  listenToKeys();
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { refresh(); } });
}

function listenToStrategies() {
  /** @type {NodeListOf<HTMLInputElement>} */
  const radios = document.querySelectorAll('input[name="strategy"]');
  for (const radio of radios) {
    radio.checked = radio.value === state.strategy;  // the browser may restore another choice on reload
    radio.addEventListener("change", () => changeStrategy(/** @type {Strategy} */ (radio.value)));
  }
}

listen();
listenToStrategies();
refresh().then(watch);
