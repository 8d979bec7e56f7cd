// Find elements of index.html and create new ones.

/** @import { Elements } from "../types.d.ts" */

/**
 * Return the element of index.html with the given id.
 * @template {keyof Elements} Id
 * @param {Id} id
 * @returns {Elements[Id]}
 */
export function by(id) {
  const found = document.getElementById(id);
  if (!found) { throw new Error(`index.html has no element with the id ${id}`); }
  return /** @type {Elements[Id]} */ (found);
}

/**
 * Create an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} [className]
 * @param {string} [text]
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) { made.className = className; }
  if (text !== undefined) { made.textContent = text; }
  return made;
}

/**
 * Create text for screen readers only, where sighted users see the same from colour and position.
 * @param {string} text
 */
export function heard(text) { return element("span", "unseen", text); }

/**
 * Create the cell with a file name. The end of a long name tells images apart, so the style sheet cuts off its beginning.
 * @param {string} name
 */
export function nameCell(name) {
  const made = element("span", "name");
  made.append(element("bdi", "", name));
  made.title = name;
  return made;
}
