import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { buildSurface, COARSE, FINE, OUTLINE } from "../src/geometry.js";
import { type Geom, GeomType, type Mesh, parseScene, type Scene } from "../src/scene.js";
import { simplifyTriangles } from "../src/simplify.js";

const file = new Uint8Array(readFileSync(`${process.cwd()}/test/fixtures/trileg.npz`)).buffer;
const TRILEG = parseScene(file);

function sceneOf(geom: Partial<Geom>, meshes: Mesh[] = []): Scene {
  const plain: Geom = {
    body: 1,
    type: GeomType.box,
    mesh: -1,
    size: [1, 2, 3],
    pos: [0, 0, 0],
    quat: [1, 0, 0, 0],
    rgba: [1, 0, 0.5, 1],
  };
  return { ...TRILEG, geoms: [{ ...plain, ...geom }], meshes };
}

/** A flat square of n by n cells, 1 m wide, with its normal along z. */
function gridMesh(n: number): Mesh {
  const vertices: number[] = [];
  const faces: number[] = [];
  for (let y = 0; y <= n; y++) {
    for (let x = 0; x <= n; x++) vertices.push((65535 * x) / n, (65535 * y) / n, 0);
  }
  for (let y = 0; y < n; y++) {
    for (let x = 0; x < n; x++) {
      const a = y * (n + 1) + x;
      faces.push(a, a + 1, a + n + 2, a, a + n + 2, a + n + 1);
    }
  }
  return { vertices: Uint16Array.from(vertices), faces: Uint32Array.from(faces), low: [0, 0, 0], high: [1, 1, 0] };
}

function area(points: ArrayLike<number>, faces: ArrayLike<number>, stride: number): number {
  let sum = 0;
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [0, 1, 2].map((k) =>
      [0, 1, 2].map((axis) => points[stride * faces[f + k]! + axis]!),
    ) as number[][];
    const u = b!.map((value, i) => value - a![i]!);
    const v = c!.map((value, i) => value - a![i]!);
    const cross = [u[1]! * v[2]! - u[2]! * v[1]!, u[2]! * v[0]! - u[0]! * v[2]!, u[0]! * v[1]! - u[1]! * v[0]!];
    sum += Math.hypot(...cross) / 2;
  }
  return sum;
}

test("a box has six flat sides that look outwards", () => {
  const { place, normal, index, colour } = buildSurface(sceneOf({}), FINE);
  assert.equal(place.length / 4, 24);
  assert.equal(index.length / 3, 12);
  assert.ok(Math.abs(area(place, index, 4) - 2 * (2 * 4 + 4 * 6 + 6 * 2)) < 1e-4);
  for (let i = 0; i < place.length; i += 4) {
    const outwards = place[i]! * normal[i]! + place[i + 1]! * normal[i + 1]! + place[i + 2]! * normal[i + 2]!;
    assert.ok(outwards > 0);
    assert.equal(place[i + 3], 1, "the body");
  }
  assert.deepEqual([...colour.subarray(0, 3)], [255, 0, 128]);
});

for (const [name, type, size, expected] of [
  ["sphere", GeomType.sphere, [0.5, 0, 0], Math.PI],
  ["capsule", GeomType.capsule, [0.5, 1, 0], 3 * Math.PI],
  ["cylinder", GeomType.cylinder, [0.5, 1, 0], 2.5 * Math.PI],
  ["ellipsoid", GeomType.ellipsoid, [0.5, 0.5, 0.5], Math.PI],
] as const) {
  test(`a ${name} is round and looks outwards`, () => {
    const { place, normal, index } = buildSurface(sceneOf({ type, size }), FINE);
    assert.ok(Math.abs(area(place, index, 4) / expected - 1) < 0.02, `${area(place, index, 4)} m², not ${expected}`);
    for (let i = 0; i < place.length; i += 4) {
      const outwards = place[i]! * normal[i]! + place[i + 1]! * normal[i + 1]! + place[i + 2]! * normal[i + 2]!;
      assert.ok(outwards > 0);
    }
  });
}

test("a geom is where its body has it", () => {
  const half = Math.SQRT1_2;
  const { place } = buildSurface(sceneOf({ pos: [10, 0, 0], quat: [half, 0, 0, half], size: [1, 2, 3] }), FINE);
  const xs = Array.from({ length: place.length / 4 }, (_, i) => place[4 * i]!);
  assert.ok(Math.abs(Math.min(...xs) - 8) < 1e-5 && Math.abs(Math.max(...xs) - 12) < 1e-5);
});

test("the floor is left to the stage, another plane is drawn", () => {
  assert.equal(buildSurface(sceneOf({ type: GeomType.plane, body: 0 }), FINE).index.length, 0);
  assert.equal(buildSurface(sceneOf({ type: GeomType.plane, body: 1 }), FINE).index.length, 6);
});

test("a mesh is simplified without a hole, and its rim stays", () => {
  const mesh = gridMesh(40);
  const points = Float32Array.from(mesh.vertices, (value, i) => (i % 3 === 2 ? 0 : value / 65535));
  const result = simplifyTriangles({ points, faces: mesh.faces }, 0.002);
  assert.ok(result.faces.length < mesh.faces.length / 8, `${result.faces.length / 3} triangles are left`);
  assert.ok(Math.abs(area(result.points, result.faces, 3) - 1) < 0.01, `${area(result.points, result.faces, 3)} m²`);
  const surface = buildSurface(sceneOf({ type: GeomType.mesh, mesh: 0 }, [mesh]), COARSE);
  assert.ok(Math.abs(area(surface.place, surface.index, 4) - 1) < 0.03);
});

test("an outline has one normal a vertex", () => {
  const { place } = buildSurface(sceneOf({}), OUTLINE);
  assert.equal(place.length / 4, 8);
});
