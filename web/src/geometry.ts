/** Geometry in level-0 pixels of the slide, pixel-edge frame, unless a name says otherwise. */

export type Position = readonly [x: number, y: number];
export type Ring = readonly Position[];
/** Rings, the exterior first; as in GeoJSON, the last position repeats the first. */
export type Polygon = readonly Ring[];
export type Area = readonly Polygon[];
export type Box = readonly [x0: number, y0: number, x1: number, y1: number];

/** Smallest box around an area that is not empty. */
export function boundsOf(area: Area): Box {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [exterior] of area) {
    for (const [x, y] of exterior ?? []) {
      x0 = Math.min(x0, x);
      y0 = Math.min(y0, y);
      x1 = Math.max(x1, x);
      y1 = Math.max(y1, y);
    }
  }
  return [x0, y0, x1, y1];
}

/** Square pixels, holes taken off. */
export function sizeOf(area: Area): number {
  let size = 0;
  for (const polygon of area) {
    polygon.forEach((ring, index) => {
      const ringSize = Math.abs(signedSize(ring));
      size += index === 0 ? ringSize : -ringSize;
    });
  }
  return size;
}

/** Square pixels of a ring; positive where it turns clockwise on the screen. */
export function signedSize(ring: Ring): number {
  let twice = 0;
  for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
    twice += ring[j][0] * ring[i][1] - ring[i][0] * ring[j][1];
  }
  return twice / 2;
}

export function translated(area: Area, dx: number, dy: number): Area {
  return mapped(area, ([x, y]) => [x + dx, y + dy]);
}

export function mapped(area: Area, map: (position: Position) => Position): Area {
  return area.map((polygon) => polygon.map((ring) => ring.map(map)));
}

export function overlap(a: Box, b: Box): boolean {
  return a[0] <= b[2] && b[0] <= a[2] && a[1] <= b[3] && b[1] <= a[3];
}

/** Whether a position is inside, holes left out. */
export function contains(area: Area, [x, y]: Position): boolean {
  let inside = false;
  for (const polygon of area) {
    for (const ring of polygon) {
      for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
        const [xi, yi] = ring[i];
        const [xj, yj] = ring[j];
        if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
      }
    }
  }
  return inside;
}
