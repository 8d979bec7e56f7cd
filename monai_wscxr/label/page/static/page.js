// The labelling loop: what is shown, what is asked of the server, and the keys.

import * as api from "./api.js";
import { ClassEntry } from "./class_entry.js";
import { Queue } from "./queue.js";
import { changesWords, showChanges, showLabels, showTraining } from "./training.js";
import { labelWords, number, pNumber, pWords } from "./words.js";
import { Viewer } from "./viewer.js";

const PAGE = 50;
const by = (id) => document.getElementById(id);

const pictures = new api.Pictures();
const viewer = new Viewer(pictures);
const queue = new Queue((index) => {
  waiting = false;
  said("");
  go(index);
});
const classEntry = new ClassEntry((name) => label({ label: 1, class: name }));

let status = null;
let training = { state: "idle" };
let current = null;  // the item on the screen
let strategy = "most_suspicious";
let complete = false;  // the list holds the whole queue
let busy = false;  // a label is on its way
let undone = [];  // labels given here, with what was there before
let waiting = true;  // nobody has done anything since the page was opened or the training started
let ranked = false;  // the order is new: after the image on the screen comes the first of the queue
let gone = 0;  // failed attempts to reach the server
let retryAt = 0;

// ---- what people hear and read

function announce(text) { by("announcer").textContent = text; }

function said(text, bad = false) {
  by("said").textContent = text;
  by("said").classList.toggle("bad", bad);
}

// Every refusal ends here; an unreachable server becomes the banner, which tries again by itself.
function complain(error) {
  if (error instanceof api.Gone) { lost(); } else if (error instanceof api.Refusal) { said(error.message, true); } else { throw error; }
}

function lost() {
  gone += 1;
  const wait = Math.min(15, 2 ** gone);
  retryAt = Date.now() + 1000 * wait;
  by("gone").hidden = false;
  by("gone-text").textContent = `The server does not answer. What was labelled before is stored. Trying again in ${wait} s.`;
  controls();
}

function found() {
  if (!gone) { return; }
  gone = 0;
  by("gone").hidden = true;
  announce("The server answers again.");
  controls();
}

// ---- the image on the screen

function showItem(item) {
  current = item;
  classEntry.close();
  verdict();
  controls();
  viewer.show(item, Boolean(status?.model), (shown, error) => {
    if (error instanceof api.Gone) { lost(); }
    controls();
    preload();
  });
}

function verdict() {
  const item = current;
  by("name").textContent = item ? item.name : "\u00a0";
  const count = status?.scored || queue.items.length;
  const place = item ? [item.rank ? `Rank ${item.rank} of ${count}` : "", labelWords(item)] : [];
  by("place").textContent = place.filter(Boolean).join(", ");
  const scored = item && item.anomaly_score !== null;
  by("score").replaceChildren();
  by("p-words").textContent = "";
  if (scored) {
    const figure = Object.assign(document.createElement("strong"), { textContent: number(item.anomaly_score) });
    const flag = document.createElement("span");
    flag.className = item.abnormal ? "badge abnormal" : "badge plain";
    flag.textContent = item.abnormal ? "flagged" : "not flagged";
    by("score").append(flag, "score", figure, `p ${pNumber(item.p_value)}`);
    by("p-words").textContent = pWords(item.p_value, status?.model?.held_out);
  } else if (item) {
    by("score").textContent = item.reason ? "No score" : status?.model ? "Not scored yet" : "No score without a model";
  }
}

// The next pictures are fetched while this one is looked at.
function preload() {
  for (const item of queue.items.slice(queue.at + 1, queue.at + 3)) {
    if (item.reason) { continue; }
    pictures.get(item.id, "radiograph").catch(() => {});
    if (status?.model && item.anomaly_score !== null) { pictures.get(item.id, "map").catch(() => {}); }
  }
}

function controls() {
  const writable = Boolean(status) && !status.read_only && !gone && current;
  const seen = writable && viewer.shown === current.id;
  by("normal").disabled = by("abnormal").disabled = !seen;
  by("skip").disabled = !(seen || (writable && current.reason));
  by("undo").disabled = !undone.length || !status || status.read_only || gone > 0;
  by("previous").disabled = queue.at <= 0;
  by("next").disabled = queue.at >= queue.items.length - 1 && complete;
}

// ---- the queue

// Reads the queue anew. With `keep` the image on the screen stays: nobody wants it exchanged while a finger is on the key.
async function load(keep = false) {
  const asked = strategy;
  let items;
  try {
    items = await api.queue(asked, PAGE, 0);
  } catch (error) {
    complain(error);
    return;
  }
  if (asked !== strategy) { return; }
  queue.fill(items, status?.model?.scale ?? null);
  complete = items.length < PAGE;
  by("more").hidden = complete;
  by("list-empty").hidden = items.length > 0;
  by("list-empty").textContent = emptyWords();
  ranked = keep;
  if (keep && current) {
    await openImage(current.id);
  } else if (items.length) {
    go(0);
  } else {
    showItem(null);
  }
}

function emptyWords() {
  if (!status?.images) { return "No images. Put radiographs into the studies folder; they appear here."; }
  if (strategy === "labelled") { return "Nothing is labelled yet."; }
  return "Every image is labelled or skipped.";
}

async function more() {
  const asked = strategy, offset = queue.items.filter((item) => strategy === "labelled" || !(item.label !== null || item.skipped)).length;
  try {
    const known = new Set(queue.items.map((item) => item.id));
    const page = await api.queue(asked, PAGE, offset);
    if (asked !== strategy) { return; }
    queue.add(page.filter((item) => !known.has(item.id)));
    complete = page.length < PAGE;
    by("more").hidden = complete;
    controls();
  } catch (error) {
    complain(error);
  }
}

function go(index) {
  if (index < 0 || index >= queue.items.length) { return; }
  queue.select(index);
  showItem(queue.items[index]);
}

async function step(places) {
  waiting = false;
  said("");
  if (queue.at + places >= queue.items.length && !complete) { await more(); }
  go(queue.at + places);
}

async function openImage(id) {
  const index = queue.items.findIndex((item) => item.id === id);
  if (index >= 0) {
    go(index);
    return;
  }
  try {
    const item = await api.getItem(id);
    queue.select(-1);
    showItem(item);
  } catch (error) {
    complain(error);
  }
}

// ---- labels

// Only an image that is on the screen takes a label, so a key pressed twice cannot label one that nobody saw.
async function label(change) {
  const item = current;
  if (busy || !item) { return; }
  if (by(change.skipped ? "skip" : "normal").disabled) {
    said(refusedWords(), true);
    return;
  }
  busy = true;
  waiting = false;
  try {
    const after = await api.setLabel(item.id, change);
    undone.push({ id: item.id, label: item.label, class: item.class, skipped: item.skipped });
    queue.update(after);
    const words = `${after.name}: ${labelWords(after)}.`;
    said(words);
    const next = await nextOpen();
    if (next < 0) {
      showItem(after);
      announce(`${words} Every image in this queue is labelled.`);
    } else {
      go(next);
      announce(`${words} Next: ${spoken(current)}`);
    }
  } catch (error) {
    complain(error);
  } finally {
    busy = false;
  }
  refresh();
}

function refusedWords() {
  if (gone) { return "Not stored: the server does not answer."; }
  if (status?.read_only) { return "This server is read only; it stores no labels."; }
  if (current.reason) { return "An image that cannot be shown can only be skipped."; }
  return "Wait until the image is shown.";
}

async function nextOpen() {
  if (strategy === "labelled") { return queue.at + 1 < queue.items.length ? queue.at + 1 : -1; }
  if (ranked) {
    ranked = false;
    return queue.open(0);
  }
  let next = queue.open(queue.at + 1);
  if (next < 0 && !complete) {
    await more();
    next = queue.open(queue.at + 1);
  }
  return next < 0 ? queue.open(0) : next;
}

function spoken(item) {
  const score = item.anomaly_score === null ? "not scored" : `score ${number(item.anomaly_score)}, ${pWords(item.p_value, status?.model?.held_out)}`;
  return `${item.rank ? `rank ${item.rank}, ` : ""}${item.name}, ${score}.`;
}

async function undo() {
  const last = undone.at(-1);
  if (busy || !last || by("undo").disabled) { return; }
  busy = true;
  try {
    const item = await api.setLabel(last.id, last);
    undone.pop();
    if (!queue.update(item)) { queue.fill([item, ...queue.items], queue.scale); }
    said(`Undone: ${item.name}.`);
    announce(`Undone: ${item.name} is ${labelWords(item) || "without a label"} again.`);
    go(queue.items.findIndex((other) => other.id === item.id));
  } catch (error) {
    complain(error);
  } finally {
    busy = false;
  }
  refresh();
}

function askClass() {
  if (by("abnormal").disabled) {
    if (current) { said(refusedWords(), true); }
    return;
  }
  said("");
  if (classEntry.isOpen) { classEntry.close(); } else { classEntry.open(status.classes, current.class); }
}

// ---- training

async function train() {
  if (training.state === "running" || by("train").disabled) { return; }
  waiting = true;
  try {
    training = await api.train();
    said("");
    announce("Retraining.");
  } catch (error) {
    complain(error);
  }
  refresh();
}

// One look at the server after another, never two at once.
let looking = Promise.resolve();

function refresh() {
  looking = looking.then(look);
  return looking;
}

// Labels, training, and whether the model is still the one whose scores are shown.
async function look() {
  let now, run;
  try {
    [now, run] = await Promise.all([api.status(), api.training()]);
  } catch (error) {
    complain(error);
    return;
  }
  found();
  const before = status, failed = training.state === "running" && run.state === "failed";
  status = now;
  training = run;
  by("read-only").hidden = !status.read_only;
  showLabels(status);
  showTraining(training, status.read_only);
  const unscored = status.images - status.scored - (status.rejected ?? 0);
  by("queue-note").textContent = status.model && unscored > 0 ? `${status.scored} of ${status.images} scored` : `${status.images} images`;
  if (failed) { announce(`The training failed. ${training.message}`); }
  const newModel = before?.model?.sha256 !== status.model?.sha256;
  const newScores = before && (before.images !== status.images || (before.scored !== status.scored && unscored <= 0));
  if (!before || newModel) {
    if (before) { pictures.clear(); }
    const changes = await api.changes().catch(() => null);
    await load(Boolean(before) && !waiting);
    showChanges(changes, (id) => {
      waiting = false;
      openImage(id);
    });
    if (before && changes) {
      said(waiting || !current ? "" : "Ranked anew. The image you were looking at has stayed; the top of the queue comes next.");
      announce(changesWords(changes));
    }
  } else if (newScores) {
    await load(true);
  } else {
    controls();
  }
}

async function watch() {
  for (;;) {
    const quick = training.state === "running" || (status?.model && status.scored < status.images - (status.rejected ?? 0));
    await new Promise((wake) => setTimeout(wake, quick ? 400 : 1000));
    const due = gone ? Date.now() >= retryAt : quick || Date.now() - watch.last > 5000;
    if (due && !document.hidden && !busy) {
      watch.last = Date.now();
      await refresh();
    }
  }
}
watch.last = 0;

// ---- keys

const COMMANDS = {
  n: () => label({ label: 0 }), a: askClass, s: () => label({ skipped: true }), u: undo, r: train,
  j: () => step(1), ArrowDown: () => step(1), ArrowRight: () => step(1),
  k: () => step(-1), ArrowUp: () => step(-1), ArrowLeft: () => step(-1),
  o: () => viewer.toggle("overlay"), p: () => viewer.toggle("marker"), i: () => viewer.toggle("invert"),
  0: () => viewer.reset(), "+": () => viewer.zoomBy(1.4), "=": () => viewer.zoomBy(1.4), "-": () => viewer.zoomBy(1 / 1.4),
  "?": () => by("help").showModal(),
};
const PAN = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || by("help").open) { return; }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const arrow = key.startsWith("Arrow");
  if (!arrow && !by("single-keys").checked && key !== "?") { return; }
  if (arrow && event.target.matches('input:not([type="checkbox"])')) { return; }  // sliders and the choice of strategy use them
  if (event.target.matches('input[type="text"]')) { return; }
  if (event.shiftKey && PAN[key]) {
    event.preventDefault();
    viewer.move(...PAN[key]);
    return;
  }
  const command = COMMANDS[key];
  if (!command || (event.repeat && "nasur".includes(key))) { return; }
  event.preventDefault();
  command();
});

function start() {
  const click = { normal: COMMANDS.n, abnormal: askClass, skip: COMMANDS.s, undo, train, more, previous: COMMANDS.k, next: COMMANDS.j };
  for (const [id, command] of Object.entries(click)) { by(id).addEventListener("click", () => command()); }
  for (const radio of document.querySelectorAll('input[name="strategy"]')) {
    radio.checked = radio.value === strategy;
    radio.addEventListener("change", () => {
      strategy = radio.value;
      load();
    });
  }
  by("help-open").addEventListener("click", () => by("help").showModal());
  by("help-close").addEventListener("click", () => by("help").close());
  by("gone-retry").addEventListener("click", refresh);
  by("single-keys").checked = localStorage.getItem("wscxr-single-keys") !== "off";
  by("single-keys").addEventListener("change", () => {
    localStorage.setItem("wscxr-single-keys", by("single-keys").checked ? "on" : "off");
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { refresh(); } });
  refresh().then(watch);
}

start();
