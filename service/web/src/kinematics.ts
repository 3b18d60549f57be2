/** Forward kinematics as MuJoCo's `mj_kinematics` has it: the places of all bodies in one configuration. */

import { JointType, type Scene } from "./scene.js";

export class Kinematics {
  /** (B, 3) m and (B, 4) wxyz, in the world's frame, after `pose`. */
  readonly pos: Float64Array;
  readonly quat: Float64Array;
  private readonly jointsOf: number[][];

  constructor(private readonly scene: Scene) {
    const count = scene.parents.length;
    this.pos = new Float64Array(3 * count);
    this.quat = new Float64Array(4 * count);
    this.quat[0] = 1;
    this.jointsOf = Array.from({ length: count }, () => []);
    scene.joints.forEach((joint, j) => {
      this.jointsOf[joint.body]!.push(j);
    });
  }

  /** Parents have lower numbers than their children, so that one pass suffices. */
  pose(qpos: ArrayLike<number>): void {
    const { parents, joints } = this.scene;
    for (let body = 1; body < parents.length; body++) {
      const own = this.jointsOf[body]!;
      const first = own.length > 0 ? joints[own[0]!]! : undefined;
      if (first?.type === JointType.free) this.placeFree(body, qpos, first.qpos);
      else this.placeChild(body, parents[body]!, own, qpos);
      normalize(this.quat, 4 * body);
    }
  }

  /** A point of a body's frame in the world's; writes x, y and z into `out`. */
  transform(body: number, x: number, y: number, z: number, out: { x: number; y: number; z: number }): void {
    rotate(this.quat, 4 * body, x, y, z);
    out.x = rx + this.pos[3 * body]!;
    out.y = ry + this.pos[3 * body + 1]!;
    out.z = rz + this.pos[3 * body + 2]!;
  }

  private placeFree(body: number, qpos: ArrayLike<number>, adr: number): void {
    for (let i = 0; i < 3; i++) this.pos[3 * body + i] = qpos[adr + i]!;
    for (let i = 0; i < 4; i++) this.quat[4 * body + i] = qpos[adr + 3 + i]!;
  }

  private placeChild(body: number, parent: number, own: readonly number[], qpos: ArrayLike<number>): void {
    const { bodyPos, bodyQuat, joints, qpos0 } = this.scene;
    const { pos, quat } = this;
    const p = 3 * body;
    const q = 4 * body;
    rotate(quat, 4 * parent, bodyPos[p]!, bodyPos[p + 1]!, bodyPos[p + 2]!);
    pos[p] = pos[3 * parent]! + rx;
    pos[p + 1] = pos[3 * parent + 1]! + ry;
    pos[p + 2] = pos[3 * parent + 2]! + rz;
    for (let i = 0; i < 4; i++) quat[q + i] = quat[4 * parent + i]!;
    multiply(quat, q, bodyQuat[q]!, bodyQuat[q + 1]!, bodyQuat[q + 2]!, bodyQuat[q + 3]!);

    for (const j of own) {
      const joint = joints[j]!;
      const [ax, ay, az] = joint.axis;
      if (joint.type === JointType.slide) {
        const shift = qpos[joint.qpos]! - qpos0[joint.qpos]!;
        rotate(quat, q, ax, ay, az);
        pos[p]! += rx * shift;
        pos[p + 1]! += ry * shift;
        pos[p + 2]! += rz * shift;
        continue;
      }
      // The joint turns the body about an anchor, which stays where it is.
      const [jx, jy, jz] = joint.pos;
      rotate(quat, q, jx, jy, jz);
      const anchorX = pos[p]! + rx;
      const anchorY = pos[p + 1]! + ry;
      const anchorZ = pos[p + 2]! + rz;
      if (joint.type === JointType.ball) {
        const w = qpos[joint.qpos]!;
        const x = qpos[joint.qpos + 1]!;
        const y = qpos[joint.qpos + 2]!;
        const z = qpos[joint.qpos + 3]!;
        const norm = Math.hypot(w, x, y, z) || 1;
        multiply(quat, q, w / norm, x / norm, y / norm, z / norm);
      } else {
        const half = (qpos[joint.qpos]! - qpos0[joint.qpos]!) / 2;
        const sine = Math.sin(half);
        multiply(quat, q, Math.cos(half), ax * sine, ay * sine, az * sine);
      }
      rotate(quat, q, jx, jy, jz);
      pos[p] = anchorX - rx;
      pos[p + 1] = anchorY - ry;
      pos[p + 2] = anchorZ - rz;
    }
  }
}

/** Builds the configuration of the clip in a frame: its root, its joints, and the reference pose for all else. */
export function buildClipPose(
  scene: Scene,
  rootPos: ArrayLike<number>,
  rootRot: ArrayLike<number>,
  dofPos: ArrayLike<number>,
  out: Float32Array,
): void {
  out.set(scene.qpos0);
  const root = scene.meta.root_qpos;
  for (let i = 0; i < 3; i++) out[root + i] = rootPos[i]!;
  out[root + 3] = rootRot[3]!; // from xyzw to MuJoCo's wxyz
  for (let i = 0; i < 3; i++) out[root + 4 + i] = rootRot[i]!;
  for (let i = 0; i < scene.jointAdr.length; i++) out[scene.jointAdr[i]!] = dofPos[i]!;
}

// The result of `rotate`. Three variables of the module, because an array per call would be garbage in each frame.
let rx = 0;
let ry = 0;
let rz = 0;

function rotate(quat: ArrayLike<number>, at: number, x: number, y: number, z: number): void {
  const w = quat[at]!;
  const i = quat[at + 1]!;
  const j = quat[at + 2]!;
  const k = quat[at + 3]!;
  // v + 2w(u × v) + 2u × (u × v)
  const cx = j * z - k * y;
  const cy = k * x - i * z;
  const cz = i * y - j * x;
  rx = x + 2 * (w * cx + j * cz - k * cy);
  ry = y + 2 * (w * cy + k * cx - i * cz);
  rz = z + 2 * (w * cz + i * cy - j * cx);
}

/** Multiplies the quaternion at `at` by another from the right. */
function multiply(quat: Float64Array, at: number, w: number, x: number, y: number, z: number): void {
  const a = quat[at]!;
  const b = quat[at + 1]!;
  const c = quat[at + 2]!;
  const d = quat[at + 3]!;
  quat[at] = a * w - b * x - c * y - d * z;
  quat[at + 1] = a * x + b * w + c * z - d * y;
  quat[at + 2] = a * y - b * z + c * w + d * x;
  quat[at + 3] = a * z + b * y - c * x + d * w;
}

function normalize(quat: Float64Array, at: number): void {
  const norm = Math.hypot(quat[at]!, quat[at + 1]!, quat[at + 2]!, quat[at + 3]!);
  if (norm < 1e-12) {
    quat[at] = 1;
    quat.fill(0, at + 1, at + 4);
    return;
  }
  for (let i = 0; i < 4; i++) quat[at + i]! /= norm;
}
