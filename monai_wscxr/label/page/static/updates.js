// Keep up with the server: numbers of labels, trainings, new models and new images.

import * as api from "./api.js";
import { updateControls } from "./controls.js";
import { by } from "./dom.js";
import { loadQueue, openImage } from "./navigation.js";
import { announce, connectionFound, report, say } from "./notices.js";
import { pictures, state, unscored, viewer } from "./state.js";
import { changesWords, showChanges, showLabels, showTraining } from "./training.js";

const IDLE_INTERVAL = 5000;  // milliseconds between two refreshes while the server neither trains nor scores

/** Start a training. */
export async function train() {
  if (state.training.state === "running" || by("train").disabled) { return; }
  state.untouched = true;
  try {
    state.training = await api.startTraining();
    say("");
    announce("Retraining.");
  } catch (error) {
    report(error);
  }
  refresh();
}

/** Ask the server for what is new. Refreshes run one after the other, never two at once. */
export function refresh() {
  state.refreshed = state.refreshed.then(update);
  return state.refreshed;
}

async function update() {
  let status, training;
  try {
    [status, training] = await Promise.all([api.getStatus(), api.getTraining()]);
  } catch (error) {
    report(error);
    return;
  }
  connectionFound();
  const before = state.status;
  const failed = state.training.state === "running" && training.state === "failed";
  state.status = status;
  state.training = training;
  viewer.expectMaps(status.model?.abnormal ?? 0);
  by("read-only").hidden = !status.read_only;
  by("drift").hidden = status.drift.named !== true;
  showLabels(status);
  showTraining(training, status.read_only);
  const scoring = status.model && unscored(status) > 0;
  by("queue-note").textContent = scoring ? `${status.scored} of ${status.images} scored` : `${status.images} images`;
  if (failed) { announce(`The training failed. ${training.message}`); }
  if (!before || before.model?.sha256 !== status.model?.sha256) {
    await showModel(before !== null);
  } else if (before.images !== status.images || (before.scored !== status.scored && unscored(status) <= 0)) {
    await loadQueue(true);
  } else {
    updateControls();
  }
}

/**
 * Show the order and the effects of a model that the page has not shown yet.
 * @param {boolean} trained  whether it replaces what the page showed before
 */
async function showModel(trained) {
  if (trained) { pictures.clear(); }
  const changes = await api.getChanges().catch(() => null);
  await loadQueue(trained && !state.untouched);
  showChanges(changes, (id) => {
    state.untouched = false;
    openImage(id);
  });
  if (trained && changes) {
    const stayed = !state.untouched && state.current;
    say(stayed ? "All images were ranked again. The image you are looking at stays; the top of the queue comes next." : "");
    announce(changesWords(changes));
  }
}

/**
 * Refresh in an endless loop: often while the server trains or scores; while it is unreachable, only when an attempt is due.
 */
export async function watch() {
  for (;;) {
    const { status, training } = state;
    const quick = training.state === "running" || Boolean(status?.model && unscored(status) > 0);
    await new Promise((wake) => { setTimeout(wake, quick ? 400 : 1000); });
    const due = state.failures ? Date.now() >= state.retryAt : quick || Date.now() - state.refreshedAt > IDLE_INTERVAL;
    if (due && !document.hidden && !state.saving) {
      state.refreshedAt = Date.now();
      await refresh();
    }
  }
}
