/** From clicks and boxes to outlines: what is being asked, in which order, and what becomes of the answers. */

import { outlineOf, promptBody, withCandidate, type Outline } from "./answers";
import { ApiError, type Api } from "./api";
import type { Classes } from "./classes";
import { boundsOf, type Box } from "./geometry";
import { nextName, type Objects, type Point, type Prompt, type SlideObject } from "./objects";
import { Signal } from "./signal";

export interface Asked {
  readonly prompt: Prompt;
  /** The object that is being corrected, null for a new one. */
  readonly object: SlideObject | null;
}

/** What happened, for those who tell the user. */
export interface Report {
  readonly kind: "outlined" | "nothing" | "failed";
  readonly object?: SlideObject;
  readonly error?: unknown;
}

export class Prompting {
  readonly multimask = new Signal(false);
  /** What the service is being asked just now. */
  readonly asked = new Signal<Asked | null>(null);
  readonly reported = new Signal<Report | null>(null);
  /** Square micrometres per level-0 pixel, to measure candidates with. */
  um2PerPixel = 1;
  #slideId: string | null = null;
  #last: Promise<void> = Promise.resolve();
  #abort = new AbortController();

  constructor(
    private readonly api: Api,
    private readonly objects: Objects,
    private readonly classes: Classes,
  ) {}

  open(slideId: string): void {
    this.cancel();
    this.#slideId = slideId;
  }

  /** Drop what was asked and not answered yet; whether there was such. */
  cancel(): boolean {
    const asking = this.asked.value !== null;
    this.#abort.abort();
    this.#abort = new AbortController();
    this.asked.value = null;
    return asking;
  }

  /** A box always begins a new object. */
  box(box: Box): void {
    this.#enqueue(() => ({ prompt: { box, points: [] }, object: null }));
  }

  /** A click corrects the selected object; where none is, one on an object begins a new one. */
  point(point: Point): void {
    this.#enqueue(() => {
      const object = this.objects.selected;
      if (object?.made) {
        const { prompt } = object.made;
        return { prompt: { ...prompt, points: [...prompt.points, point] }, object };
      }
      if (point[2] === 0) throw new ApiError("no-positive-point", "");
      return { prompt: { box: null, points: [point] }, object: null };
    });
  }

  /** Use another candidate of the selected object. */
  choose(candidate: number): void {
    const object = this.objects.selected;
    if (!object?.made || !object.made.answer.candidates[candidate]) return;
    const outline = withCandidate({ ...object, answer: object.made.answer }, candidate, this.um2PerPixel);
    this.objects.replace(made(object, object.made.prompt, outline));
  }

  /** One question at a time: each click builds on the answer before it. */
  #enqueue(question: () => Asked): void {
    const { signal } = this.#abort;
    this.#last = this.#last.then(async () => {
      if (!signal.aborted) await this.#ask(question, signal);
    });
  }

  async #ask(question: () => Asked, signal: AbortSignal): Promise<void> {
    try {
      const asked = (this.asked.value = question());
      const outline = await this.#outline(asked, signal);
      if (signal.aborted) return;
      if (!outline) {
        this.reported.value = { kind: "nothing" };
        return;
      }
      const object = made(asked.object ?? this.#begun(), asked.prompt, outline);
      this.objects.put([object], object.id);
      this.reported.value = { kind: "outlined", object };
    } catch (error) {
      if (!signal.aborted) this.reported.value = { kind: "failed", error };
    } finally {
      if (!signal.aborted) this.asked.value = null;
    }
  }

  /** Where the service has forgotten the earlier answer, all of the prompt is asked again. */
  async #outline({ prompt, object }: Asked, signal: AbortSignal): Promise<Outline | null> {
    const ask = async (earlier: SlideObject["made"]) => {
      const body = { prompts: [promptBody(prompt, earlier)], format: "both" as const, multimask: this.multimask.value };
      return outlineOf(await this.api.segment(this.#slideId!, body, signal));
    };
    const earlier = object?.made ?? null;
    try {
      return await ask(earlier);
    } catch (error) {
      if (!earlier || !(error instanceof ApiError) || error.type !== "refine-expired") throw error;
      return ask(null);
    }
  }

  #begun(): Pick<SlideObject, "id" | "name" | "className"> {
    return { id: newId(), name: nextName(this.objects.all), className: this.classes.active.value };
  }
}

function made(
  object: Pick<SlideObject, "id" | "name" | "className">,
  prompt: Prompt,
  { area, areaUm2, predictedIou, answer }: Outline,
): SlideObject {
  const { id, name, className } = object;
  return { id, name, className, area, bounds: boundsOf(area), areaUm2, predictedIou, made: { prompt, answer } };
}

/** A random UUID, also where the page is not served over https and the browser hides its own. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
