/** Outlines, prompts and frames over the slide, on one canvas that is drawn in the same frame as the tiles. */

import { boxOfView, widerView, type View } from "./answers";
import type { Classes } from "./classes";
import { contains, overlap, type Box, type Position } from "./geometry";
import { HALO, ObjectLayer, addArea, drawAreas } from "./object-layer";
import type { Objects, Prompt, SlideObject } from "./objects";
import type { Prompting } from "./prompting";
import { Signal } from "./signal";
import type { SlideViewer } from "./viewer";

const INCLUDE = "#0a7d4b";
const EXCLUDE = "#c2182b";
const FRAME = "#5b2be0";

export class Overlay {
  /** Draw the views that the network saw. */
  readonly frames = new Signal(false);
  /** The box being drawn. */
  readonly draft = new Signal<Box | null>(null);
  /** Where the keyboard points. */
  readonly crosshair = new Signal<Position | null>(null);
  readonly #canvas: HTMLCanvasElement;
  readonly #context: CanvasRenderingContext2D;
  readonly #layer: ObjectLayer;
  #scheduled = false;

  constructor(
    private readonly viewer: SlideViewer,
    private readonly objects: Objects,
    private readonly classes: Classes,
    private readonly prompting: Prompting,
  ) {
    this.#canvas = document.createElement("canvas");
    this.#canvas.className = "overlay";
    viewer.osd.canvas.append(this.#canvas);
    this.#context = this.#canvas.getContext("2d")!;
    this.#layer = new ObjectLayer(viewer, objects, classes);
    viewer.osd.addHandler("update-viewport", () => this.draw());
    viewer.osd.addHandler("animation-finish", () => this.redraw());
    const { asked, waiting } = prompting;
    for (const signal of [objects.state, classes.list, asked, waiting, this.frames, this.draft, this.crosshair]) {
      signal.watch(() => this.redraw());
    }
  }

  /** The uppermost object at a position. */
  objectAt(position: Position): SlideObject | null {
    const [x, y] = position;
    const point: Box = [x, y, x, y];
    return this.objects.all.findLast(({ bounds, area }) => overlap(bounds, point) && contains(area, position)) ?? null;
  }

  redraw(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.draw();
    });
  }

  draw(): void {
    const { viewer } = this;
    if (!viewer.ready) return;
    const [width, height] = viewer.size;
    const ratio = devicePixelRatio;
    this.#resize(width, height, ratio);
    const context = this.#context;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#layer.drawOn(context);
    const [left, top] = viewer.toScreen([0, 0]);
    context.setTransform(viewer.scale * ratio, 0, 0, viewer.scale * ratio, left * ratio, top * ratio);
    const { selected } = this.objects;
    if (selected) {
      const path = new Path2D();
      addArea(path, selected.area, 0);
      drawAreas(context, [path], this.classes.color(selected.className), 2.5, 0.2, viewer.scale);
    }
    if (selected?.made) {
      if (this.frames.value) this.#drawFrames(selected.made.answer);
      this.#drawPrompt(selected.made.prompt);
    }
    if (this.prompting.asked.value) this.#drawPrompt(this.prompting.asked.value.prompt);
    for (const prompt of this.prompting.waiting.value) this.#drawPrompt(prompt);
    if (this.draft.value) this.#drawBox(this.draft.value, INCLUDE, [6, 4]);
    if (this.crosshair.value) this.#drawCrosshair(this.crosshair.value);
  }

  #resize(width: number, height: number, ratio: number): void {
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.#canvas.width === w && this.#canvas.height === h) return;
    this.#canvas.width = w;
    this.#canvas.height = h;
  }

  #stroke(path: Path2D, color: string, line: number): void {
    this.#context.strokeStyle = color;
    this.#context.lineWidth = line / this.viewer.scale;
    this.#context.stroke(path);
  }

  #drawPrompt({ box, points }: Prompt): void {
    if (box) this.#drawBox(box, INCLUDE, [4, 3]);
    const context = this.#context;
    const unit = 1 / this.viewer.scale;
    for (const [x, y, label] of points) {
      const disc = new Path2D();
      disc.arc(x, y, 8 * unit, 0, 2 * Math.PI);
      context.fillStyle = label ? INCLUDE : EXCLUDE;
      context.fill(disc);
      this.#stroke(disc, "#ffffff", 2);
      const sign = new Path2D();
      sign.moveTo(x - 4 * unit, y);
      sign.lineTo(x + 4 * unit, y);
      if (label) {
        sign.moveTo(x, y - 4 * unit);
        sign.lineTo(x, y + 4 * unit);
      }
      this.#stroke(sign, "#ffffff", 2);
    }
  }

  #drawBox([x0, y0, x1, y1]: Box, color: string, dashes: readonly number[]): void {
    const path = new Path2D();
    path.rect(x0, y0, x1 - x0, y1 - y0);
    this.#stroke(path, HALO, 3);
    this.#context.setLineDash(dashes.map((dash) => dash / this.viewer.scale));
    this.#stroke(path, color, 1.5);
    this.#context.setLineDash([]);
  }

  #drawFrames(answer: Parameters<typeof widerView>[0]): void {
    this.#drawFrame(answer.view, answer.cache.lr === null ? "view" : "HR view", []);
    const wider = widerView(answer);
    if (wider) this.#drawFrame(wider, "LR view", [10, 6]);
  }

  #drawFrame(view: View, name: string, dashes: readonly number[]): void {
    this.#drawBox(boxOfView(view), FRAME, dashes);
    const context = this.#context;
    const [x, y] = this.viewer.toScreen([view.x, view.y]);
    const text = `${name} · ${view.mpp} µm/px`;
    context.save();
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.font = "600 12px system-ui, sans-serif";
    context.fillStyle = FRAME;
    context.fillRect(x, y - 20, context.measureText(text).width + 12, 20);
    context.fillStyle = "#ffffff";
    context.fillText(text, x + 6, y - 6);
    context.restore();
  }

  #drawCrosshair([x, y]: Position): void {
    const unit = 1 / this.viewer.scale;
    const path = new Path2D();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]] as const) {
      path.moveTo(x + dx * 4 * unit, y + dy * 4 * unit);
      path.lineTo(x + dx * 18 * unit, y + dy * 18 * unit);
    }
    this.#stroke(path, "#ffffff", 5);
    this.#stroke(path, "#101820", 2);
  }
}
