/** The service's HTTP API, with types generated from its OpenAPI. Every address is relative to the page's own. */

import type { components } from "./api-types";

type Schemas = components["schemas"];
export type SlideSummary = Schemas["SlideAnswer"];
export type SlideDetails = Schemas["SlideDetailsAnswer"];
export type SlidesPage = Schemas["SlidesAnswer"];
export type Info = Schemas["InfoAnswer"];
export type Problem = Schemas["ProblemAnswer"];
export type PromptBody = Schemas["PromptBody"];
export type SegmentBody = Schemas["SegmentBody"];
export type SegmentAnswer = Schemas["SegmentAnswerModel"];
export type PrewarmBody = Schemas["PrewarmBody"];

const TOKEN_KEY = "wsisam:token";
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

  /** The bearer token that a person gave; kept for this browser tab only. */
  get token(): string {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  }

  set token(token: string) {
    sessionStorage.setItem(TOKEN_KEY, token);
  }

  get headers(): Record<string, string> {
    return this.token ? { authorization: `Bearer ${this.token}` } : {};
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

  /** A picture's address for an `img`; fetched first where a token must go along. */
  async thumbnail(id: string, longest: number): Promise<string> {
    const path = `v1/slides/${encodeURIComponent(id)}/thumbnail?max=${longest}`;
    if (!this.token) return path;
    return URL.createObjectURL(await (await this.#fetch(path)).blob());
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
        await new Promise((resolve) => setTimeout(resolve, wait * 1000));
        request.signal?.throwIfAborted();
      }
    }
  }

  async #fetch(path: string, request: RequestInit = {}): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(new URL(path, this.#base), { ...request, headers: { ...request.headers, ...this.headers } });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new ApiError("unreachable", "the service does not answer");
    }
    if (!response.ok) throw await apiError(response);
    return response;
  }
}

function post(body: object, signal?: AbortSignal): RequestInit {
  const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return signal ? { ...request, signal } : request;
}

async function apiError(response: Response): Promise<ApiError> {
  const after = response.headers.get("retry-after");
  try {
    const problem = (await response.json()) as Problem;
    return problemError(problem, after === null ? null : Number(after));
  } catch {
    return new ApiError(`http-${response.status}`, response.statusText, after === null ? null : Number(after));
  }
}

export function problemError(problem: Problem, retryAfterS: number | null = null): ApiError {
  return new ApiError(problem.type.replace("/problems/", ""), problem.detail, retryAfterS);
}

function serverTiming(header: string): Record<string, number> {
  const stages = header.split(",").map((part) => /^\s*([\w-]+);dur=([\d.]+)/.exec(part));
  return Object.fromEntries(stages.flatMap((found) => (found ? [[found[1], Number(found[2])]] : [])));
}
