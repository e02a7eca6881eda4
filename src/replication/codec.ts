/**
 * The messages of a group in bytes. A frame is the length of a MessagePack map, the map, and behind that the bytes of the
 * records where it brings any: back to back as they are in the log, which checks them when it takes them. What arrives is
 * `unknown` until `parseFrame` has seen all of it but those.
 */
import { decode, encode } from '@msgpack/msgpack';
import * as v from 'valibot';
import type { BootId, Generation, Hash, Lsn, StoreId, Term } from '../base/brands.ts';
import { HASH_BYTES } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { readInput, wholeNumber } from '../base/input-schema.ts';
import type { Message } from './messages.ts';

/** Records as bytes, views of the frame that they came in. */
export type WireMessage = Message<Uint8Array>;

const HEADER_BYTES_MAX = 2_048;
const LENGTH_BYTES = 4;
const DECODE_LIMITS = {
  maxStrLength: 128,
  maxBinLength: HASH_BYTES,
  maxArrayLength: 0,
  maxMapLength: 16,
  maxExtLength: 0,
};

const hex128 = v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/));
const generation = v.pipe(
  hex128,
  v.transform((id) => id as Generation),
);
const store = v.pipe(
  hex128,
  v.transform((id) => id as StoreId),
);
const boot = v.pipe(
  hex128,
  v.transform((id) => id as BootId),
);
const term = v.pipe(
  wholeNumber(),
  v.transform((count) => count as Term),
);
const lsn = v.pipe(
  wholeNumber(),
  v.transform((count) => count as Lsn),
);
/** A copy, since a frame may be in memory that is used again; `slice` of a Buffer would be none. */
const hash = v.pipe(
  v.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length === HASH_BYTES,
    `expected ${HASH_BYTES} bytes`,
  ),
  v.transform((bytes) => new Uint8Array(bytes) as Hash),
);
const point = v.strictObject({ generation, term, lsn, hash });
const head = { generation, term };

const answer = v.variant('held', [
  v.strictObject({ held: v.literal('held') }),
  v.strictObject({ held: v.literal('diverged') }),
  v.strictObject({ held: v.literal('pruned') }),
  v.strictObject({ held: v.literal('below'), term, lsn }),
]);
const reasons = ['term', 'not-primary', 'generation', 'superseded', 'lost-acknowledged', 'ineligible', 'full'] as const;

const message = v.variant('kind', [
  v.strictObject({ kind: v.literal('open'), ...head, store, boot, eligible: v.boolean(), point }),
  v.strictObject({ kind: v.literal('probe'), ...head, point }),
  v.strictObject({ kind: v.literal('point'), ...head, lsn, answer, watermark: lsn }),
  v.strictObject({ kind: v.literal('refused'), ...head, reason: v.picklist(reasons) }),
  v.strictObject({ kind: v.literal('records'), ...head, watermark: lsn, previous: point, last: point }),
  v.strictObject({ kind: v.literal('watermark'), ...head, watermark: lsn, sent: lsn }),
  v.strictObject({ kind: v.literal('ack'), ...head, store, boot, lsn }),
  v.strictObject({ kind: v.literal('ping'), ...head, store }),
  v.strictObject({ kind: v.literal('pong'), ...head, store }),
  v.strictObject({ kind: v.literal('lead'), ...head }),
]);

/** The frame in two parts, so that records are not copied. */
export function encodeFrame(toSend: WireMessage): readonly [Uint8Array, Uint8Array] {
  const { payload, ...fields } = toSend.kind === 'records' ? toSend : { ...toSend, payload: NO_BYTES };
  const map = encode(fields);
  const header = Buffer.allocUnsafe(LENGTH_BYTES + map.length);
  header.writeUInt32LE(map.length, 0);
  header.set(map, LENGTH_BYTES);
  return [header, payload];
}

const NO_BYTES = new Uint8Array(0);

/** Throws `PROTOCOL_ERROR` at whatever `encodeFrame` does not make. */
export function parseFrame(frame: Uint8Array): WireMessage {
  const { byteLength } = frame;
  const length = byteLength < LENGTH_BYTES ? Infinity : new DataView(frame.buffer, frame.byteOffset).getUint32(0, true);
  if (length > HEADER_BYTES_MAX || LENGTH_BYTES + length > byteLength)
    throw wrong(`its ${byteLength} bytes announce a header of ${length}`);
  let value: unknown;
  try {
    value = decode(frame.subarray(LENGTH_BYTES, LENGTH_BYTES + length), DECODE_LIMITS);
  } catch (error) {
    throw wrong((error as Error).message);
  }
  const read = readInput(message, value);
  if (!read.ok) throw wrong(read.problem);
  const payload = frame.subarray(LENGTH_BYTES + length);
  const { value: parsed } = read;
  if (parsed.kind !== 'records') {
    if (payload.length > 0) throw wrong(`${payload.length} bytes follow a message of kind ${parsed.kind}`);
    return parsed;
  }
  if (payload.length === 0 || parsed.last.lsn <= parsed.previous.lsn) throw wrong('it brings no records');
  return { ...parsed, payload };
}

function wrong(what: string): NostosError {
  return new NostosError('PROTOCOL_ERROR', `A member of the group sent a message that is wrong: ${what}`);
}
