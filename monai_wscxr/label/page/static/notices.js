// Messages: the line under the buttons, announcements for screen readers, and the banner while the server is unreachable.

import { Refusal, Unreachable } from "./api.js";
import { updateControls } from "./controls.js";
import { by } from "./dom.js";
import { state } from "./state.js";

const LONGEST_WAIT = 15;  // seconds between two attempts to reach the server

/**
 * Announce a text to screen readers.
 * @param {string} text
 */
export function announce(text) { by("announcer").textContent = text; }

/**
 * Show a message under the buttons; an empty one clears the line.
 * @param {string} text
 */
export function say(text, bad = false) {
  by("said").textContent = text;
  by("said").classList.toggle("bad", bad);
}

/**
 * Report why a request failed; an error of another kind is thrown again.
 * @param {unknown} error
 */
export function report(error) {
  if (error instanceof Unreachable) {
    connectionLost();
  } else if (error instanceof Refusal) {
    say(error.message, true);
  } else {
    throw error;
  }
}

/** Show the banner and schedule the next attempt; each one waits twice as long as the one before. */
export function connectionLost() {
  state.failures += 1;
  const wait = Math.min(LONGEST_WAIT, 2 ** state.failures);
  state.retryAt = Date.now() + 1000 * wait;
  by("gone").hidden = false;
  by("gone-text").textContent = `The server is not responding. Labels given so far are stored. Trying again in ${wait} s.`;
  updateControls();
}

/** Hide the banner if it is shown. */
export function connectionFound() {
  if (!state.failures) { return; }
  state.failures = 0;
  by("gone").hidden = true;
  announce("The server is responding again.");
  updateControls();
}
