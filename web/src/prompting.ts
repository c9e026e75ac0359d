/** From clicks and boxes to outlines: what is being asked, in which order, and what becomes of the answers. */

import { outlineOf, promptBody, withCandidate, type Outline } from "./answers";
import { ApiError, type Api } from "./api";
import type { Classes } from "./classes";
import { boundsOf, type Box } from "./geometry";
import { Names, type Objects, type Point, type Prompt, type SlideObject } from "./objects";
import { Signal } from "./signal";

export interface Asked {
  readonly prompt: Prompt;
  /** The object that is being corrected, null for a new one. */
  readonly object: SlideObject | null;
}

/** The object that a box or a click is about. */
interface Subject {
  readonly id: string;
  /** The class to begin it with. */
  className: string | null;
  /** Whether it was among the objects; where it no longer is, somebody deleted it. */
  drawn: boolean;
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
  /** Boxes and clicks that wait for their turn, in order. */
  readonly waiting = new Signal<readonly Prompt[]>([]);
  readonly reported = new Signal<Report | null>(null);
  /** Square micrometres per level-0 pixel, to measure candidates with. */
  um2PerPixel = 1;
  #slideId: string | null = null;
  #last: Promise<void> = Promise.resolve();
  #abort = new AbortController();
  /** The object begun last, while it is not drawn yet and still in hand. */
  #begun: Subject | null = null;

  constructor(
    private readonly api: Api,
    private readonly objects: Objects,
    private readonly classes: Classes,
  ) {
    objects.state.watch(({ selectedId }) => selectedId !== null && (this.#begun = null));
    classes.active.watch((name) => this.#begun && (this.#begun.className = name));
  }

  open(slideId: string): void {
    this.cancel();
    this.#slideId = slideId;
  }

  /** Drop what was asked and not answered yet; whether there was such. */
  cancel(): boolean {
    const asking = this.asked.value !== null;
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#begun = null;
    this.asked.value = null;
    this.waiting.value = [];
    return asking;
  }

  /** A box always begins a new object. */
  box(box: Box): void {
    this.#enqueue(this.#begin(), { box, points: [] });
  }

  /** A click corrects the selected object or the one just begun; where there is none, one on an object begins a new one. */
  point(point: Point): void {
    const { selected } = this.objects;
    const present = selected?.made ? { id: selected.id, className: selected.className, drawn: true } : this.#begun;
    if (!present && point[2] === 0) {
      this.reported.value = { kind: "failed", error: new ApiError("no-positive-point", "") };
      return;
    }
    this.#enqueue(present ?? this.#begin(), { box: null, points: [point] });
  }

  /** Done with this object: what comes now begins another one. */
  next(): void {
    this.#begun = null;
    this.objects.select(null);
  }

  /** Use another candidate of the selected object. */
  choose(candidate: number): void {
    const object = this.objects.selected;
    if (!object?.made || !object.made.answer.candidates[candidate]) return;
    const outline = withCandidate({ ...object, answer: object.made.answer }, candidate, this.um2PerPixel);
    this.objects.replace(made(object, object.made.prompt, outline));
  }

  /** Begin an object, to which clicks belong until another one is begun or selected. */
  #begin(): Subject {
    this.objects.select(null);
    return (this.#begun = { id: newId(), className: this.classes.active.value, drawn: false });
  }

  /** One question at a time: each click builds on the answer before it. */
  #enqueue(subject: Subject, given: Prompt): void {
    const { signal } = this.#abort;
    this.waiting.value = [...this.waiting.value, given];
    this.#last = this.#last.then(async () => {
      if (signal.aborted) return;
      this.waiting.value = this.waiting.value.slice(1);
      await this.#ask(subject, given, signal);
    });
  }

  async #ask(subject: Subject, given: Prompt, signal: AbortSignal): Promise<void> {
    const isGone = (): boolean => subject.drawn && !this.objects.get(subject.id);
    if (isGone()) return;
    try {
      const object = this.objects.get(subject.id);
      const asked = (this.asked.value = { prompt: joined(object?.made?.prompt ?? null, given), object });
      const outline = await this.#outline(asked, signal);
      if (signal.aborted || isGone()) return;
      if (!outline) {
        this.reported.value = { kind: "nothing" };
        return;
      }
      // What the user did to the object meanwhile stays.
      const present = this.objects.get(subject.id) ?? {
        ...subject,
        className: this.classes.has(subject.className) ? subject.className : null,
        name: new Names(this.objects.all).next(),
      };
      const drawn = made(present, asked.prompt, outline);
      subject.drawn = true;
      this.objects.put([drawn], subject === this.#begun ? drawn.id : this.objects.state.value.selectedId);
      this.reported.value = { kind: "outlined", object: drawn };
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
}

/** What an object was made from, and what was given since. */
function joined(earlier: Prompt | null, { box, points }: Prompt): Prompt {
  return { box: box ?? earlier?.box ?? null, points: [...(earlier?.points ?? []), ...points] };
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
