/** Keeps the objects of the open slide in the browser, and reads them back. */

import type { Objects, SlideObject } from "./objects";
import * as storage from "./storage";

const KEEP_MS = 150;

export class Keeper {
  /** Whose objects these are, as they were last kept or read. */
  #open: { readonly fingerprint: string; objects: readonly SlideObject[] } | null = null;
  #timer = 0;

  constructor(
    private readonly objects: Objects,
    private readonly full: () => void,
  ) {
    objects.state.watch(() => {
      clearTimeout(this.#timer);
      this.#timer = window.setTimeout(() => this.keep(), KEEP_MS);
    });
    window.addEventListener("pagehide", () => this.keep());
    storage.watchObjects(
      () => this.#open?.fingerprint ?? null,
      () => this.#open && this.open(this.#open.fingerprint),
    );
  }

  /** Show the objects kept of a slide, those of the one before being safe. */
  open(fingerprint: string): void {
    const objects = storage.loadObjects(fingerprint);
    this.#open = { fingerprint, objects };
    this.objects.open(objects);
  }

  /** Keep what has changed, and let go of the slide where another one is to come. */
  close(): void {
    this.keep();
    this.#open = null;
  }

  keep(): void {
    clearTimeout(this.#timer);
    if (!this.#open || this.objects.all === this.#open.objects) return;
    this.#open.objects = this.objects.all;
    if (!storage.keepObjects(this.#open.fingerprint, this.objects.all)) this.full();
  }
}
