/** The strip of slides: search, thumbnails, more of them as one scrolls. */

import type { Api, SlidesPage } from "./api";
import { byId, make } from "./dom";
import { whole } from "./format";
import { inWords } from "./messages";

const SEARCH_MS = 200;
const THUMBNAIL_PX = 320;

export class SlidesPanel {
  readonly #list = byId("slides");
  readonly #note = byId("slides-note");
  readonly #search = byId<HTMLInputElement>("slides-search");
  #current: string | null = null;
  #next: string | null = null;
  #asked = 0;
  #timer = 0;
  readonly #end = new IntersectionObserver(([entry]) => entry?.isIntersecting && this.#next && void this.#more());

  constructor(private readonly api: Api) {
    this.#search.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = window.setTimeout(() => void this.load(), SEARCH_MS);
    });
  }

  focus(): void {
    this.#search.focus();
    this.#search.select();
  }

  /** List the slides that fit the search; the first one's id. */
  async load(): Promise<string | null> {
    const asked = ++this.#asked;
    try {
      const page = await this.api.slides(this.#search.value.trim(), null);
      if (asked !== this.#asked) return null;
      this.#list.replaceChildren();
      this.#add(page);
      if (!this.#list.childElementCount) this.#note.textContent = this.#empty();
      return page.slides[0]?.id ?? null;
    } catch (error) {
      this.#note.textContent = inWords(error);
      throw error;
    }
  }

  mark(id: string | null): void {
    this.#current = id;
    for (const link of this.#list.querySelectorAll("a")) {
      if (link.dataset["id"] === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    this.#list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  }

  async #more(): Promise<void> {
    const cursor = this.#next;
    this.#next = null;
    this.#add(await this.api.slides(this.#search.value.trim(), cursor));
  }

  #add(page: SlidesPage): void {
    this.#note.textContent = "";
    this.#next = page.next;
    for (const slide of page.slides) {
      const picture = make("img", { alt: "", loading: "lazy", decoding: "async", width: "192", height: "120" });
      void this.api.thumbnail(slide.id, THUMBNAIL_PX).then((address) => (picture.src = address));
      const facts = `${whole(slide.width)} × ${whole(slide.height)}${slide.mpp ? ` · ${Number(slide.mpp.toFixed(3))} µm` : ""}`;
      const link = make(
        "a",
        { href: `#slide=${slide.id}`, "data-id": slide.id, title: slide.name },
        picture,
        make("span", { class: "name" }, slide.name),
        make("span", { class: "facts" }, facts),
      );
      this.#list.append(make("li", {}, link));
    }
    for (const { name, problem } of page.unreadable) {
      const facts = make("span", { class: "facts" }, problem.title);
      this.#list.append(make("li", { class: "unreadable" }, make("span", { class: "name" }, name), facts));
    }
    this.mark(this.#current);
    this.#end.disconnect();
    const last = this.#list.lastElementChild;
    if (last && this.#next) this.#end.observe(last);
  }

  #empty(): string {
    return this.#search.value.trim()
      ? "No slide has this in its name."
      : "No slides here yet. Start the service with --slides and a folder that has some.";
  }
}
