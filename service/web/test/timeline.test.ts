import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { parseScene } from "../src/scene.js";
import { tiltOf } from "../src/series.js";
import { findSpans, packLanes } from "../src/spans.js";

test("spans that overlap are in lanes of their own, and at most four", () => {
  const spans = [
    { start: 0, end: 10 },
    { start: 5, end: 8 },
    { start: 10, end: 20 },
    { start: 8, end: 12 },
  ];
  assert.deepEqual(
    packLanes(spans).map((lane) => lane.map(({ start }) => start)),
    [
      [0, 10],
      [5, 8],
    ],
  );
  const many = Array.from({ length: 9 }, () => ({ start: 0, end: 5 }));
  assert.equal(packLanes(many).length, 4);
});

test("the spans of a series are the frames in which it is on", () => {
  assert.deepEqual(findSpans(Float32Array.of(1, 1, 0, Number.NaN, 1)), [
    [0, 1],
    [4, 4],
  ]);
  assert.deepEqual(findSpans(new Float32Array(3)), []);
});

test("tilt is the angle of the up axis", () => {
  const half = (degrees: number) => Math.sin((degrees * Math.PI) / 360);
  assert.ok(Math.abs(tiltOf(half(30), 0) - 30) < 1e-9);
  assert.ok(Math.abs(tiltOf(0, half(110)) - 110) < 1e-9);
  assert.equal(tiltOf(0, 0), 0);
});

test("channels of one body are one foot, feet are in the order of their channels", () => {
  const file = new Uint8Array(readFileSync(`${process.cwd()}/test/fixtures/wildrobot.npz`)).buffer;
  const { meta, channelFoot } = parseScene(file);
  assert.deepEqual(
    meta.channels.map((name, i) => [name.split("_")[0], channelFoot[i]]),
    [
      ["left", 0],
      ["left", 0],
      ["right", 1],
      ["right", 1],
    ],
  );
});
