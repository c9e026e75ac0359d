/** The link to a place: #slide=…&x=…&y=…&zoom=… */

export interface Place {
  readonly slide: string | null;
  /** Middle of the window, level-0 pixels. */
  readonly x: number | null;
  readonly y: number | null;
  /** Screen pixels per level-0 pixel. */
  readonly zoom: number | null;
}

export function readLink(): Place {
  const values = new URLSearchParams(location.hash.slice(1));
  const number = (name: string): number | null => {
    const value = parseFloat(values.get(name) ?? "");
    return Number.isFinite(value) ? value : null;
  };
  return { slide: values.get("slide") || null, x: number("x"), y: number("y"), zoom: number("zoom") };
}

/** Put a place into the address bar without a new entry in the browser's history. */
export function writeLink(slide: string, x: number, y: number, zoom: number): void {
  const values = new URLSearchParams({ slide, x: x.toFixed(0), y: y.toFixed(0), zoom: Number(zoom.toPrecision(4)).toString() });
  history.replaceState(null, "", `#${values}`);
}
