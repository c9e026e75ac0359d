/** What this page holds of a slide: outlined objects, which one is being worked on, and every earlier state for undo. */

import type { ModelAnswer } from "./answers";
import type { Area, Box } from "./geometry";
import { Signal } from "./signal";

/** A click: label 1 is on the object, 0 beside it. */
export type Point = readonly [x: number, y: number, label: 0 | 1];

export interface Prompt {
  readonly box: Box | null;
  readonly points: readonly Point[];
}

/** Never changed, only replaced. */
export interface SlideObject {
  readonly id: string;
  readonly name: string;
  readonly className: string | null;
  readonly area: Area;
  readonly bounds: Box;
  readonly areaUm2: number | null;
  readonly predictedIou: number | null;
  /** What it was made from, null for what was imported. */
  readonly made: { readonly prompt: Prompt; readonly answer: ModelAnswer } | null;
}

export interface State {
  readonly objects: readonly SlideObject[];
  readonly selectedId: string | null;
}

const LONGEST_HISTORY = 200;
const EMPTY: State = { objects: [], selectedId: null };

export class Objects {
  readonly state = new Signal<State>(EMPTY);
  /** Grows with every change that undo takes back. */
  readonly #past: State[] = [];
  readonly #future: State[] = [];

  get all(): readonly SlideObject[] {
    return this.state.value.objects;
  }

  get selected(): SlideObject | null {
    return this.get(this.state.value.selectedId);
  }

  get canUndo(): boolean {
    return this.#past.length > 0;
  }

  get canRedo(): boolean {
    return this.#future.length > 0;
  }

  get(id: string | null): SlideObject | null {
    return this.all.find((object) => object.id === id) ?? null;
  }

  /** Start anew with the objects of a slide; what was selected stays so where it is among them. */
  open(objects: readonly SlideObject[]): void {
    this.#past.length = this.#future.length = 0;
    const { selectedId } = this.state.value;
    this.state.value = { objects, selectedId: objects.some(({ id }) => id === selectedId) ? selectedId : null };
  }

  select(id: string | null): void {
    if (id !== this.state.value.selectedId) this.state.value = { ...this.state.value, selectedId: id };
  }

  /** The object before or after the selected one, around the end. */
  step(by: 1 | -1): void {
    const at = this.all.findIndex(({ id }) => id === this.state.value.selectedId);
    const next = at < 0 ? (by > 0 ? 0 : this.all.length - 1) : (at + by + this.all.length) % this.all.length;
    this.select(this.all[next]?.id ?? null);
  }

  /** Add objects, in place of those with the same ids, and select `selectedId`. */
  put(objects: readonly SlideObject[], selectedId: string | null): void {
    const fresh = new Map(objects.map((object) => [object.id, object]));
    const kept = this.all.map((object) => {
      const replacement = fresh.get(object.id) ?? object;
      fresh.delete(object.id);
      return replacement;
    });
    this.#change({ objects: [...kept, ...fresh.values()], selectedId });
  }

  replace(object: SlideObject): void {
    this.put([object], this.state.value.selectedId);
  }

  remove(id: string): void {
    const at = this.all.findIndex((object) => object.id === id);
    const objects = this.all.filter((object) => object.id !== id);
    this.#change({ objects, selectedId: objects[Math.min(at, objects.length - 1)]?.id ?? null });
  }

  undo(): void {
    this.#travel(this.#past, this.#future);
  }

  redo(): void {
    this.#travel(this.#future, this.#past);
  }

  #change(state: State): void {
    this.#past.push(this.state.value);
    if (this.#past.length > LONGEST_HISTORY) this.#past.shift();
    this.#future.length = 0;
    this.state.value = state;
  }

  #travel(from: State[], to: State[]): void {
    const state = from.pop();
    if (!state) return;
    to.push(this.state.value);
    this.state.value = state;
  }
}

/** Names for new objects, "Object 8" after "Object 7" or "Tumor 7": beyond the highest number in use. */
export class Names {
  #highest = 0;

  constructor(objects: readonly SlideObject[]) {
    for (const { name } of objects) this.note(name);
  }

  /** `name` is in use. */
  note(name: string): void {
    this.#highest = Math.max(this.#highest, Number(/(\d+)$/.exec(name)?.[1] ?? 0));
  }

  next(): string {
    return `Object ${++this.#highest}`;
  }
}
