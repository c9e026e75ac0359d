/** Notices that the file of the open slide was replaced, or is gone: its tiles and outlines are then another's. */

import { ApiError, type Api } from "./api";
import type { SlideViewer } from "./viewer";

const POLL_MS = 15_000;

export class SlideWatch {
  /** The slide that was told to be gone. */
  #told: string | null = null;

  constructor(
    private readonly api: Api,
    private readonly viewer: SlideViewer,
    private readonly replaced: (id: string) => void,
    private readonly gone: (error: ApiError) => void,
  ) {
    setInterval(() => document.hidden || void this.#look(), POLL_MS);
    document.addEventListener("visibilitychange", () => document.hidden || void this.#look());
  }

  async #look(): Promise<void> {
    const { slide } = this.viewer;
    if (!slide) return;
    try {
      const { fingerprint } = await this.api.slide(slide.id);
      this.#told = null;
      if (slide === this.viewer.slide && fingerprint !== slide.fingerprint) this.replaced(slide.id);
    } catch (error) {
      // What else can go wrong shows in the status corner.
      if (!(error instanceof ApiError) || error.type !== "unknown-slide") return;
      if (slide !== this.viewer.slide || slide.id === this.#told) return;
      this.#told = slide.id;
      this.gone(error);
    }
  }
}
