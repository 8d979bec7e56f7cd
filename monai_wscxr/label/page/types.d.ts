// Types of the labelling page, for the type check only: the browser never loads this file.
//
// The first part describes the answers of the JSON interface in router.py. It lists the fields that the page reads, no others;
// tests/label/test_page_types.py compares them with real answers. The second part lists the elements of index.html.

export type Strategy = "varied" | "most_suspicious" | "most_uncertain" | "random" | "labelled";

/** Label of one image: 0 normal, 1 abnormal with an optional class, null for none. */
export interface Label {
  label: 0 | 1 | null;
  class: string | null;
  skipped: boolean;
}

/** One image of the collection: `GET queue` and `GET items/ID`. */
export interface Item extends Label {
  id: string;
  name: string;
  /** null without a model, or before the image is scored; the next three fields likewise */
  anomaly_score: number | null;
  p_value: number | null;
  /** whether the score exceeds the operating point */
  abnormal: boolean | null;
  /** centre of the highest-scoring patch, x and y in [0, 1] */
  peak: [number, number] | null;
  /** 1 is the most suspicious image of the whole collection */
  rank: number | null;
  /** rank under the previous model */
  rank_before: number | null;
  /** why the image is asked for, a sentence without its full stop; null outside of a queue */
  why: string | null;
  /** reason code and sentence of an image that cannot be read, otherwise null */
  reason: string | null;
  message: string | null;
}

/** Axis of the score bars: lowest score of the held-out normals, operating point, upper end. */
export interface Scale {
  low: number;
  threshold: number;
  high: number;
}

export interface Model {
  sha256: string;
  /** local time of the training, ISO 8601 to the second */
  trained: string;
  /** numbers of images the model was trained on */
  normal: number;
  abnormal: number;
  /** number of held-out normal images behind the p-values */
  held_out: number;
  scale: Scale;
}

/** Numbers of labelled images. */
export interface Counts {
  normal: number;
  abnormal: number;
  skipped: number;
}

/** The collection as a whole: `GET status`. */
export interface Status {
  images: number;
  scored: number;
  /** number of images that cannot be read */
  rejected: number;
  labels: Counts;
  /** number of labels that the model in use was not trained on */
  new_labels: number;
  /** known class names, sorted */
  classes: string[];
  model: Model | null;
  drift: Drift;
  read_only: boolean;
}

/** How far the images are from the normals that calibrated the model. */
export interface Drift {
  images: number;
  /** in variances of normal images; null where it is unknown */
  shift: number | null;
  limit: number;
  /** whether the images are unlike those normals; null where that is unknown */
  named: boolean | null;
}

/** The latest training: `GET train` and `POST train`. */
export interface Training {
  state: "idle" | "running" | "done" | "failed";
  stage: "" | "features" | "mining" | "training" | "scoring";
  /** finished share of the stage, in [0, 1] */
  fraction: number;
  seconds: number;
  message: string;
}

/** An image whose rank or score changed with the latest training. */
export interface Move {
  id: string;
  name: string;
  rank_before: number | null;
  rank_after: number;
  score_before: number | null;
  score_after: number;
  flagged_before: boolean;
  flagged_after: boolean;
}

/** Effects of the latest training: `GET changes`, which answers null before the first one. */
export interface Changes {
  new_labels: number;
  seconds: number;
  moved: Move[];
  /** numbers of images above the operating point */
  now_flagged: number;
  flagged_before: number;
}

/** Elements of index.html by id. */
export interface Elements {
  abnormal: HTMLButtonElement;
  announcer: HTMLElement;
  brightness: HTMLInputElement;
  changes: HTMLElement;
  "changes-note": HTMLElement;
  "changes-text": HTMLElement;
  "class-cancel": HTMLButtonElement;
  "class-entry": HTMLFormElement;
  "class-list": HTMLElement;
  "class-name": HTMLInputElement;
  contrast: HTMLInputElement;
  "count-abnormal": HTMLElement;
  "count-normal": HTMLElement;
  "count-skipped": HTMLElement;
  gone: HTMLElement;
  "gone-retry": HTMLButtonElement;
  "gone-text": HTMLElement;
  help: HTMLDialogElement;
  "help-close": HTMLButtonElement;
  "help-open": HTMLButtonElement;
  invert: HTMLButtonElement;
  legend: HTMLElement;
  list: HTMLElement;
  "list-empty": HTMLElement;
  map: HTMLImageElement;
  "map-text": HTMLElement;
  marker: HTMLButtonElement;
  model: HTMLElement;
  more: HTMLButtonElement;
  moved: HTMLElement;
  name: HTMLElement;
  next: HTMLButtonElement;
  normal: HTMLButtonElement;
  opacity: HTMLInputElement;
  overlay: HTMLButtonElement;
  "p-words": HTMLElement;
  peak: HTMLElement;
  picture: HTMLElement;
  place: HTMLElement;
  previous: HTMLButtonElement;
  "progress-bar": HTMLElement;
  "progress-note": HTMLElement;
  "queue-note": HTMLElement;
  radiograph: HTMLImageElement;
  "drift": HTMLElement;
  "read-only": HTMLElement;
  reset: HTMLButtonElement;
  said: HTMLElement;
  scale: HTMLImageElement;
  score: HTMLElement;
  "single-keys": HTMLInputElement;
  skip: HTMLButtonElement;
  stage: HTMLElement;
  "stage-text": HTMLElement;
  train: HTMLButtonElement;
  "train-bar": HTMLProgressElement;
  "train-failed": HTMLElement;
  "train-hint": HTMLElement;
  "train-note": HTMLElement;
  "train-progress": HTMLElement;
  "train-stage": HTMLElement;
  undo: HTMLButtonElement;
  why: HTMLElement;
  "zoom-fit": HTMLButtonElement;
  "zoom-in": HTMLButtonElement;
  "zoom-out": HTMLButtonElement;
}
