/** The modules under test, in one import, so that they share what they import themselves. */

export { ApiError } from "../src/api";
export { Classes } from "../src/classes";
export { fromGeoJson } from "../src/geojson";
export { Objects } from "../src/objects";
export { Prompting } from "../src/prompting";
export { countsOf, runsOf } from "../src/rle";
export { SlideWatch } from "../src/slide-watch";
