/** Export and import: what the menu offers, and dropping a file on the page. */

import type { SlideDetails } from "./api";
import type { Classes } from "./classes";
import { toCoco } from "./coco";
import { byId, save } from "./dom";
import { fromGeoJson, toGeoJson } from "./geojson";
import { toLabelMask } from "./label-mask";
import type { Objects } from "./objects";

export class Files {
  constructor(
    private readonly objects: Objects,
    private readonly classes: Classes,
    private readonly open: () => { slide: SlideDetails; um2PerPixel: number } | null,
    private readonly tell: (text: string, kind: "info" | "error") => void,
  ) {
    const chooser = byId<HTMLInputElement>("import-file");
    byId("export-geojson").addEventListener("click", () => this.#exportJson("geojson", "application/geo+json", toGeoJson));
    byId("export-coco").addEventListener("click", () => this.#exportJson("coco.json", "application/json", toCoco));
    byId("export-png").addEventListener("click", () => void this.#exportMask());
    byId("import").addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", () => {
      void this.#import(chooser.files?.[0]).then(() => (chooser.value = ""));
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      void this.#import(event.dataTransfer?.files[0]);
    });
  }

  #exportJson(suffix: string, type: string, document: typeof toGeoJson): void {
    const open = this.open();
    if (!open) return;
    const text = JSON.stringify(document(this.objects.all, this.classes, open.slide));
    save(new Blob([text], { type }), `${stem(open.slide.name)}.${suffix}`);
  }

  async #exportMask(): Promise<void> {
    const open = this.open();
    if (!open) return;
    const { content, scale } = await toLabelMask(this.objects.all, open.slide);
    save(content, `${stem(open.slide.name)}.labels${scale > 1 ? `-1to${scale}` : ""}.png`);
  }

  async #import(file: File | undefined): Promise<void> {
    const open = this.open();
    if (!file || !open) return;
    try {
      const { objects, classes, skipped, outside } = fromGeoJson(await file.text(), open.slide, open.um2PerPixel, this.objects.all);
      for (const { name, color } of classes) this.classes.put(name, color);
      const expected = this.objects.all.length + objects.length;
      this.objects.put(objects, null);
      const known = expected - this.objects.all.length;
      const instead = known ? `, replacing ${known} with the same id` : "";
      const left = skipped ? `, left out ${skipped} that are no areas` : "";
      const beside = outside ? ` ${outside} lie beside this slide: is it another slide's file?` : "";
      this.tell(`Imported ${objects.length} object${objects.length === 1 ? "" : "s"}${instead}${left}.${beside}`, outside ? "error" : "info");
    } catch (error) {
      this.tell((error as Error).message, "error");
    }
  }
}

const stem = (name: string): string => name.replace(/(\.ome)?\.[^.]+$/i, "");
