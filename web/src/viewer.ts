/** The slide in OpenSeadragon, and the conversions between its frames. Positions are level-0 pixels. */

import OpenSeadragon from "openseadragon";
import type { Api, SlideDetails } from "./api";
import type { Box, Position } from "./geometry";

/** Screen pixels per level-0 pixel at most. */
const MAX_SCREEN_PX = 6;

export class SlideViewer {
  readonly osd: OpenSeadragon.Viewer;
  slide: SlideDetails | null = null;

  constructor(
    element: HTMLElement,
    private readonly api: Api,
  ) {
    // OpenSeadragon adds a style sheet, which the Content-Security-Policy forbids, unless it finds an element so named.
    const standIn = document.createElementNS(null, "style");
    standIn.setAttribute("data-openseadragon-mobile-css", "");
    document.head.append(standIn);
    this.osd = OpenSeadragon({
      element,
      showNavigationControl: false,
      showNavigator: matchMedia("(min-width: 760px)").matches,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.14,
      drawer: "canvas",
      animationTime: 0.5,
      springStiffness: 9,
      visibilityRatio: 0.25,
      minZoomImageRatio: 0.6,
      maxZoomPixelRatio: MAX_SCREEN_PX,
      zoomPerScroll: 1.3,
      imageLoaderLimit: 6,
      maxImageCacheCount: 400,
      tileRetryMax: 2,
      tileRetryDelay: 2000,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false, flickEnabled: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false, pinchToZoom: true, flickEnabled: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
    });
    const { canvas } = this.osd;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Slide. Arrow keys move a crosshair, the space bar uses the tool there. Press ? for help.");
    this.osd.addHandler("canvas-key", (event) => (event.preventDefaultAction = true));
  }

  /** Show a slide, given its IIIF description. Resolves once it is there. */
  async open(slide: SlideDetails, image: Readonly<Record<string, unknown>>): Promise<void> {
    this.slide = slide;
    await new Promise<void>((resolve, reject) => {
      this.osd.addOnceHandler("open", () => resolve());
      this.osd.addOnceHandler("open-failed", ({ message }) => reject(new Error(message)));
      const guarded = this.api.key !== "";
      this.osd.open({ tileSource: image as never, loadTilesWithAjax: guarded, ajaxHeaders: this.api.headers } as never);
    });
  }

  /** Fetch the tiles anew, with another key or after a trouble, and stay at the place. */
  async refresh(): Promise<void> {
    if (!this.slide || !this.ready) return;
    const { slide, center, scale } = this;
    const image = await this.api.image(slide.id);
    if (slide !== this.slide) return;
    await this.open(slide, image);
    this.goTo(center, scale, true);
  }

  get ready(): boolean {
    return this.osd.world.getItemCount() > 0;
  }

  /** Whether it is panned or zoomed just now. */
  get moving(): boolean {
    return (this.osd as unknown as { isAnimating(): boolean }).isAnimating(); // its types forget this one
  }

  /** Screen pixels per level-0 pixel, as they are drawn now. */
  get scale(): number {
    return this.osd.viewport.viewportToImageZoom(this.osd.viewport.getZoom(true));
  }

  get center(): Position {
    const { x, y } = this.osd.viewport.viewportToImageCoordinates(this.osd.viewport.getCenter(true));
    return [x, y];
  }

  /** Size of the window in screen pixels. */
  get size(): Position {
    const { x, y } = this.osd.viewport.getContainerSize();
    return [x, y];
  }

  /** The part of level 0 that is on screen. */
  get visible(): Box {
    const [width, height] = this.size;
    const [x0, y0] = this.toSlide([0, 0]);
    const [x1, y1] = this.toSlide([width, height]);
    return [x0, y0, x1, y1];
  }

  /** From screen pixels of the window. */
  toSlide([x, y]: Position): Position {
    const point = this.osd.viewport.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, y));
    return [point.x, point.y];
  }

  /** To screen pixels of the window. */
  toScreen([x, y]: Position): Position {
    const point = this.osd.viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
    return [point.x, point.y];
  }

  goTo([x, y]: Position, scale: number | null, immediately = false): void {
    const { viewport } = this.osd;
    if (scale !== null) viewport.zoomTo(viewport.imageToViewportZoom(scale), undefined, immediately);
    viewport.panTo(viewport.imageToViewportCoordinates(x, y), immediately);
    viewport.applyConstraints(immediately);
  }

  /** Bring a box into view with some room around it, without going closer than one pixel of the slide per pixel. */
  show([x0, y0, x1, y1]: Box): void {
    const [width, height] = this.size;
    const scale = Math.min(1, (0.4 * width) / (x1 - x0), (0.4 * height) / (y1 - y0));
    this.goTo([(x0 + x1) / 2, (y0 + y1) / 2], scale);
  }

  zoomBy(factor: number): void {
    this.osd.viewport.zoomBy(factor);
    this.osd.viewport.applyConstraints();
  }

  /** Screen pixels. */
  panBy(dx: number, dy: number): void {
    this.osd.viewport.panBy(this.osd.viewport.deltaPointsFromPixels(new OpenSeadragon.Point(dx, dy)));
    this.osd.viewport.applyConstraints();
  }

  home(): void {
    this.osd.viewport.goHome();
  }
}
