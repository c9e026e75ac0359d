/** Mouse, pen and touch on the slide: what they mean with the tool in hand. */

import type { Box, Position } from "./geometry";
import type { Objects } from "./objects";
import type { Overlay } from "./overlay";
import type { Prewarm } from "./prewarm";
import type { Prompting } from "./prompting";
import { Signal } from "./signal";
import type { SlideViewer } from "./viewer";

export const TOOLS = ["move", "box", "include", "exclude"] as const;
export type Tool = (typeof TOOLS)[number];

/** A drag shorter than this, in screen pixels, draws no box. */
const SHORTEST_DRAG_PX = 5;
const MIDDLE_BUTTON = 1;
const RIGHT_BUTTON = 2;

export class Pointer {
  readonly tool = new Signal<Tool>("box");
  /** Where the pointer is, null where it is not on the slide. */
  readonly position = new Signal<Position | null>(null);
  #pressed: Position | null = null;
  #panning: Position | null = null;
  /** The space bar is held: drags move the slide. */
  #moving = false;

  constructor(
    private readonly viewer: SlideViewer,
    private readonly overlay: Overlay,
    private readonly objects: Objects,
    private readonly prompting: Prompting,
    private readonly prewarm: Prewarm,
  ) {
    this.tool.watch((tool) => (viewer.osd.element.dataset["tool"] = tool));
    this.#listen();
  }

  set moving(moving: boolean) {
    this.#moving = moving;
    this.viewer.osd.element.dataset["tool"] = moving ? "move" : this.tool.value;
  }

  /** Give up the box being drawn; whether there was one. */
  cancel(): boolean {
    const drawing = this.overlay.draft.value !== null;
    this.overlay.draft.value = null;
    this.#pressed = null;
    return drawing;
  }

  /** Use the tool in hand at a position; `turned` makes including excluding. */
  use(position: Position, turned = false): void {
    const tool = this.tool.value;
    if (tool === "include" || tool === "exclude") {
      const label = (tool === "include") !== turned ? 1 : 0;
      this.prompting.point([...rounded(position), label]);
    } else {
      this.objects.select(this.overlay.objectAt(position)?.id ?? null);
    }
  }

  #listen(): void {
    const { osd } = this.viewer;
    osd.addHandler("canvas-press", ({ position }) => (this.#pressed = this.viewer.toSlide([position.x, position.y])));
    osd.addHandler("canvas-drag", (event) => {
      if (!this.#draws || !this.#pressed) return;
      event.preventDefaultAction = true;
      this.overlay.draft.value = boxBetween(this.#pressed, this.viewer.toSlide([event.position.x, event.position.y]));
      this.prewarm.box(this.overlay.draft.value);
    });
    osd.addHandler("canvas-drag-end", (event) => {
      if (!this.overlay.draft.value) return;
      event.preventDefaultAction = true;
      this.finishBox(this.overlay.draft.value);
    });
    osd.addHandler("canvas-pinch", () => this.cancel());
    osd.addHandler("canvas-click", (event) => {
      if (!event.quick || this.#moving) return;
      const { altKey, shiftKey } = event.originalEvent as MouseEvent;
      this.use(this.viewer.toSlide([event.position.x, event.position.y]), altKey || shiftKey);
    });
    osd.addHandler("canvas-nonprimary-press", ({ position, button }) => {
      if (button === MIDDLE_BUTTON) this.#panning = [position.x, position.y];
      if (button === RIGHT_BUTTON) this.prompting.point([...rounded(this.viewer.toSlide([position.x, position.y])), 0]);
    });
    osd.addHandler("canvas-nonprimary-release", () => (this.#panning = null));
    osd.addHandler("canvas-contextmenu", (event) => (event.preventDefault = true));
    osd.canvas.addEventListener("pointermove", (event) => this.#moved(event));
    osd.canvas.addEventListener("pointerleave", () => {
      this.position.value = null;
      this.prewarm.cancel();
    });
  }

  get #draws(): boolean {
    return this.tool.value === "box" && !this.#moving;
  }

  #moved({ clientX, clientY, buttons, pointerType }: PointerEvent): void {
    if (!this.viewer.ready) return;
    const { left, top } = this.viewer.osd.canvas.getBoundingClientRect();
    const screen: Position = [clientX - left, clientY - top];
    if (this.#panning) {
      this.viewer.panBy(this.#panning[0] - screen[0], this.#panning[1] - screen[1]);
      this.#panning = screen;
    }
    const [x, y] = (this.position.value = this.viewer.toSlide(screen));
    const newObject = this.tool.value === "include" && !this.objects.selected?.made;
    if (newObject && !buttons && pointerType !== "touch" && this.#onSlide(x, y)) this.prewarm.point(x, y, this.viewer.scale);
  }

  /** Ask for a box, unless it is too small on the screen to be meant. */
  finishBox([x0, y0, x1, y1]: Box): void {
    this.cancel();
    this.prewarm.cancel();
    if (Math.min(x1 - x0, y1 - y0) * this.viewer.scale < SHORTEST_DRAG_PX) return;
    this.prompting.box([...rounded([x0, y0]), ...rounded([x1, y1])]);
  }

  #onSlide(x: number, y: number): boolean {
    const { slide } = this.viewer;
    return slide !== null && x >= 0 && y >= 0 && x < slide.width && y < slide.height;
  }
}

export function boxBetween([ax, ay]: Position, [bx, by]: Position): Box {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}

/** Hundredths of a pixel are as fine as QuPath keeps. */
const rounded = ([x, y]: Position): [number, number] => [Math.round(x * 100) / 100, Math.round(y * 100) / 100];
