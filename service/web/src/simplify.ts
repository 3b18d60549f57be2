/**
 * Takes triangles out of a mesh where that changes its shape least (Garland and Heckbert, Surface Simplification Using Quadric
 * Error Metrics, 1997): edges become points, those first whose end is nearest to all planes that met at both ends.
 */

export interface Triangles {
  readonly points: Float32Array;
  readonly faces: Uint32Array;
}

const PASSES = 9;
const ENTRIES = 10; // of a symmetric matrix of 4 by 4
const RIM_WEIGHT = 4; // of the planes that hold the rim of an open mesh in its place
const LEAST_COSINE = 0.25; // by which a face may turn when its corner moves

const cross = new Float64Array(3);

/** The cross product of a triangle's edges from its first corner: its normal, as long as twice its area. @param a, b, c first
 * elements of the corners in `points`. */
export function crossEdges(points: ArrayLike<number>, a: number, b: number, c: number, out: Float64Array): void {
  const ux = points[b]! - points[a]!;
  const uy = points[b + 1]! - points[a + 1]!;
  const uz = points[b + 2]! - points[a + 2]!;
  const vx = points[c]! - points[a]!;
  const vy = points[c + 1]! - points[a + 1]!;
  const vz = points[c + 2]! - points[a + 2]!;
  out[0] = uy * vz - uz * vy;
  out[1] = uz * vx - ux * vz;
  out[2] = ux * vy - uy * vx;
}

/** @param tolerance m, about how far the surface may move. */
export function simplifyTriangles({ points, faces }: Triangles, tolerance: number): Triangles {
  return new Simplifier(points, faces).simplify(tolerance * tolerance);
}

class Simplifier {
  private readonly points: Float64Array;
  private readonly faces: Int32Array; // the first corner of a face that is gone is -1
  private readonly quadrics: Float64Array;
  private readonly normals: Float64Array;
  private readonly starts: Int32Array;
  private readonly corners: Int32Array;
  /** The pass in which a vertex has been part of a collapse: what is known of its faces is out of date until the next one. */
  private readonly touched: Int8Array;
  private readonly place = [0, 0, 0];

  constructor(points: Float32Array, faces: Uint32Array) {
    this.points = Float64Array.from(points);
    this.faces = Int32Array.from(faces);
    const count = points.length / 3;
    this.quadrics = new Float64Array(ENTRIES * count);
    this.normals = new Float64Array(faces.length);
    this.starts = new Int32Array(count + 1);
    this.corners = new Int32Array(faces.length);
    this.touched = new Int8Array(count).fill(-1);
    for (let at = 0; at < faces.length; at += 3) this.addFacePlane(at);
    this.indexCorners();
    this.addRimPlanes();
  }

  simplify(limit: number): Triangles {
    for (let pass = 0; pass < PASSES; pass++) {
      if (pass > 0) this.indexCorners();
      // The cheapest edges first, without sorting them: each pass takes those below a bound that rises.
      const bound = limit * ((pass + 1) / PASSES) ** 3;
      let collapsed = 0;
      for (let at = 0; at < this.faces.length; at += 3) {
        for (let side = 0; side < 3 && this.faces[at]! >= 0; side++) {
          if (this.tryCollapse(this.faces[at + side]!, this.faces[at + ((side + 1) % 3)]!, bound, pass)) collapsed++;
        }
      }
      if (collapsed === 0 && pass === PASSES - 1) break;
    }
    return this.compact();
  }

  private tryCollapse(a: number, b: number, bound: number, pass: number): boolean {
    if (this.touched[a] === pass || this.touched[b] === pass) return false;
    if (this.findPlace(a, b) > bound) return false;
    if (this.wouldFold(a, b) || this.wouldFold(b, a)) return false;
    this.points.set(this.place, 3 * a);
    for (let i = 0; i < ENTRIES; i++) this.quadrics[ENTRIES * a + i]! += this.quadrics[ENTRIES * b + i]!;
    for (let i = this.starts[b]!; i < this.starts[b + 1]!; i++) {
      const corner = this.corners[i]!;
      const at = corner - (corner % 3);
      if (this.faces[at]! < 0) continue;
      if (this.hasCorner(at, a)) this.faces[at] = -1;
      else this.faces[corner] = a;
    }
    this.updateNormals(a);
    this.updateNormals(b);
    this.touched[a] = pass;
    this.touched[b] = pass;
    return true;
  }

  /** Writes the better one of both ends and the middle into `place`; returns its error. */
  private findPlace(a: number, b: number): number {
    const { points, place } = this;
    let least = Number.POSITIVE_INFINITY;
    for (let candidate = 0; candidate < 3; candidate++) {
      const share = candidate === 0 ? 0.5 : candidate - 1;
      const x = points[3 * a]! + share * (points[3 * b]! - points[3 * a]!);
      const y = points[3 * a + 1]! + share * (points[3 * b + 1]! - points[3 * a + 1]!);
      const z = points[3 * a + 2]! + share * (points[3 * b + 2]! - points[3 * a + 2]!);
      const error = this.errorAt(a, x, y, z) + this.errorAt(b, x, y, z);
      if (error >= least) continue;
      least = error;
      place[0] = x;
      place[1] = y;
      place[2] = z;
    }
    return least;
  }

  private errorAt(vertex: number, x: number, y: number, z: number): number {
    const q = this.quadrics;
    const i = ENTRIES * vertex;
    return (
      q[i]! * x * x +
      2 * q[i + 1]! * x * y +
      2 * q[i + 2]! * x * z +
      2 * q[i + 3]! * x +
      q[i + 4]! * y * y +
      2 * q[i + 5]! * y * z +
      2 * q[i + 6]! * y +
      q[i + 7]! * z * z +
      2 * q[i + 8]! * z +
      q[i + 9]!
    );
  }

  /** Whether a face of a vertex, but for those that it shares with the other one, would turn over or vanish at `place`. */
  private wouldFold(vertex: number, other: number): boolean {
    const { points, faces, normals, place } = this;
    for (let i = this.starts[vertex]!; i < this.starts[vertex + 1]!; i++) {
      const corner = this.corners[i]!;
      const side = corner % 3;
      const at = corner - side;
      if (faces[at]! < 0 || this.hasCorner(at, other)) continue;
      const b = 3 * faces[at + ((side + 1) % 3)]!;
      const c = 3 * faces[at + ((side + 2) % 3)]!;
      const ux = points[b]! - place[0]!;
      const uy = points[b + 1]! - place[1]!;
      const uz = points[b + 2]! - place[2]!;
      const vx = points[c]! - place[0]!;
      const vy = points[c + 1]! - place[1]!;
      const vz = points[c + 2]! - place[2]!;
      const nx = uy * vz - uz * vy;
      const ny = uz * vx - ux * vz;
      const nz = ux * vy - uy * vx;
      const length = Math.sqrt(nx * nx + ny * ny + nz * nz);
      const cosine = nx * normals[at]! + ny * normals[at + 1]! + nz * normals[at + 2]!;
      if (length < 1e-12 || cosine < LEAST_COSINE * length) return true;
    }
    return false;
  }

  private hasCorner(at: number, vertex: number): boolean {
    return this.faces[at] === vertex || this.faces[at + 1] === vertex || this.faces[at + 2] === vertex;
  }

  private updateNormals(vertex: number): void {
    for (let i = this.starts[vertex]!; i < this.starts[vertex + 1]!; i++) {
      const corner = this.corners[i]!;
      const at = corner - (corner % 3);
      if (this.faces[at]! >= 0) this.writeNormal(at);
    }
  }

  private writeNormal(at: number): boolean {
    const { points, faces, normals } = this;
    const a = 3 * faces[at]!;
    const b = 3 * faces[at + 1]!;
    const c = 3 * faces[at + 2]!;
    crossEdges(points, a, b, c, cross);
    const nx = cross[0]!;
    const ny = cross[1]!;
    const nz = cross[2]!;
    const length = Math.sqrt(nx * nx + ny * ny + nz * nz);
    if (length < 1e-14) return false;
    normals[at] = nx / length;
    normals[at + 1] = ny / length;
    normals[at + 2] = nz / length;
    return true;
  }

  private addFacePlane(at: number): void {
    if (!this.writeNormal(at)) return;
    const { normals, faces } = this;
    for (let side = 0; side < 3; side++) {
      this.addPlane(faces[at + side]!, normals[at]!, normals[at + 1]!, normals[at + 2]!, faces[at]!, 1);
    }
  }

  /** Adds the plane with this normal through the vertex `through` to what holds `vertex`. */
  private addPlane(vertex: number, x: number, y: number, z: number, through: number, weight: number): void {
    const { points, quadrics } = this;
    const d = -(x * points[3 * through]! + y * points[3 * through + 1]! + z * points[3 * through + 2]!);
    const i = ENTRIES * vertex;
    quadrics[i]! += weight * x * x;
    quadrics[i + 1]! += weight * x * y;
    quadrics[i + 2]! += weight * x * z;
    quadrics[i + 3]! += weight * x * d;
    quadrics[i + 4]! += weight * y * y;
    quadrics[i + 5]! += weight * y * z;
    quadrics[i + 6]! += weight * y * d;
    quadrics[i + 7]! += weight * z * z;
    quadrics[i + 8]! += weight * z * d;
    quadrics[i + 9]! += weight * d * d;
  }

  /** An edge of one face alone is a rim: a plane through it, upright on the face, keeps it from being eaten away. */
  private addRimPlanes(): void {
    const { faces, points, normals } = this;
    for (let at = 0; at < faces.length; at += 3) {
      for (let side = 0; side < 3; side++) {
        const a = faces[at + side]!;
        const b = faces[at + ((side + 1) % 3)]!;
        if (this.countFaces(a, b) !== 1) continue;
        const x = points[3 * b]! - points[3 * a]!;
        const y = points[3 * b + 1]! - points[3 * a + 1]!;
        const z = points[3 * b + 2]! - points[3 * a + 2]!;
        const nx = y * normals[at + 2]! - z * normals[at + 1]!;
        const ny = z * normals[at]! - x * normals[at + 2]!;
        const nz = x * normals[at + 1]! - y * normals[at]!;
        const length = Math.sqrt(nx * nx + ny * ny + nz * nz);
        if (length < 1e-14) continue;
        for (const vertex of [a, b]) {
          this.addPlane(vertex, nx / length, ny / length, nz / length, a, RIM_WEIGHT);
        }
      }
    }
  }

  private countFaces(a: number, b: number): number {
    let count = 0;
    for (let i = this.starts[a]!; i < this.starts[a + 1]!; i++) {
      const corner = this.corners[i]!;
      if (this.hasCorner(corner - (corner % 3), b)) count++;
    }
    return count;
  }

  private indexCorners(): void {
    const { faces, starts, corners } = this;
    starts.fill(0);
    for (let at = 0; at < faces.length; at += 3) {
      if (faces[at]! < 0) continue;
      for (let side = 0; side < 3; side++) starts[faces[at + side]! + 1]!++;
    }
    for (let vertex = 0; vertex + 1 < starts.length; vertex++) starts[vertex + 1]! += starts[vertex]!;
    const next = starts.slice();
    for (let at = 0; at < faces.length; at += 3) {
      if (faces[at]! < 0) continue;
      for (let side = 0; side < 3; side++) corners[next[faces[at + side]!]!++] = at + side;
    }
  }

  private compact(): Triangles {
    const numbers = new Int32Array(this.points.length / 3).fill(-1);
    const points: number[] = [];
    const faces: number[] = [];
    for (let at = 0; at < this.faces.length; at += 3) {
      if (this.faces[at]! < 0) continue;
      for (let side = 0; side < 3; side++) {
        const vertex = this.faces[at + side]!;
        if (numbers[vertex]! < 0) {
          numbers[vertex] = points.length / 3;
          points.push(this.points[3 * vertex]!, this.points[3 * vertex + 1]!, this.points[3 * vertex + 2]!);
        }
        faces.push(numbers[vertex]!);
      }
    }
    return { points: Float32Array.from(points), faces: Uint32Array.from(faces) };
  }
}
