/** A grey PNG in which each pixel holds the number of its object in the list, 0 for background. */

import type { SlideDetails } from "./api";
import type { SlideObject } from "./objects";
import { eachRun } from "./raster";

/** Larger slides are drawn at a half, a quarter, … of their size: a browser has no room for more. */
const MAX_PIXELS = 40_000_000;
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const GREY = 0;

export interface LabelMask {
  readonly content: Blob;
  /** Level-0 pixels per pixel of the mask. */
  readonly scale: number;
}

export async function toLabelMask(objects: readonly SlideObject[], slide: SlideDetails): Promise<LabelMask> {
  let scale = 1;
  while ((slide.width / scale) * (slide.height / scale) > MAX_PIXELS) scale *= 2;
  const [width, height] = [Math.ceil(slide.width / scale), Math.ceil(slide.height / scale)];
  const bytes = objects.length < 256 ? 1 : 2;
  const rows = new Uint8Array(height * (1 + width * bytes)); // each row begins with its filter, 0 for none
  const stride = 1 + width * bytes;
  objects.forEach(({ area }, index) => {
    const label = index + 1;
    eachRun(area, width, height, scale, (x, y0, y1) => {
      for (let y = y0; y < y1; y++) {
        const at = y * stride + 1 + x * bytes;
        if (bytes === 2) rows[at] = label >> 8;
        rows[at + bytes - 1] = label & 255;
      }
    });
  });
  const header = new Uint8Array(13);
  const numbers = new DataView(header.buffer);
  numbers.setUint32(0, width);
  numbers.setUint32(4, height);
  header.set([bytes * 8, GREY, 0, 0, 0], 8);
  const compressed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(compressed).arrayBuffer());
  const chunks = [chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", new Uint8Array(0))];
  return { content: new Blob([new Uint8Array(SIGNATURE), ...chunks], { type: "image/png" }), scale };
}

/** Length, type, data and CRC, as PNG wants them. */
function chunk(type: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(12 + data.length);
  const numbers = new DataView(whole.buffer);
  numbers.setUint32(0, data.length);
  whole.set([...type].map((letter) => letter.charCodeAt(0)), 4);
  whole.set(data, 8);
  numbers.setUint32(8 + data.length, crc(whole.subarray(4, 8 + data.length)));
  return whole;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc(bytes: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255]! ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}
