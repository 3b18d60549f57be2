import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { buildClipPose, Kinematics } from "../src/kinematics.js";
import { Npz } from "../src/npz.js";
import { parseScene } from "../src/scene.js";

const FIXTURES = `${process.cwd()}/test/fixtures`;
const TOLERANCE = 1e-5;

function readFixture(name: string): ArrayBuffer {
  return new Uint8Array(readFileSync(`${FIXTURES}/${name}`)).buffer;
}

for (const name of readdirSync(FIXTURES).filter((file) => file.endsWith(".npz"))) {
  test(`${name}: bodies are where MuJoCo places them`, () => {
    const buffer = readFixture(name);
    const scene = parseScene(buffer);
    const npz = new Npz(buffer, name);
    const poses = npz.read("poses");
    const xpos = npz.read("xpos").data;
    const xquat = npz.read("xquat").data;
    const [count, nq] = poses.shape as [number, number];
    const bodies = scene.parents.length;
    const kinematics = new Kinematics(scene);
    for (let pose = 0; pose < count; pose++) {
      kinematics.pose(poses.data.subarray(pose * nq, (pose + 1) * nq));
      for (let i = 0; i < 3 * bodies; i++) {
        const difference = Math.abs(kinematics.pos[i]! - xpos[3 * bodies * pose + i]!);
        assert.ok(
          difference < TOLERANCE,
          `pose ${pose}, body ${scene.meta.bodies[Math.floor(i / 3)]}: ${difference} m`,
        );
      }
      for (let body = 0; body < bodies; body++) {
        const at = 4 * (bodies * pose + body);
        const rotation = toMatrix(kinematics.quat, 4 * body);
        toMatrix(xquat, at).forEach((value, i) => {
          assert.ok(Math.abs(rotation[i]! - value) < TOLERANCE, `pose ${pose}, body ${scene.meta.bodies[body]}`);
        });
      }
    }
  });
}

test("a point of a body goes where the body goes", () => {
  const scene = parseScene(readFixture("trileg.npz"));
  const kinematics = new Kinematics(scene);
  // A quarter turn about z: the body's x is the world's y.
  const qpos = Float32Array.from(scene.qpos0);
  qpos.set([1, 2, 3, Math.SQRT1_2, 0, 0, Math.SQRT1_2], scene.meta.root_qpos);
  kinematics.pose(qpos);
  const point = { x: 0, y: 0, z: 0 };
  kinematics.transform(scene.meta.root_body, 0.5, 0, 0, point);
  assert.ok(Math.hypot(point.x - 1, point.y - 2.5, point.z - 3) < TOLERANCE);
});

test("the clip's pose has its root and its joints, and the reference pose for all else", () => {
  const scene = parseScene(readFixture("chain.npz"));
  const out = new Float32Array(scene.qpos0.length);
  buildClipPose(scene, [1, 2, 3], [0.1, 0.2, 0.3, 0.9], [0.5, -0.5], out);
  const root = scene.meta.root_qpos;
  const expected = [1, 2, 3, 0.9, 0.1, 0.2, 0.3].map(Math.fround);
  assert.deepEqual([...out.subarray(root, root + 7)], expected);
  assert.deepEqual([out[scene.jointAdr[0]!], out[scene.jointAdr[1]!]], [0.5, -0.5]);
  const touched = new Set([...scene.jointAdr, ...expected.map((_, i) => root + i)]);
  out.forEach((value, i) => {
    if (!touched.has(i)) assert.equal(value, scene.qpos0[i]);
  });
});

function toMatrix(quat: ArrayLike<number>, at: number): number[] {
  const [w, x, y, z] = [quat[at]!, quat[at + 1]!, quat[at + 2]!, quat[at + 3]!];
  return [
    ...[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    ...[2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    ...[2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ];
}
