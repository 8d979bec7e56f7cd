// Numbers and labels as text.

/** @import { Label, Scale } from "../types.d.ts" */

/**
 * Format a score with two decimals, or as a dash for null.
 * @param {number | null} value
 */
export function number(value) {
  return value === null ? "–" : value.toFixed(2);
}

/**
 * Format a count with its noun.
 * @param {number} count
 * @param {string} one  the noun in the singular; the plural adds an s
 */
export function plural(count, one) {
  return `${count} ${one}${count === 1 ? "" : "s"}`;
}

/**
 * Format a duration.
 * @param {number} value  in seconds
 */
export function seconds(value) {
  if (value < 90) { return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`; }
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/**
 * Format a p-value.
 * @param {number | null} p
 */
export function pNumber(p) {
  if (p === null) { return "–"; }
  return p < 0.001 ? p.toExponential(0) : p.toFixed(p < 0.1 ? 3 : 2);
}

/**
 * Explain a p-value in a sentence.
 *
 * p = (1 + k) / (n + 1), where k of the n held-out normal images score at least as high: a small p means that normal images
 * rarely score that high.
 * @param {number | null} p
 * @param {number} [heldOut]  n
 */
export function pWords(p, heldOut) {
  if (p === null) { return ""; }
  if (p >= 0.5) { return `${Math.round(100 * p)} of 100 normal images score this high or higher`; }
  if (p > 0.1) { return `About ${Math.round(100 * p)} of 100 normal images score this high`; }
  const most = heldOut && p * (heldOut + 1) < 1.5;  // k = 0: the true share may be lower still
  return `${most ? "At most" : "About"} 1 of ${Math.round(1 / p)} normal images scores this high`;
}

/**
 * Return the position of a score on the model's score bar, from 0 (left) to 1 (right).
 *
 * The operating point is always in the middle. The left half is linear from the lowest score of the held-out normals; the right
 * half has no end: the scale's upper end is at three quarters.
 * @param {number} score
 * @param {Scale} scale
 */
export function onScale(score, { low, threshold, high }) {
  if (score <= threshold) { return Math.max(0, 0.5 * (score - low) / (threshold - low || 1)); }
  const beyond = (score - threshold) / (high - threshold);
  return 0.5 + 0.5 * beyond / (1 + beyond);
}

/**
 * Name a label; an empty text without one.
 * @param {Label} item
 */
export function labelWords(item) {
  if (item.skipped) { return "skipped"; }
  if (item.label === 0) { return "normal"; }
  if (item.label === 1) { return item.class && item.class !== "abnormal" ? `abnormal, ${item.class}` : "abnormal"; }
  return "";
}
