/** Every shortcut in one table: what it does, and what the help says of it. */

import { byId, make } from "./dom";

export interface Shortcut {
  /** `KeyboardEvent.key`, lower case; "mod+" is Control or Command. The first one is shown. */
  readonly keys: readonly string[];
  readonly label: string;
  readonly run: (event: KeyboardEvent) => void;
  /** Only while the slide has the focus. */
  readonly onSlide?: boolean;
}

/** Where `letters` says no, single letters are shortcuts only while the slide has the focus: those who speak to their
 * browser do not want a word to act (WCAG 2.1.4). */
export function installShortcuts(shortcuts: readonly Shortcut[], slide: HTMLElement, letters: () => boolean): void {
  document.addEventListener("keydown", (event) => {
    if (isTyping(event.target) || event.altKey || document.querySelector("dialog[open]")) return;
    const name = `${event.ctrlKey || event.metaKey ? "mod+" : ""}${event.key.toLowerCase()}`;
    const onSlide = document.activeElement === slide;
    if (name.length === 1 && !letters() && !onSlide) return;
    const shortcut = shortcuts.find((one) => one.keys.includes(name) && (onSlide || !one.onSlide));
    if (!shortcut) return;
    event.preventDefault();
    shortcut.run(event);
  });
  byId("shortcuts").replaceChildren(
    ...shortcuts.flatMap(({ keys, label }) => [
      make("dt", {}, ...keys.slice(0, 1).map((key) => make("kbd", {}, shown(key)))),
      make("dd", {}, label),
    ]),
  );
}

const NAMES: Readonly<Record<string, string>> = {
  " ": "Space",
  arrowleft: "Arrow keys",
  enter: "Enter",
  escape: "Esc",
  delete: "Delete",
  "mod+z": "Ctrl Z",
  "mod+y": "Ctrl Y",
};

const shown = (key: string): string => NAMES[key] ?? key.toUpperCase();

/** Whether the keyboard belongs to a field, so that letters are letters. */
function isTyping(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  return target.isContentEditable || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);
}
