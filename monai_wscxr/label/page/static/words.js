// Numbers as people read them.

export function number(value, digits = 2) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

export function plural(count, one, many = one + "s") {
  return `${count} ${count === 1 ? one : many}`;
}

export function seconds(value) {
  if (value < 90) { return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`; }
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export function pNumber(p) {
  if (p === null || p === undefined) { return "–"; }
  return p < 0.001 ? p.toExponential(0) : p.toFixed(p < 0.1 ? 3 : 2);
}

// p = (1 + k) / (n + 1), where k of n held-out normal images score at least as high: small p, rarely so high among normals.
export function pWords(p, heldOut) {
  if (p === null || p === undefined) { return ""; }
  if (p >= 0.5) { return `${Math.round(100 * p)} of 100 normal images score this high or higher`; }
  if (p > 0.1) { return `About ${Math.round(100 * p)} of 100 normal images score this high`; }
  const most = heldOut && p * (heldOut + 1) < 1.5;  // none of the held-out ones: the true share may be lower still
  return `${most ? "At most" : "About"} 1 of ${Math.round(1 / p)} normal images scores this high`;
}

// Where a score lies on the model's fixed bar, 0 to 1. The operating point is in the middle, whatever the model; the left half is
// linear from the lowest score of held-out normals, the right half never ends: three quarters are the scale's upper end.
export function onScale(score, { low, threshold, high }) {
  if (score <= threshold) { return Math.max(0, 0.5 * (score - low) / (threshold - low || 1)); }
  const beyond = (score - threshold) / (high - threshold);
  return 0.5 + 0.5 * beyond / (1 + beyond);
}

export function labelWords(item) {
  if (item.skipped) { return "skipped"; }
  if (item.label === 0) { return "normal"; }
  if (item.label === 1) { return item.class && item.class !== "abnormal" ? `abnormal, ${item.class}` : "abnormal"; }
  return "";
}
