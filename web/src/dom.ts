/** The few ways in which this page touches its document. */

/** The element that index.html has under `id`. */
export function byId<E extends Element = HTMLElement>(id: string): E {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found as Element as E;
}

type Attributes = Readonly<Record<string, string | boolean | ((event: Event) => void)>>;

/** A new element. Attributes that are functions listen to the event of their name, those that are false are left out. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A round patch of a colour; set through the style object, which the Content-Security-Policy allows. */
export function swatch(color: string): HTMLSpanElement {
  const patch = make("span", { class: "swatch", "aria-hidden": "true" });
  patch.style.backgroundColor = color;
  return patch;
}

/** Lets the browser save `content` under `name`. */
export function save(content: Blob, name: string): void {
  const address = URL.createObjectURL(content);
  const link = make("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
