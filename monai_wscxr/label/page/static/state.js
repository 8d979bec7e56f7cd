// The state of the page, and the parts of the page that draw themselves.

import { Pictures } from "./api.js";
import { ClassEntry } from "./class_entry.js";
import { Queue } from "./queue.js";
import { Viewer } from "./viewer.js";

/** @import { Item, Label, Status, Strategy, Training } from "../types.d.ts" */

export const pictures = new Pictures();
export const viewer = new Viewer(pictures);
export const queue = new Queue();
export const classEntry = new ClassEntry();

/**
 * Everything that changes while the page is open, apart from what the four parts above hold themselves.
 *
 * @typedef {object} State
 * @property {Status | null} status  the collection, as the server last described it; null before the first answer
 * @property {Training} training  the latest training, as the server last described it
 * @property {Item | null} current  the image on the screen
 * @property {Strategy} strategy  order of the queue
 * @property {boolean} complete  the list holds the whole queue
 * @property {boolean} saving  a label is being stored
 * @property {(Label & { id: string })[]} history  for undo: images labelled here and their labels before, latest last
 * @property {boolean} untouched  no label and no navigation since the page was opened or a training was started here
 * @property {boolean} reordered  the queue has a new order while the image on the screen stayed; continue with its top
 * @property {number} failures  failed attempts to reach the server; 0 while it answers
 * @property {number} retryAt  time of the next attempt, in milliseconds since the epoch
 * @property {number} refreshedAt  time of the latest periodic refresh, in milliseconds since the epoch
 * @property {Promise<void>} refreshed  resolves when no refresh is running or waiting
 */

/** @type {State} */
export const state = {
  status: null,
  training: { state: "idle", stage: "", fraction: 0, seconds: 0, message: "" },
  current: null,
  strategy: "varied",
  complete: false,
  saving: false,
  history: [],
  untouched: true,
  reordered: false,
  failures: 0,
  retryAt: 0,
  refreshedAt: 0,
  refreshed: Promise.resolve(),
};

/**
 * Return the number of readable images that have no score yet.
 * @param {Status} status
 */
export function unscored(status) { return status.images - status.scored - status.rejected; }
