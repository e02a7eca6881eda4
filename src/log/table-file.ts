/**
 * The two small tables beside the segments: rows of a fixed size under one CRC, replaced whole. A table that does not
 * check out is absent: both can be made again from the segments.
 */
import { crc32 } from 'node:zlib';
import type { Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError } from '../base/errors.ts';

const HEADER_BYTES = 24;
const CRC_BYTES = 4;
const TABLE_FORMAT_VERSION = 1;

export interface TableShape<Row> {
  /** Eight characters that say which table it is. */
  readonly magic: string;
  readonly rowBytes: number;
  encode(row: Row, view: DataView, bytes: Uint8Array): void;
  decode(view: DataView, bytes: Uint8Array): Row;
}

export interface Table<Row> {
  /** One number for the table as a whole, of which it knows the meaning. */
  readonly base: number;
  readonly rows: Row[];
}

export function encodeTable<Row>(shape: TableShape<Row>, { base, rows }: Table<Row>): Uint8Array {
  const bytes = Buffer.alloc(HEADER_BYTES + rows.length * shape.rowBytes + CRC_BYTES);
  bytes.write(shape.magic, 0, 'latin1');
  bytes.writeUInt16LE(TABLE_FORMAT_VERSION, 8);
  bytes.writeUInt16LE(shape.rowBytes, 10);
  bytes.writeUInt32LE(rows.length, 12);
  bytes.writeUInt32LE(base, 16);
  rows.forEach((row, i) => {
    const at = HEADER_BYTES + i * shape.rowBytes;
    const part = bytes.subarray(at, at + shape.rowBytes);
    shape.encode(row, new DataView(part.buffer, part.byteOffset, part.length), part);
  });
  bytes.writeUInt32LE(crc32(bytes.subarray(0, -CRC_BYTES)), bytes.length - CRC_BYTES);
  return bytes;
}

export function decodeTable<Row>(shape: TableShape<Row>, source: Uint8Array): Table<Row> | undefined {
  const bytes = Buffer.from(source.buffer, source.byteOffset, source.length);
  if (bytes.length < HEADER_BYTES + CRC_BYTES || bytes.toString('latin1', 0, 8) !== shape.magic) return undefined;
  if (crc32(bytes.subarray(0, -CRC_BYTES)) !== bytes.readUInt32LE(bytes.length - CRC_BYTES)) return undefined;
  const version = bytes.readUInt16LE(8);
  if (version !== TABLE_FORMAT_VERSION)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `The log has a table ${shape.magic} of format version ${version}; this Nostos knows version ${TABLE_FORMAT_VERSION}`,
      { details: { table: shape.magic, version } },
    );
  const count = bytes.readUInt32LE(12);
  if (bytes.readUInt16LE(10) !== shape.rowBytes) return undefined;
  if (bytes.length !== HEADER_BYTES + count * shape.rowBytes + CRC_BYTES) return undefined;
  const rows: Row[] = [];
  for (let i = 0; i < count; i++) {
    const at = HEADER_BYTES + i * shape.rowBytes;
    const part = bytes.subarray(at, at + shape.rowBytes);
    rows.push(shape.decode(new DataView(part.buffer, part.byteOffset, part.length), part));
  }
  return { base: bytes.readUInt32LE(16), rows };
}

export function loadTable<Row>(disk: Disk, path: string, shape: TableShape<Row>): Table<Row> | undefined {
  const bytes = readIfExists(disk, path);
  return bytes === undefined ? undefined : decodeTable(shape, bytes);
}

export function saveTable<Row>(disk: Disk, path: string, shape: TableShape<Row>, table: Table<Row>): void {
  writeDurably(disk, path, encodeTable(shape, table));
}
