/** All objects but the selected one as one picture, which panning only shifts: stroking hundreds of outlines anew in
 * every frame is beyond a browser without a GPU. */

import type { Classes } from "./classes";
import { overlap, type Area, type Box } from "./geometry";
import type { Objects, State } from "./objects";
import type { SlideViewer } from "./viewer";

export const HALO = "rgba(255, 255, 255, 0.85)";
/** Room around the window that is drawn along, in windows. */
const MARGIN = 0.5;
/** While the slide moves, the picture may be this many times too coarse or too fine. */
const STRETCH = 2;
/** Corners nearer to each other than this on the screen, in pixels, are drawn as one. */
const CORNER_PX = 1;
/** Objects smaller than this on the screen, in pixels, are drawn as a dot. */
const DOT_PX = 3;

/** What the picture shows: `box` of level 0 at `scale` device pixels per level-0 pixel. */
interface Drawn {
  readonly box: Box;
  readonly scale: number;
  readonly state: State;
  readonly classes: unknown;
}

export class ObjectLayer {
  readonly #canvas = document.createElement("canvas");
  readonly #context = this.#canvas.getContext("2d")!;
  #drawn: Drawn | null = null;

  constructor(
    private readonly viewer: SlideViewer,
    private readonly objects: Objects,
    private readonly classes: Classes,
  ) {}

  /** Draw the objects onto a context in device pixels of the window. */
  drawOn(context: CanvasRenderingContext2D): void {
    const ratio = devicePixelRatio;
    const scale = this.viewer.scale * ratio;
    const drawn = this.#fits(scale) ? this.#drawn! : this.#redraw(scale);
    const [x, y] = this.viewer.toScreen([drawn.box[0], drawn.box[1]]);
    const stretch = scale / drawn.scale;
    const { width, height } = this.#canvas;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.#canvas, Math.round(x * ratio), Math.round(y * ratio), width * stretch, height * stretch);
  }

  #fits(scale: number): boolean {
    const drawn = this.#drawn;
    if (!drawn || drawn.state !== this.objects.state.value || drawn.classes !== this.classes.list.value) return false;
    const [x0, y0, x1, y1] = this.viewer.visible;
    const covers = drawn.box[0] <= x0 && drawn.box[1] <= y0 && drawn.box[2] >= x1 && drawn.box[3] >= y1;
    const stretch = Math.max(scale / drawn.scale, drawn.scale / scale);
    return covers && (stretch < 1.001 || (this.viewer.moving && stretch < STRETCH));
  }

  #redraw(scale: number): Drawn {
    const [x0, y0, x1, y1] = this.viewer.visible;
    const [dx, dy] = [(x1 - x0) * MARGIN, (y1 - y0) * MARGIN];
    const box: Box = [x0 - dx, y0 - dy, x1 + dx, y1 + dy];
    this.#canvas.width = Math.ceil((box[2] - box[0]) * scale); // clears it, too
    this.#canvas.height = Math.ceil((box[3] - box[1]) * scale);
    this.#context.setTransform(scale, 0, 0, scale, -box[0] * scale, -box[1] * scale);
    for (const [color, paths] of this.#paths(box)) drawAreas(this.#context, paths, color, 1.5, 0.14, this.viewer.scale);
    return (this.#drawn = { box, scale, state: this.objects.state.value, classes: this.classes.list.value });
  }

  /** One path per object, by colour. */
  #paths(box: Box): Map<string, Path2D[]> {
    const { scale } = this.viewer;
    const { selectedId } = this.objects.state.value;
    const paths = new Map<string, Path2D[]>();
    for (const { bounds, area, className, id } of this.objects.all) {
      if (!overlap(bounds, box) || id === selectedId) continue;
      const color = this.classes.color(className);
      const path = new Path2D();
      const [x0, y0, x1, y1] = bounds;
      if (Math.max(x1 - x0, y1 - y0) * scale < DOT_PX) path.rect(x0, y0, DOT_PX / scale, DOT_PX / scale);
      else addArea(path, area, CORNER_PX / scale);
      const alike = paths.get(color);
      if (alike) alike.push(path);
      else paths.set(color, [path]);
    }
    return paths;
  }
}

/** Fill and stroke with a light rim; `line` in screen pixels, `scale` screen pixels per unit of the paths. Each is filled
 * by itself: filled as one, even-odd, they would be empty where two overlap, and take twice as long. */
export function drawAreas(
  context: CanvasRenderingContext2D,
  paths: readonly Path2D[],
  color: string,
  line: number,
  opacity: number,
  scale: number,
): void {
  context.lineJoin = "round";
  context.globalAlpha = opacity;
  context.fillStyle = color;
  const outlines = new Path2D();
  for (const path of paths) {
    context.fill(path, "evenodd");
    outlines.addPath(path);
  }
  context.globalAlpha = 1;
  for (const [style, width] of [[HALO, line + 2], [color, line]] as const) {
    context.strokeStyle = style;
    context.lineWidth = width / scale;
    context.stroke(outlines);
  }
}

/** Add an area to a path, without corners that are nearer than `apart` to the one before in both directions. */
export function addArea(path: Path2D, area: Area, apart: number): void {
  for (const polygon of area) {
    for (const ring of polygon) {
      let [px, py] = [Infinity, Infinity];
      ring.forEach(([x, y], i) => {
        if (i && Math.abs(x - px) < apart && Math.abs(y - py) < apart) return;
        if (i) path.lineTo(x, y);
        else path.moveTo(x, y);
        [px, py] = [x, y];
      });
      path.closePath();
    }
  }
}
