// The list of slides: thumbnails that load when they are scrolled to, a filter, and which one is shown.

import { base } from "./api.js";

const element = (id) => document.getElementById(id);

export class SlideList {
  constructor(slides, choose) {
    this.slides = slides;
    this.choose = choose;
    this.items = slides.map((slide) => this.item(slide));
    element("slide-list").replaceChildren(...this.items.map(({ row }) => row));
    const several = slides.length > 1;
    element("slides").hidden = element("list-toggle").hidden = !several;
    element("filter").addEventListener("input", () => this.filter(element("filter").value));
    element("filter").addEventListener("keydown", (event) => {
      const first = this.items.find(({ row }) => !row.hidden);
      if (event.key !== "Enter" || !first) return;
      this.choose(first.slide);
      element("filter").blur(); // keys are for the slide again
    });
    element("list-toggle").addEventListener("click", () => this.toggle());
    this.filter("");
  }

  item(slide) {
    const row = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const box = document.createElement("span");
    box.className = "picture";
    const image = document.createElement("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = `${base}slides/${slide.id}/thumbnail.jpg`;
    image.addEventListener("error", () => box.replaceChildren("cannot be opened"));
    box.append(image);
    const text = document.createElement("span");
    const name = document.createElement("b");
    name.textContent = slide.name;
    const about = document.createElement("small");
    about.textContent = aboutText(slide);
    text.append(name, about);
    button.append(box, text);
    button.addEventListener("click", () => this.choose(slide));
    row.append(button);
    const words = [slide.name, slide.label, slide.split].filter((word) => word !== null).join(" ").toLowerCase();
    return { slide, row, button, words };
  }

  filter(text) {
    const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { row, words } of this.items) {
      row.hidden = !wanted.every((word) => words.includes(word));
      count += row.hidden ? 0 : 1;
    }
    element("filter-count").textContent = `${count} of ${this.items.length} slides`;
  }

  mark(slide) {
    for (const item of this.items) {
      const current = item.slide.id === slide.id;
      item.button.setAttribute("aria-current", String(current));
      if (current) item.row.scrollIntoView({ block: "nearest" });
    }
    this.current = slide;
  }

  step(by) {
    const shown = this.items.filter(({ row }) => !row.hidden).map(({ slide }) => slide);
    const at = shown.indexOf(this.current);
    if (shown.length) this.choose(shown[(at + by + shown.length) % shown.length]);
  }

  toggle() {
    if (this.slides.length > 1) element("slides").hidden = !element("slides").hidden;
  }
}

function aboutText({ label, split }) {
  const parts = [];
  if (label !== null) parts.push(`label ${label}`);
  if (split !== null) parts.push(split);
  return parts.join(" · ");
}
