/** The classes, as a row of choices: the class of the selected object, and of objects to come. */

import type { Classes } from "./classes";
import { byId, make, swatch } from "./dom";
import type { Objects } from "./objects";

export class ClassBar {
  readonly #bar = byId("classes");
  readonly #dialog = byId<HTMLDialogElement>("class-dialog");

  constructor(
    private readonly classes: Classes,
    private readonly objects: Objects,
  ) {
    for (const signal of [classes.list, classes.active, objects.state]) signal.watch(() => this.#draw());
    byId("class-add").addEventListener("click", () => this.#dialog.showModal());
    byId("class-remove").addEventListener("click", () => this.#remove());
    byId("class-form").addEventListener("submit", () => this.#save());
  }

  /** Give the selected object, and those to come, a class by its place in the row; 0 is none. */
  chooseAt(place: number): void {
    const name = place === 0 ? null : this.classes.list.value[place - 1]?.name;
    if (name !== undefined) this.#choose(name);
  }

  #choose(name: string | null): void {
    const { selected } = this.objects;
    if (selected && selected.className !== name) this.objects.replace({ ...selected, className: name });
    this.classes.active.value = name;
  }

  get #current(): string | null {
    const { selected } = this.objects;
    return selected ? selected.className : this.classes.active.value;
  }

  #draw(): void {
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset["class"] : undefined;
    const names = [null, ...this.classes.list.value.map(({ name }) => name)];
    this.#bar.replaceChildren(
      ...names.map((name, place) =>
        make(
          "button",
          {
            type: "button",
            "data-class": name ?? "",
            "aria-pressed": String(name === this.#current),
            "aria-keyshortcuts": place < 10 && String(place),
            click: () => this.#choose(name),
          },
          swatch(this.classes.color(name)),
          name ?? "None",
        ),
      ),
    );
    if (focused !== undefined) this.#bar.querySelector<HTMLElement>(`[data-class="${CSS.escape(focused)}"]`)?.focus();
    byId<HTMLButtonElement>("class-remove").disabled = this.#current === null;
  }

  #save(): void {
    const name = byId<HTMLInputElement>("class-name").value.trim();
    if (!name) return;
    this.classes.put(name, byId<HTMLInputElement>("class-color").value);
    this.#choose(name);
    byId<HTMLInputElement>("class-name").value = "";
  }

  /** Objects of the class have none afterwards. */
  #remove(): void {
    const name = this.#current;
    if (name === null) return;
    const { all, selected } = this.objects;
    const bare = all.filter(({ className }) => className === name).map((object) => ({ ...object, className: null }));
    if (bare.length) this.objects.put(bare, selected?.id ?? null);
    this.classes.remove(name);
  }
}
