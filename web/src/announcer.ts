/** Tells screen readers what a key or a button did to the objects, and how these stand then. */

import type { Classes } from "./classes";
import { shortAreaText } from "./format";
import type { Objects } from "./objects";

export class Announcer {
  constructor(
    private readonly objects: Objects,
    private readonly classes: Classes,
    private readonly say: (text: string) => void,
  ) {}

  /** `act`, telling afterwards that it is `done`, if it changed anything. */
  telling<Given extends unknown[]>(done: string, act: (...given: Given) => void): (...given: Given) => void {
    return (...given) => {
      const [state, active] = [this.objects.state.value, this.classes.active.value];
      act(...given);
      const changed = state !== this.objects.state.value || active !== this.classes.active.value;
      if (changed) this.say(`${done} ${this.#standing()}`.trim());
    };
  }

  #standing(): string {
    const { all, selected } = this.objects;
    if (!selected) return `No object selected, ${all.length} in all. Class of new ones: ${this.classes.active.value ?? "none"}.`;
    const { name, className, areaUm2 } = selected;
    const facts = [name, className ?? "no class", shortAreaText(areaUm2), `${all.indexOf(selected) + 1} of ${all.length}`];
    return `Selected: ${facts.filter(Boolean).join(", ")}.`;
  }
}
