/**
 * The messages of the streaming service: MessagePack maps with a `kind`, one a frame. What arrives is `unknown` until
 * `parseRequest` or `parseAnswer` has seen it; every count, size and name is checked there.
 */
import { decode, encode } from '@msgpack/msgpack';
import { z } from 'zod';
import { HASH_BYTES } from '../../base/brands.ts';
import { ERROR_CODES, deserializeError, type NostosError, type SerializedError } from '../../base/errors.ts';
import type { Versions } from '../../wire/negotiate.ts';
import { parseItemName } from '../item-name.ts';
import { FrameKind, protocolError } from './frames.ts';
import { ITEMS_PER_MESSAGE, MESSAGE_BYTES_MAX } from './limits.ts';

export const STREAM_SERVICE_NAME = 'NOSTOS_RESTORE';
export const VERSIONS: Versions = { service: STREAM_SERVICE_NAME, least: 1, greatest: 1 };

const count = z.int().nonnegative();
const hex128 = z.string().regex(/^[0-9a-f]{32}$/);
const name = z
  .string()
  .max(300)
  .transform((text, context) => {
    try {
      return parseItemName(text);
    } catch (error) {
      context.addIssue((error as Error).message);
      return z.NEVER;
    }
  });
const label = z.string().max(256);
const attributes = z
  .record(z.string().max(64), z.union([z.string().max(1024), z.number()]))
  .refine((record) => Object.keys(record).length <= 32, 'too many attributes');
/** A copy, since a frame may be in memory that is used again. */
const digest = z
  .custom<Uint8Array>((value) => value instanceof Uint8Array && value.length === HASH_BYTES)
  .transform((value) => value.slice());

/** What a receiver asks. `info`, `begin` and `attach` are the first message of a channel. */
const request = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('info') }),
  z.object({
    kind: z.literal('begin'),
    rateBytesPerSecond: z.number().positive().nullable(),
    compression: z.enum(['auto', 'on', 'off']),
  }),
  z.object({ kind: z.literal('attach'), session: hex128 }),
  z.object({ kind: z.literal('copying'), bytes: count }),
  z.object({ kind: z.literal('fetch'), name, base: count }),
  z.object({ kind: z.literal('tail') }),
  z.object({ kind: z.literal('ping') }),
  z.object({ kind: z.literal('end') }),
]);

const identity = {
  cluster: hex128.nullable(),
  generation: hex128.nullable(),
  store: hex128.nullable(),
  node: label.nullable(),
  term: count,
  watermark: count,
};

const answer = z.discriminatedUnion('kind', [
  z.object({
    kind: z.literal('info'),
    info: z.object({ ...identity, role: label.nullable(), firstLsn: count, sessions: count }),
  }),
  z.object({
    kind: z.literal('session'),
    session: hex128,
    plan: z.object({
      ...identity,
      kind: z.enum(['node', 'files']),
      itemCount: count,
      tailBytes: count.exactOptional(),
    }),
  }),
  z.object({ kind: z.literal('items'), items: z.array(z.tuple([name, count])).max(ITEMS_PER_MESSAGE) }),
  z.object({ kind: z.literal('attached') }),
  z.object({ kind: z.literal('opened'), bytes: count, attributes }),
  z.object({ kind: z.literal('done'), digest }),
  z.object({ kind: z.literal('tail'), itemCount: count }),
  z.object({ kind: z.literal('wait') }),
  z.object({ kind: z.literal('ended') }),
  z.object({
    kind: z.literal('error'),
    error: z.object({
      code: z.string().max(64),
      message: z.string().max(4096),
      details: z.record(z.string().max(64), z.unknown()),
    }),
  }),
]);

export type Request = z.output<typeof request>;
export type Answer = z.output<typeof answer>;
export type Message = z.input<typeof request> | z.input<typeof answer>;
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

function parse<T>(schema: z.ZodType<T>, frame: Uint8Array, what: string): T {
  if (frame[0] !== FrameKind.message || frame.length > MESSAGE_BYTES_MAX)
    throw protocolError(`a frame of kind ${frame[0]} and ${frame.length} bytes where ${what} was due`);
  let value: unknown;
  try {
    value = decode(frame.subarray(1), DECODE_LIMITS);
  } catch (error) {
    throw protocolError(`${what} that is no MessagePack (${(error as Error).message})`);
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0]!;
  throw protocolError(`${what} whose ${path.join('.') || 'content'} is wrong (${message})`);
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
