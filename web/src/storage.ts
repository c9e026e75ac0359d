/** What the browser keeps over a reload. Objects are kept by the slide's content: a renamed slide keeps its own. */

import type { ObjectClass } from "./classes";
import type { SlideObject } from "./objects";

const VERSION = "wsisam:1:";

export interface Preferences {
  readonly tool: string | null;
  readonly multimask: boolean;
  readonly frames: boolean;
  /** Single letters are shortcuts everywhere, not just on the slide. */
  readonly letters: boolean;
}

const DEFAULT_PREFERENCES: Preferences = { tool: null, multimask: false, frames: false, letters: true };

const objectsKey = (fingerprint: string) => `${VERSION}objects:${fingerprint}`;

export const loadObjects = (fingerprint: string): readonly SlideObject[] =>
  read<readonly SlideObject[]>(objectsKey(fingerprint)) ?? [];

/** False where the browser has no room left. */
export const keepObjects = (fingerprint: string, objects: readonly SlideObject[]): boolean =>
  objects.length ? write(objectsKey(fingerprint), objects) : remove(objectsKey(fingerprint));

/** Calls `changed` when another tab of this browser changes the objects of the slide. */
export function watchObjects(fingerprint: () => string | null, changed: () => void): void {
  window.addEventListener("storage", ({ key }) => {
    const print = fingerprint();
    if (print !== null && key === objectsKey(print)) changed();
  });
}

/** Calls `changed` when another tab of this browser changes the classes. */
export function watchClasses(changed: () => void): void {
  window.addEventListener("storage", ({ key }) => key === `${VERSION}classes` && changed());
}

export const loadClasses = (): readonly ObjectClass[] | null => read(`${VERSION}classes`);
export const keepClasses = (classes: readonly ObjectClass[]): boolean => write(`${VERSION}classes`, classes);

export const loadPreferences = (): Preferences => ({ ...DEFAULT_PREFERENCES, ...read<Preferences>(`${VERSION}preferences`) });
export const keepPreferences = (preferences: Preferences): boolean => write(`${VERSION}preferences`, preferences);

function read<T>(key: string): T | null {
  try {
    return JSON.parse(localStorage.getItem(key) ?? "null") as T | null;
  } catch {
    return null;
  }
}

function write(key: string, value: unknown): boolean {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function remove(key: string): boolean {
  try {
    localStorage.removeItem(key);
    return true;
  } catch {
    return false;
  }
}
