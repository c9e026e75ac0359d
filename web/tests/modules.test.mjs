/** What modules of the page do by themselves; what takes a browser is in ../../tests/integration. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { runnerImport } from "vite";

const { ApiError, Classes, Objects, Prompting, SlideWatch, countsOf, fromGeoJson, runsOf } = (
  await runnerImport("./tests/modules.ts")
).module;

const SQUARE = { type: "Polygon", coordinates: [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]] };

const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Prompting whose questions wait in `asked` until they are answered. */
function prompted() {
  const asked = [];
  const segment = (_slide, { prompts }) => new Promise((answer) => asked.push({ prompt: prompts[0], answer }));
  const [objects, classes] = [new Objects(), new Classes()];
  const prompting = new Prompting({ segment }, objects, classes);
  const answer = async () => {
    await settle();
    const result = { view: {}, mask: { size: [1, 1], counts: "01" }, geojson: { geometry: SQUARE }, refine: "token" };
    asked.shift().answer({ body: { results: [result], warnings: [] }, server: {}, total: 1 });
    await settle();
  };
  return { asked, answer, classes, objects, prompting };
}

test("objects of a file that share an id all stay, and a file imported again replaces them", () => {
  const features = ["same", "same", "other"].map((id) => ({ type: "Feature", id, geometry: SQUARE }));
  const slide = { width: 99, height: 99, bounds: null };
  const objects = new Objects();
  objects.put(fromGeoJson(JSON.stringify(features), slide, 1, []).objects, null);
  assert.equal(objects.all.length, 3);
  objects.put(fromGeoJson(JSON.stringify([features[0], features[2]]), slide, 1, objects.all).objects, null);
  assert.equal(objects.all.length, 3);
});

test("objects without names are numbered on, the present ones being looked at once, however many there are", () => {
  let looks = 0;
  const present = Array.from({ length: 200_000 }, (_, i) => ({
    get name() {
      looks++;
      return `Cell ${i}`;
    },
  }));
  const features = [undefined, "Gland 300000", undefined, undefined].map((name) => ({
    type: "Feature",
    geometry: SQUARE,
    properties: { name },
  }));
  const { objects } = fromGeoJson(JSON.stringify(features), { width: 99, height: 99, bounds: null }, 1, present);
  assert.deepEqual(objects.map(({ name }) => name), ["Object 200000", "Gland 300000", "Object 300001", "Object 300002"]);
  assert.equal(looks, present.length);
});

test("run lengths beyond 32 bits are spelled right", () => {
  const runs = [2 ** 31 + 5, 100, 79_900, 2 ** 32, 3, 1];
  assert.deepEqual(runsOf(countsOf(runs)), runs);
});

test("an object deleted while it is corrected stays deleted", async () => {
  const { answer, objects, prompting } = prompted();
  prompting.box([0, 0, 9, 9]);
  await answer();
  prompting.point([5, 5, 0]);
  prompting.point([6, 6, 0]);
  await settle();
  objects.remove(objects.selected.id);
  await answer();
  assert.deepEqual(objects.all, []);
  assert.equal(prompting.asked.value, null);
});

test("a class given while an object is corrected stays", async () => {
  const { answer, objects, prompting } = prompted();
  prompting.box([0, 0, 9, 9]);
  await answer();
  prompting.point([5, 5, 1]);
  await settle();
  objects.replace({ ...objects.selected, className: "Gland" });
  await answer();
  assert.deepEqual(objects.all.map(({ className, made }) => [className, made.prompt.points.length]), [["Gland", 1]]);
});

test("a click after Next begins another object, also before the one before it is answered", async () => {
  const { answer, asked, classes, objects, prompting } = prompted();
  prompting.point([1, 1, 1]);
  prompting.point([2, 2, 1]);
  prompting.next();
  classes.active.value = "Gland";
  prompting.point([5, 5, 1]);
  await answer();
  await answer();
  assert.equal(objects.selected, null);
  assert.deepEqual(asked[0].prompt.points, [[5, 5, 1]]);
  await answer();
  const drawn = objects.all.map(({ name, className, made }) => [name, className, made.prompt.points.length]);
  assert.deepEqual(drawn, [["Object 1", null, 2], ["Object 2", "Gland", 1]]);
  assert.equal(objects.selected.name, "Object 2");
});

test("what waits for its turn is known, and given up with the question under way", async () => {
  const { answer, asked, prompting } = prompted();
  const boxes = () => prompting.waiting.value.map(({ box }) => box[0]);
  for (const x of [1, 2, 3, 4]) prompting.box([x, 0, 9, 9]);
  await settle();
  assert.deepEqual([prompting.asked.value.prompt.box[0], ...boxes()], [1, 2, 3, 4]);
  await answer();
  assert.deepEqual([prompting.asked.value.prompt.box[0], ...boxes()], [2, 3, 4]);
  prompting.cancel();
  prompting.box([5, 0, 9, 9]);
  assert.deepEqual(boxes(), [5]);
  await answer();
  assert.deepEqual(boxes(), []);
  assert.equal(asked[0].prompt.box[0], 5);
});

test("a class removed while boxes wait for their turn is given no more", async () => {
  const { answer, classes, objects, prompting } = prompted();
  objects.state.watch((state) => classes.putThoseOf(state.objects)); // as the page does
  classes.active.value = "Tumor";
  for (const x of [1, 2, 3]) prompting.box([x, 0, 9, 9]);
  await answer();
  objects.replace({ ...objects.all[0], className: null });
  classes.remove("Tumor");
  await answer();
  await answer();
  assert.deepEqual(objects.all.map(({ className }) => className), [null, null, null]);
  assert.ok(!classes.has("Tumor"));
});

test("a slide that is no longer served is told once", async () => {
  globalThis.document = { hidden: false, addEventListener() {} };
  mock.timers.enable({ apis: ["setInterval"] });
  const gone = mock.fn();
  const slide = () => Promise.reject(new ApiError("unknown-slide", ""));
  new SlideWatch({ slide }, { slide: { id: "a" } }, assert.fail, gone);
  for (let looks = 0; looks < 3; looks++) {
    mock.timers.tick(15_000);
    await settle();
  }
  assert.equal(gone.mock.callCount(), 1);
});
