// Numbers of labels, progress of a training, and the effects of the latest one.

import { by, element, heard, nameCell } from "./dom.js";
import { move } from "./queue.js";
import { number, plural, seconds } from "./words.js";

/** @import { Changes, Model, Move, Status, Training } from "../types.d.ts" */

const STAGES = ["features", "mining", "training", "scoring"];
const STAGE_WORDS = {
  "": "Starting",
  features: "Computing features",
  mining: "Mining abnormal patches",
  training: "Training",
  scoring: "Scoring all images",
};

/**
 * Show the numbers of labels, and whether a training would use new ones.
 * @param {Status} status
 */
export function showLabels(status) {
  const { normal, abnormal, skipped } = status.labels;
  by("progress-note").textContent = `${normal + abnormal + skipped} of ${status.images}`;
  for (const kind of /** @type {const} */ (["normal", "abnormal", "skipped"])) {
    const count = status.labels[kind];
    by(`count-${kind}`).textContent = String(count);
    const part = /** @type {HTMLElement} */ (by("progress-bar").querySelector(`.${kind}`));
    part.style.width = `${(100 * count) / Math.max(1, status.images)}%`;
  }
  const fresh = status.new_labels;
  by("train-note").textContent = fresh ? plural(fresh, "new label") : normal + abnormal ? "up to date" : "";
  by("train").dataset["new"] = String(fresh > 0 && !status.read_only);
  by("train-hint").hidden = normal + abnormal > 0 || status.read_only;
  by("model").textContent = modelWords(status.model);
}

/** @param {Model | null} model */
function modelWords(model) {
  if (!model) { return "No model yet"; }
  const trained = model.trained.replace("T", " ").slice(0, 16);
  return `Model ${model.sha256.slice(0, 8)}, trained ${trained} on ${model.normal} normal and ${model.abnormal} abnormal`;
}

/**
 * Show the button to train, the progress of a training, or why it failed.
 * @param {Training} training
 * @param {boolean} readOnly
 */
export function showTraining(training, readOnly) {
  const running = training.state === "running";
  by("train").hidden = running;
  by("train").disabled = readOnly;
  by("train-progress").hidden = !running;
  by("train-failed").hidden = training.state !== "failed";
  by("train-failed").textContent = training.state === "failed" ? `The training failed. ${training.message}` : "";
  if (!running) { return; }
  const step = STAGES.indexOf(training.stage);
  const place = step < 0 ? "" : `, step ${step + 1} of ${STAGES.length}`;
  by("train-bar").value = (Math.max(0, step) + training.fraction) / STAGES.length;
  by("train-stage").textContent = `${STAGE_WORDS[training.stage]}${place}, ${seconds(training.seconds)}`;
}

/**
 * Summarise the effects of a training.
 * @param {Changes} changes
 */
export function changesWords(changes) {
  const newly = changes.moved.filter((m) => m.flagged_after && !m.flagged_before).length;
  const flagged = `${plural(changes.now_flagged, "image")} flagged, ${changes.flagged_before} before`;
  const moved = changes.moved.length ? "" : " No image changed rank.";
  return `Retrained with ${plural(changes.new_labels, "new label")}. ${flagged}${newly ? `; ${newly} newly` : ""}.${moved}`;
}

/**
 * Show the effects of the latest training.
 * @param {Changes | null} changes  null hides them
 * @param {(id: string) => void} open  called with the id of an image that is clicked
 */
export function showChanges(changes, open) {
  by("changes").hidden = !changes;
  if (!changes) { return; }
  by("changes-note").textContent = seconds(changes.seconds);
  by("changes-text").textContent = changesWords(changes);
  by("moved").replaceChildren(...changes.moved.map((m) => movedRow(m, open)));
}

/**
 * Create the list entry of an image that moved.
 * @param {Move} m
 * @param {(id: string) => void} open
 */
function movedRow(m, open) {
  const button = element("button", "moved");
  button.type = "button";
  button.append(
    nameCell(m.name),
    move(m.rank_before, m.rank_after) ?? "",
    heard("rank"),
    element("span", "ranks", `${m.rank_before || "new"} → ${m.rank_after}`),
    heard("score"),
    element("span", "scores muted", `${number(m.score_before)} → ${number(m.score_after)}`),
  );
  if (m.flagged_after !== m.flagged_before) {
    const [kind, words] = m.flagged_after ? ["badge abnormal", "newly flagged"] : ["badge normal", "no longer flagged"];
    button.append(element("span", kind, words));
  }
  button.addEventListener("click", () => open(m.id));
  const entry = element("li");
  entry.append(button);
  return entry;
}
