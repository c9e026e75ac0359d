/** The list of objects. */

import type { Classes } from "./classes";
import { byId, make, swatch } from "./dom";
import { iouText, shortAreaText } from "./format";
import type { Objects, SlideObject } from "./objects";

export class ObjectsPanel {
  readonly #list = byId("objects");
  /** Rows by the object and colour that they show, so that only what has changed is drawn again. */
  #rows = new Map<string, { object: SlideObject; color: string; row: HTMLElement }>();

  constructor(
    private readonly objects: Objects,
    private readonly classes: Classes,
    private readonly show: (object: SlideObject) => void,
  ) {
    objects.state.watch(() => this.#draw());
    classes.list.watch(() => this.#draw());
    this.#list.addEventListener("keydown", (event) => this.#key(event));
  }

  #draw(): void {
    const { all, selected } = this.objects;
    const rows = new Map<string, { object: SlideObject; color: string; row: HTMLElement }>();
    for (const object of all) {
      const color = this.classes.color(object.className);
      const known = this.#rows.get(object.id);
      const same = known?.object === object && known.color === color;
      const entry = same ? known : { object, color, row: this.#row(object, color) };
      entry.row.setAttribute("aria-selected", String(object.id === selected?.id));
      rows.set(object.id, entry);
    }
    this.#rows = rows;
    const drawn = [...rows.values()].map(({ row }) => row);
    if (drawn.length !== this.#list.children.length || drawn.some((row, i) => row !== this.#list.children[i])) {
      this.#list.replaceChildren(...drawn);
    }
    const row = selected ? rows.get(selected.id)?.row : undefined;
    if (row) this.#list.setAttribute("aria-activedescendant", row.id);
    else this.#list.removeAttribute("aria-activedescendant");
    row?.scrollIntoView({ block: "nearest" });
    byId("objects-empty").hidden = all.length > 0;
  }

  #row(object: SlideObject, color: string): HTMLElement {
    return make(
      "li",
      {
        role: "option",
        id: `object-${object.id}`,
        click: () => this.objects.select(object.id),
        dblclick: () => this.show(object),
      },
      swatch(color),
      make("span", { class: "name" }, object.name, ...(object.className ? [make("small", {}, object.className)] : [])),
      make("span", { class: "facts" }, shortAreaText(object.areaUm2)),
      make("span", { class: "facts" }, iouText(object.predictedIou)),
    );
  }

  #key(event: KeyboardEvent): void {
    const steps: Readonly<Record<string, 1 | -1>> = { ArrowDown: 1, ArrowUp: -1 };
    const step = steps[event.key];
    const { selected } = this.objects;
    if (step) this.objects.step(step);
    else if (event.key === "Enter" && selected) this.show(selected);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
