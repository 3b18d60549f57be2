/** The robot's surface as arrays for the GPU: all geoms in one buffer, each vertex with the number of its body. */

import { type Geom, GeomType, type Mesh, type Scene } from "./scene.js";
import { crossEdges, simplifyTriangles, type Triangles } from "./simplify.js";

export interface Surface {
  /** (V, 4): m in the frame of the body, and the body's number. */
  readonly place: Float32Array;
  /** (V, 4) of 127: the normal in the frame of the body. */
  readonly normal: Int8Array;
  /** (V, 4) of 255. */
  readonly colour: Uint8Array;
  readonly index: Uint32Array;
}

/** How much of the robot's shape a surface has. */
export interface Detail {
  /** How many cells of the grid that meshes are merged to are within the robot's reach; null keeps meshes as they are. */
  readonly cells: number | null;
  /** The share of the robot's reach by which a surface may move to save triangles. */
  readonly tolerance: number | null;
  /** How many corners a round shape has around its axis. */
  readonly steps: number;
  /** Degrees between two faces over which their edge is drawn as an edge; null draws none. */
  readonly crease: number | null;
}

/** What is built at once, for the first picture. */
export const ROUGH: Detail = { cells: null, tolerance: null, steps: 16, crease: null };
/** For motion without a GPU. */
export const COARSE: Detail = { cells: 140, tolerance: 1 / 60, steps: 16, crease: 42 };
/** For the ghost and the shadow, in which only the outline is to be seen. */
export const OUTLINE: Detail = { cells: 70, tolerance: 1 / 40, steps: 12, crease: null };
/** For motion without a GPU, of several robots that are small on the screen. */
export const DISTANT: Detail = { cells: 50, tolerance: 1 / 22, steps: 10, crease: 50 };
export const DISTANT_OUTLINE: Detail = { cells: 40, tolerance: 1 / 15, steps: 8, crease: null };
/** For still pictures and for machines with a GPU. */
export const FINE: Detail = { cells: null, tolerance: null, steps: 32, crease: 32 };

const ALL_SMOOTH = -2; // a cosine that every angle is above
// MuJoCo's colour for a geom without one, which says nothing about the robot.
const UNCOLOURED = 0.5;
const PLAIN = [0.71, 0.735, 0.77] as const;

export function buildSurface(scene: Scene, { cells, tolerance, steps, crease }: Detail): Surface {
  const builder = new SurfaceBuilder();
  const cell = cells === null ? 0 : scene.meta.radius / cells;
  const cosine = crease === null ? ALL_SMOOTH : Math.cos((crease * Math.PI) / 180);
  // The facets of a round shape are no edges.
  const roundCosine = Math.min(cosine, Math.cos((1.6 * 2 * Math.PI) / steps));
  const isPlain = scene.geoms.every(
    ({ rgba }) => rgba[0] === UNCOLOURED && rgba[1] === UNCOLOURED && rgba[2] === UNCOLOURED,
  );
  for (const geom of scene.geoms) {
    // The stage has a floor of its own.
    if (geom.type === GeomType.plane && geom.body === 0) continue;
    let triangles = tessellate(geom, scene.meshes, cell, steps);
    if (triangles === null) continue;
    if (tolerance !== null && geom.type === GeomType.mesh) {
      triangles = simplifyTriangles(triangles, tolerance * scene.meta.radius);
    }
    builder.add(triangles, geom, isPlain ? PLAIN : geom.rgba, ROUND.has(geom.type) ? roundCosine : cosine);
  }
  return builder.build();
}

class SurfaceBuilder {
  private readonly place: Float32Array[] = [];
  private readonly normal: Int8Array[] = [];
  private readonly index: Uint32Array[] = [];
  private readonly counts: { body: number; vertices: number; rgb: number[] }[] = [];
  private total = 0;

  /** @param crease the cosine of the angle over which an edge is one. */
  add({ points, faces }: Triangles, geom: Geom, rgb: ArrayLike<number>, crease: number): void {
    const world = new Float32Array(points.length);
    transformPoints(points, geom, world);
    const { place, normal, index } =
      crease === ALL_SMOOTH ? smoothNormals(world, faces) : splitCreases(world, faces, crease);
    for (let i = 0; i < index.length; i++) index[i]! += this.total;
    this.index.push(index);
    this.place.push(place);
    this.normal.push(normal);
    this.counts.push({
      body: geom.body,
      vertices: place.length / 3,
      rgb: [0, 1, 2].map((i) => Math.round(255 * Math.min(1, Math.max(0, rgb[i]!)))),
    });
    this.total += place.length / 3;
  }

  build(): Surface {
    const place = new Float32Array(4 * this.total);
    const normal = new Int8Array(4 * this.total);
    const colour = new Uint8Array(4 * this.total);
    let vertex = 0;
    this.counts.forEach(({ body, vertices, rgb }, part) => {
      const places = this.place[part]!;
      const normals = this.normal[part]!;
      for (let i = 0; i < vertices; i++, vertex++) {
        for (let axis = 0; axis < 3; axis++) {
          place[4 * vertex + axis] = places[3 * i + axis]!;
          normal[4 * vertex + axis] = normals[3 * i + axis]!;
          colour[4 * vertex + axis] = rgb[axis]!;
        }
        place[4 * vertex + 3] = body;
        colour[4 * vertex + 3] = 255;
      }
    });
    const index = new Uint32Array(this.index.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of this.index) {
      index.set(part, at);
      at += part.length;
    }
    return { place, normal, colour, index };
  }
}

interface ShadedTriangles {
  readonly place: Float32Array;
  readonly normal: Int8Array;
  readonly index: Uint32Array;
}

const cross = new Float64Array(3);

/** Gives every vertex the mean normal of its faces, weighted by their areas. */
function smoothNormals(points: Float32Array, faces: Uint32Array): ShadedTriangles {
  const sums = new Float32Array(points.length);
  for (let f = 0; f < faces.length; f += 3) {
    const a = 3 * faces[f]!;
    const b = 3 * faces[f + 1]!;
    const c = 3 * faces[f + 2]!;
    crossEdges(points, a, b, c, cross);
    const nx = cross[0]!;
    const ny = cross[1]!;
    const nz = cross[2]!;
    sums[a]! += nx;
    sums[a + 1]! += ny;
    sums[a + 2]! += nz;
    sums[b]! += nx;
    sums[b + 1]! += ny;
    sums[b + 2]! += nz;
    sums[c]! += nx;
    sums[c + 1]! += ny;
    sums[c + 2]! += nz;
  }
  const normal = new Int8Array(points.length);
  for (let i = 0; i < points.length; i += 3) {
    const x = sums[i]!;
    const y = sums[i + 1]!;
    const z = sums[i + 2]!;
    const scale = 127 / (Math.sqrt(x * x + y * y + z * z) || 1);
    normal[i] = Math.round(x * scale);
    normal[i + 1] = Math.round(y * scale);
    normal[i + 2] = Math.round(z * scale);
  }
  return { place: points, normal, index: faces.slice() };
}

/**
 * Gives every vertex one normal for each smooth patch that meets there: faces count to a patch as long as they differ by less
 * than the crease. Machined parts get crisp edges, round ones stay round.
 */
function splitCreases(points: Float32Array, faces: Uint32Array, crease: number): ShadedTriangles {
  const faceCount = faces.length / 3;
  const unit = new Float32Array(faces.length);
  const area = new Float32Array(faceCount);
  for (let f = 0; f < faceCount; f++) {
    const a = 3 * faces[3 * f]!;
    const b = 3 * faces[3 * f + 1]!;
    const c = 3 * faces[3 * f + 2]!;
    crossEdges(points, a, b, c, cross);
    const nx = cross[0]!;
    const ny = cross[1]!;
    const nz = cross[2]!;
    const length = Math.sqrt(nx * nx + ny * ny + nz * nz);
    area[f] = length;
    if (length > 0) {
      unit[3 * f] = nx / length;
      unit[3 * f + 1] = ny / length;
      unit[3 * f + 2] = nz / length;
    }
  }

  // The corners at each vertex, one after the other.
  const vertexCount = points.length / 3;
  const starts = new Uint32Array(vertexCount + 1);
  for (let i = 0; i < faces.length; i++) starts[faces[i]! + 1]!++;
  for (let v = 0; v < vertexCount; v++) starts[v + 1]! += starts[v]!;
  const fill = starts.slice(0, vertexCount);
  const corners = new Uint32Array(faces.length);
  const faceOf = new Uint32Array(faces.length);
  for (let i = 0; i < faces.length; i++) {
    const at = fill[faces[i]!]!++;
    corners[at] = i;
    faceOf[at] = (i / 3) | 0;
  }

  const place = new Float32Array(3 * faces.length);
  const normal = new Int8Array(3 * faces.length);
  const index = new Uint32Array(faces.length);
  let end = 0;
  for (let v = 0; v < vertexCount; v++) {
    const first = end;
    for (let i = starts[v]!; i < starts[v + 1]!; i++) {
      const face = faceOf[i]!;
      let x = 0;
      let y = 0;
      let z = 0;
      for (let j = starts[v]!; j < starts[v + 1]!; j++) {
        const other = faceOf[j]!;
        const cosine =
          unit[3 * face]! * unit[3 * other]! +
          unit[3 * face + 1]! * unit[3 * other + 1]! +
          unit[3 * face + 2]! * unit[3 * other + 2]!;
        if (cosine < crease) continue;
        x += unit[3 * other]! * area[other]!;
        y += unit[3 * other + 1]! * area[other]!;
        z += unit[3 * other + 2]! * area[other]!;
      }
      const length = Math.sqrt(x * x + y * y + z * z) || 1;
      const nx = Math.round((127 * x) / length);
      const ny = Math.round((127 * y) / length);
      const nz = Math.round((127 * z) / length);
      let vertex = first;
      while (
        vertex < end &&
        (normal[3 * vertex] !== nx || normal[3 * vertex + 1] !== ny || normal[3 * vertex + 2] !== nz)
      ) {
        vertex++;
      }
      if (vertex === end) {
        for (let axis = 0; axis < 3; axis++) place[3 * end + axis] = points[3 * v + axis]!;
        normal[3 * end] = nx;
        normal[3 * end + 1] = ny;
        normal[3 * end + 2] = nz;
        end++;
      }
      index[corners[i]!] = vertex;
    }
  }
  return { place: place.subarray(0, 3 * end), normal: normal.subarray(0, 3 * end), index };
}

function transformPoints(points: Float32Array, { pos, quat }: Geom, out: Float32Array): void {
  const [w, x, y, z] = quat;
  for (let i = 0; i < points.length; i += 3) {
    const px = points[i]!;
    const py = points[i + 1]!;
    const pz = points[i + 2]!;
    const cx = y * pz - z * py;
    const cy = z * px - x * pz;
    const cz = x * py - y * px;
    out[i] = pos[0] + px + 2 * (w * cx + y * cz - z * cy);
    out[i + 1] = pos[1] + py + 2 * (w * cy + z * cx - x * cz);
    out[i + 2] = pos[2] + pz + 2 * (w * cz + x * cy - y * cx);
  }
}

const ROUND: ReadonlySet<number> = new Set([GeomType.sphere, GeomType.capsule, GeomType.ellipsoid, GeomType.cylinder]);

function tessellate(geom: Geom, meshes: readonly Mesh[], cell: number, steps: number): Triangles | null {
  const [a, b, c] = geom.size;
  switch (geom.type) {
    case GeomType.sphere:
      return revolve(capRings(a, 0, steps), steps);
    case GeomType.capsule:
      return revolve(capRings(a, b, steps), steps);
    case GeomType.ellipsoid: {
      const { points, faces } = revolve(capRings(1, 0, steps), steps);
      for (let i = 0; i < points.length; i++) points[i]! *= geom.size[i % 3]!;
      return { points, faces };
    }
    case GeomType.cylinder: {
      const outline: [number, number][] = [
        [0, -b],
        [a, -b],
        [a, b],
        [0, b],
      ];
      return revolve(outline, steps);
    }
    case GeomType.box:
      return buildBox(a, b, c);
    case GeomType.plane: {
      // A size of 0 has no end.
      const x = a || 10;
      const y = b || 10;
      const points = Float32Array.of(-x, -y, 0, x, -y, 0, x, y, 0, -x, y, 0);
      return { points, faces: Uint32Array.of(0, 1, 2, 0, 2, 3) };
    }
    case GeomType.mesh: {
      const mesh = meshes[geom.mesh];
      if (mesh === undefined) return null;
      return cell > 0 ? mergeVertices(mesh, cell) : { points: decodeVertices(mesh), faces: mesh.faces };
    }
    default:
      return null;
  }
}

function decodeVertices({ vertices, low, high }: Mesh): Float32Array {
  const points = new Float32Array(vertices.length);
  for (let axis = 0; axis < 3; axis++) {
    const start = low[axis]!;
    const scale = (high[axis]! - start) / 65535;
    for (let i = axis; i < vertices.length; i += 3) points[i] = start + vertices[i]! * scale;
  }
  return points;
}

/** Merges all vertices that lie in the same cell of a grid into their mean, and drops the triangles that vanish by it. */
function mergeVertices(mesh: Mesh, cell: number): Triangles {
  const points = decodeVertices(mesh);
  const count = points.length / 3;
  const [nx, ny, nz] = mesh.low.map((value, axis) => Math.ceil((mesh.high[axis]! - value) / cell) + 2) as [
    number,
    number,
    number,
  ];
  // The number of each cell's vertex; a table is faster than a map, where it is not too large.
  const table = nx * ny * nz <= 1 << 22 ? new Int32Array(nx * ny * nz) : null;
  const map = new Map<number, number>();
  const clusterOf = new Uint32Array(count);
  const sums = new Float64Array(3 * count);
  const sizes = new Uint32Array(count);
  let clusters = 0;
  for (let v = 0; v < count; v++) {
    // Rounded, so that a flat side of the box lies in the middle of a cell and is not torn between two.
    const ix = Math.round((points[3 * v]! - mesh.low[0]) / cell);
    const iy = Math.round((points[3 * v + 1]! - mesh.low[1]) / cell);
    const iz = Math.round((points[3 * v + 2]! - mesh.low[2]) / cell);
    const key = (iz * ny + iy) * nx + ix;
    let number = table === null ? (map.get(key) ?? 0) : table[key]!;
    if (number === 0) {
      number = ++clusters;
      if (table === null) map.set(key, number);
      else table[key] = number;
    }
    const cluster = number - 1;
    clusterOf[v] = cluster;
    sizes[cluster]!++;
    for (let axis = 0; axis < 3; axis++) sums[3 * cluster + axis]! += points[3 * v + axis]!;
  }
  const merged = new Float32Array(3 * clusters);
  for (let i = 0; i < merged.length; i++) merged[i] = sums[i]! / sizes[(i / 3) | 0]!;
  const faces = new Uint32Array(mesh.faces.length);
  let length = 0;
  for (let f = 0; f < mesh.faces.length; f += 3) {
    const a = clusterOf[mesh.faces[f]!]!;
    const b = clusterOf[mesh.faces[f + 1]!]!;
    const c = clusterOf[mesh.faces[f + 2]!]!;
    if (a === b || b === c || c === a) continue;
    faces[length++] = a;
    faces[length++] = b;
    faces[length++] = c;
  }
  return { points: merged, faces: faces.slice(0, length) };
}

/** The outline of a capsule from bottom to top, as [radius, z]; without a middle part it is a sphere's. */
function capRings(radius: number, half: number, steps: number): [number, number][] {
  const rings: [number, number][] = [];
  const count = steps >> 2;
  for (let i = 0; i <= count; i++) {
    const angle = (Math.PI / 2) * (1 - i / count);
    rings.push([i === 0 ? 0 : radius * Math.cos(angle), -half - radius * Math.sin(angle)]);
  }
  const top = rings.map(([r, z]): [number, number] => [r, -z]).reverse();
  return half > 0 ? [...rings, ...top] : [...rings, ...top.slice(1)];
}

/** The surface of an outline that turns about z; a radius of 0 is a pole. */
function revolve(rings: readonly (readonly [number, number])[], steps: number): Triangles {
  const points: number[] = [];
  const faces: number[] = [];
  const starts: number[] = [];
  for (const [radius, z] of rings) {
    starts.push(points.length / 3);
    if (radius === 0) {
      points.push(0, 0, z);
      continue;
    }
    for (let i = 0; i < steps; i++) {
      const angle = (2 * Math.PI * i) / steps;
      points.push(radius * Math.cos(angle), radius * Math.sin(angle), z);
    }
  }
  for (let ring = 0; ring + 1 < rings.length; ring++) {
    const isPole = rings[ring]![0] === 0;
    const endsInPole = rings[ring + 1]![0] === 0;
    for (let i = 0; i < steps; i++) {
      const next = (i + 1) % steps;
      const a = starts[ring]! + (isPole ? 0 : i);
      const b = starts[ring]! + (isPole ? 0 : next);
      const c = starts[ring + 1]! + (endsInPole ? 0 : i);
      const d = starts[ring + 1]! + (endsInPole ? 0 : next);
      if (!isPole) faces.push(a, b, c);
      if (!endsInPole) faces.push(b, d, c);
    }
  }
  return { points: Float32Array.from(points), faces: Uint32Array.from(faces) };
}

function buildBox(x: number, y: number, z: number): Triangles {
  const points: number[] = [];
  for (const sz of [-1, 1]) for (const sy of [-1, 1]) for (const sx of [-1, 1]) points.push(sx * x, sy * y, sz * z);
  const sides = [0, 2, 3, 1, 4, 5, 7, 6, 0, 1, 5, 4, 2, 6, 7, 3, 0, 4, 6, 2, 1, 3, 7, 5];
  const faces: number[] = [];
  for (let i = 0; i < sides.length; i += 4) {
    faces.push(sides[i]!, sides[i + 1]!, sides[i + 2]!, sides[i]!, sides[i + 2]!, sides[i + 3]!);
  }
  return { points: Float32Array.from(points), faces: Uint32Array.from(faces) };
}
