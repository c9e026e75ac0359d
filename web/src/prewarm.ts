/** Encodes what the pointer rests on, so that the click that follows finds its view warm. */

import type { Api, PrewarmBody } from "./api";
import type { Box } from "./geometry";

const REST_MS = 180;
/** A rest this near to an earlier one, in screen pixels, is taken to mean the same view. */
const NEAR_PX = 24;
const PAUSE_MS = 15_000;

export class Prewarm {
  #slideId: string | null = null;
  #timer = 0;
  #last = "";
  #pausedUntil = 0;

  constructor(private readonly api: Api) {}

  open(slideId: string): void {
    this.#slideId = slideId;
    this.#last = "";
    this.cancel();
  }

  cancel(): void {
    clearTimeout(this.#timer);
  }

  /** The pointer is at (x, y), `scale` screen pixels per level-0 pixel. */
  point(x: number, y: number, scale: number): void {
    const place = [x, y].map((value) => Math.round((value * scale) / NEAR_PX)).join();
    this.#later(`${place}@${scale}`, { points: [[x, y]] });
  }

  /** A box is being drawn. */
  box(box: Box): void {
    this.#later(box.map(Math.round).join(), { boxes: [box] });
  }

  #later(what: string, body: PrewarmBody): void {
    this.cancel();
    if (what === this.#last || performance.now() < this.#pausedUntil) return;
    this.#timer = window.setTimeout(() => {
      this.#last = what;
      // A prewarm that fails is no loss to anybody; a busy service is left alone for a while.
      this.api.prewarm(this.#slideId!, body).catch(() => (this.#pausedUntil = performance.now() + PAUSE_MS));
    }, REST_MS);
  }
}
