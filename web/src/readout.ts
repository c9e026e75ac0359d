/** Scale bar, magnification and coordinates. */

import { byId } from "./dom";
import { roundLength, whole } from "./format";
import type { Position } from "./geometry";
import type { SlideViewer } from "./viewer";

const LONGEST_BAR_PX = 130;
/** Microscopes: a pixel of 1 µm on the screen is what a 10x objective shows. */
const UM_AT_1X = 10;

export class Readout {
  constructor(private readonly viewer: SlideViewer) {
    viewer.osd.addHandler("update-viewport", () => this.#drawScale());
  }

  /** `um` µm per level-0 pixel. */
  um = 1;

  #drawScale(): void {
    if (!this.viewer.ready) return;
    const umPerScreenPx = this.um / this.viewer.scale;
    const { um, text } = roundLength(LONGEST_BAR_PX * umPerScreenPx);
    const bar = byId("scale-bar");
    bar.style.width = `${um / umPerScreenPx}px`;
    bar.textContent = text;
    byId("magnification").textContent = `${Number((UM_AT_1X / umPerScreenPx).toPrecision(2))}×`;
  }

  drawPosition(position: Position | null): void {
    byId("coordinates").textContent = position ? `${whole(position[0])}, ${whole(position[1])} px` : "";
  }
}
