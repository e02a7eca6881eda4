/**
 * The messages of the streaming service: MessagePack maps with a `kind`, one a frame. What arrives is `unknown` until
 * `parseRequest` or `parseAnswer` has seen it; every count, size and name is checked there.
 */
import { decode, encode } from '@msgpack/msgpack';
import * as v from 'valibot';
import { HASH_BYTES } from '../../base/brands.ts';
import { ERROR_CODES, deserializeError, type NostosError, type SerializedError } from '../../base/errors.ts';
import { finiteNumber, plainRecord, readInput, wholeNumber } from '../../base/input-schema.ts';
import type { Versions } from '../../wire/negotiate.ts';
import { parseItemName } from '../item-name.ts';
import { FrameKind, protocolError } from './frames.ts';
import { ITEMS_PER_MESSAGE, MESSAGE_BYTES_MAX } from './limits.ts';

export const STREAM_SERVICE_NAME = 'NOSTOS_RESTORE';
export const VERSIONS: Versions = { service: STREAM_SERVICE_NAME, least: 1, greatest: 1 };

const count = wholeNumber();
const hex128 = v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/));
const name = v.pipe(
  v.string(),
  v.maxLength(300),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    try {
      return parseItemName(dataset.value);
    } catch (error) {
      addIssue({ message: (error as Error).message });
      return NEVER;
    }
  }),
);
const label = v.pipe(v.string(), v.maxLength(256));
const attributes = plainRecord(v.union([v.pipe(v.string(), v.maxLength(1024)), finiteNumber]), {
  nameCharsMax: 64,
  entriesMax: 32,
});
/** A copy, since a frame may be in memory that is used again. */
const digest = v.pipe(
  v.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length === HASH_BYTES,
    `expected ${HASH_BYTES} bytes`,
  ),
  v.transform((value) => value.slice()),
);

/** What a receiver asks. `info`, `begin` and `attach` are the first message of a channel. */
const request = v.variant('kind', [
  v.object({ kind: v.literal('info') }),
  v.object({
    kind: v.literal('begin'),
    rateBytesPerSecond: v.nullable(v.pipe(finiteNumber, v.gtValue(0))),
    compression: v.picklist(['auto', 'on', 'off']),
  }),
  v.object({ kind: v.literal('attach'), session: hex128 }),
  v.object({ kind: v.literal('copying'), bytes: count }),
  v.object({ kind: v.literal('fetch'), name, base: count }),
  v.object({ kind: v.literal('tail') }),
  v.object({ kind: v.literal('ping') }),
  v.object({ kind: v.literal('end') }),
]);

const identity = {
  cluster: v.nullable(hex128),
  generation: v.nullable(hex128),
  store: v.nullable(hex128),
  node: v.nullable(label),
  term: count,
  watermark: count,
};

const answer = v.variant('kind', [
  v.object({
    kind: v.literal('info'),
    info: v.object({ ...identity, role: v.nullable(label), firstLsn: count, sessions: count }),
  }),
  v.object({
    kind: v.literal('session'),
    session: hex128,
    plan: v.object({
      ...identity,
      kind: v.picklist(['node', 'files']),
      itemCount: count,
      tailBytes: v.exactOptional(count),
    }),
  }),
  v.object({
    kind: v.literal('items'),
    items: v.pipe(v.array(v.strictTuple([name, count])), v.maxLength(ITEMS_PER_MESSAGE)),
  }),
  v.object({ kind: v.literal('attached') }),
  v.object({ kind: v.literal('opened'), bytes: count, attributes }),
  v.object({ kind: v.literal('done'), digest }),
  v.object({ kind: v.literal('tail'), itemCount: count }),
  v.object({ kind: v.literal('wait') }),
  v.object({ kind: v.literal('ended') }),
  v.object({
    kind: v.literal('error'),
    error: v.object({
      code: v.pipe(v.string(), v.maxLength(64)),
      message: v.pipe(v.string(), v.maxLength(4096)),
      details: plainRecord(v.unknown(), { nameCharsMax: 64 }),
    }),
  }),
]);

export type Request = v.InferOutput<typeof request>;
export type Answer = v.InferOutput<typeof answer>;
export type Message = v.InferInput<typeof request> | v.InferInput<typeof answer>;
export type AnswerOf<Kind extends Answer['kind']> = Extract<Answer, { kind: Kind }>;

const KIND = new Uint8Array([FrameKind.message]);
const DECODE_LIMITS = {
  maxStrLength: 8192,
  maxBinLength: 1024,
  maxArrayLength: ITEMS_PER_MESSAGE,
  maxMapLength: 64,
  maxExtLength: 0,
};

export function encodeMessage(message: Message): readonly [Uint8Array, Uint8Array] {
  return [KIND, encode(message)];
}

export const parseRequest = (frame: Uint8Array): Request => parse(request, frame, 'request');
export const parseAnswer = (frame: Uint8Array): Answer => parse(answer, frame, 'answer');

function parse<T>(schema: v.GenericSchema<unknown, T>, frame: Uint8Array, what: string): T {
  if (frame[0] !== FrameKind.message || frame.length > MESSAGE_BYTES_MAX)
    throw protocolError(`a frame of kind ${frame[0]} and ${frame.length} bytes where ${what} was due`);
  let value: unknown;
  try {
    value = decode(frame.subarray(1), DECODE_LIMITS);
  } catch (error) {
    throw protocolError(`${what} that is no MessagePack (${(error as Error).message})`);
  }
  const message = readInput(schema, value);
  if (message.ok) return message.value;
  throw protocolError(`${what} that is wrong (${message.problem})`);
}

const MESSAGE_CHARS_MAX = 4096;

/** What travels of an error: numbers and short texts of its details, nothing nested. */
export function errorMessage(error: SerializedError): Message {
  const details = Object.fromEntries(
    Object.entries(error.details)
      .filter(([, value]) => typeof value === 'number' || (typeof value === 'string' && value.length <= 1024))
      .slice(0, 32),
  );
  return { kind: 'error', error: { code: error.code, message: error.message.slice(0, MESSAGE_CHARS_MAX), details } };
}

/** The error that a peer reported, as one of ours; a code that is not known here becomes `INTERNAL`. */
export function errorOf({ error }: AnswerOf<'error'>): NostosError {
  return deserializeError({ ...error, code: Object.hasOwn(ERROR_CODES, error.code) ? error.code : 'INTERNAL' });
}
