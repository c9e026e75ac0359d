/** Scale bar, magnification and coordinates. */

import { byId } from "./dom";
import { lengthText, magnificationText, percent, roundLength, whole } from "./format";
import type { Position } from "./geometry";
import type { SlideViewer } from "./viewer";

const LONGEST_BAR_PX = 130;
/** Microscopes: a pixel of 1 µm on the screen is what a 10x objective shows. */
const UM_AT_1X = 10;

export class Readout {
  constructor(private readonly viewer: SlideViewer) {
    viewer.osd.addHandler("update-viewport", () => this.#drawScale());
  }

  /** µm per level-0 pixel; null for slides that do not say, which are measured in pixels. */
  um: number | null = null;

  #drawScale(): void {
    if (!this.viewer.ready) return;
    const { um, viewer } = this;
    const unitsPerScreenPx = (um ?? 1) / viewer.scale;
    const longest = LONGEST_BAR_PX * unitsPerScreenPx;
    const length = roundLength(longest);
    const bar = byId("scale-bar");
    bar.style.width = `${length / unitsPerScreenPx}px`;
    bar.textContent = um === null ? `${whole(length)} px` : lengthText(length);
    byId("magnification").textContent = um === null ? percent(viewer.scale) : magnificationText(UM_AT_1X / unitsPerScreenPx);
  }

  drawPosition(position: Position | null): void {
    byId("coordinates").textContent = position ? `${whole(position[0])}, ${whole(position[1])} px` : "";
  }
}
