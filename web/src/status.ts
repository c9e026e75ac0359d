/** The status corner: what answers here, and how busy it is. */

import { ApiError, type Api, type Info } from "./api";
import { byId, make } from "./dom";
import { percent } from "./format";
import { Signal } from "./signal";

const POLL_MS = 5000;

export type Health = "starting" | "ready" | "busy" | "refusing" | "away" | "guarded";

const TROUBLES: Readonly<Partial<Record<Health, string>>> = {
  away: "Service not reachable",
  guarded: "Access key needed",
  refusing: "Service cannot answer now",
};

export class Status {
  readonly health = new Signal<Health>("starting");

  constructor(private readonly api: Api) {
    setInterval(() => document.hidden || void this.refresh(), POLL_MS);
    document.addEventListener("visibilitychange", () => document.hidden || void this.refresh());
  }

  async refresh(): Promise<void> {
    try {
      this.#draw(await this.api.info(), await this.api.metrics().catch(untold));
    } catch (error) {
      const health = healthOf(error);
      byId("status-text").textContent = TROUBLES[health]!;
      this.#tell(health);
    }
  }

  #tell(health: Health): void {
    byId("status").dataset["state"] = health;
    this.health.value = health;
  }

  #draw(info: Info, metrics: string): void {
    const model = info.models[0]!;
    const waiting = sum(metrics, "wsisam_queue_depth");
    const lookups = sum(metrics, "wsisam_embedding_lookups_total");
    const encoded = sum(metrics, "wsisam_embedding_lookups_total", 'tier="encoded"');
    const hits = lookups ? percent(1 - encoded / lookups) : "nothing asked yet";
    this.#tell(waiting ? "busy" : "ready");
    byId("status-text").textContent = `${model.name} on ${info.device}${waiting ? ` · ${waiting} waiting` : ""}`;
    const adapters = model.adapters ? `${model.adapters.name} (${model.adapters.sha256.slice(0, 12)})` : "none: the frozen SAM";
    const rows: [string, string][] = [
      ["Model", model.name],
      ["Adapters", adapters],
      ...(model.own_adapters ?? []).map((own): [string, string] => ["For its tissue", `${own.name} (${own.sha256.slice(0, 12)})`]),
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

function healthOf(error: unknown): Health {
  if (!(error instanceof ApiError) || error.type === "unreachable") return "away";
  return error.type === "unauthorized" ? "guarded" : "refusing";
}

/** Metrics may be for other eyes only; that the service is gone is another matter. */
function untold(error: unknown): string {
  if (error instanceof ApiError && error.type === "unreachable") throw error;
  return "";
}

/** The sum of a Prometheus metric over its series, or over those that have `label`. */
function sum(metrics: string, name: string, label = ""): number {
  const lines = metrics.split("\n").filter((line) => line.startsWith(`${name}{`) && line.includes(label));
  return lines.reduce((total, line) => total + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}
