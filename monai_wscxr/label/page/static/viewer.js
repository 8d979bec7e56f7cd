// One radiograph with its map: zoom, position, brightness and contrast, peak.

const MOST = 12;  // zoom, relative to the fitted image
const by = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export class Viewer {
  constructor(pictures) {
    this.pictures = pictures;
    this.shown = null;  // id of the image whose pixels are on the screen
    this.asked = null;
    this.zoom = 1;
    this.x = this.y = 0;  // shift of the image's centre from the stage's, in pixels
    this.inverted = false;
    this.pointers = new Map();
    this.stage = by("stage");
    this.picture = by("picture");
    this.radiograph = by("radiograph");
    this.map = by("map");
    this.peak = by("peak");
    new ResizeObserver(() => this.place()).observe(this.stage);
    this.listen();
    this.paint();
  }

  // Shows an item's pictures; `done` is told when the radiograph is on the screen.
  async show(item, hasModel, done) {
    this.asked = item;
    this.shown = null;
    this.picture.hidden = this.map.hidden = this.peak.hidden = by("legend").hidden = true;
    this.hasMap = false;
    this.say("", "");
    if (!item) { return; }
    if (item.reason) {
      this.say(`This image cannot be shown: ${item.message || item.reason}`, "");
      done(item);
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
      done(item);
    } catch (error) {
      if (this.asked === item) { this.say(`This image cannot be shown: ${error.message}`, ""); }
      if (this.asked === item) { done(item, error); }
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
      if (this.asked === item) { this.say("", `No map: ${error.message}`); }
    }
    this.paint();
  }

  async load(image, item, kind) {
    const url = await this.pictures.get(item.id, kind);
    if (this.asked !== item) { return; }
    image.src = url;
    await image.decode().catch(() => { throw new Error("the browser cannot decode the picture."); });
  }

  say(onStage, onMap) {
    by("stage-text").textContent = onStage;
    by("map-text").textContent = onMap;
  }

  fit() {
    this.zoom = 1;
    this.x = this.y = 0;
    this.place();
  }

  reset() {
    by("brightness").value = by("contrast").value = 0;
    this.inverted = false;
    this.fit();
    this.paint();
  }

  // Size and position of the picture on the stage.
  place() {
    const width = this.radiograph.naturalWidth, height = this.radiograph.naturalHeight;
    if (!width) { return; }
    const room = this.stage.getBoundingClientRect();
    const scale = Math.min(room.width / width, room.height / height) * this.zoom;
    const w = width * scale, h = height * scale;
    // at least the middle of the stage stays covered
    this.x = clamp(this.x, -Math.max(0, w / 2), Math.max(0, w / 2)) * (this.zoom > 1);
    this.y = clamp(this.y, -Math.max(0, h / 2), Math.max(0, h / 2)) * (this.zoom > 1);
    Object.assign(this.picture.style, {
      width: `${w}px`,
      height: `${h}px`,
      transform: `translate(${(room.width - w) / 2 + this.x}px, ${(room.height - h) / 2 + this.y}px)`,
    });
    by("zoom-fit").textContent = this.zoom === 1 ? "Fit" : `${this.zoom.toFixed(1)} ×`;
  }

  // Zooms by a factor about a point of the stage, its centre without one.
  zoomBy(factor, at) {
    const room = this.stage.getBoundingClientRect();
    const dx = at ? at.x - room.left - room.width / 2 : 0, dy = at ? at.y - room.top - room.height / 2 : 0;
    const zoom = clamp(this.zoom * factor, 1, MOST), ratio = zoom / this.zoom;
    this.x = dx - (dx - this.x) * ratio;
    this.y = dy - (dy - this.y) * ratio;
    this.zoom = zoom;
    this.place();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.place();
  }

  toggle(id) {
    const button = by(id);
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    this.inverted = by("invert").getAttribute("aria-pressed") === "true";
    this.paint();
  }

  // Map, peak, and the window: grey' = slope (grey - centre) + 1/2, clipped.
  paint() {
    const on = (id) => by(id).getAttribute("aria-pressed") === "true";
    by("invert").setAttribute("aria-pressed", String(this.inverted));
    this.map.hidden = by("legend").hidden = !(this.hasMap && on("overlay"));
    this.map.style.opacity = by("opacity").value / 100;
    const at = this.hasMap && this.asked ? this.asked.peak : null;
    this.peak.hidden = !(at && on("marker"));
    if (at) {
      this.peak.style.left = `${100 * at[0]}%`;
      this.peak.style.top = `${100 * at[1]}%`;
    }
    const brightness = Number(by("brightness").value), contrast = Number(by("contrast").value);
    const slope = 2 ** (contrast / 40) * (this.inverted ? -1 : 1), centre = 0.5 - brightness / 200;
    for (const channel of document.querySelectorAll("#window feComponentTransfer > *")) {
      channel.setAttribute("slope", slope);
      channel.setAttribute("intercept", 0.5 - slope * centre);
    }
    const untouched = brightness === 0 && contrast === 0 && !this.inverted;
    this.radiograph.style.filter = untouched ? "" : "url(#window)";
  }

  listen() {
    for (const id of ["opacity", "brightness", "contrast"]) { by(id).addEventListener("input", () => this.paint()); }
    for (const id of ["overlay", "marker", "invert"]) { by(id).addEventListener("click", () => this.toggle(id)); }
    by("reset").addEventListener("click", () => this.reset());
    by("zoom-in").addEventListener("click", () => this.zoomBy(1.4));
    by("zoom-out").addEventListener("click", () => this.zoomBy(1 / 1.4));
    by("zoom-fit").addEventListener("click", () => this.fit());
    const stage = this.stage;
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(2 ** (-event.deltaY / 400), event.clientX === undefined ? null : { x: event.clientX, y: event.clientY });
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => {
      if (event.target.closest("button")) { return; }
      if (this.zoom > 1) { this.fit(); } else { this.zoomBy(2.5, { x: event.clientX, y: event.clientY }); }
    });
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button") || this.picture.hidden) { return; }
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      this.from = {
        x: event.clientX, y: event.clientY, contrast: Number(by("contrast").value), brightness: Number(by("brightness").value),
      };
      this.panning = event.pointerType === "touch" || event.button !== 0 || event.shiftKey;
    });
    stage.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) { return; }
    const now = { x: event.clientX, y: event.clientY };
    const dx = now.x - before.x, dy = now.y - before.y;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId);
    if (other) {  // two fingers: zoom about the one that rests
      const still = other[1], far = (p) => Math.hypot(p.x - still.x, p.y - still.y) || 1;
      this.zoomBy(far(now) / far(before), still);
    } else if (this.panning) {
      this.move(dx, dy);
    } else {
      by("contrast").value = this.from.contrast + (now.x - this.from.x) / 3;
      by("brightness").value = this.from.brightness - (now.y - this.from.y) / 3;
      this.paint();
    }
    this.pointers.set(event.pointerId, now);
  }
}
