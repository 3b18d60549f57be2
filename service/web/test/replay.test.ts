import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import type { RolloutData } from "../src/page_data.js";
import { Replay } from "../src/replay.js";
import { packNpz } from "./pack.js";

const ROLLOUT: RolloutData = {
  id: "r1",
  label: "walk",
  mode: "rollout",
  tier: 0,
  frames_url: "/v1/rollouts/r1/frames",
  frames: 2500,
  control_dt: 0.02,
  weight_n: 100,
  fell_at_frame: null,
  failure_frame: null,
  marks: [],
  segments: [],
  thresholds: {},
  result_url: "",
};

const realFetch = globalThis.fetch;
afterEach(() => {
  globalThis.fetch = realFetch;
});

/** Answers as the service does, with qpos = [frame, -frame]; returns the windows in the order in which they were asked for. */
function serveFrames(refuse: (start: number, url: URL) => Response | null = () => null): string[] {
  const windows: string[] = [];
  globalThis.fetch = async (input) => {
    const url = new URL(String(input), "http://service");
    const start = Number(url.searchParams.get("start"));
    const stop = Number(url.searchParams.get("stop"));
    windows.push(`${start}:${stop}`);
    const refusal = refuse(start, url);
    if (refusal !== null) return refusal;
    const rows = Float32Array.from(
      { length: 2 * (stop - start) },
      (_, i) => (i % 2 === 0 ? 1 : -1) * (start + (i >> 1)),
    );
    return new Response(packNpz({ qpos: ["<f4", [stop - start, 2], rows] }));
  };
  return windows;
}

async function waitUntil(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 400 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(condition());
}

const failOnError = (error: Error) => assert.fail(error.message);

test("the window of the first frame comes first, then those behind it, then those before", async () => {
  const windows = serveFrames();
  const replay = new Replay(ROLLOUT);
  await replay.load(1234, failOnError);
  assert.deepEqual(windows.slice(0, 1), ["1000:2000"]);
  assert.deepEqual([...replay.row("qpos", 1234)!], [1234, -1234]);
  assert.equal(replay.row("qpos", 0), null);
  await waitUntil(() => replay.isComplete);
  assert.deepEqual(windows, ["1000:2000", "2000:2500", "0:1000"]);
  assert.deepEqual([...replay.row("qpos", 2499)!], [2499, -2499]);
});

test("a whole column has NaN where nothing has been fetched", async () => {
  serveFrames();
  const replay = new Replay(ROLLOUT);
  await replay.load(0, failOnError);
  const { width, data } = replay.column("qpos")!;
  assert.equal(width, 2);
  assert.equal(data.length, 5000);
  assert.ok(Number.isNaN(data[4999]!));
  assert.equal(data[1998], 999);
  replay.close();
});

test("a rollout without some of the arrays is asked for all that it has", async () => {
  const unknown = new Response('{"detail": "unknown array"}', { status: 422 });
  const windows = serveFrames((_, url) => (url.searchParams.has("arrays") ? unknown : null));
  const replay = new Replay({ ...ROLLOUT, frames: 10 });
  await replay.load(0, failOnError);
  assert.deepEqual(windows, ["0:10", "0:10"]);
  assert.equal(replay.row("channel_loads", 0), null);
});

test("what the service says about a failure is in the error", async () => {
  serveFrames(() => new Response('{"detail": "The rollout was deleted."}', { status: 404 }));
  await assert.rejects(
    new Replay(ROLLOUT).load(0, failOnError),
    /Frames 0 to 999 could not be fetched \(HTTP 404\): The rollout was deleted\./,
  );
});

test("a service that was away for a moment is asked again", async () => {
  let failures = 1;
  serveFrames(() => (failures-- > 0 ? new Response("", { status: 503 }) : null));
  const replay = new Replay({ ...ROLLOUT, frames: 10 });
  await replay.load(0, failOnError);
  assert.ok(replay.isComplete);
});
