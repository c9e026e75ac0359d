/** Answers of segment, as this page keeps them. */

import { problemError, type PromptBody, type SegmentAnswer, type Timed } from "./api";
import { mapped, type Area, type Box, type Polygon } from "./geometry";
import type { Prompt } from "./objects";
import { decodeRle, type Rle } from "./rle";
import { trace } from "./trace";

export interface View {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  readonly mpp: number;
}

export interface Candidate {
  readonly mask: Rle;
  readonly predictedIou: number;
}

export interface ModelAnswer {
  /** Token to correct this very answer with. */
  readonly refine: string | null;
  readonly mask: Rle;
  readonly view: View;
  readonly touchesEdge: boolean;
  /** Name of the adapters that drew it, "none" for the frozen SAM. */
  readonly adapters: string;
  /** Where the embeddings of the two views came from; no lr without adapters. */
  readonly cache: { readonly hr: string; readonly lr: string | null };
  /** Milliseconds: at the service by stage, and until the answer was here. */
  readonly server: Readonly<Record<string, number>>;
  readonly total: number;
  /** Best first, with multimask only; `chosen` is the one in use. */
  readonly candidates: readonly Candidate[];
  readonly chosen: number;
  readonly warnings: readonly string[];
}

/** What an outline is, apart from who made it. */
export interface Outline {
  readonly area: Area;
  readonly areaUm2: number | null;
  readonly predictedIou: number | null;
  readonly answer: ModelAnswer;
}

/** The first result as an outline, null where the mask is empty. Throws what the service refused. */
export function outlineOf({ body, server, total }: Timed<SegmentAnswer>): Outline | null {
  const result = body.results[0];
  if (result?.problem) throw problemError(result.problem);
  if (!result?.view || !result.mask || !result.geojson) return null;
  return {
    area: areaOf(result.geojson["geometry"] as Geometry),
    areaUm2: result.area_um2 ?? null,
    predictedIou: result.predicted_iou ?? null,
    answer: {
      refine: result.refine ?? null,
      mask: result.mask,
      view: result.view,
      touchesEdge: result.touches_edge ?? false,
      adapters: result.adapters ?? "none",
      cache: result.cache ?? { hr: "encoded", lr: null },
      server,
      total,
      candidates: (result.masks ?? []).map(({ mask, predicted_iou }) => ({ mask, predictedIou: predicted_iou })),
      chosen: 0,
      warnings: body.warnings,
    },
  };
}

/** `outline` with another of its candidates; the outline is then traced here, the service draws only the best. */
export function withCandidate(outline: Outline, chosen: number, um2PerPixel: number): Outline {
  const { answer } = outline;
  const { mask, predictedIou } = answer.candidates[chosen]!;
  const [height, width] = mask.size;
  const pixels = decodeRle(mask);
  const { x, y, width: viewWidth, height: viewHeight } = answer.view;
  const area = mapped(trace(pixels, width, height), ([column, row]) => [
    x + (column * viewWidth) / width,
    y + (row * viewHeight) / height,
  ]);
  const inside = pixels.reduce((sum, pixel) => sum + pixel, 0);
  const areaUm2 = ((inside * viewWidth * viewHeight) / (width * height)) * um2PerPixel;
  return { area, areaUm2, predictedIou, answer: { ...answer, mask, chosen } };
}

/** What to ask for `prompt`, given the answer to an earlier part of it: as little as the service's memory allows. */
export function promptBody(prompt: Prompt, earlier: { prompt: Prompt; answer: ModelAnswer } | null): PromptBody {
  const points = prompt.points.map(([x, y, label]) => [x, y, label] as const);
  const box = prompt.box ? { box: prompt.box } : {};
  if (!earlier || prompt.box !== earlier.prompt.box) return { ...box, points };
  if (earlier.answer.chosen > 0) {
    const { mask, view } = earlier.answer;
    return { ...box, points, mask: { ...mask, x: view.x, y: view.y, width: view.width, height: view.height } };
  }
  if (!earlier.answer.refine) return { ...box, points };
  return { refine: earlier.answer.refine, points: points.slice(earlier.prompt.points.length) };
}

/** The wider view around `view`, where one was used. */
export function widerView(answer: ModelAnswer): View | null {
  const { x, y, width, height, mpp } = answer.view;
  if (answer.cache.lr === null) return null;
  return { x: x - width / 2, y: y - height / 2, width: width * 2, height: height * 2, mpp: mpp * 2 };
}

export function boxOfView({ x, y, width, height }: View): Box {
  return [x, y, x + width, y + height];
}

export interface Geometry {
  readonly type: string;
  readonly coordinates: unknown;
}

/** Polygons of a GeoJSON geometry; none where it is of another kind. */
export function areaOf(geometry: Geometry): Area {
  if (geometry.type === "Polygon") return [geometry.coordinates as Polygon];
  if (geometry.type === "MultiPolygon") return geometry.coordinates as Area;
  return [];
}
