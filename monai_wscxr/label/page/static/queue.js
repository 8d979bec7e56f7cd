// The list of images in the order of a strategy.

import { by, element, heard, nameCell } from "./dom.js";
import { number, onScale, pNumber } from "./words.js";

/** @import { Item, Scale } from "../types.d.ts" */

/**
 * Create the badge of a label or of an unreadable file; null for an image without either.
 * @param {Item} item
 */
function badge(item) {
  if (item.skipped) { return element("span", "badge skipped", "skipped"); }
  if (item.label === 0) { return element("span", "badge normal", "normal"); }
  if (item.label === 1) { return element("span", "badge abnormal", item.class || "abnormal"); }
  if (item.reason) { return element("span", "badge skipped", "unreadable"); }
  return null;
}

/**
 * Create the arrow with the number of places an image moved with the latest training; null if it did not move.
 * @param {number | null} before
 * @param {number | null} now
 */
export function move(before, now) {
  if (!before || !now || before === now) { return null; }
  const made = element("span", before > now ? "move up" : "move down");
  const arrow = element("span", "", before > now ? "▲" : "▼");
  arrow.setAttribute("aria-hidden", "true");
  made.append(heard(before > now ? "up" : "down"), arrow, String(Math.abs(before - now)));
  return made;
}

/**
 * @param {number} score
 * @param {boolean} flagged
 * @param {Scale | null} scale
 */
function scoreBar(score, flagged, scale) {
  const bar = element("span", "bar");
  if (!scale) { return bar; }
  const fill = element("i", flagged ? "fill flagged" : "fill");
  fill.style.width = `${100 * onScale(score, scale)}%`;
  bar.append(fill, element("i", "tick"));
  return bar;
}

/**
 * Create the list entry of an image.
 * @param {Item} item
 * @param {number} index
 * @param {Scale | null} scale
 */
function row(item, index, scale) {
  const made = element("li", item.label !== null || item.skipped ? "row done" : "row");
  made.id = `row-${index}`;
  made.role = "option";
  made.dataset["index"] = String(index);
  const first = element("span", "line");
  first.append(heard("rank"), element("span", "rank", String(item.rank ?? "–")), nameCell(item.name));
  for (const mark of [move(item.rank_before, item.rank), badge(item)]) {
    if (mark) { first.append(mark); }
  }
  made.append(first);
  if (item.anomaly_score === null) { return made; }
  const flagged = Boolean(item.abnormal);
  const second = element("span", "line");
  second.append(
    heard("score"),
    element("span", flagged ? "score flagged" : "score", number(item.anomaly_score)),
    scoreBar(item.anomaly_score, flagged, scale),
    element("span", "p", `p ${pNumber(item.p_value)}`),
    heard(flagged ? "flagged" : ""),
  );
  made.append(second);
  return made;
}

/** The list on the screen, with one selected entry. */
export class Queue {
  constructor() {
    this.list = by("list");
    /** @type {Item[]} */
    this.items = [];
    this.at = -1;  // index of the selected entry; -1 without one
    /** @type {Scale | null} */
    this.scale = null;
  }

  /**
   * Call `choose` with the index of every entry that is clicked.
   * @param {(index: number) => void} choose
   */
  listen(choose) {
    this.list.addEventListener("click", (event) => {
      const hit = event.target instanceof Element && event.target.closest("li");
      if (hit) { choose(Number(hit.dataset["index"])); }
    });
  }

  /**
   * Replace all entries; none is selected afterwards.
   * @param {Item[]} items
   * @param {Scale | null} scale
   */
  fill(items, scale) {
    this.items = items;
    this.scale = scale;
    this.at = -1;
    this.list.replaceChildren(...items.map((item, i) => row(item, i, scale)));
    this.list.removeAttribute("aria-activedescendant");
  }

  /**
   * Append entries.
   * @param {Item[]} items
   */
  add(items) {
    this.list.append(...items.map((item, i) => row(item, this.items.length + i, this.scale)));
    this.items.push(...items);
  }

  /**
   * Redraw the entry of an image; why it was asked for stays.
   * @param {Item} item
   * @returns {boolean} false if the image is not in the list
   */
  update(item) {
    const index = this.indexOf(item.id);
    if (index < 0) { return false; }
    this.items[index] = { ...item, why: item.why ?? this.items[index]?.why ?? null };
    this.list.children[index]?.replaceWith(row(item, index, this.scale));
    if (index === this.at) { this.select(index); }
    return true;
  }

  /**
   * Select an entry and scroll to it.
   * @param {number} index  -1 selects none
   */
  select(index) {
    this.list.querySelector('[aria-selected="true"]')?.removeAttribute("aria-selected");
    this.at = index;
    const chosen = this.list.children[index];
    if (!chosen) {
      this.list.removeAttribute("aria-activedescendant");
      return;
    }
    chosen.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", chosen.id);
    this.reveal(chosen);
  }

  /**
   * Scroll the list until an entry is visible; never the page, which on a phone would leave the radiograph.
   * @param {Element} entry
   */
  reveal(entry) {
    const box = this.list.parentElement;
    if (!box) { return; }
    const room = box.getBoundingClientRect(), place = entry.getBoundingClientRect();
    if (place.top < room.top) { box.scrollTop += place.top - room.top; }
    if (place.bottom > room.bottom) { box.scrollTop += place.bottom - room.bottom; }
  }

  /**
   * Return the index of an image, or -1.
   * @param {string} id
   */
  indexOf(id) { return this.items.findIndex((item) => item.id === id); }

  /**
   * Return the index of the first image from `start` on that is neither labelled nor skipped, or -1.
   * @param {number} start
   */
  firstOpen(start) {
    return this.items.findIndex((item, i) => i >= start && item.label === null && !item.skipped);
  }
}
