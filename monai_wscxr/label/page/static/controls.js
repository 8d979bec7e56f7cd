// Which buttons can be used.

import { by } from "./dom.js";
import { queue, state, viewer } from "./state.js";

/** Enable and disable the buttons. An image takes a label only while it is on the screen; an unreadable one can be skipped. */
export function updateControls() {
  const { status, current, failures } = state;
  const stores = status !== null && !status.read_only && failures === 0;
  const seen = stores && current !== null && viewer.shown === current.id;
  const unreadable = stores && current !== null && Boolean(current.reason);
  by("normal").disabled = by("abnormal").disabled = !seen;
  by("skip").disabled = !(seen || unreadable);
  by("undo").disabled = !stores || state.history.length === 0;
  by("previous").disabled = queue.at <= 0;
  by("next").disabled = queue.at >= queue.items.length - 1 && state.complete;
}
