/** Writes an npz, for tests. */

type Entry = [
  descr: string,
  shape: number[],
  data: Float32Array | Float64Array | Int32Array | BigInt64Array | Uint32Array | Uint16Array | Uint8Array,
];

export function packNpz(arrays: Record<string, Entry>, { method = 0 } = {}): ArrayBuffer {
  const locals: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  for (const [name, entry] of Object.entries(arrays)) {
    const file = new TextEncoder().encode(`${name}.npy`);
    const content = packArray(entry);
    const local = new DataView(new ArrayBuffer(30));
    local.setUint32(0, 0x04034b50, true);
    local.setUint16(26, file.length, true);
    const record = new DataView(new ArrayBuffer(46));
    record.setUint32(0, 0x02014b50, true);
    record.setUint16(10, method, true);
    record.setUint32(20, content.length, true);
    record.setUint32(24, content.length, true);
    record.setUint16(28, file.length, true);
    record.setUint32(42, offset, true);
    locals.push(new Uint8Array(local.buffer), file, content);
    directory.push(new Uint8Array(record.buffer), file);
    offset += 30 + file.length + content.length;
  }
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(10, Object.keys(arrays).length, true);
  end.setUint32(16, offset, true);
  return join([...locals, ...directory, new Uint8Array(end.buffer)]);
}

function packArray([descr, shape, data]: Entry): Uint8Array {
  const dimensions = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const header = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${dimensions}), }\n`;
  const start = new Uint8Array(10);
  start.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return new Uint8Array(join([start, new TextEncoder().encode(header), bytes]));
}

function join(parts: Uint8Array[]): ArrayBuffer {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result.buffer;
}
