// The small form that asks for the class of an abnormal image: a combobox that also takes new names.

import { by, element } from "./dom.js";

/** The form. It stays hidden until `open` is called. */
export class ClassEntry {
  constructor() {
    this.form = by("class-entry");
    this.input = by("class-name");
    this.list = by("class-list");
    this.button = by("abnormal");
    /** @type {string[]} */
    this.classes = [];  // known names
    this.last = "";  // the latest name that was saved
    this.marked = -1;  // index of the marked suggestion; -1 without one
    /** @type {Element | null} */
    this.from = null;  // the element that had the focus before
  }

  /**
   * Call `save` with the name whenever the form is submitted; with null if it is empty.
   * @param {(name: string | null) => void} save
   */
  listen(save) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.last = this.chosen() ?? this.input.value.trim();
      this.close();
      save(this.last || null);
    });
    by("class-cancel").addEventListener("click", () => this.close());
    this.input.addEventListener("input", () => this.suggest(this.input.value));
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.preventDefault();
        this.close();
      }
      event.stopPropagation();  // here letters are text, not commands
    });
    this.list.addEventListener("click", (event) => {
      const hit = event.target instanceof Element && event.target.closest("li");
      if (!hit) { return; }
      this.input.value = hit.textContent;
      this.mark(-1);
      this.form.requestSubmit();
    });
  }

  get isOpen() { return !this.form.hidden; }

  /**
   * Show the form with the name of the image, or else with the latest name, so that Enter repeats it.
   * @param {string[]} classes  known names
   * @param {string | null} name
   */
  open(classes, name) {
    this.classes = classes;
    this.from = document.activeElement;
    this.form.hidden = false;
    this.button.setAttribute("aria-expanded", "true");
    this.input.value = name ?? this.last;
    this.suggest("");
    this.input.focus();
    this.input.select();
  }

  /** Hide the form and return the focus to where it was. */
  close() {
    if (!this.isOpen) { return; }
    this.form.hidden = true;
    this.button.setAttribute("aria-expanded", "false");
    const from = this.from;
    if (from instanceof HTMLElement && from !== document.body && from.isConnected) { from.focus(); } else { this.input.blur(); }
  }

  /**
   * List the known names that contain what is typed.
   * @param {string} typed
   */
  suggest(typed) {
    const words = typed.trim().toLowerCase();
    const fitting = this.classes.filter((name) => name.toLowerCase().includes(words));
    this.list.replaceChildren(...fitting.map((name, i) => {
      const option = element("li", "", name);
      option.role = "option";
      option.id = `class-${i}`;
      return option;
    }));
    this.list.hidden = fitting.length === 0;
    this.input.setAttribute("aria-expanded", String(fitting.length > 0));
    this.mark(-1);
  }

  /**
   * Mark a suggestion.
   * @param {number} index  -1 marks none
   */
  mark(index) {
    this.marked = index;
    [...this.list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
    const option = this.list.children[index];
    if (option) {
      this.input.setAttribute("aria-activedescendant", option.id);
      option.scrollIntoView({ block: "nearest" });
    } else {
      this.input.removeAttribute("aria-activedescendant");
    }
  }

  /** Return the marked suggestion, if any. */
  chosen() { return this.list.children[this.marked]?.textContent; }

  /**
   * Mark the next or previous suggestion on an arrow key.
   * @param {KeyboardEvent} event
   */
  key(event) {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (!step || !this.list.children.length) { return; }
    event.preventDefault();
    const places = this.list.children.length + 1;  // the suggestions, and the text as typed
    this.mark(((this.marked + 1 + step + places) % places) - 1);
  }
}
