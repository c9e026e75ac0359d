/** Puts the page together. */

import { Access } from "./access";
import { Announcer } from "./announcer";
import { Api, ApiError } from "./api";
import { ClassBar } from "./class-bar";
import { Classes } from "./classes";
import { Crosshair } from "./crosshair";
import { byId } from "./dom";
import { Files } from "./files";
import { iouText, milliseconds, shortAreaText } from "./format";
import { Keeper } from "./keeper";
import { installShortcuts, type Shortcut } from "./keyboard";
import { readLink, writeLink } from "./link";
import { inWords } from "./messages";
import { ObjectCard } from "./object-card";
import { Objects } from "./objects";
import { ObjectsPanel } from "./objects-panel";
import { Overlay } from "./overlay";
import { Pointer, TOOLS, type Tool } from "./pointer";
import { Prewarm } from "./prewarm";
import { Prompting } from "./prompting";
import { Readout } from "./readout";
import { SlideWatch } from "./slide-watch";
import { SlidesPanel } from "./slides-panel";
import { Status } from "./status";
import * as storage from "./storage";
import { Messages, installMenus, installPanels, tellModality } from "./surroundings";
import { Toolbar, type Actions } from "./toolbar";
import { SlideViewer } from "./viewer";

const LINK_MS = 250;

const api = new Api();
const objects = new Objects();
const classes = new Classes();
const viewer = new SlideViewer(byId("viewer"), api);
const prompting = new Prompting(api, objects, classes);
const prewarm = new Prewarm(api);
const overlay = new Overlay(viewer, objects, classes, prompting);
const pointer = new Pointer(viewer, overlay, objects, prompting, prewarm);
const crosshair = new Crosshair(viewer, overlay, pointer);
const readout = new Readout(viewer);
const slides = new SlidesPanel(api, () => void follow(null), fail);
const status = new Status(api);
const messages = new Messages();
const announcer = new Announcer(objects, classes, (text) => messages.announce(text));
const access = new Access(api, () => void recover());
const classBar = new ClassBar(classes, objects);
const panels = installPanels();
/** Whether letters are shortcuts wherever the focus is. */
const lettersBox = byId<HTMLInputElement>("letters");
const keeper = new Keeper(objects, () =>
  messages.tell("This browser has no room left to keep your outlines. Export them now.", "error"),
);
/** Grows with every slide that is asked for: the last one asked for is the one that counts. */
let opening = 0;

const actions: Actions = {
  undo: announcer.telling("Undone.", () => stop() || objects.undo()),
  redo: announcer.telling("Redone.", () => objects.redo()),
  next: announcer.telling("Done.", () => prompting.next()),
  delete: announcer.telling("Deleted.", () => objects.selected && objects.remove(objects.selected.id)),
  "zoom-in": () => viewer.zoomBy(1.5),
  "zoom-out": () => viewer.zoomBy(1 / 1.5),
  home: () => viewer.home(),
};

const escape = announcer.telling("", () => {
  if (!pointer.cancel() && !stop() && !crosshair.hide()) objects.select(null);
});

const tool = (name: Tool) => () => (pointer.tool.value = name);

const shortcuts: readonly Shortcut[] = [
  { keys: ["b"], label: "Box", run: tool("box") },
  { keys: ["p"], label: "Include: click what belongs to the object", run: tool("include") },
  { keys: ["n"], label: "Exclude: click what does not", run: tool("exclude") },
  { keys: ["v"], label: "Move the slide", run: tool("move") },
  { keys: ["enter"], label: "Done, next object", run: actions.next, onSlide: true },
  { keys: ["mod+z", "u"], label: "Undo", run: ({ shiftKey }) => (shiftKey ? actions.redo() : actions.undo()) },
  { keys: ["mod+y"], label: "Redo", run: actions.redo },
  { keys: ["delete", "backspace"], label: "Delete the selected object", run: actions.delete },
  { keys: ["escape"], label: "Stop, then deselect", run: escape },
  { keys: ["j"], label: "Next object in the list", run: announcer.telling("", () => objects.step(1)) },
  { keys: ["k"], label: "Previous object in the list", run: announcer.telling("", () => objects.step(-1)) },
  { keys: ["g"], label: "Go to the selected object", run: () => objects.selected && viewer.show(objects.selected.bounds) },
  { keys: ["1", "0", "2", "3", "4", "5", "6", "7", "8", "9"], label: "Class 1, 2, 3, …; 0 for none", run: announcer.telling("", ({ key }: KeyboardEvent) => classBar.chooseAt(Number(key))) },
  { keys: ["m"], label: "Candidates on or off", run: () => (prompting.multimask.value = !prompting.multimask.value) },
  { keys: ["c"], label: "Next candidate", run: nextCandidate },
  { keys: ["f"], label: "Show what the network saw", run: () => (overlay.frames.value = !overlay.frames.value) },
  { keys: ["arrowleft", "arrowright", "arrowup", "arrowdown"], label: "Crosshair, or the slide with Move; Shift for more", run: arrow, onSlide: true },
  { keys: [" "], label: "Use the tool at the crosshair; hold to move the slide", run: space, onSlide: true },
  { keys: ["+", "="], label: "Zoom in", run: actions["zoom-in"] },
  { keys: ["-"], label: "Zoom out", run: actions["zoom-out"] },
  { keys: ["h"], label: "Whole slide", run: actions.home },
  { keys: ["/"], label: "Search slides", run: () => (panels.show("slides"), slides.focus()) },
  { keys: ["?"], label: "This help", run: () => byId<HTMLDialogElement>("help").showModal() },
];

/** Give up what is being outlined; whether anything was. */
function stop(): boolean {
  const stopped = prompting.cancel();
  if (stopped) messages.announce("Stopped outlining.");
  return stopped;
}

function nextCandidate(): void {
  const answer = objects.selected?.made?.answer;
  if (answer?.candidates.length) prompting.choose((answer.chosen + 1) % answer.candidates.length);
}

function arrow({ key, shiftKey }: KeyboardEvent): void {
  const dx = key === "ArrowLeft" ? -1 : key === "ArrowRight" ? 1 : 0;
  const dy = key === "ArrowUp" ? -1 : key === "ArrowDown" ? 1 : 0;
  crosshair.arrow(dx, dy, shiftKey);
}

function space({ repeat }: KeyboardEvent): void {
  if (repeat) return;
  if (crosshair.shown) crosshair.use();
  else pointer.moving = true;
}

async function openSlide(id: string): Promise<void> {
  const number = ++opening;
  // All that can fail comes before the slide at hand is let go.
  const [slide, info, image] = await Promise.all([api.slide(id), api.info(), api.image(id)]);
  if (number !== opening) return;
  prompting.cancel();
  pointer.cancel();
  crosshair.hide();
  keeper.close();
  await viewer.open(slide, image);
  if (number !== opening) return;
  const { mpp } = slide;
  const [least, most] = info.limits.slide_mpp;
  readout.um = mpp !== null && mpp >= least && mpp <= most ? mpp : null;
  prompting.um2PerPixel = (readout.um ?? info.models[0]!.default_mpp) ** 2;
  prompting.open(id);
  prewarm.open(id);
  keeper.open(slide.fingerprint);
  slides.mark(id);
  byId("slide-name").textContent = slide.name;
  document.title = `${slide.name} · WSI-SAM`;
  byId("nothing").hidden = true;
  if (slide.warnings.length) messages.tell(slide.warnings[0]!, "info");
}

/** Go where the address bar says; the first slide where it names none. */
async function follow(first: string | null): Promise<void> {
  const place = readLink();
  const id = place.slide ?? first;
  if (id === null) {
    byId("nothing").hidden = viewer.slide !== null;
    return;
  }
  try {
    if (id !== viewer.slide?.id) {
      await openSlide(id);
      panels.closeOnPhone();
    }
    if (place.x !== null && place.y !== null) viewer.goTo([place.x, place.y], place.zoom, true);
  } catch (error) {
    fail(error);
  }
}

function fail(error: unknown): void {
  if (error instanceof ApiError && error.type === "unauthorized") access.refused();
  else messages.tell(inWords(error), "error");
}

async function start(): Promise<void> {
  void status.refresh();
  try {
    const [info, first] = await Promise.all([api.info(), slides.load()]);
    const { tool: kept } = storage.loadPreferences();
    const trained = info.models[0]!.trained_prompts;
    pointer.tool.value = TOOLS.find((name) => name === kept) ?? (trained.includes("box") ? "box" : "include");
    await follow(first);
  } catch (error) {
    fail(error);
  }
}

/** Go on with another key, or where the service is back. */
async function recover(): Promise<void> {
  messages.close();
  await viewer.refresh().catch(fail);
  await start();
}

/** What a tile's failing means is asked once; the others fail for the same reason. */
function tellLostTiles(): void {
  let told: unknown = null;
  viewer.osd.addHandler("tile-load-failed", ({ tile }) => {
    const source = viewer.osd.world.getItemAt(0);
    if (told === source) return;
    told = source;
    api.probe(tile.getUrl()).catch(fail);
  });
}

function watchService(): void {
  let away = false;
  status.health.watch((health) => {
    if (away && (health === "ready" || health === "busy")) void recover();
    if (health !== "refusing") away = health === "away";
  });
  const replaced = "This slide's file was replaced. You see the new one; outlines of the old one are kept with the old one.";
  const reopen = (id: string) => openSlide(id).then(() => messages.tell(replaced, "error"), fail);
  new SlideWatch(api, viewer, reopen, fail);
}

function keepSettings(): void {
  const kept = classes.list;
  kept.value = storage.loadClasses() ?? kept.value;
  kept.watch((list) => storage.keepClasses(list));
  storage.watchClasses(() => (kept.value = storage.loadClasses() ?? kept.value));
  objects.state.watch((state) => classes.putThoseOf(state.objects));
  const { multimask, frames, letters } = storage.loadPreferences();
  prompting.multimask.value = multimask;
  overlay.frames.value = frames;
  lettersBox.checked = letters;
  const keepPreferences = (): void => {
    if (!viewer.slide) return;
    storage.keepPreferences({
      tool: pointer.tool.value,
      multimask: prompting.multimask.value,
      frames: overlay.frames.value,
      letters: lettersBox.checked,
    });
  };
  for (const signal of [pointer.tool, prompting.multimask, overlay.frames]) signal.watch(keepPreferences);
  lettersBox.addEventListener("change", keepPreferences);
}

function keepLink(): void {
  let timer = 0;
  viewer.osd.addHandler("update-viewport", () => {
    clearTimeout(timer);
    timer = window.setTimeout(() => {
      if (viewer.slide && viewer.ready) writeLink(viewer.slide.id, ...viewer.center, viewer.scale);
    }, LINK_MS);
  });
  window.addEventListener("hashchange", () => void follow(null));
}

function tellReports(): void {
  prompting.reported.watch((report) => {
    if (!report) return;
    if (report.kind === "failed") fail(report.error);
    if (report.kind === "nothing") messages.tell("Nothing was found there. Draw a box around the whole object.", "info");
    if (report.kind !== "outlined" || !report.object) return;
    const { name, areaUm2, predictedIou, made } = report.object;
    messages.close();
    messages.announce(`${name}: ${shortAreaText(areaUm2)}, predicted IoU ${iouText(predictedIou)}, ${milliseconds(made!.answer.total)}`);
    void status.refresh();
  });
}

new Toolbar(objects, pointer, prompting, overlay, viewer.osd.canvas, actions);
new ObjectCard(objects, prompting);
new ObjectsPanel(objects, classes, ({ bounds }) => viewer.show(bounds));
new Files(
  objects,
  classes,
  () => (viewer.slide ? { slide: viewer.slide, um2PerPixel: prompting.um2PerPixel } : null),
  (text, kind) => messages.tell(text, kind),
);
installShortcuts(shortcuts, viewer.osd.canvas, () => lettersBox.checked);
document.addEventListener("keyup", ({ key }) => key === " " && (pointer.moving = false));
window.addEventListener("blur", () => (pointer.moving = false)); // where the key is let go elsewhere
installMenus();
tellModality();
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address keeps the slide
  viewer.osd.canvas.focus();
});
pointer.position.watch((position) => readout.drawPosition(position));
byId("look-again").addEventListener("click", () => void start());
keepSettings();
keepLink();
tellReports();
tellLostTiles();
watchService();
void start();
