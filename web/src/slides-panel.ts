/** The strip of slides: search, pictures, more of them as one scrolls. */

import type { Api, SlidesPage } from "./api";
import { byId, make } from "./dom";
import { whole } from "./format";

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
  readonly #end = new IntersectionObserver(([entry]) => entry?.isIntersecting && this.#next && this.#more());
  readonly #pictures: Thumbnails;

  constructor(
    private readonly api: Api,
    private readonly follow: () => void,
    private readonly fail: (error: unknown) => void,
  ) {
    this.#pictures = new Thumbnails(api);
    this.#search.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = window.setTimeout(() => this.load().catch(this.fail), SEARCH_MS);
    });
  }

  focus(): void {
    this.#search.focus();
    this.#search.select();
  }

  /** List the slides that fit the search; the first one's id. */
  async load(): Promise<string | null> {
    const asked = ++this.#asked;
    const page = await this.api.slides(this.#search.value.trim(), null);
    if (asked !== this.#asked) return null;
    this.#list.replaceChildren();
    this.#add(page);
    if (!this.#list.childElementCount) this.#note.textContent = this.#empty();
    return page.slides[0]?.id ?? null;
  }

  mark(id: string | null): void {
    this.#current = id;
    for (const link of this.#list.querySelectorAll("a")) {
      if (link.dataset["id"] === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    this.#list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  }

  #more(): void {
    const [cursor, asked] = [this.#next, this.#asked];
    this.#next = null;
    const add = (page: SlidesPage): void => void (asked === this.#asked && this.#add(page));
    this.api.slides(this.#search.value.trim(), cursor).then(add).catch(this.fail);
  }

  #add(page: SlidesPage): void {
    this.#note.textContent = "";
    this.#next = page.next;
    for (const slide of page.slides) {
      const facts = `${whole(slide.width)} × ${whole(slide.height)}${slide.mpp ? ` · ${Number(slide.mpp.toFixed(3))} µm` : ""}`;
      const link = make(
        "a",
        // An address that is there already, as after a failed opening, is no news to the browser.
        {
          href: `#slide=${slide.id}`,
          "data-id": slide.id,
          title: slide.name,
          click: () => location.hash === `#slide=${slide.id}` && this.follow(),
        },
        this.#pictures.of(slide.id),
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
    return this.#search.value.trim() ? "No slide has this in its name." : "No slides yet.";
  }
}

/** Pictures of slides, each fetched when it comes into sight: a service that wants a key gets it with every request,
 * which an image's address alone cannot do. */
class Thumbnails {
  readonly #slides = new WeakMap<Element, string>();
  readonly #sight = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) void this.#load(target as HTMLImageElement);
  });

  constructor(private readonly api: Api) {}

  of(slideId: string): HTMLImageElement {
    const picture = make("img", { alt: "", decoding: "async", width: "192", height: "120" });
    this.#slides.set(picture, slideId);
    this.#sight.observe(picture);
    return picture;
  }

  async #load(picture: HTMLImageElement): Promise<void> {
    this.#sight.unobserve(picture);
    try {
      const address = URL.createObjectURL(await this.api.thumbnail(this.#slides.get(picture)!, THUMBNAIL_PX));
      picture.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
      picture.src = address;
    } catch {
      picture.replaceWith(make("span", { class: "no-picture" }, "No picture"));
    }
  }
}
