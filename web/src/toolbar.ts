/** The buttons over the slide: which tool is in hand, what can be done now, and a hint how to go on. */

import { byId } from "./dom";
import { iouText, shortAreaText } from "./format";
import type { Objects, SlideObject } from "./objects";
import type { Overlay } from "./overlay";
import { TOOLS, type Pointer, type Tool } from "./pointer";
import type { Prompting } from "./prompting";

export interface Actions {
  readonly undo: () => void;
  readonly redo: () => void;
  readonly next: () => void;
  readonly delete: () => void;
  readonly "zoom-in": () => void;
  readonly "zoom-out": () => void;
  readonly home: () => void;
}

export class Toolbar {
  constructor(
    private readonly objects: Objects,
    private readonly pointer: Pointer,
    private readonly prompting: Prompting,
    private readonly overlay: Overlay,
    private readonly slide: HTMLElement,
    actions: Actions,
  ) {
    for (const tool of TOOLS) byId(`tool-${tool}`).addEventListener("click", () => (pointer.tool.value = tool));
    for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
    byId("multimask").addEventListener("click", () => (prompting.multimask.value = !prompting.multimask.value));
    byId("frames").addEventListener("click", () => (overlay.frames.value = !overlay.frames.value));
    const { asked, waiting, multimask } = prompting;
    for (const signal of [objects.state, pointer.tool, multimask, asked, waiting, overlay.frames]) {
      signal.watch(() => this.#draw());
    }
  }

  #draw(): void {
    for (const tool of TOOLS) press(`tool-${tool}`, tool === this.pointer.tool.value);
    press("multimask", this.prompting.multimask.value);
    press("frames", this.overlay.frames.value);
    const { all, selected, canUndo, canRedo } = this.objects;
    const asking = this.prompting.asked.value !== null;
    this.#enable("undo", canUndo || asking);
    this.#enable("redo", canRedo);
    this.#enable("next", selected !== null || asking);
    this.#enable("delete", selected !== null);
    for (const count of document.querySelectorAll("[data-count]")) count.textContent = String(all.length);
    for (const button of document.querySelectorAll<HTMLButtonElement>("[data-export]")) button.disabled = !all.length;
    this.#hint(selected);
  }

  /** A button that can do nothing more gives the keyboard back to the slide. */
  #enable(id: string, enabled: boolean): void {
    const button = byId<HTMLButtonElement>(id);
    if (!enabled && button === document.activeElement) this.slide.focus({ preventScroll: true });
    button.disabled = !enabled;
  }

  /** What to do next; while panels are sheets over the slide, also what the selected object is. */
  #hint(selected: SlideObject | null): void {
    const asking = this.prompting.asked.value !== null;
    byId("hint").classList.toggle("asking", asking);
    const text = asking ? outlining(this.prompting.waiting.value.length) : hint(this.pointer.tool.value, selected?.made != null);
    byId("hint-text").textContent = text;
    const facts = selected ? [selected.name, shortAreaText(selected.areaUm2), iouText(selected.predictedIou)] : [];
    byId("hint-object").textContent = facts.filter(Boolean).join(" · ");
  }
}

const press = (id: string, pressed: boolean): void => byId(id).setAttribute("aria-pressed", String(pressed));

const outlining = (waiting: number): string => `Outlining…${waiting ? ` ${waiting} more ${waiting === 1 ? "waits" : "wait"}.` : ""}`;

function hint(tool: Tool, correcting: boolean): string {
  switch (tool) {
    case "move": return "Drag to move, scroll or pinch to zoom. Click an object to select it.";
    case "box": return correcting ? "Include and Exclude correct this object. A new box begins the next one." : "Drag a box around one object.";
    case "include": return correcting ? "Click what belongs to the object too; Exclude for what does not." : "Click on an object.";
    case "exclude": return correcting ? "Click what does not belong to the object." : "Select an object, then click what is not part of it.";
  }
}
