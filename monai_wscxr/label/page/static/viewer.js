// One radiograph with its anomaly map: zoom, position, brightness and contrast, marker of the peak.

import { messageOf } from "./api.js";
import { by } from "./dom.js";

/** @import { Pictures } from "./api.js" */
/** @import { Item } from "../types.d.ts" */
/** @typedef {{ x: number, y: number }} Point  in CSS pixels of the window */

const MOST = 12;  // largest zoom, relative to the fitted image

/** @type {(value: number, low: number, high: number) => number} */
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/**
 * Tell whether a toggle button is on.
 * @param {"overlay" | "marker" | "invert"} id
 */
const pressed = (id) => by(id).getAttribute("aria-pressed") === "true";

/** The stage with the radiograph and the controls of the display. */
export class Viewer {
  /** @param {Pictures} pictures */
  constructor(pictures) {
    this.pictures = pictures;
    /** @type {string | null} */
    this.shown = null;  // id of the image whose pixels are on the screen
    /** @type {Item | null} */
    this.asked = null;  // the image to show, on the screen or still loading
    this.hasMap = false;
    this.mapChosen = false;  // whether the map was switched on or off by hand
    this.zoom = 1;
    this.x = 0;  // offset of the image's centre from the stage's, in CSS pixels
    this.y = 0;
    this.inverted = false;
    /** @type {Map<number, Point>} */
    this.pointers = new Map();  // pressed pointers by their id
    this.panning = false;  // whether a drag moves the image; otherwise it changes contrast and brightness
    this.from = { x: 0, y: 0, contrast: 0, brightness: 0 };  // where the drag began
    this.stage = by("stage");
    this.picture = by("picture");
    this.radiograph = by("radiograph");
    this.map = by("map");
    this.peak = by("peak");
    new ResizeObserver(() => this.place()).observe(this.stage);
    this.listen();
    this.paint();
  }

  /**
   * Show the pictures of an image, or an empty stage.
   * @param {Item | null} item
   * @param {boolean} hasModel  whether there is a map to show
   * @param {(error?: unknown) => void} done  called when the radiograph is on the screen or cannot be shown, unless another
   *   image has been asked for meanwhile
   */
  async show(item, hasModel, done) {
    this.asked = item;
    this.shown = null;
    this.picture.hidden = this.map.hidden = this.peak.hidden = by("legend").hidden = true;
    this.hasMap = false;
    this.say("", "");
    if (!item) { return; }
    if (item.reason) {
      this.say(`This image cannot be displayed: ${item.message || item.reason}`, "");
      done();
      return;
    }
    const slow = setTimeout(() => this.say("Loading …", ""), 200);
    try {
      await this.load(this.radiograph, item, "radiograph");
      if (this.asked !== item) { return; }
      this.radiograph.alt = `Radiograph ${item.name}`;
      this.picture.hidden = false;
      this.fit();
      this.shown = item.id;
      this.say("", "");
      done();
    } catch (error) {
      if (this.asked === item) {
        this.say(`This image cannot be displayed: ${messageOf(error)}`, "");
        done(error);
      }
      return;
    } finally {
      clearTimeout(slow);
    }
    if (!hasModel || item.anomaly_score === null) { return; }
    try {
      await this.load(this.map, item, "map");
      if (this.asked !== item) { return; }
      this.hasMap = true;
    } catch (error) {
      if (this.asked === item) { this.say("", `No map: ${messageOf(error)}`); }
    }
    this.paint();
  }

  /**
   * Load a picture into an image element, unless another image has been asked for meanwhile.
   * @param {HTMLImageElement} image
   * @param {Item} item
   * @param {"radiograph" | "map"} kind
   */
  async load(image, item, kind) {
    const url = await this.pictures.get(item.id, kind);
    if (this.asked !== item) { return; }
    image.src = url;
    await image.decode().catch(() => { throw new Error("the browser cannot decode the picture."); });
  }

  /**
   * @param {string} onStage
   * @param {string} onMap
   */
  say(onStage, onMap) {
    by("stage-text").textContent = onStage;
    by("map-text").textContent = onMap;
  }

  /**
   * Show maps or leave them off until somebody chooses: a model that knows no abnormal image marks all that is unusual.
   * @param {number} abnormal  number of abnormal images that the model was trained on
   */
  expectMaps(abnormal) {
    if (this.mapChosen) { return; }
    by("overlay").setAttribute("aria-pressed", String(abnormal > 0));
    this.paint();
  }

  /** Fit the image to the stage. */
  fit() {
    this.zoom = 1;
    this.x = this.y = 0;
    this.place();
  }

  /** Reset zoom, position, brightness, contrast and inversion. */
  reset() {
    by("brightness").value = by("contrast").value = "0";
    this.inverted = false;
    this.fit();
    this.paint();
  }

  /** Apply size and position of the picture. */
  place() {
    const width = this.radiograph.naturalWidth, height = this.radiograph.naturalHeight;
    if (!width) { return; }
    const room = this.stage.getBoundingClientRect();
    const scale = Math.min(room.width / width, room.height / height) * this.zoom;
    const w = width * scale, h = height * scale;
    // the image always covers the middle of the stage; fitted, it is centred
    this.x = this.zoom > 1 ? clamp(this.x, -w / 2, w / 2) : 0;
    this.y = this.zoom > 1 ? clamp(this.y, -h / 2, h / 2) : 0;
    Object.assign(this.picture.style, {
      width: `${w}px`,
      height: `${h}px`,
      transform: `translate(${(room.width - w) / 2 + this.x}px, ${(room.height - h) / 2 + this.y}px)`,
    });
    by("zoom-fit").textContent = this.zoom === 1 ? "Fit" : `${this.zoom.toFixed(1)} ×`;
  }

  /**
   * Zoom by a factor.
   * @param {number} factor
   * @param {Point} [at]  the point that stays in place; the centre of the stage by default
   */
  zoomBy(factor, at) {
    const room = this.stage.getBoundingClientRect();
    const dx = at ? at.x - room.left - room.width / 2 : 0, dy = at ? at.y - room.top - room.height / 2 : 0;
    const zoom = clamp(this.zoom * factor, 1, MOST), ratio = zoom / this.zoom;
    this.x = dx - (dx - this.x) * ratio;
    this.y = dy - (dy - this.y) * ratio;
    this.zoom = zoom;
    this.place();
  }

  /**
   * Move the zoomed image.
   * @param {number} dx  in CSS pixels
   * @param {number} dy
   */
  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.place();
  }

  /**
   * Press or release a toggle button.
   * @param {"overlay" | "marker" | "invert"} id
   */
  toggle(id) {
    by(id).setAttribute("aria-pressed", String(!pressed(id)));
    this.inverted = pressed("invert");
    if (id === "overlay") {
      this.mapChosen = true;
      this.say("", "");
    }
    this.paint();
  }

  /** Apply map, peak, and the grey-level window: grey' = slope (grey - centre) + 1/2, clipped to [0, 1]. */
  paint() {
    by("invert").setAttribute("aria-pressed", String(this.inverted));
    this.map.hidden = by("legend").hidden = !(this.hasMap && pressed("overlay"));
    this.map.style.opacity = by("scale").style.opacity = String(Number(by("opacity").value) / 100);
    if (this.hasMap && this.map.hidden && !this.mapChosen) {
      by("map-text").textContent = "Map off until the model knows an abnormal image; the button Map (O) shows it.";
    }
    const at = this.hasMap && this.asked ? this.asked.peak : null;
    this.peak.hidden = !(at && pressed("marker"));
    if (at) {
      this.peak.style.left = `${100 * at[0]}%`;
      this.peak.style.top = `${100 * at[1]}%`;
    }
    const brightness = Number(by("brightness").value), contrast = Number(by("contrast").value);
    const slope = 2 ** (contrast / 40) * (this.inverted ? -1 : 1), centre = 0.5 - brightness / 200;
    for (const channel of document.querySelectorAll("#window feComponentTransfer > *")) {
      channel.setAttribute("slope", String(slope));
      channel.setAttribute("intercept", String(0.5 - slope * centre));
    }
    const untouched = brightness === 0 && contrast === 0 && !this.inverted;
    this.radiograph.style.filter = untouched ? "" : "url(#window)";
  }

  listen() {
    for (const id of /** @type {const} */ (["opacity", "brightness", "contrast"])) {
      by(id).addEventListener("input", () => this.paint());
    }
    for (const id of /** @type {const} */ (["overlay", "marker", "invert"])) {
      by(id).addEventListener("click", () => this.toggle(id));
    }
    by("reset").addEventListener("click", () => this.reset());
    by("zoom-in").addEventListener("click", () => this.zoomBy(1.4));
    by("zoom-out").addEventListener("click", () => this.zoomBy(1 / 1.4));
    by("zoom-fit").addEventListener("click", () => this.fit());
    this.listenToPointers();
  }

  listenToPointers() {
    const stage = this.stage;
    /** @param {Event} event */
    const onButton = (event) => event.target instanceof Element && event.target.closest("button") !== null;
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(2 ** (-event.deltaY / 400), { x: event.clientX, y: event.clientY });
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => {
      if (onButton(event)) { return; }
      if (this.zoom > 1) { this.fit(); } else { this.zoomBy(2.5, { x: event.clientX, y: event.clientY }); }
    });
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("pointerdown", (event) => {
      if (onButton(event) || this.picture.hidden) { return; }
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      this.from = {
        x: event.clientX, y: event.clientY, contrast: Number(by("contrast").value), brightness: Number(by("brightness").value),
      };
      this.panning = event.pointerType === "touch" || event.button !== 0 || event.shiftKey;
    });
    stage.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of /** @type {const} */ (["pointerup", "pointercancel"])) {
      stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
  }

  /**
   * Follow a pressed pointer: pan, change contrast and brightness, or zoom with two fingers.
   * @param {PointerEvent} event
   */
  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) { return; }
    const now = { x: event.clientX, y: event.clientY };
    const other = [...this.pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      const still = other[1];  // the finger that rests; the image is zoomed about it
      /** @param {Point} p */
      const distance = (p) => Math.hypot(p.x - still.x, p.y - still.y) || 1;
      this.zoomBy(distance(now) / distance(before), still);
    } else if (this.panning) {
      this.move(now.x - before.x, now.y - before.y);
    } else {
      by("contrast").value = String(this.from.contrast + (now.x - this.from.x) / 3);
      by("brightness").value = String(this.from.brightness - (now.y - this.from.y) / 3);
      this.paint();
    }
    this.pointers.set(event.pointerId, now);
  }
}
