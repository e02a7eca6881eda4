/**
 * A record as every adapter stores it: a line of JSON with format, version, the nonce of the record that it replaced and
 * a CRC-32, then the record as a line. The version is ours, not the store's: it is written together with what it numbers.
 */
import { crc32 } from 'node:zlib';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { RecordKind, Versioned } from './coordinator.ts';
import { coordinatorDamaged } from './coordinator.ts';

export interface Envelope<R> extends Versioned<R> {
  /** The nonce of the record that this one replaced. */
  readonly parent: string | null;
}

const FORMAT_VERSION = 1;

export function encodeEnvelope<R extends { readonly nonce: string }>(
  kind: RecordKind<R>,
  { version, parent, record }: Envelope<R>,
): Uint8Array {
  const text = kind.encode(record);
  const head = { format: FORMAT_VERSION, version, parent, crc32: crc32(text) };
  return Buffer.from(`${JSON.stringify(head)}\n${text}\n`);
}

export function parseEnvelope<R extends { readonly nonce: string }>(
  kind: RecordKind<R>,
  bytes: Uint8Array,
  source: string,
): Envelope<R> {
  let head: { format?: unknown; version?: unknown; parent?: unknown; crc32?: unknown };
  let value: unknown;
  try {
    const lines = new TextDecoder('utf-8', { fatal: true }).decode(bytes).split('\n');
    head = Object(JSON.parse(lines[0] ?? ''));
    if (typeof head.format === 'number' && head.format > FORMAT_VERSION) throw newerFormat(source, head.format);
    if (lines.length !== 3 || lines[2] !== '') throw new Error('it is not two lines');
    if (head.format !== FORMAT_VERSION) throw new Error('its format is none');
    if (typeof head.version !== 'number' || !Number.isSafeInteger(head.version) || head.version < 1)
      throw new Error('its version is none');
    if (head.crc32 !== crc32(lines[1] as string)) throw new Error('its CRC does not hold');
    if (head.parent !== null && typeof head.parent !== 'string') throw new Error('its parent is no nonce');
    value = JSON.parse(lines[1] as string);
  } catch (cause) {
    if (isNostosError(cause)) throw cause;
    throw coordinatorDamaged(source, cause);
  }
  return { version: head.version, parent: head.parent, record: kind.parse(value, source) };
}

function newerFormat(source: string, format: number): NostosError {
  return new NostosError(
    'UNSUPPORTED_FORMAT',
    `The record in ${source} has format ${format}; this Nostos knows ${FORMAT_VERSION}. Use a newer one`,
    { details: { source, format } },
  );
}
