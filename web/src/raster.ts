/** Areas as pixels: a pixel belongs to an area that holds its centre. */

import { boundsOf, type Area } from "./geometry";
import { countsOf, type Rle } from "./rle";

/** Calls `fill(x, y0, y1)` for every vertical run of pixels y0 ≤ y < y1 of `area`, by column and downwards.
 * `scale` is level-0 pixels per pixel of the raster of `width` x `height`. */
export function eachRun(
  area: Area,
  width: number,
  height: number,
  scale: number,
  fill: (x: number, y0: number, y1: number) => void,
): void {
  const [left, , right] = boundsOf(area);
  const first = Math.max(0, Math.ceil(left / scale - 0.5));
  const last = Math.min(width - 1, Math.floor(right / scale - 0.5));
  if (!(first <= last)) return;
  const crossings: number[][] = Array.from({ length: last - first + 1 }, () => []);
  for (const polygon of area) {
    for (const ring of polygon) {
      for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
        addCrossings(crossings, first, ring[j][0] / scale, ring[j][1] / scale, ring[i][0] / scale, ring[i][1] / scale);
      }
    }
  }
  crossings.forEach((ys, column) => {
    ys.sort((a, b) => a - b);
    for (let i = 0; i + 1 < ys.length; i += 2) {
      const y0 = Math.max(0, Math.ceil(ys[i] - 0.5));
      const y1 = Math.min(height, Math.ceil(ys[i + 1] - 0.5));
      if (y0 < y1) fill(first + column, y0, y1);
    }
  });
}

/** Where an edge crosses the middles of columns; an end exactly on a middle counts for one of two edges only. */
function addCrossings(crossings: number[][], first: number, x0: number, y0: number, x1: number, y1: number): void {
  if (x0 === x1) return;
  const [left, right] = x0 < x1 ? [x0, x1] : [x1, x0];
  const from = Math.max(first, Math.ceil(left - 0.5));
  const to = Math.min(first + crossings.length, Math.ceil(right - 0.5));
  for (let x = from; x < to; x++) crossings[x - first].push(y0 + ((x + 0.5 - x0) * (y1 - y0)) / (x1 - x0));
}

/** `area` on the whole image, as COCO wants it. */
export function rleOf(area: Area, width: number, height: number): Rle {
  const runs: number[] = [];
  let end = 0;
  eachRun(area, width, height, 1, (x, y0, y1) => {
    const start = x * height + y0;
    if (runs.length && start === end) runs[runs.length - 1] += y1 - y0;
    else runs.push(start - end, y1 - y0);
    end = x * height + y1;
  });
  if (width * height > end || !runs.length) runs.push(width * height - end);
  return { size: [height, width], counts: countsOf(runs) };
}
