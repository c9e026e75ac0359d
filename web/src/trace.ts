/** Outlines of masks along pixel edges, with holes. */

import { contains, signedSize, type Area, type Polygon, type Position, type Ring } from "./geometry";

/** The outline of a row-major mask of `width` x `height`, in its pixel-edge frame. Its corners are cut in half a pixel,
 * which no pixel's centre notices. Pixels that meet at a corner only are apart. */
export function trace(mask: Uint8Array, width: number, height: number): Area {
  const rings = boundaries(mask, width, height);
  const outer = rings.filter((ring) => signedSize(ring) > 0);
  const polygons: Ring[][] = outer.map((ring) => [ring]);
  for (const hole of rings.filter((ring) => signedSize(ring) < 0)) {
    const around = polygons
      .filter(([exterior]) => contains([[exterior]], hole[0]))
      .sort((a, b) => signedSize(a[0]) - signedSize(b[0]))[0];
    around?.push(hole);
  }
  return polygons.map((polygon): Polygon => polygon.map(cutCorners));
}

const STEPS: readonly Position[] = [[1, 0], [0, 1], [-1, 0], [0, -1]];

/** Closed walks over pixel corners with the object on the right hand, one position per unit edge. */
function boundaries(mask: Uint8Array, width: number, height: number): Ring[] {
  const at = (x: number, y: number) => (x >= 0 && y >= 0 && x < width && y < height ? mask[y * width + x] : 0);
  /** Whether the unit edge from corner (x, y) in `direction` has the object on its right and background on its left. */
  const isEdge = (x: number, y: number, direction: number): boolean => {
    switch (direction) {
      case 0: return at(x, y) === 1 && at(x, y - 1) === 0;
      case 1: return at(x - 1, y) === 1 && at(x, y) === 0;
      case 2: return at(x - 1, y - 1) === 1 && at(x - 1, y) === 0;
      default: return at(x, y - 1) === 1 && at(x - 1, y - 1) === 0;
    }
  };
  const walked = new Uint8Array((width + 1) * (height + 1));
  const rings: Ring[] = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!isEdge(x, y, 0) || walked[y * (width + 1) + x] & 1) continue;
      const ring: Position[] = [];
      let [cx, cy, direction] = [x, y, 0];
      do {
        walked[cy * (width + 1) + cx] |= 1 << direction;
        ring.push([cx, cy]);
        cx += STEPS[direction][0];
        cy += STEPS[direction][1];
        // Right first: that keeps pixels apart which meet at a corner only.
        direction = [(direction + 1) % 4, direction, (direction + 3) % 4].find((turn) => isEdge(cx, cy, turn))!;
      } while (cx !== x || cy !== y || direction !== 0);
      rings.push(ring);
    }
  }
  return rings;
}

/** The middles of unit edges, straight stretches reduced to their ends, closed. */
function cutCorners(ring: Ring): Ring {
  const middles = ring.map(([x, y], i): Position => {
    const [nx, ny] = ring[(i + 1) % ring.length];
    return [(x + nx) / 2, (y + ny) / 2];
  });
  const kept = middles.filter(([x, y], i) => {
    const [px, py] = middles[(i + middles.length - 1) % middles.length];
    const [nx, ny] = middles[(i + 1) % middles.length];
    return (x - px) * (ny - y) !== (y - py) * (nx - x);
  });
  return [...kept, kept[0]];
}
