/** Asks for the key that a guarded service wants: an API key, or a token of the hospital's sign-in. */

import type { Api } from "./api";
import { byId } from "./dom";

/** What a browser can send as a key, and every key is made of. */
const PLAIN = /^[!-~]+$/;

export class Access {
  readonly #dialog = byId<HTMLDialogElement>("access-dialog");
  readonly #field = byId<HTMLInputElement>("access-key");
  readonly #forget = byId<HTMLButtonElement>("access-forget");

  /** `changed` is called with every key that is given, and once one is forgotten. */
  constructor(
    private readonly api: Api,
    changed: () => void,
  ) {
    byId("show-access").addEventListener("click", () => this.#show(""));
    byId("access-cancel").addEventListener("click", () => this.#dialog.close());
    byId("access-form").addEventListener("submit", (event) => {
      const key = this.#field.value.trim();
      if (PLAIN.test(key)) {
        api.key = key;
        changed();
        return;
      }
      event.preventDefault();
      this.#dialog.close();
      this.#show("This cannot be a key: it has a space or a letter in it that no key has. Copy it anew.");
    });
    this.#forget.addEventListener("click", () => {
      api.key = "";
      this.#dialog.close();
      changed();
    });
  }

  /** The service has refused a request for want of a key, or refused the key. */
  refused(): void {
    this.#show(this.api.key ? "The service does not accept this key, or it has run out." : "This service asks who you are.");
  }

  #show(reason: string): void {
    byId("access-reason").textContent = reason;
    this.#forget.hidden = !this.api.key;
    if (this.#dialog.open) return;
    this.#field.value = "";
    this.#dialog.showModal();
  }
}
