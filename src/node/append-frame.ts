/**
 * An append on its way to the engine and its answer back, each as one buffer: cloning objects between threads costs more
 * than everything else that a lone write does there. Fixed-width fields in the machine's own byte order, since they
 * never leave the process.
 *
 * request: u32 id, u32 count, u32 1 where `local` will do, then per entry f64 tenant, u32 kind, u32 payload bytes; then the payloads.
 * answer:  u32 id, u32 count, f64 term, f64 first LSN, f64 watermark; then 32 bytes of hash per record.
 */
import type { Lsn, TenantId, Term } from '../base/brands.ts';
import type { Durability, LogEntry } from '../log/commit-log.ts';
import type { RecordKind } from '../log/record.ts';

const REQUEST_BYTES = 12;
const ENTRY_BYTES = 16;
const ANSWER_BYTES = 32;
const HASH_BYTES = 32;

export interface AppendAnswer {
  readonly term: Term;
  readonly firstLsn: Lsn;
  readonly watermark: Lsn;
  readonly hashes: Uint8Array;
}

export function encodeAppend(
  id: number,
  entries: readonly LogEntry[],
  durability: Durability,
): Uint8Array<ArrayBuffer> {
  let bytes = REQUEST_BYTES + entries.length * ENTRY_BYTES;
  let at = bytes;
  for (const { payload } of entries) bytes += payload.length;
  const frame = new Uint8Array(new ArrayBuffer(bytes));
  const view = new DataView(frame.buffer);
  view.setUint32(0, id, true);
  view.setUint32(4, entries.length, true);
  view.setUint32(8, durability === 'local' ? 1 : 0, true);
  for (let index = 0; index < entries.length; index += 1) {
    const { tenant, kind, payload } = entries[index]!;
    const header = REQUEST_BYTES + index * ENTRY_BYTES;
    view.setFloat64(header, tenant, true);
    view.setUint32(header + 8, kind, true);
    view.setUint32(header + 12, payload.length, true);
    frame.set(payload, at);
    at += payload.length;
  }
  return frame;
}

/** Payloads are views into the frame. */
export function decodeAppend(frame: Uint8Array): {
  readonly id: number;
  readonly entries: LogEntry[];
  readonly durability: Durability;
} {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  const count = view.getUint32(4, true);
  const entries: LogEntry[] = [];
  let at = REQUEST_BYTES + count * ENTRY_BYTES;
  for (let index = 0; index < count; index += 1) {
    const header = REQUEST_BYTES + index * ENTRY_BYTES;
    const end = at + view.getUint32(header + 12, true);
    entries.push({
      tenant: view.getFloat64(header, true) as TenantId,
      kind: view.getUint32(header + 8, true) as RecordKind,
      payload: frame.subarray(at, end),
    });
    at = end;
  }
  const durability = view.getUint32(8, true) === 1 ? 'local' : 'quorum';
  return { id: view.getUint32(0, true), entries, durability };
}

export function encodeAnswer(id: number, answer: AppendAnswer): Uint8Array<ArrayBuffer> {
  const frame = new Uint8Array(new ArrayBuffer(ANSWER_BYTES + answer.hashes.length));
  const view = new DataView(frame.buffer);
  view.setUint32(0, id, true);
  view.setUint32(4, answer.hashes.length / HASH_BYTES, true);
  view.setFloat64(8, answer.term, true);
  view.setFloat64(16, answer.firstLsn, true);
  view.setFloat64(24, answer.watermark, true);
  frame.set(answer.hashes, ANSWER_BYTES);
  return frame;
}

export function decodeAnswer(frame: Uint8Array): { readonly id: number; readonly answer: AppendAnswer } {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  return {
    id: view.getUint32(0, true),
    answer: {
      term: view.getFloat64(8, true) as Term,
      firstLsn: view.getFloat64(16, true) as Lsn,
      watermark: view.getFloat64(24, true) as Lsn,
      hashes: frame.subarray(ANSWER_BYTES),
    },
  };
}
