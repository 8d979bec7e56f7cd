// Load the queue and move through it.

import * as api from "./api.js";
import { updateControls } from "./controls.js";
import { showItem } from "./display.js";
import { by } from "./dom.js";
import { report, say } from "./notices.js";
import { queue, state } from "./state.js";

/** @import { Item, Strategy } from "../types.d.ts" */

const PAGE = 50;  // images per request

/**
 * Load the queue from its top.
 * @param {boolean} [keep]  leave the image on the screen: nobody wants it exchanged while a finger is on the key
 */
export async function loadQueue(keep = false) {
  const asked = state.strategy;
  let items;
  try {
    items = await api.getQueue(asked, PAGE, 0);
  } catch (error) {
    report(error);
    return;
  }
  if (asked !== state.strategy) { return; }
  queue.fill(items, state.status?.model?.scale ?? null);
  setComplete(items);
  by("list-empty").hidden = items.length > 0;
  by("list-empty").textContent = emptyWords();
  state.reordered = keep;
  if (keep && state.current) {
    await openImage(state.current.id);
  } else if (items.length) {
    show(0);
  } else {
    showItem(null);
  }
}

/** Load the next part of the queue and append it to the list. */
export async function loadMore() {
  const asked = state.strategy;
  // images that were labelled here have left the server's queue, unless it is the one of labelled images
  const offset = queue.items.filter((item) => asked === "labelled" || (item.label === null && !item.skipped)).length;
  const known = new Set(queue.items.map((item) => item.id));
  try {
    const items = await api.getQueue(asked, PAGE, offset);
    if (asked !== state.strategy) { return; }
    queue.add(items.filter((item) => !known.has(item.id)));
    setComplete(items);
    updateControls();
  } catch (error) {
    report(error);
  }
}

/** @param {Item[]} items  the latest part of the queue */
function setComplete(items) {
  state.complete = items.length < PAGE;
  by("more").hidden = state.complete;
}

function emptyWords() {
  if (!state.status?.images) { return "No images. Radiographs added to the studies folder appear here."; }
  if (state.strategy === "labelled") { return "No image is labelled yet."; }
  return "Every image is labelled or skipped.";
}

/**
 * Show the image at a place of the list; a place outside of it changes nothing.
 * @param {number} index
 */
export function show(index) {
  const item = queue.items[index];
  if (!item) { return; }
  queue.select(index);
  showItem(item);
}

/**
 * Show an image that was chosen by hand.
 * @param {number} index
 */
export function choose(index) {
  state.untouched = false;
  say("");
  show(index);
}

/** @param {number} places */
async function step(places) {
  state.untouched = false;
  say("");
  if (queue.at + places >= queue.items.length && !state.complete) { await loadMore(); }
  show(queue.at + places);
}

export const next = () => step(1);
export const previous = () => step(-1);

/**
 * Show an image, in the list or not.
 * @param {string} id
 */
export async function openImage(id) {
  const index = queue.indexOf(id);
  if (index >= 0) {
    show(index);
    return;
  }
  const before = state.current;
  try {
    const item = await api.getItem(id);
    if (state.current !== before) { return; }  // another image was shown meanwhile
    queue.select(-1);
    showItem(item);
  } catch (error) {
    report(error);
  }
}

/**
 * Load the queue of another strategy.
 * @param {Strategy} strategy
 */
export function changeStrategy(strategy) {
  state.strategy = strategy;
  loadQueue();
}
