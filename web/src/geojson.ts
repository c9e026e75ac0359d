/** GeoJSON that QuPath reads and writes. QuPath counts from the corner of a slide's bounds, where it has such. */

import { areaOf, type Geometry } from "./answers";
import type { SlideDetails } from "./api";
import { colorOf, rgbOf, type Classes } from "./classes";
import { boundsOf, overlap, sizeOf, translated, type Area, type Box } from "./geometry";
import { Names, type SlideObject } from "./objects";
import { newId } from "./prompting";

const AREA = "Area µm²";
const PREDICTED_IOU = "Predicted IoU";

interface Feature {
  readonly type: "Feature";
  readonly id?: unknown;
  readonly geometry: Geometry | null;
  readonly properties?: {
    readonly objectType?: string;
    readonly name?: unknown;
    readonly classification?: { readonly name?: unknown; readonly names?: unknown; readonly color?: unknown } | string | null;
    readonly measurements?: Readonly<Record<string, unknown>>;
  } | null;
}

export function toGeoJson(objects: readonly SlideObject[], classes: Classes, slide: SlideDetails): object {
  const [dx, dy] = offset(slide);
  return { type: "FeatureCollection", features: objects.map((object) => feature(object, classes, dx, dy)) };
}

function feature(object: SlideObject, classes: Classes, dx: number, dy: number): Feature {
  const area = translated(object.area, -dx, -dy);
  const geometry = area.length === 1 ? { type: "Polygon", coordinates: area[0] } : { type: "MultiPolygon", coordinates: area };
  const classification = object.className === null
    ? {}
    : { classification: { name: object.className, color: rgbOf(classes.color(object.className)) } };
  const measurements = {
    ...(object.areaUm2 === null ? {} : { [AREA]: object.areaUm2 }),
    ...(object.predictedIou === null ? {} : { [PREDICTED_IOU]: object.predictedIou }),
  };
  const properties = { objectType: "annotation", name: object.name, ...classification, measurements };
  return { type: "Feature", id: object.id, geometry, properties };
}

/** A class as a file names it, with a colour or without. */
export interface NamedClass {
  readonly name: string;
  readonly color: string | null;
}

export interface Imported {
  readonly objects: readonly SlideObject[];
  readonly classes: readonly NamedClass[];
  /** Features that are no areas. */
  readonly skipped: number;
  /** Objects that lie beside the slide, as those of another slide do. */
  readonly outside: number;
}

/** The areas in a GeoJSON text. Throws a sentence for the user where it is none. */
export function fromGeoJson(
  text: string,
  slide: SlideDetails,
  um2PerPixel: number,
  present: readonly SlideObject[],
): Imported {
  const features = featuresOf(text);
  const [dx, dy] = offset(slide);
  const objects: SlideObject[] = [];
  const ids = new Set<string>();
  const classes = new Map<string, NamedClass>();
  const names = new Names(present);
  for (const one of features) {
    const read = one.geometry ? areaOf(one.geometry) : [];
    if (!isArea(read)) continue;
    const area = translated(read, dx, dy);
    const named = classOf(one);
    if (named) classes.set(named.name, named);
    const { name: given, measurements } = one.properties ?? {};
    const name = typeof given === "string" && given ? given : names.next();
    names.note(name);
    // Old QuPath gives every object of a file the same id.
    const id = typeof one.id === "string" && one.id && !ids.has(one.id) ? one.id : newId();
    ids.add(id);
    objects.push({
      id,
      name,
      className: named?.name ?? null,
      area,
      bounds: boundsOf(area),
      areaUm2: numberIn(measurements, AREA) ?? sizeOf(area) * um2PerPixel,
      predictedIou: numberIn(measurements, PREDICTED_IOU),
      made: null,
    });
  }
  const all: Box = [0, 0, slide.width, slide.height];
  const outside = objects.filter(({ bounds }) => !overlap(bounds, all)).length;
  return { objects, classes: [...classes.values()], skipped: features.length - objects.length, outside };
}

function featuresOf(text: string): readonly Feature[] {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON. Choose a GeoJSON file, as this page or QuPath exports it.");
  }
  const { type, features } = (document ?? {}) as { type?: unknown; features?: unknown };
  const list = Array.isArray(document) ? document : type === "FeatureCollection" ? features : [document];
  if (!Array.isArray(list) || !list.length || list.some((one) => (one as Feature | null)?.type !== "Feature")) {
    throw new Error("This file has no GeoJSON features. Choose a file that this page or QuPath exported.");
  }
  return list as Feature[];
}

/** Whether this holds rings, and every ring at least three corners of finite numbers; a file may hold anything. */
function isArea(area: Area): boolean {
  const isPosition = (one: unknown) => Array.isArray(one) && one.length > 1 && one.every(Number.isFinite);
  const isRing = (one: unknown) => Array.isArray(one) && one.length > 3 && one.every(isPosition);
  const isPolygon = (one: unknown) => Array.isArray(one) && one.length > 0 && one.every(isRing);
  return Array.isArray(area) && area.length > 0 && area.every(isPolygon);
}

/** QuPath names a class, or the parts of one. */
function classOf({ properties }: Feature): NamedClass | null {
  const given = properties?.classification;
  const names = typeof given === "object" ? given?.names : null;
  const name = typeof given === "string" ? given : (given?.name ?? (Array.isArray(names) ? names.join(": ") : null));
  if (typeof name !== "string" || !name) return null;
  const color = typeof given === "object" ? given?.color : null;
  return { name, color: isColor(color) ? colorOf(color) : null };
}

/** Red, green and blue as bytes; more may follow. */
function isColor(color: unknown): color is readonly number[] {
  return Array.isArray(color) && color.length >= 3 && color.every((part) => Number.isInteger(part) && part >= 0 && part < 256);
}

function numberIn(measurements: Readonly<Record<string, unknown>> | undefined, name: string): number | null {
  const value = measurements?.[name];
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

const offset = ({ bounds }: SlideDetails): [number, number] => [bounds?.x ?? 0, bounds?.y ?? 0];
