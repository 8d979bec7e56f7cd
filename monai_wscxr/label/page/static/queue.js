// The list of images in the order of a strategy.

import { number, onScale, pNumber } from "./words.js";

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) { made.className = className; }
  if (text !== undefined) { made.textContent = text; }
  return made;
}

// Words that only a screen reader needs: colour and place tell the others.
export function heard(text) { return element("span", "unseen", text); }

export function badge(item) {
  if (item.skipped) { return element("span", "badge skipped", "skipped"); }
  if (item.label === 0) { return element("span", "badge normal", "normal"); }
  if (item.label === 1) { return element("span", "badge abnormal", item.class || "abnormal"); }
  if (item.reason) { return element("span", "badge skipped", "unreadable"); }
  return null;
}

// Up or down since the last training, as an arrow with the number of places.
export function move(before, now) {
  if (!before || !now || before === now) { return null; }
  const made = element("span", before > now ? "move up" : "move down");
  const arrow = element("span", "", before > now ? "▲" : "▼");
  arrow.setAttribute("aria-hidden", "true");
  made.append(heard(before > now ? "up" : "down"), arrow, String(Math.abs(before - now)));
  return made;
}

function scoreBar(item, scale) {
  const bar = element("span", "bar");
  if (!scale) { return bar; }
  const fill = element("i", item.abnormal ? "fill flagged" : "fill");
  fill.style.width = `${100 * onScale(item.anomaly_score, scale)}%`;
  bar.append(fill, element("i", "tick"));
  return bar;
}

function row(item, index, scale) {
  const made = element("li", item.label !== null || item.skipped ? "row done" : "row");
  made.id = `row-${index}`;
  made.role = "option";
  made.dataset.index = index;
  const name = element("span", "name");
  // the end of a long name tells images apart, so the beginning is what gives way
  name.append(element("bdi", "", item.name));
  name.title = item.name;
  const first = element("span", "line");
  first.append(heard("rank"), element("span", "rank", item.rank ?? "–"), name);
  const marks = [move(item.rank_before, item.rank), badge(item)].filter(Boolean);
  first.append(...marks);
  made.append(first);
  if (item.anomaly_score === null) { return made; }
  const second = element("span", "line");
  second.append(
    heard("score"), element("span", item.abnormal ? "score flagged" : "score", number(item.anomaly_score)), scoreBar(item, scale),
    element("span", "p", `p ${pNumber(item.p_value)}`), heard(item.abnormal ? "flagged" : ""),
  );
  made.append(second);
  return made;
}

export class Queue {
  constructor(choose) {
    this.list = document.getElementById("list");
    this.items = [];
    this.at = -1;
    this.scale = null;
    this.list.addEventListener("click", (event) => {
      const hit = event.target.closest("li");
      if (hit) { choose(Number(hit.dataset.index)); }
    });
  }

  fill(items, scale) {
    this.items = items;
    this.scale = scale;
    this.at = -1;
    this.list.replaceChildren(...items.map((item, i) => row(item, i, scale)));
    this.list.removeAttribute("aria-activedescendant");
  }

  add(items) {
    this.list.append(...items.map((item, i) => row(item, this.items.length + i, this.scale)));
    this.items.push(...items);
  }

  // Redraws what is known of one image; true when it is in the list.
  update(item) {
    const index = this.items.findIndex((other) => other.id === item.id);
    if (index < 0) { return false; }
    this.items[index] = item;
    this.list.children[index].replaceWith(row(item, index, this.scale));
    if (index === this.at) { this.select(index); }
    return true;
  }

  select(index) {
    const old = this.list.querySelector('[aria-selected="true"]');
    if (old) { old.removeAttribute("aria-selected"); }
    this.at = index;
    const chosen = this.list.children[index];
    if (!chosen) {
      this.list.removeAttribute("aria-activedescendant");
      return;
    }
    chosen.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", chosen.id);
    chosen.scrollIntoView({ block: "nearest" });
  }

  // Index of the first image from `start` on that has no label and was not skipped, else -1.
  open(start) {
    return this.items.findIndex((item, i) => i >= start && item.label === null && !item.skipped);
  }
}
