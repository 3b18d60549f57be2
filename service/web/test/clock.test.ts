import assert from "node:assert/strict";
import { test } from "node:test";
import { Clock } from "../src/clock.js";

/** Lets a clock go on for so many seconds, in pictures of 1/60 s. */
function run(clock: Clock, seconds: number, from = 1000): number {
  clock.tick(from);
  const pictures = Math.round(seconds * 60);
  for (let i = 1; i <= pictures; i++) clock.tick(from + (i * 1000) / 60);
  return from + (pictures * 1000) / 60;
}

test("it plays in real time, at the speed that was set", () => {
  const clock = new Clock(1000, 0.02);
  clock.play();
  run(clock, 2);
  assert.ok(Math.abs(clock.frame - 100) <= 1, `${clock.frame}`);
  clock.setSpeed(0.1);
  run(clock, 2, 10_000);
  assert.ok(Math.abs(clock.frame - 110) <= 1, `${clock.frame}`);
});

test("it stops at the last frame, and plays from the first one again", () => {
  const clock = new Clock(50, 0.02);
  clock.play();
  run(clock, 3);
  assert.equal(clock.frame, 49);
  assert.equal(clock.playing, false);
  clock.play();
  assert.equal(clock.frame, 0);
});

test("a step stops it, and never leaves the clip", () => {
  const clock = new Clock(10, 0.02);
  clock.play();
  clock.step(3);
  assert.deepEqual([clock.frame, clock.playing], [3, false]);
  clock.step(100);
  assert.equal(clock.frame, 9);
  clock.step(-100);
  assert.equal(clock.frame, 0);
});

test("a loop repeats its frames until one looks elsewhere", () => {
  const clock = new Clock(1000, 0.02);
  clock.setLoop({ start: 100, end: 150 });
  assert.equal(clock.frame, 100);
  clock.play();
  const seen = new Set<number>();
  clock.onChange(() => seen.add(clock.frame));
  run(clock, 5);
  assert.equal(Math.min(...seen), 100);
  assert.equal(Math.max(...seen), 149);
  clock.seek(120);
  assert.notEqual(clock.loop, null);
  clock.seek(500);
  assert.equal(clock.loop, null);
});

test("a loop may end with the clip", () => {
  const clock = new Clock(50, 0.02);
  clock.setLoop({ start: 0, end: 50 });
  clock.play();
  const seen: number[] = [];
  clock.onChange(() => seen.push(clock.frame));
  run(clock, 3);
  assert.equal(clock.playing, true);
  assert.ok(seen.filter((frame) => frame === 0).length >= 2, "it starts again");
});

test("a tab that was in the background does not leap", () => {
  const clock = new Clock(10_000, 0.02);
  clock.play();
  clock.tick(0);
  clock.tick(60_000);
  assert.ok(clock.frame <= 13, `${clock.frame}`);
});

test("a clip of one frame cannot be played", () => {
  const clock = new Clock(1, 0.02);
  clock.play();
  assert.equal(clock.playing, false);
});
