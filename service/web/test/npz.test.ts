import assert from "node:assert/strict";
import { test } from "node:test";
import { Npz } from "../src/npz.js";
import { packNpz } from "./pack.js";

test("arrays of every type come back as they were written", () => {
  const file = packNpz({
    floats: ["<f4", [2, 2], Float32Array.of(1, 2.5, -3, 4)],
    doubles: ["<f8", [2], Float64Array.of(Math.PI, -1)],
    ints: ["<i4", [3], Int32Array.of(1, -2, 3)],
    wide: ["<i8", [2], BigInt64Array.of(5n, -6n)],
    unsigned: ["<u4", [1], Uint32Array.of(4_000_000_000)],
    shorts: ["<u2", [3], Uint16Array.of(0, 1, 65535)],
    flags: ["|b1", [3], Uint8Array.of(1, 0, 1)],
  });
  const npz = new Npz(file, "The file");
  assert.deepEqual(npz.names, ["floats", "doubles", "ints", "wide", "unsigned", "shorts", "flags"]);
  assert.deepEqual([...npz.read("floats").data], [1, 2.5, -3, 4]);
  assert.deepEqual(npz.read("floats").shape, [2, 2]);
  assert.deepEqual([...npz.readFloats("doubles").data], [Math.fround(Math.PI), -1]);
  assert.deepEqual([...npz.readIntegers("ints", 3).data], [1, -2, 3]);
  assert.deepEqual([...npz.readIntegers("wide", null).data], [5, -6]);
  assert.deepEqual([...npz.read("unsigned").data], [4_000_000_000]);
  assert.deepEqual([...npz.read("shorts").data], [0, 1, 65535]);
  assert.deepEqual([...npz.read("flags").data], [1, 0, 1]);
});

test("an array of no dimension has one element", () => {
  const npz = new Npz(packNpz({ count: ["<i8", [], BigInt64Array.of(7n)] }), "The file");
  assert.deepEqual(npz.read("count"), { shape: [], data: Float64Array.of(7) });
});

test("what cannot be read is said in a sentence", () => {
  const open = (file: ArrayBuffer) => () => new Npz(file, "The robot's scene");
  assert.throws(open(new ArrayBuffer(40)), /The robot's scene cannot be read: it is no npz, or was cut short/);
  const file = packNpz({ a: ["<f4", [2], Float32Array.of(1, 2)], z: [">f4", [1], Float32Array.of(1)] });
  const npz = new Npz(file, "The file");
  assert.throws(() => npz.read("b"), /no array b; it has a, z/);
  assert.throws(() => npz.readFloats("a", 3), /array a has the shape \(2\), not \(3\)/);
  assert.throws(() => npz.readIntegers("a"), /floats, not integers/);
  assert.throws(() => npz.read("z"), /type >f4/);
  const compressed = packNpz({ a: ["<f4", [1], Float32Array.of(1)] }, { method: 8 });
  assert.throws(open(compressed), /a.npy is compressed/);
});
