// Keys as commands.

import { by } from "./dom.js";
import { askClass, labelNormal, skip, undo } from "./labelling.js";
import { next, previous } from "./navigation.js";
import { viewer } from "./state.js";
import { train } from "./updates.js";

const SETTING = "wscxr-single-keys";  // name in the browser's local storage

/** @type {Record<string, () => void>} */
const COMMANDS = {
  n: labelNormal,
  a: askClass,
  s: skip,
  u: undo,
  r: train,
  j: next,
  ArrowDown: next,
  ArrowRight: next,
  k: previous,
  ArrowUp: previous,
  ArrowLeft: previous,
  o: () => viewer.toggle("overlay"),
  p: () => viewer.toggle("marker"),
  i: () => viewer.toggle("invert"),
  0: () => viewer.reset(),
  "+": () => viewer.zoomBy(1.4),
  "=": () => viewer.zoomBy(1.4),
  "-": () => viewer.zoomBy(1 / 1.4),
  "?": () => by("help").showModal(),
};
const ONCE = ["n", "a", "s", "u", "r"];  // a key held down gives these commands only once

/** @type {Record<string, [number, number]>} */
const PAN = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };  // CSS pixels

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || by("help").open) { return; }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const arrow = key.startsWith("Arrow");
  const target = event.target instanceof Element ? event.target : document.body;
  if (!arrow && !by("single-keys").checked && key !== "?") { return; }
  if (arrow && target.matches('input:not([type="checkbox"])')) { return; }  // sliders and the strategies use arrows themselves
  if (target.matches('input[type="text"]')) { return; }
  const pan = PAN[key];
  if (event.shiftKey && pan) {
    event.preventDefault();
    viewer.move(...pan);
    return;
  }
  const command = COMMANDS[key];
  if (!command || (event.repeat && ONCE.includes(key))) { return; }
  event.preventDefault();
  command();
}

/** Listen to keys, and to the checkbox that switches single keys on and off. */
export function listenToKeys() {
  document.addEventListener("keydown", onKey);
  const box = by("single-keys");
  box.checked = localStorage.getItem(SETTING) !== "off";
  box.addEventListener("change", () => { localStorage.setItem(SETTING, box.checked ? "on" : "off"); });
}
