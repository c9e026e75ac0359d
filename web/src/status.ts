/** The status corner: what answers here, and how busy it is. */

import type { Api, Info } from "./api";
import { byId, make } from "./dom";
import { percent } from "./format";

const POLL_MS = 5000;

export class Status {
  #info: Info | null = null;

  constructor(private readonly api: Api) {
    setInterval(() => document.hidden || void this.refresh(), POLL_MS);
    document.addEventListener("visibilitychange", () => document.hidden || void this.refresh());
  }

  get info(): Info | null {
    return this.#info;
  }

  async load(): Promise<Info> {
    this.#info = await this.api.info();
    void this.refresh();
    return this.#info;
  }

  async refresh(): Promise<void> {
    try {
      this.#info ??= await this.api.info();
      this.#draw(this.#info, await this.api.metrics().catch(() => ""));
    } catch {
      byId("status").dataset["state"] = "away";
      byId("status-text").textContent = "Service not reachable";
    }
  }

  #draw(info: Info, metrics: string): void {
    const model = info.models[0]!;
    const waiting = sum(metrics, "wsisam_queue_depth");
    const lookups = sum(metrics, "wsisam_embedding_lookups_total");
    const encoded = sum(metrics, "wsisam_embedding_lookups_total", 'tier="encoded"');
    const hits = lookups ? percent(1 - encoded / lookups) : "nothing asked yet";
    byId("status").dataset["state"] = waiting ? "busy" : "ready";
    byId("status-text").textContent = `${model.name} on ${info.device}${waiting ? ` · ${waiting} waiting` : ""}`;
    const adapters = model.adapters ? `${model.adapters.name} (${model.adapters.sha256.slice(0, 12)})` : "none: the frozen SAM";
    const rows: [string, string][] = [
      ["Model", model.name],
      ["Adapters", adapters],
      ["Device", info.device],
      ["Precision", info.precision],
      ["Engine", info.engine],
      ["Trained for", model.trained_prompts.join(", ")],
      ["Cache hits", metrics ? hits : "not told"],
      ["Queue", metrics ? String(waiting) : "not told"],
      ["Version", info.version],
    ];
    byId("status-facts").replaceChildren(
      ...rows.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]),
    );
  }
}

/** The sum of a Prometheus metric over its series, or over those that have `label`. */
function sum(metrics: string, name: string, label = ""): number {
  const lines = metrics.split("\n").filter((line) => line.startsWith(`${name}{`) && line.includes(label));
  return lines.reduce((total, line) => total + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}
