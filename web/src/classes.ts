/** Classes of objects, with colours that colour-blind people can tell apart and that stand out on stained tissue. */

import type { SlideObject } from "./objects";
import { Signal } from "./signal";

export interface ObjectClass {
  readonly name: string;
  /** #rrggbb */
  readonly color: string;
}

export const UNCLASSIFIED_COLOR = "#1668e3";
const INVENTED_COLOR = "#8a6d00";
export const DEFAULT_CLASSES: readonly ObjectClass[] = [
  { name: "Tumor", color: "#d55e00" },
  { name: "Stroma", color: "#009e73" },
  { name: "Immune cells", color: "#56b4e9" },
  { name: "Gland", color: "#e69f00" },
  { name: "Necrosis", color: "#4a4a4a" },
];

export class Classes {
  readonly list = new Signal<readonly ObjectClass[]>(DEFAULT_CLASSES);
  /** Class of objects to come, null for none. */
  readonly active = new Signal<string | null>(null);
  /** Colours of all classes that there were, in the order of their coming. */
  readonly #known = new Map<string, string>();

  constructor() {
    this.list.watch((list) => {
      for (const { name, color } of list) this.#known.set(name, color);
      // Another tab may have removed it.
      if (!this.has(this.active.value)) this.active.value = null;
    });
  }

  has(name: string | null): boolean {
    return this.list.value.some((one) => one.name === name);
  }

  color(name: string | null): string {
    return (name !== null && this.#known.get(name)) || UNCLASSIFIED_COLOR;
  }

  /** Add a class, or give the one of this name its colour; null keeps or invents one. One that was removed comes back to
   * its place, so that the keys of the others stay theirs. */
  put(name: string, color: string | null): void {
    const list = this.list.value;
    const at = list.findIndex((one) => one.name === name);
    if (at >= 0 && color === null) return;
    const one = { name, color: color ?? this.#known.get(name) ?? INVENTED_COLOR };
    this.#known.set(name, one.color);
    const order = [...this.#known.keys()];
    const later = list.findIndex((other) => order.indexOf(other.name) > order.indexOf(name));
    this.list.value = at >= 0 ? list.with(at, one) : list.toSpliced(later < 0 ? list.length : later, 0, one);
  }

  /** Add what classes of these objects are missing: undo, another slide or another tab may bring back removed ones. */
  putThoseOf(objects: readonly SlideObject[]): void {
    for (const name of new Set(objects.map(({ className }) => className))) if (name !== null) this.put(name, null);
  }

  remove(name: string): void {
    this.list.value = this.list.value.filter((one) => one.name !== name);
  }
}

export function rgbOf(color: string): [number, number, number] {
  const value = parseInt(color.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

export function colorOf([red, green, blue]: readonly number[]): string {
  return `#${[red, green, blue].map((part) => (part ?? 0).toString(16).padStart(2, "0")).join("")}`;
}
