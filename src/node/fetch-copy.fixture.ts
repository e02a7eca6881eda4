/** Takes a copy from a source without a network, a piece at a time, so that a test can do something in between. */
import { closeSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { toLsn, toNodeId, toStoreId, toTerm, type ClusterId, type Generation } from '../base/brands.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { itemPath, type ItemName } from '../restore/item-name.ts';
import type { RestoreSource, SourceFile, SourceSession } from '../restore/source.ts';
import { writeNode } from './node-file.ts';

export interface FetchHooks {
  readonly signal?: AbortSignal;
  readonly onBegun?: (session: SourceSession) => unknown;
  /** After an item was opened, before anything is read of it. */
  readonly onOpened?: (name: ItemName, file: SourceFile) => unknown;
  readonly onPiece?: (name: ItemName, offset: number) => unknown;
  /** Everything but the log was fetched. */
  readonly onTail?: () => unknown;
}

const PIECE_BYTES = 64 * 1024;

/** The attributes of each item. */
export async function fetchCopy(
  source: RestoreSource,
  dir: string,
  hooks: FetchHooks = {},
): Promise<Map<ItemName, SourceFile['attributes']>> {
  const signal = hooks.signal ?? new AbortController().signal;
  const attributes = new Map<ItemName, SourceFile['attributes']>();
  const session = await source.begin(signal);
  try {
    await hooks.onBegun?.(session);
    const fetch = async (name: ItemName): Promise<void> => {
      const file = await session.open(name, signal);
      try {
        await hooks.onOpened?.(name, file);
        attributes.set(name, file.attributes);
        await write(session, file, join(dir, ...itemPath(name)), (offset) => hooks.onPiece?.(name, offset));
      } finally {
        await file.close();
      }
    };
    for (const { name } of session.plan.items) await fetch(name);
    await hooks.onTail?.();
    let { watermark } = session.plan;
    for (const { name } of await session.tail()) {
      await fetch(name);
      watermark = Math.max(watermark, Number(attributes.get(name)!['watermark']));
    }
    const { cluster, generation, store, term } = session.plan;
    writeNode(dir, {
      node: toNodeId(randomHex128(systemRandom)),
      store: toStoreId(randomHex128(systemRandom)),
      cluster: cluster as ClusterId,
      generation: generation as Generation,
      // As a restore does: W that the source said with what it sent last.
      copy: { source: toStoreId(store), reaches: { term: toTerm(term), lsn: toLsn(watermark) } },
    });
  } finally {
    await session.close();
  }
  return attributes;
}

async function write(
  session: SourceSession,
  file: SourceFile,
  path: string,
  onPiece: (offset: number) => unknown,
): Promise<void> {
  mkdirSync(dirname(path), { recursive: true });
  const descriptor = openSync(path, 'w');
  try {
    for (let offset = 0; offset < file.bytes; offset += PIECE_BYTES) {
      const piece = new Uint8Array(Math.min(PIECE_BYTES, file.bytes - offset));
      file.read(piece, offset);
      writeSync(descriptor, piece, 0, piece.length, offset);
      session.progress(piece.length);
      await onPiece(offset);
    }
  } finally {
    closeSync(descriptor);
  }
}
