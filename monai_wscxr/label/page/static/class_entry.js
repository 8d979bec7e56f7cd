// The small form that asks for the class of an abnormal image: a combobox whose list may be left for a new word.

const by = (id) => document.getElementById(id);

export class ClassEntry {
  constructor(save) {
    this.form = by("class-entry");
    this.input = by("class-name");
    this.list = by("class-list");
    this.button = by("abnormal");
    this.classes = [];
    this.last = "";
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
      event.stopPropagation();  // letters here are text, not commands
    });
    this.list.addEventListener("click", (event) => {
      const hit = event.target.closest("li");
      if (!hit) { return; }
      this.input.value = hit.textContent;
      this.mark(-1);
      this.form.requestSubmit();
    });
  }

  get isOpen() { return !this.form.hidden; }

  // Begins with `name`, or with the last class given: the same again is one more Enter.
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

  close() {
    if (!this.isOpen) { return; }
    this.form.hidden = true;
    this.button.setAttribute("aria-expanded", "false");
    if (this.from && this.from !== document.body && this.from.isConnected) { this.from.focus(); } else { this.input.blur(); }
  }

  suggest(typed) {
    const words = typed.trim().toLowerCase();
    const fitting = this.classes.filter((name) => name.toLowerCase().includes(words));
    this.list.replaceChildren(...fitting.map((name, i) => {
      const option = document.createElement("li");
      option.role = "option";
      option.id = `class-${i}`;
      option.textContent = name;
      return option;
    }));
    this.list.hidden = fitting.length === 0;
    this.input.setAttribute("aria-expanded", String(fitting.length > 0));
    this.mark(-1);
  }

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

  chosen() { return this.list.children[this.marked]?.textContent; }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !this.list.children.length) { return; }
    event.preventDefault();
    const places = this.list.children.length + 1;  // one more for what is typed
    this.mark(((this.marked + 1 + step + places) % places) - 1);
  }
}
