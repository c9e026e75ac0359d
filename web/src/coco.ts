/** COCO JSON with run-length masks over the whole slide at level 0; category 0 is "no class". */

import type { SlideDetails } from "./api";
import type { Classes } from "./classes";
import { sizeOf } from "./geometry";
import type { SlideObject } from "./objects";
import { rleOf } from "./raster";

export function toCoco(objects: readonly SlideObject[], classes: Classes, slide: SlideDetails): object {
  const names = [...new Set(objects.flatMap(({ className }) => (className === null ? [] : [className])))];
  const annotations = objects.map((object, index) => {
    const [x0, y0, x1, y1] = object.bounds;
    return {
      id: index + 1,
      image_id: 1,
      category_id: object.className === null ? 0 : names.indexOf(object.className) + 1,
      segmentation: rleOf(object.area, slide.width, slide.height),
      area: sizeOf(object.area),
      bbox: [x0, y0, x1 - x0, y1 - y0],
      iscrowd: 0,
      ...(object.predictedIou === null ? {} : { score: object.predictedIou }),
      attributes: { name: object.name, area_um2: object.areaUm2 },
    };
  });
  return {
    images: [{ id: 1, file_name: slide.name, width: slide.width, height: slide.height, mpp: slide.mpp }],
    categories: [
      { id: 0, name: "None", supercategory: "" },
      ...names.map((name, index) => ({ id: index + 1, name, supercategory: "", color: classes.color(name) })),
    ],
    annotations,
  };
}
