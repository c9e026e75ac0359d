/** Panels, menus and messages around the slide. */

import { byId } from "./dom";

const PHONE = matchMedia("(max-width: 759px)");
const MOVES_FOCUS = /^(Tab|Arrow)/;
const INFO_MS = 6000;
type Panel = "slides" | "objects";

export interface Panels {
  readonly show: (panel: Panel) => void;
  /** Give the slide back its room where panels cover it. */
  readonly closeOnPhone: () => void;
}

/** Panels beside the slide; on a phone sheets over it, one at a time. */
export function installPanels(): Panels {
  const set = (panel: Panel, open: boolean): void => {
    byId(`${panel}-panel`).hidden = !open;
    byId(`show-${panel}`).setAttribute("aria-expanded", String(open));
  };
  const show = (panel: Panel): void => {
    if (PHONE.matches) set(panel === "slides" ? "objects" : "slides", false);
    set(panel, true);
  };
  const all = (open: boolean): void => (["slides", "objects"] as const).forEach((panel) => set(panel, open));
  for (const panel of ["slides", "objects"] as const) {
    byId(`show-${panel}`).addEventListener("click", () => {
      if (byId(`${panel}-panel`).hidden) show(panel);
      else set(panel, false);
    });
  }
  PHONE.addEventListener("change", () => all(!PHONE.matches));
  all(!PHONE.matches);
  return { show, closeOnPhone: () => PHONE.matches && all(false) };
}

/** Menus close on a click elsewhere, on a choice, and with Escape. Buttons that show a dialog close it too. */
export function installMenus(): void {
  for (const menu of document.querySelectorAll<HTMLDetailsElement>("details.menu")) {
    document.addEventListener("pointerdown", ({ target }) => menu.contains(target as Node) || (menu.open = false));
    const close = (): void => {
      menu.open = false;
      menu.querySelector("summary")?.focus();
    };
    // Before the choice acts: a dialog that it shows gives the focus back to where it was.
    menu.addEventListener("click", ({ target }) => (target as Element).closest("button") && close(), true);
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      event.stopPropagation();
      close();
    });
  }
  byId("show-help").addEventListener("click", () => byId<HTMLDialogElement>("help").showModal());
  byId("class-cancel").addEventListener("click", () => byId<HTMLDialogElement>("class-dialog").close());
}

/** Lets the style show the slide's focus to those who use the keyboard, and spare those who do not. */
export function tellModality(): void {
  const { dataset } = document.documentElement;
  document.addEventListener("keydown", ({ key }) => MOVES_FOCUS.test(key) && (dataset["modality"] = "keyboard"), true);
  document.addEventListener("pointerdown", () => (dataset["modality"] = "pointer"), true);
}

export class Messages {
  readonly #box = byId("message");
  #timer = 0;

  constructor() {
    byId("message-close").addEventListener("click", () => this.close());
  }

  /** Errors stay until they are closed or something works. */
  tell(text: string, kind: "info" | "error"): void {
    clearTimeout(this.#timer);
    this.#box.setAttribute("role", kind === "error" ? "alert" : "status");
    this.#box.dataset["kind"] = kind;
    this.#box.hidden = false;
    byId("message-text").textContent = text;
    if (kind === "info") this.#timer = window.setTimeout(() => this.close(), INFO_MS);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#box.hidden = true;
  }

  /** For screen readers only. */
  announce(text: string): void {
    byId("announce").textContent = text;
  }
}
