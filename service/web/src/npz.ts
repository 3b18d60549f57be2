/** Reads npz files as the service sends them: a ZIP whose members are stored, each an array in NumPy's format. */

export type Numbers =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array;

export interface Tensor<T extends Numbers = Numbers> {
  readonly shape: readonly number[];
  readonly data: T;
}

export class NpzError extends Error {
  override name = "NpzError";
}

const END_OF_DIRECTORY = 0x06054b50;
const DIRECTORY_ENTRY = 0x02014b50;
const LOCAL_HEADER = 0x04034b50;

type Constructor = { new (buffer: ArrayBuffer, offset: number, length: number): Numbers; BYTES_PER_ELEMENT: number };

const TYPES: Record<string, Constructor> = {
  f4: Float32Array,
  f8: Float64Array,
  i1: Int8Array,
  u1: Uint8Array,
  b1: Uint8Array,
  i2: Int16Array,
  u2: Uint16Array,
  i4: Int32Array,
  u4: Uint32Array,
};

export class Npz {
  private readonly members = new Map<string, DataView<ArrayBuffer>>();

  /** @param what names the file in errors. */
  constructor(
    private readonly buffer: ArrayBuffer,
    private readonly what: string,
  ) {
    const view = new DataView(buffer);
    const end = this.findEnd(view);
    const count = view.getUint16(end + 10, true);
    let at = view.getUint32(end + 16, true);
    for (let i = 0; i < count; i++) {
      if (at + 46 > buffer.byteLength || view.getUint32(at, true) !== DIRECTORY_ENTRY) {
        throw this.error("its directory is damaged");
      }
      const nameLength = view.getUint16(at + 28, true);
      const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameLength));
      this.members.set(name.replace(/\.npy$/, ""), this.readMember(view, at, name));
      at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    }
  }

  get names(): string[] {
    return [...this.members.keys()];
  }

  has(name: string): boolean {
    return this.members.has(name);
  }

  /** An array as it is stored; integers of 64 bits become floats. Shares the file's memory where its place allows that. */
  read(name: string): Tensor {
    const member = this.members.get(name);
    if (!member) throw this.error(`it has no array ${name}; it has ${this.names.join(", ")}`);
    return this.readArray(name, member);
  }

  /** An array of floats, of either size, as float32. */
  readFloats(name: string, ...shape: (number | null)[]): Tensor<Float32Array> {
    const { shape: stored, data } = this.readShaped(name, shape);
    return { shape: stored, data: data instanceof Float32Array ? data : Float32Array.from(data) };
  }

  /** An array of integers of any size, as int32. */
  readIntegers(name: string, ...shape: (number | null)[]): Tensor<Int32Array> {
    const { shape: stored, data } = this.readShaped(name, shape);
    if (data instanceof Float32Array) throw this.error(`array ${name} has floats, not integers`);
    return { shape: stored, data: data instanceof Int32Array ? data : Int32Array.from(data) };
  }

  /** The JSON in an array of bytes. */
  readJson(name: string): unknown {
    const { data } = this.read(name);
    try {
      return JSON.parse(new TextDecoder().decode(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
    } catch {
      throw this.error(`array ${name} is not JSON`);
    }
  }

  /** An array whose shape is checked; null is any length. */
  private readShaped(name: string, shape: (number | null)[]): Tensor {
    const tensor = this.read(name);
    const fits = shape.length === tensor.shape.length && shape.every((n, i) => n === null || n === tensor.shape[i]);
    if (shape.length > 0 && !fits) {
      const expected = shape.map((n) => n ?? "any").join(", ");
      throw this.error(`array ${name} has the shape (${tensor.shape.join(", ")}), not (${expected})`);
    }
    return tensor;
  }

  private error(problem: string): NpzError {
    return new NpzError(`${this.what} cannot be read: ${problem}.`);
  }

  private findEnd(view: DataView): number {
    // A comment of up to 65535 bytes may come behind it.
    for (let at = view.byteLength - 22; at >= Math.max(0, view.byteLength - 22 - 0xffff); at--) {
      if (view.getUint32(at, true) === END_OF_DIRECTORY) return at;
    }
    throw this.error("it is no npz, or was cut short");
  }

  private readMember(view: DataView, entry: number, name: string): DataView<ArrayBuffer> {
    const method = view.getUint16(entry + 10, true);
    const size = view.getUint32(entry + 24, true);
    const local = view.getUint32(entry + 42, true);
    if (method !== 0) throw this.error(`${name} is compressed; its members must be stored`);
    if (size === 0xffffffff || local === 0xffffffff) throw this.error(`${name} is over 4 GiB`);
    if (local + 30 > view.byteLength || view.getUint32(local, true) !== LOCAL_HEADER) {
      throw this.error(`${name} is not where the directory says`);
    }
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    if (start + size > view.byteLength) throw this.error(`${name} was cut short`);
    return new DataView(this.buffer, start, size);
  }

  private readArray(name: string, member: DataView<ArrayBuffer>): Tensor {
    const damaged = () => this.error(`array ${name} is not in NumPy's format`);
    if (member.byteLength < 12 || member.getUint32(0) !== 0x934e554d || member.getUint16(4) !== 0x5059) throw damaged();
    const isShort = member.getUint8(6) === 1;
    const start = isShort ? 10 : 12;
    const length = isShort ? member.getUint16(8, true) : member.getUint32(8, true);
    if (start + length > member.byteLength) throw damaged();
    const header = new TextDecoder().decode(new Uint8Array(this.buffer, member.byteOffset + start, length));
    const descr = /'descr':\s*'([^']*)'/.exec(header)?.[1];
    const dimensions = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1];
    if (descr === undefined || dimensions === undefined) throw damaged();
    if (/'fortran_order':\s*True/.test(header)) throw this.error(`array ${name} is in Fortran's order`);
    const shape = dimensions
      .split(",")
      .filter((n) => n.trim() !== "")
      .map(Number);
    const count = shape.reduce((product, n) => product * n, 1);
    const offset = member.byteOffset + start + length;
    return { shape, data: this.readElements(name, descr, offset, count, member.byteLength - start - length) };
  }

  private readElements(name: string, descr: string, offset: number, count: number, available: number): Numbers {
    const code = descr.slice(1);
    const wide = code === "i8" || code === "u8";
    const Type = TYPES[code];
    if (descr.startsWith(">") || (Type === undefined && !wide)) {
      throw this.error(
        `array ${name} has the type ${descr}, which is not one of ${Object.keys(TYPES).join(", ")}, i8, u8`,
      );
    }
    const size = Type?.BYTES_PER_ELEMENT ?? 8;
    if (count * size > available) throw this.error(`array ${name} was cut short`);
    if (Type === undefined) {
      const view = new DataView(this.buffer, offset, count * 8);
      const low = code === "i8" ? view.getBigInt64.bind(view) : view.getBigUint64.bind(view);
      return Float64Array.from({ length: count }, (_, i) => Number(low(8 * i, true)));
    }
    if (offset % size === 0) return new Type(this.buffer, offset, count);
    return new Type(this.buffer.slice(offset, offset + count * size), 0, count);
  }
}
