/** Classes of objects, with colours that colour-blind people can tell apart and that stand out on stained tissue. */

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

  color(name: string | null): string {
    return this.list.value.find((one) => one.name === name)?.color ?? UNCLASSIFIED_COLOR;
  }

  /** Add a class, or give the one of this name its colour; null keeps or invents one. */
  put(name: string, color: string | null): void {
    const known = this.list.value.some((one) => one.name === name);
    if (known && color === null) return;
    const one = { name, color: color ?? INVENTED_COLOR };
    this.list.value = known
      ? this.list.value.map((other) => (other.name === name ? one : other))
      : [...this.list.value, one];
  }

  remove(name: string): void {
    this.list.value = this.list.value.filter((one) => one.name !== name);
    if (this.active.value === name) this.active.value = null;
  }
}

export function rgbOf(color: string): [number, number, number] {
  const value = parseInt(color.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

export function colorOf([red, green, blue]: readonly number[]): string {
  return `#${[red, green, blue].map((part) => (part ?? 0).toString(16).padStart(2, "0")).join("")}`;
}
