// Labels so far, retraining, and what changed with the last training.

import { heard, move } from "./queue.js";
import { number, plural, seconds } from "./words.js";

const by = (id) => document.getElementById(id);
const STAGES = ["features", "mining", "training", "scoring"];
const STAGE_WORDS = {
  features: "Computing features",
  mining: "Mining abnormal patches",
  training: "Training",
  scoring: "Scoring all images",
};

export function showLabels(status) {
  const { normal, abnormal, skipped } = status.labels;
  const done = normal + abnormal + skipped;
  by("progress-note").textContent = `${done} of ${status.images}`;
  for (const [kind, count] of Object.entries({ normal, abnormal, skipped })) {
    by(`count-${kind}`).textContent = count;
    by("progress-bar").querySelector("." + kind).style.width = `${(100 * count) / Math.max(1, status.images)}%`;
  }
  const fresh = status.new_labels ?? 0;
  by("train-note").textContent = fresh ? plural(fresh, "new label") : normal + abnormal ? "up to date" : "";
  by("train").dataset.new = String(fresh > 0 && !status.read_only);
  by("train-hint").hidden = normal + abnormal > 0 || status.read_only;
  const model = status.model;
  by("model").textContent = model
    ? `Model ${model.sha256.slice(0, 8)}, trained ${model.trained.replace("T", " ").slice(0, 16)} ` +
      `on ${model.normal} normal and ${model.abnormal} abnormal`
    : "No model yet";
}

export function showTraining(training, readOnly) {
  const running = training.state === "running";
  by("train").hidden = running;
  by("train").disabled = readOnly;
  by("train-progress").hidden = !running;
  by("train-failed").hidden = training.state !== "failed";
  by("train-failed").textContent = training.state === "failed" ? `The training failed. ${training.message}` : "";
  if (!running) { return; }
  const step = STAGES.indexOf(training.stage);  // the fraction is that of the stage
  by("train-bar").value = (Math.max(0, step) + training.fraction) / STAGES.length;
  const words = STAGE_WORDS[training.stage] || "Starting";
  by("train-stage").textContent = `${words}${step < 0 ? "" : `, step ${step + 1} of ${STAGES.length}`}, ${seconds(training.seconds)}`;
}

export function changesWords(changes) {
  const newly = changes.moved.filter((m) => m.flagged_after && !m.flagged_before).length;
  const flagged = `${plural(changes.now_flagged, "image")} flagged, ${changes.flagged_before} before`;
  const moved = changes.moved.length ? "" : " No image changed its rank.";
  return `Retrained with ${plural(changes.new_labels, "new label")}. ${flagged}${newly ? `; ${newly} newly` : ""}.${moved}`;
}

export function showChanges(changes, open) {
  by("changes").hidden = !changes;
  if (!changes) { return; }
  by("changes-note").textContent = seconds(changes.seconds);
  by("changes-text").textContent = changesWords(changes);
  by("moved").replaceChildren(...changes.moved.map((m) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "moved";
    const ranks = document.createElement("span");
    ranks.className = "ranks";
    ranks.textContent = m.rank_before ? `${m.rank_before} → ${m.rank_after}` : `new → ${m.rank_after}`;
    const name = document.createElement("span");
    name.className = "name";
    name.title = m.name;
    name.append(Object.assign(document.createElement("bdi"), { textContent: m.name }));
    const scores = document.createElement("span");
    scores.className = "scores muted";
    scores.textContent = `${number(m.score_before)} → ${number(m.score_after)}`;
    button.append(name, move(m.rank_before, m.rank_after) ?? "", heard("rank"), ranks, heard("score"), scores);
    if (m.flagged_after !== m.flagged_before) {
      const mark = document.createElement("span");
      mark.className = m.flagged_after ? "badge abnormal" : "badge normal";
      mark.textContent = m.flagged_after ? "newly flagged" : "no longer flagged";
      button.append(mark);
    }
    button.addEventListener("click", () => open(m.id));
    const entry = document.createElement("li");
    entry.append(button);
    return entry;
  }));
}
