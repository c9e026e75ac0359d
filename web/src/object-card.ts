/** What is known of the selected object. */

import type { Asked, Prompting } from "./prompting";
import type { ModelAnswer } from "./answers";
import { byId, make } from "./dom";
import { iouText, milliseconds, mm2Text, um2Text } from "./format";
import type { Objects, SlideObject } from "./objects";

const PLACES: Readonly<Record<string, string>> = {
  encoded: "computed now",
  l1: "cache",
  memory: "cache (memory)",
  folder: "cache (folder)",
  redis: "cache (Redis)",
};

export class ObjectCard {
  readonly #card = byId("card");

  constructor(
    private readonly objects: Objects,
    private readonly prompting: Prompting,
  ) {
    objects.state.watch(() => this.#draw());
    prompting.asked.watch(() => this.#draw());
  }

  #draw(): void {
    const asked = this.prompting.asked.value;
    const { selected } = this.objects;
    this.#card.setAttribute("aria-busy", String(asked !== null));
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset["candidate"] : undefined;
    if (selected) this.#card.replaceChildren(...this.#facts(selected, asked?.object?.id === selected.id));
    else if (asked) this.#card.replaceChildren(...outlining(asked));
    else this.#card.replaceChildren(make("p", { class: "empty" }, "No object selected."));
    if (focused !== undefined) this.#card.querySelector<HTMLElement>(`[data-candidate="${focused}"]`)?.focus();
  }

  #facts(object: SlideObject, asking: boolean): Node[] {
    const { areaUm2, predictedIou } = object;
    const rows: [string, Node | string][] = [["Area", areaUm2 === null ? "unknown" : withSmall(um2Text(areaUm2), mm2Text(areaUm2))]];
    if (predictedIou !== null) rows.push(["Predicted IoU", iouMeter(predictedIou)]);
    const answer = object.made?.answer;
    if (answer) {
      const { hr, lr } = answer.cache;
      rows.push(["Answered in", withSmall(milliseconds(answer.total), stagesText(answer))]);
      rows.push(["Drawn by", answer.adapters === "none" ? "the frozen SAM" : answer.adapters]);
      rows.push(["HR view", PLACES[hr] ?? hr]);
      rows.push(["LR view", lr === null ? "not used by this model" : (PLACES[lr] ?? lr)]);
    }
    const facts = make("dl", {}, ...rows.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]));
    const notes = answer ? notesOf(answer) : ["Imported: draw a box to begin an object that can be corrected."];
    return [
      make("h3", {}, object.name, ...(asking ? [make("span", { class: "busy", "aria-label": "Outlining" })] : [])),
      facts,
      ...(answer && answer.candidates.length > 1 ? [this.#candidates(answer)] : []),
      ...notes.map((note) => make("p", { class: "note" }, note)),
    ];
  }

  #candidates(answer: ModelAnswer): HTMLElement {
    return make(
      "div",
      { class: "candidates", role: "group", "aria-label": "Candidates" },
      ...answer.candidates.map(({ predictedIou }, index) =>
        make(
          "button",
          {
            type: "button",
            "data-candidate": String(index),
            "aria-pressed": String(index === answer.chosen),
            click: () => this.prompting.choose(index),
          },
          `${index + 1} · ${iouText(predictedIou)}`,
        ),
      ),
    );
  }
}

function outlining({ object }: Asked): Node[] {
  return [make("h3", {}, object?.name ?? "New object"), make("p", { class: "busy" }, "Outlining…")];
}

function iouMeter(iou: number): Node {
  const meter = make("meter", { min: "0", max: "1", low: "0.7", optimum: "1", high: "0.85", value: String(iou), "aria-hidden": "true" });
  return make("span", { class: "iou" }, iouText(iou), meter);
}

function withSmall(text: string, small: string): Node {
  return make("span", {}, text, ...(small ? [" ", make("small", {}, small)] : []));
}

/** What took half a millisecond or more at the service. */
function stagesText({ server }: ModelAnswer): string {
  const stages = ["read", "queue", "encode", "decode", "mask"].filter((stage) => (server[stage] ?? 0) >= 0.5);
  return stages.map((stage) => `${stage} ${milliseconds(server[stage] ?? 0)}`).join(" · ");
}

function notesOf(answer: ModelAnswer): string[] {
  const notes = [...answer.warnings];
  if (answer.touchesEdge) notes.unshift("The object goes on beyond the view: draw a larger box to get all of it.");
  return notes;
}
