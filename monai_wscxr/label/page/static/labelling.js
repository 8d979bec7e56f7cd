// Label, skip and undo.

import * as api from "./api.js";
import { showItem } from "./display.js";
import { by } from "./dom.js";
import { loadMore, show } from "./navigation.js";
import { announce, report, say } from "./notices.js";
import { classEntry, queue, state } from "./state.js";
import { refresh } from "./updates.js";
import { labelWords, number, pWords } from "./words.js";

/** @import { Item, Label } from "../types.d.ts" */

export const labelNormal = () => label({ label: 0 });
export const skip = () => label({ skipped: true });

/** @param {string | null} name  the class */
export const labelAbnormal = (name) => label({ label: 1, class: name });

/**
 * Label the image on the screen and show the next one.
 *
 * Only an image on the screen takes a label, so a key pressed twice cannot label one that nobody saw.
 * @param {Partial<Label>} change
 */
async function label(change) {
  const item = state.current;
  if (state.saving || !item) { return; }
  if (by(change.skipped ? "skip" : "normal").disabled) {
    say(refusedWords(item), true);
    return;
  }
  state.saving = true;
  state.untouched = false;
  try {
    const after = await api.setLabel(item.id, change);
    state.history.push({ id: item.id, label: item.label, class: item.class, skipped: item.skipped });
    queue.update(after);
    const words = `${after.name}: ${labelWords(after)}.`;
    say(words);
    const index = await findNext();
    const following = queue.items[index];
    if (following) {
      show(index);
      announce(`${words} Next: ${spoken(following)}`);
    } else {
      showItem(after);
      announce(`${words} Every image in this queue is labelled.`);
    }
  } catch (error) {
    report(error);
  } finally {
    state.saving = false;
  }
  refresh();
}

/**
 * Explain why an image takes no label.
 * @param {Item} item
 */
function refusedWords(item) {
  if (state.failures) { return "Not stored: the server is not responding."; }
  if (state.status?.read_only) { return "This server is read-only and stores no labels."; }
  if (item.reason) { return "An image that cannot be displayed can only be skipped."; }
  return "Wait until the image is shown.";
}

/** Return the place of the image to label next, or -1. */
async function findNext() {
  if (state.strategy === "labelled") { return queue.at + 1 < queue.items.length ? queue.at + 1 : -1; }
  if (state.reordered) {
    state.reordered = false;
    return queue.firstOpen(0);
  }
  let index = queue.firstOpen(queue.at + 1);
  if (index < 0 && !state.complete) {
    await loadMore();
    index = queue.firstOpen(queue.at + 1);
  }
  return index < 0 ? queue.firstOpen(0) : index;
}

/**
 * Describe an image for screen readers.
 * @param {Item} item
 */
function spoken(item) {
  const rank = item.rank ? `rank ${item.rank}, ` : "";
  const likelihood = pWords(item.p_value, state.status?.model?.held_out);
  const score = item.anomaly_score === null ? "not scored" : `score ${number(item.anomaly_score)}, ${likelihood}`;
  return `${rank}${item.name}, ${score}.`;
}

/** Take back the latest label that was given here, and show its image. */
export async function undo() {
  const last = state.history.at(-1);
  if (state.saving || !last || by("undo").disabled) { return; }
  state.saving = true;
  try {
    const item = await api.setLabel(last.id, last);
    state.history.pop();
    if (!queue.update(item)) { queue.fill([item, ...queue.items], queue.scale); }
    say(`Undone: ${item.name}.`);
    announce(`Undone: ${item.name} is ${labelWords(item) || "unlabelled"} again.`);
    show(queue.indexOf(item.id));
  } catch (error) {
    report(error);
  } finally {
    state.saving = false;
  }
  refresh();
}

/** Open the form for the class of an abnormal image; close it if it is open. */
export function askClass() {
  const { status, current } = state;
  if (!current) { return; }
  if (!status || by("abnormal").disabled) {
    say(refusedWords(current), true);
    return;
  }
  say("");
  if (classEntry.isOpen) { classEntry.close(); } else { classEntry.open(status.classes, current.class); }
}
