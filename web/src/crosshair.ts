/** The keyboard's own pointer on the slide: arrow keys move it, the space bar uses the tool in hand there. */

import type { Position } from "./geometry";
import type { Overlay } from "./overlay";
import { boxBetween, type Pointer } from "./pointer";
import type { SlideViewer } from "./viewer";

const STEP_PX = 12;
const FAST = 5;
/** The slide moves along when the crosshair comes this near to the window's edge, in screen pixels. */
const MARGIN_PX = 60;

export class Crosshair {
  /** First corner of the box being drawn by keyboard. */
  #corner: Position | null = null;

  constructor(
    private readonly viewer: SlideViewer,
    private readonly overlay: Overlay,
    private readonly pointer: Pointer,
  ) {
    viewer.osd.canvas.addEventListener("pointermove", () => this.hide());
    pointer.tool.watch(() => this.#dropCorner());
  }

  get shown(): boolean {
    return this.overlay.crosshair.value !== null;
  }

  hide(): boolean {
    const shown = this.shown;
    this.overlay.crosshair.value = null;
    this.#dropCorner();
    return shown;
  }

  /** With the Move tool arrow keys move the slide, with the others the crosshair. */
  arrow(dx: number, dy: number, fast: boolean): void {
    const step = STEP_PX * (fast ? FAST : 1);
    if (this.pointer.tool.value === "move") {
      this.viewer.panBy(dx * step * 4, dy * step * 4);
      return;
    }
    const [x, y] = this.overlay.crosshair.value ?? this.viewer.center;
    const position: Position = [x + (dx * step) / this.viewer.scale, y + (dy * step) / this.viewer.scale];
    this.overlay.crosshair.value = position;
    if (this.#corner) this.overlay.draft.value = boxBetween(this.#corner, position);
    this.#keepInView(this.viewer.toScreen(position), dx * step, dy * step);
  }

  /** Place a point, or one corner of a box after the other. */
  use(): void {
    const position = this.overlay.crosshair.value;
    if (!position) return;
    if (this.pointer.tool.value !== "box") {
      this.pointer.use(position);
    } else if (this.#corner) {
      const box = boxBetween(this.#corner, position);
      this.#dropCorner();
      this.pointer.finishBox(box);
    } else {
      this.#corner = position;
      this.overlay.draft.value = boxBetween(position, position);
    }
  }

  #dropCorner(): void {
    if (!this.#corner) return;
    this.#corner = null;
    this.overlay.draft.value = null;
  }

  #keepInView([x, y]: Position, dx: number, dy: number): void {
    const [width, height] = this.viewer.size;
    const outX = x < MARGIN_PX || x > width - MARGIN_PX;
    const outY = y < MARGIN_PX || y > height - MARGIN_PX;
    if (outX || outY) this.viewer.panBy(outX ? dx : 0, outY ? dy : 0);
  }
}
