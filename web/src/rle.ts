/** COCO run-length masks: column-major runs, the first of background, written 5 bits a character from "0" on. */

export interface Rle {
  readonly size: readonly [height: number, width: number];
  readonly counts: string;
}

/** The run lengths that `counts` spells; from the fourth on each is told as the difference to the one two before. */
export function runsOf(counts: string): number[] {
  const runs: number[] = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let code: number;
    do {
      code = counts.charCodeAt(at++) - 48;
      value += (code & 31) * 2 ** shift;
      shift += 5;
    } while (code & 32 && at < counts.length);
    if (code & 16) value -= 2 ** shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

export function countsOf(runs: readonly number[]): string {
  let counts = "";
  runs.forEach((run, index) => {
    let value = index > 2 ? run - runs[index - 2] : run;
    for (;;) {
      // Arithmetic, for operators on bits know 32 of them, and slides have more pixels.
      const low = ((value % 32) + 32) % 32;
      value = Math.floor(value / 32);
      const done = low & 16 ? value === -1 : value === 0;
      counts += String.fromCharCode(48 + (done ? low : low | 32));
      if (done) break;
    }
  });
  return counts;
}

/** The mask, row-major, 1 where the object is. */
export function decodeRle({ size: [height, width], counts }: Rle): Uint8Array {
  const mask = new Uint8Array(height * width);
  let at = 0;
  runsOf(counts).forEach((run, index) => {
    if (index % 2) {
      for (let i = at; i < at + run; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    }
    at += run;
  });
  return mask;
}
