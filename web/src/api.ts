/** The service's HTTP API, with types generated from its OpenAPI. Every address is relative to the page's own. */

import type { components } from "./api-types";

type Schemas = components["schemas"];
export type SlideDetails = Schemas["SlideDetailsAnswer"];
export type SlidesPage = Schemas["SlidesAnswer"];
export type Info = Schemas["InfoAnswer"];
export type Problem = Schemas["ProblemAnswer"];
export type PromptBody = Schemas["PromptBody"];
export type SegmentBody = Schemas["SegmentBody"];
export type SegmentAnswer = Schemas["SegmentAnswerModel"];
export type PrewarmBody = Schemas["PrewarmBody"];

const KEPT_KEY = "wsisam:access-key";
const MAX_RETRIES = 2;
const LONGEST_WAIT_S = 10;

/** A problem document, or what stands for one where no service answers. */
export class ApiError extends Error {
  constructor(
    readonly type: string,
    readonly detail: string,
    readonly retryAfterS: number | null = null,
  ) {
    super(detail);
  }
}

export interface Timed<T> {
  readonly body: T;
  /** Milliseconds by stage, of the Server-Timing header. */
  readonly server: Readonly<Record<string, number>>;
  /** Milliseconds from asking to having the answer. */
  readonly total: number;
}

export class Api {
  readonly #base = new URL("./", document.baseURI);
  /** The key that the service refused last. It is not asked with again: wrong keys are counted by address, and those of
   * a page left open would lock its neighbours out. */
  #refused = "";

  /** The access key that a person gave, empty where there is none; kept for this browser tab only. */
  get key(): string {
    return sessionStorage.getItem(KEPT_KEY) ?? "";
  }

  set key(key: string) {
    sessionStorage.setItem(KEPT_KEY, key);
    this.#refused = "";
  }

  /** What every request carries. */
  get headers(): Record<string, string> {
    return this.key ? { authorization: `Bearer ${this.key}` } : {};
  }

  info(): Promise<Info> {
    return this.#json("v1/info");
  }

  slides(q: string, cursor: string | null): Promise<SlidesPage> {
    const query = new URLSearchParams({ q, limit: "60", ...(cursor ? { cursor } : {}) });
    return this.#json(`v1/slides?${query}`);
  }

  slide(id: string): Promise<SlideDetails> {
    return this.#json(`v1/slides/${encodeURIComponent(id)}`);
  }

  /** The IIIF description of a slide, its address put right for wherever the page is mounted. */
  async image(id: string): Promise<Record<string, unknown>> {
    const path = `v1/slides/${encodeURIComponent(id)}/iiif`;
    return { ...(await this.#json<object>(`${path}/info.json`)), id: new URL(path, this.#base).href };
  }

  async thumbnail(id: string, longest: number): Promise<Blob> {
    return (await this.#fetch(`v1/slides/${encodeURIComponent(id)}/thumbnail?max=${longest}`)).blob();
  }

  /** Throws why a tile is not given. */
  async probe(address: string): Promise<void> {
    await this.#fetch(address);
  }

  /** Waits and asks again, a few times, where the service is too busy. */
  async segment(id: string, body: SegmentBody, signal: AbortSignal): Promise<Timed<SegmentAnswer>> {
    const start = performance.now();
    const response = await this.#patiently(`v1/slides/${encodeURIComponent(id)}/segment`, post(body, signal));
    const answer = (await response.json()) as SegmentAnswer;
    const server = serverTiming(response.headers.get("server-timing") ?? "");
    return { body: answer, server, total: performance.now() - start };
  }

  async prewarm(id: string, body: PrewarmBody): Promise<void> {
    await this.#fetch(`v1/slides/${encodeURIComponent(id)}/prewarm`, post(body));
  }

  /** Prometheus text. */
  async metrics(): Promise<string> {
    return (await this.#fetch("metrics")).text();
  }

  async #json<T>(path: string): Promise<T> {
    return (await this.#fetch(path)).json() as Promise<T>;
  }

  async #patiently(path: string, request: RequestInit): Promise<Response> {
    for (let tries = 0; ; tries++) {
      try {
        return await this.#fetch(path, request);
      } catch (error) {
        const wait = error instanceof ApiError ? error.retryAfterS : null;
        if (wait === null || wait > LONGEST_WAIT_S || tries === MAX_RETRIES) throw error;
        await pause(wait * 1000, request.signal);
      }
    }
  }

  async #fetch(path: string, request: RequestInit = {}): Promise<Response> {
    const { key } = this;
    if (key && key === this.#refused) throw new ApiError("unauthorized", "the service has refused this key");
    let response: Response;
    try {
      response = await fetch(new URL(path, this.#base), { ...request, headers: { ...request.headers, ...this.headers } });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new ApiError("unreachable", "the service does not answer");
    }
    if (response.ok) return response;
    const error = await apiError(response);
    if (error.type === "unauthorized") this.#refused = key;
    throw error;
  }
}

function post(body: object, signal?: AbortSignal): RequestInit {
  const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return signal ? { ...request, signal } : request;
}

/** Resolves after `ms`; throws at once where the question is given up. */
function pause(ms: number, signal: AbortSignal | null | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason as Error)), { once: true });
  });
}

async function apiError(response: Response): Promise<ApiError> {
  const after = Number(response.headers.get("retry-after") ?? NaN); // a date is as good as none
  const retryAfterS = Number.isFinite(after) ? after : null;
  try {
    return problemError((await response.json()) as Problem, retryAfterS);
  } catch {
    // No problem document: something in front of the service answers for it.
    const type = response.status >= 502 ? "unreachable" : `http-${response.status}`;
    return new ApiError(type, response.statusText, retryAfterS);
  }
}

export function problemError(problem: Problem, retryAfterS: number | null = null): ApiError {
  return new ApiError(problem.type.replace("/problems/", ""), problem.detail, retryAfterS);
}

function serverTiming(header: string): Record<string, number> {
  const stages = header.split(",").map((part) => /^\s*([\w-]+);dur=([\d.]+)/.exec(part));
  return Object.fromEntries(stages.flatMap((found) => (found ? [[found[1], Number(found[2])]] : [])));
}
