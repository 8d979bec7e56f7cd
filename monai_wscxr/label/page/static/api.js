// The server's JSON interface and its pictures.

/** @import { Changes, Item, Label, Status, Strategy, Training } from "../types.d.ts" */

const TIMEOUT = 20_000;  // milliseconds
const PICTURE_TIMEOUT = 60_000;  // the server may compute features first

/** Error of a request that the server refuses. */
export class Refusal extends Error {}

/** Error of a request that no server answers. */
export class Unreachable extends Error {}

/**
 * Return the message of anything that was thrown.
 * @param {unknown} error
 */
export function messageOf(error) { return error instanceof Error ? error.message : String(error); }

/**
 * Send a request and return its successful response.
 * @param {string} path  below `api/`
 * @param {RequestInit} [options]
 * @param {number} [timeout]  in milliseconds
 */
async function send(path, options = {}, timeout = TIMEOUT) {
  let response;
  try {
    response = await fetch(`api/${path}`, { ...options, signal: AbortSignal.timeout(timeout) });
  } catch {
    throw new Unreachable("The server is not responding.");
  }
  if (response.ok) { return response; }
  let body;
  try {
    body = await response.json();
  } catch {
    throw new Unreachable("The server sent an unexpected response.");  // for instance a proxy in between
  }
  const message = body.message || String(body.detail || "the server refused the request");
  throw new Refusal(message.charAt(0).toUpperCase() + message.slice(1));
}

/**
 * Send a request and return the JSON value of its answer.
 * @param {string} path
 * @param {RequestInit} [options]
 */
async function json(path, options) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch {
    throw new Unreachable("The connection was lost.");
  }
}

/** @param {string} id */
const itemPath = (id) => `items/${encodeURIComponent(id)}`;

/** @type {() => Promise<Status>} */
export const getStatus = () => json("status");

/** @type {(strategy: Strategy, n: number, offset: number) => Promise<Item[]>} */
export const getQueue = (strategy, n, offset) => json(`queue?strategy=${strategy}&n=${n}&offset=${offset}`);

/** @type {(id: string) => Promise<Item>} */
export const getItem = (id) => json(itemPath(id));

/** @type {() => Promise<Training>} */
export const getTraining = () => json("train");

/** @type {() => Promise<Training>} */
export const startTraining = () => json("train", { method: "POST" });

/** @type {() => Promise<Changes | null>} */
export const getChanges = () => json("changes");

/**
 * Store a label and return the image's entry afterwards.
 * @param {string} id
 * @param {Partial<Label>} change  fields left out mean: none
 * @returns {Promise<Item>}
 */
export function setLabel(id, { label = null, class: name = null, skipped = false }) {
  return json(`${itemPath(id)}/label`, {
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ label, class: name, skipped }),
  });
}

/** Pictures as object URLs. The most recent ones are kept, so that the next image appears at once. */
export class Pictures {
  constructor(limit = 16) {
    this.limit = limit;
    /** @type {Map<string, Promise<string>>} "id kind" to object URL, least recently used first */
    this.urls = new Map();
  }

  /**
   * Return the object URL of a picture; fetch the picture if it is not kept.
   * @param {string} id
   * @param {"radiograph" | "map"} kind
   */
  get(id, kind) {
    const key = `${id} ${kind}`;
    const found = this.urls.get(key) ?? this.load(id, kind, key);
    this.urls.delete(key);
    this.urls.set(key, found);
    for (const oldest of this.urls.keys()) {
      if (this.urls.size <= this.limit) { break; }
      this.drop(oldest);
    }
    return found;
  }

  /**
   * @param {string} id
   * @param {string} kind
   * @param {string} key
   */
  async load(id, kind, key) {
    try {
      const response = await send(`${itemPath(id)}/${kind}.png`, {}, PICTURE_TIMEOUT);
      return URL.createObjectURL(await response.blob());
    } catch (error) {
      this.urls.delete(key);
      throw error;
    }
  }

  /** @param {string} key */
  drop(key) {
    const url = this.urls.get(key);
    this.urls.delete(key);
    url?.then(URL.revokeObjectURL, () => {});
  }

  clear() {
    for (const key of [...this.urls.keys()]) { this.drop(key); }
  }
}
