/** A robot as the service describes it (`ampref-scene/1`, docs/pages.md): its kinematic tree, its geoms, and their meshes. */

import { Npz } from "./npz.js";

export interface SceneMeta {
  readonly robot: string;
  readonly digest: string;
  readonly control_dt: number;
  readonly mass_kg: number;
  readonly weight_n: number;
  readonly joints: readonly string[];
  readonly joint_range: readonly ([number, number] | null)[];
  /** N·m of each joint's actuator, in the order of `joints`. */
  readonly force_limit: readonly (number | null)[];
  readonly channels: readonly string[];
  readonly bodies: readonly string[];
  readonly root_qpos: number;
  readonly root_body: number;
  /** m, of the root in the reference pose. */
  readonly height: number;
  /** m, how far the robot reaches from its root. */
  readonly radius: number;
}

export const JointType = { free: 0, ball: 1, slide: 2, hinge: 3 } as const;
export const GeomType = { plane: 0, sphere: 2, capsule: 3, ellipsoid: 4, cylinder: 5, box: 6, mesh: 7 } as const;

export interface Joint {
  readonly type: number;
  readonly body: number;
  readonly qpos: number;
  readonly pos: readonly [number, number, number];
  readonly axis: readonly [number, number, number];
}

export interface Geom {
  readonly body: number;
  readonly type: number;
  readonly mesh: number;
  readonly size: readonly [number, number, number];
  readonly pos: readonly [number, number, number];
  readonly quat: readonly [number, number, number, number];
  readonly rgba: readonly [number, number, number, number];
}

export interface Mesh {
  /** 0 … 65535 between `low` and `high`. */
  readonly vertices: Uint16Array;
  readonly faces: Uint32Array;
  readonly low: readonly [number, number, number];
  readonly high: readonly [number, number, number];
}

export interface Scene {
  readonly meta: SceneMeta;
  readonly parents: Int32Array;
  readonly bodyPos: Float32Array;
  readonly bodyQuat: Float32Array;
  readonly joints: readonly Joint[];
  readonly qpos0: Float32Array;
  readonly geoms: readonly Geom[];
  readonly meshes: readonly Mesh[];
  /** Where each joint of the robot is in `qpos`, in feature order. */
  readonly jointAdr: Int32Array;
  /** Of each joint of the robot, its column in `actuator_force`. */
  readonly actuators: Int32Array;
  /** Of each contact channel, its body and the corners of its sole in the body's frame. */
  readonly soles: readonly { readonly body: number; readonly points: Float32Array }[];
  /** Of each contact channel, the column of its foot in `reference_contacts`. */
  readonly channelFoot: readonly number[];
}

export function parseScene(buffer: ArrayBuffer): Scene {
  const npz = new Npz(buffer, "The robot's scene");
  const meta = npz.readJson("meta") as SceneMeta & { format: string };
  if (meta.format !== "ampref-scene/1") {
    throw new Error(
      `The robot's scene has the format ${meta.format}; this page reads ampref-scene/1. Reload the page.`,
    );
  }
  const parents = npz.readIntegers("body_parent", null).data;
  const jointAdr = npz.readIntegers("joint_adr", meta.joints.length).data;
  const soles = readSoles(npz, meta.channels.length);
  return {
    meta,
    parents,
    bodyPos: npz.readFloats("body_pos", parents.length, 3).data,
    bodyQuat: npz.readFloats("body_quat", parents.length, 4).data,
    joints: readJoints(npz),
    qpos0: npz.readFloats("qpos0", null).data,
    geoms: readGeoms(npz),
    meshes: readMeshes(npz),
    jointAdr,
    actuators: npz.has("joint_actuator")
      ? npz.readIntegers("joint_actuator", jointAdr.length).data
      : Int32Array.from(jointAdr, (_, i) => i),
    soles,
    channelFoot: groupByBody(soles.map((sole) => sole.body)),
  };
}

/** Of each channel, the number of its foot: a foot is a body, and feet are counted in the order of their first channel. */
function groupByBody(bodies: readonly number[]): number[] {
  const feet = [...new Set(bodies)];
  return bodies.map((body) => feet.indexOf(body));
}

function triple(data: ArrayLike<number>, row: number): [number, number, number] {
  return [data[3 * row]!, data[3 * row + 1]!, data[3 * row + 2]!];
}

function quadruple(data: ArrayLike<number>, row: number): [number, number, number, number] {
  return [data[4 * row]!, data[4 * row + 1]!, data[4 * row + 2]!, data[4 * row + 3]!];
}

function readJoints(npz: Npz): Joint[] {
  const types = npz.readIntegers("joint_type", null).data;
  const bodies = npz.readIntegers("joint_body", types.length).data;
  const addresses = npz.readIntegers("joint_qpos", types.length).data;
  const places = npz.readFloats("joint_pos", types.length, 3).data;
  const axes = npz.readFloats("joint_axis", types.length, 3).data;
  return Array.from(types, (type, j) => ({
    type,
    body: bodies[j]!,
    qpos: addresses[j]!,
    pos: triple(places, j),
    axis: triple(axes, j),
  }));
}

function readGeoms(npz: Npz): Geom[] {
  const types = npz.readIntegers("geom_type", null).data;
  const count = types.length;
  const bodies = npz.readIntegers("geom_body", count).data;
  const meshes = npz.readIntegers("geom_mesh", count).data;
  const sizes = npz.readFloats("geom_size", count, 3).data;
  const places = npz.readFloats("geom_pos", count, 3).data;
  const quats = npz.readFloats("geom_quat", count, 4).data;
  const colours = npz.readFloats("geom_rgba", count, 4).data;
  return Array.from(types, (type, g) => ({
    type,
    body: bodies[g]!,
    mesh: meshes[g]!,
    size: triple(sizes, g),
    pos: triple(places, g),
    quat: quadruple(quats, g),
    rgba: quadruple(colours, g),
  }));
}

function readMeshes(npz: Npz): Mesh[] {
  const vertexStarts = npz.readIntegers("mesh_vertex", null).data;
  const faceStarts = npz.readIntegers("mesh_face", vertexStarts.length).data;
  const count = Math.max(0, vertexStarts.length - 1);
  const lows = npz.readFloats("mesh_low").data;
  const highs = npz.readFloats("mesh_high").data;
  const vertices = npz.read("vertices").data;
  const faces = npz.read("faces").data;
  return Array.from({ length: count }, (_, m) => ({
    vertices: Uint16Array.from(vertices.subarray(3 * vertexStarts[m]!, 3 * vertexStarts[m + 1]!)),
    faces: Uint32Array.from(faces.subarray(3 * faceStarts[m]!, 3 * faceStarts[m + 1]!)),
    low: triple(lows, m),
    high: triple(highs, m),
  }));
}

function readSoles(npz: Npz, channels: number): { body: number; points: Float32Array }[] {
  const channelOf = npz.readIntegers("sole_channel", null).data;
  const bodies = npz.readIntegers("sole_body", channelOf.length).data;
  const points = npz.readFloats("sole_point", channelOf.length, 3).data;
  return Array.from({ length: channels }, (_, channel) => {
    const rows = Array.from(channelOf.keys()).filter((row) => channelOf[row] === channel);
    return {
      body: rows.length > 0 ? bodies[rows[0]!]! : 0,
      points: Float32Array.from(rows.flatMap((row) => triple(points, row))),
    };
  });
}
