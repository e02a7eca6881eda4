/**
 * `restore.marker`: a restore of this directory has begun and has not ended. It is replaced whole and durably, so it is
 * always that of one phase; while it is there, nobody but a restore opens the directory.
 */
import { join } from 'node:path';
import { toClusterId, toGeneration, toNodeId, toStoreId } from '../../base/brands.ts';
import type { Disk } from '../../base/disk.ts';
import { readIfExists, writeDurably } from '../../base/durable-file.ts';
import { NostosError } from '../../base/errors.ts';
import type { DirectoryIdentity, SourceHistory } from './identity.ts';
import { isSetAsideName, ownedByNode, type Swap, type SwapEntry } from './swap.ts';

export const MARKER_FILE = 'restore.marker';
export const MARKER_FORMAT = 1;
/** No marker has more: what belongs to a node at the top of its directory is a handful of names. */
const ENTRIES_MAX = 1_000;
const SOURCES_MAX = 1_000;

interface MarkerBase {
  /** Random; the same through all attempts of one restore. */
  readonly run: string;
  readonly startedAt: string;
  /** Addresses of the providers, as they were given. */
  readonly sources: readonly string[];
  readonly history: SourceHistory;
  /** Who the directory will be, minted before anything is fetched. */
  readonly identity: DirectoryIdentity;
}

export type Marker =
  | (MarkerBase & { readonly phase: 'fetching' })
  /** The staged directory is whole and verified: `swap` is carried out, whatever happens. */
  | (MarkerBase & { readonly phase: 'swapping'; readonly swap: Swap })
  /** The swap is done; what is not needed any more goes. */
  | (MarkerBase & { readonly phase: 'disposing'; readonly swap: Swap });

export function writeMarker(disk: Disk, dir: string, marker: Marker): void {
  const text = `${JSON.stringify({ format: MARKER_FORMAT, ...marker }, null, 2)}\n`;
  writeDurably(disk, join(dir, MARKER_FILE), Buffer.from(text));
}

export function readMarker(disk: Disk, dir: string): Marker | undefined {
  const path = join(dir, MARKER_FILE);
  const bytes = readIfExists(disk, path);
  return bytes === undefined ? undefined : parseMarker(path, bytes);
}

export function parseMarker(path: string, bytes: Uint8Array): Marker {
  let fields: Record<string, unknown>;
  try {
    fields = asObject(JSON.parse(Buffer.from(bytes).toString()));
  } catch (error) {
    throw unreadable(path, (error as Error).message, error);
  }
  if (fields['format'] !== MARKER_FORMAT)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `${path} has format ${String(fields['format'])}, this Nostos knows ${MARKER_FORMAT}; go on with the version that began the restore, or a newer one`,
      { details: { path, format: fields['format'], known: MARKER_FORMAT } },
    );
  try {
    return parseFields(fields);
  } catch (error) {
    throw unreadable(path, (error as Error).message, error);
  }
}

function parseFields(fields: Record<string, unknown>): Marker {
  const history = asObject(fields['history']);
  const identity = asObject(fields['identity']);
  const base: MarkerBase = {
    run: asText(fields['run']),
    startedAt: asText(fields['startedAt']),
    sources: asList(fields['sources'], SOURCES_MAX).map(asText),
    history: { cluster: toClusterId(history['cluster']), generation: toGeneration(history['generation']) },
    identity: {
      node: toNodeId(identity['node']),
      store: toStoreId(identity['store']),
      cluster: toClusterId(identity['cluster']),
      generation: toGeneration(identity['generation']),
    },
  };
  const { phase } = fields;
  if (phase === 'fetching') return { ...base, phase };
  if (phase === 'swapping' || phase === 'disposing') return { ...base, phase, swap: parseSwap(fields['swap']) };
  throw new Error(`it names the phase ${String(phase)}`);
}

function parseSwap(value: unknown): Swap {
  const swap = asObject(value);
  const setAside = asText(swap['setAside']);
  // Names become paths, so they must be of the few that this code makes, whoever wrote the file.
  if (!isSetAsideName(setAside)) throw new Error(`it sets files aside as ${setAside}`);
  const entries = asList(swap['entries'], ENTRIES_MAX).map((item): SwapEntry => {
    const { name, old, staged } = asObject(item);
    if (typeof name !== 'string' || !ownedByNode(name)) throw new Error(`it swaps ${String(name)}`);
    return { name, old: old === true, staged: staged === true };
  });
  return { setAside, entries };
}

function asObject(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error('it is not an object');
  return value as Record<string, unknown>;
}

function asList(value: unknown, max: number): unknown[] {
  if (!Array.isArray(value) || value.length > max) throw new Error('it lacks a list');
  return value;
}

function asText(value: unknown): string {
  if (typeof value !== 'string') throw new Error('it lacks a text');
  return value;
}

function unreadable(path: string, why: string, cause: unknown): NostosError {
  return new NostosError(
    'UNSUPPORTED_FORMAT',
    `${path} cannot be read: ${why}; put a readable one back, or restore into an empty directory. Nothing was changed`,
    { cause, details: { path } },
  );
}
