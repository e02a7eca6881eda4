/**
 * Branded types of DESIGN section 1. A value gets its brand in one parser; from there on the compiler keeps an LSN from
 * being taken for a term or a tenant id.
 */
import { NostosError } from './errors.ts';

declare const brand: unique symbol;
export type Brand<T, Name extends string> = T & { readonly [brand]: Name };

/** Dense number of a record in a log, from 1; 0 stands before the first record. A safe integer, 64 bit on the wire. */
export type Lsn = Brand<number, 'Lsn'>;
/** Number of a primary's reign, from 1, only ever rising; 0 stands before the first. */
export type Term = Brand<number, 'Term'>;
/** Numeric id of a tenant, from 1, never used twice; 0 marks records that belong to no tenant. */
export type TenantId = Brand<number, 'TenantId'>;
/** 128 random bits as 32 lowercase hex digits. */
export type Generation = Brand<string, 'Generation'>;
export type StoreId = Brand<string, 'StoreId'>;
export type BootId = Brand<string, 'BootId'>;
export type NodeId = Brand<string, 'NodeId'>;
export type ClusterId = Brand<string, 'ClusterId'>;
/** 128 random bits as 32 lowercase hex digits; the identity of a tenant across groups and restores. */
export type TenantUuid = Brand<string, 'TenantUuid'>;
/** Hybrid logical time: 48 bits of milliseconds since the epoch, then 16 bits of a counter. */
export type Hlc = Brand<bigint, 'Hlc'>;
/** A BLAKE3 digest, 32 bytes. */
export type Hash = Brand<Uint8Array, 'Hash'>;

/** A place in one history. An LSN alone identifies nothing: those of a dropped tail are used again. */
export interface Position {
  readonly generation: Generation;
  readonly term: Term;
  readonly lsn: Lsn;
}

export const HASH_BYTES = 32;
export const ZERO_HASH = new Uint8Array(HASH_BYTES) as Hash;
export const NO_LSN = 0 as Lsn;
export const NO_TERM = 0 as Term;
export const NO_TENANT = 0 as TenantId;

function counter(value: unknown, what: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
    throw new NostosError('INVALID_ARGUMENT', `${what} must be a whole number from 0 to 2^53-1, got ${String(value)}`);
  return value;
}

function hex128(value: unknown, what: string): string {
  if (typeof value !== 'string' || !/^[0-9a-f]{32}$/.test(value))
    throw new NostosError('INVALID_ARGUMENT', `${what} must be 32 lowercase hex digits, got ${String(value)}`);
  return value;
}

export const toLsn = (value: unknown): Lsn => counter(value, 'an LSN') as Lsn;
export const toTerm = (value: unknown): Term => counter(value, 'a term') as Term;
export const toTenantId = (value: unknown): TenantId => counter(value, 'a tenant id') as TenantId;
export const toGeneration = (value: unknown): Generation => hex128(value, 'a generation') as Generation;
export const toStoreId = (value: unknown): StoreId => hex128(value, 'a store id') as StoreId;
export const toBootId = (value: unknown): BootId => hex128(value, 'a boot id') as BootId;
export const toNodeId = (value: unknown): NodeId => hex128(value, 'a node id') as NodeId;
export const toClusterId = (value: unknown): ClusterId => hex128(value, 'a cluster id') as ClusterId;
export const toTenantUuid = (value: unknown): TenantUuid => hex128(value, 'a tenant uuid') as TenantUuid;

export function toHash(value: Uint8Array): Hash {
  if (value.length !== HASH_BYTES)
    throw new NostosError('INVALID_ARGUMENT', `a hash has ${HASH_BYTES} bytes, got ${value.length}`);
  return value as Hash;
}

/** `generation:term:lsn`, the form in which people see and type a position. */
export function formatPosition(position: Position): string {
  return `${position.generation}:${position.term}:${position.lsn}`;
}

export function parsePosition(text: string): Position {
  const match = /^([0-9a-f]{32}):(\d{1,16}):(\d{1,16})$/.exec(text);
  if (match === null)
    throw new NostosError('INVALID_ARGUMENT', `a position reads generation:term:lsn, got ${JSON.stringify(text)}`);
  return { generation: toGeneration(match[1]), term: toTerm(Number(match[2])), lsn: toLsn(Number(match[3])) };
}
