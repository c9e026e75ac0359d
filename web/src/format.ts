/** Numbers as people read them. */

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const PRECISE = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const whole = (value: number): string => WHOLE.format(value);

export const um2Text = (um2: number): string => `${um2 < 100 ? PRECISE.format(um2) : WHOLE.format(um2)} µm²`;

export const mm2Text = (um2: number): string => `${PRECISE.format(um2 / 1e6)} mm²`;

export const shortAreaText = (um2: number | null): string => (um2 === null ? "" : um2 < 1e5 ? um2Text(um2) : mm2Text(um2));

export const iouText = (iou: number | null): string => (iou === null ? "" : iou.toFixed(2));

export const percent = (share: number): string => `${Math.round(share * 100)} %`;

export const milliseconds = (ms: number): string => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

export const magnificationText = (times: number): string => `${Number(times.toPrecision(2))}×`;

export const lengthText = (um: number): string => (um >= 1000 ? `${um / 1000} mm` : um >= 1 ? `${um} µm` : `${um * 1000} nm`);

/** The largest of 1, 2 or 5 times a power of ten that is at most `longest`. */
export function roundLength(longest: number): number {
  const power = 10 ** Math.floor(Math.log10(longest));
  return power * ([5, 2, 1].find((factor) => factor * power <= longest) ?? 1);
}
