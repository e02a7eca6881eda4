/**
 * The composition root: opens a directory and puts lock, engine, tenants, threads and admin socket together.
 *
 * Order of opening: lock, identity, engine (log and term), catalog, admin socket. Closing goes the other way, and a
 * failure while opening closes what was opened.
 */
import { mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { toBootId } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { acquireDirectoryLock, type DirectoryLock } from '../base/directory-lock.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS, LIMIT_NAMES, type Limits } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { Catalog } from '../store/catalog.ts';
import { serveAdmin } from './admin-socket.ts';
import { CatalogLog } from './catalog-log.ts';
import { EngineClient } from './engine-client.ts';
import { ThreadMaintenance } from './maintenance.ts';
import { NostosNode } from './node.ts';
import { loadNode } from './node-file.ts';
import { QueryProcesses } from './query-processes.ts';
import { openFilesLimit } from './process-limits.ts';
import { VERSION, assertRuntime } from './runtime.ts';
import type { Node, NodeOptions } from './types.ts';

/** A record needs room beside the changeset that it carries. */
const RECORD_BYTES_LEAST = 96 * 1024;

/**
 * Opens the node in `dir`, which is formatted when it is empty. One process at a time may have a directory open.
 *
 * @example
 * await using node = await openNode({ dir: './data' })
 */
export async function openNode(options: NodeOptions): Promise<Node> {
  assertRuntime();
  const dir = checkDir(options.dir);
  const limits = checkLimits(options.limits);
  const startedAtMs = systemClock.nowMs();
  makeDirectory(dir);
  const opened: (() => unknown)[] = [];
  try {
    const lock: DirectoryLock = await acquireDirectoryLock(
      { dir, timeoutMs: limits.lockTimeoutMs, holder: { command: process.argv.slice(1).join(' '), version: VERSION } },
      options.signal === undefined ? {} : { signal: options.signal },
    );
    opened.push(() => lock.release());
    const identity = loadNode(dir, options.cluster);
    const boot = toBootId(randomHex128(systemRandom));
    const engine = await EngineClient.start({ dir, boot, limits, ...identity });
    opened.push(() => engine.close());
    const catalog = Catalog.open(join(dir, 'catalog.sqlite'));
    opened.push(() => catalog.close());
    const catalogLog = new CatalogLog({ engine, catalog }, dir);
    await catalogLog.open();
    const maintenance = new ThreadMaintenance();
    opened.push(() => maintenance.close());
    const queries = new QueryProcesses(limits);
    opened.push(() => queries.close());
    const node = new NostosNode(
      { engine, catalog, catalogLog, queries, maintenance, clock: systemClock },
      {
        dir,
        identity: { ...identity, boot },
        limits,
        int64: options.int64 ?? 'number',
        migrations: options.migrations,
        scrubIntervalMs: options.scrubIntervalMs ?? 60 * 60 * 1000,
        startedAtMs,
      },
    );
    opened.push(() => node.stop());
    const admin = await serveAdmin({ node, path: join(dir, 'admin.sock'), limits });
    opened.push(() => admin.close());
    node.start(() => closeInTurn(opened));
    return node;
  } catch (error) {
    await closeInTurn(opened).catch(() => {}); // the first error says more
    throw error;
  }
}

/** The last opened first; one that fails does not keep the others, above all the lock, from being let go. */
async function closeInTurn(opened: readonly (() => unknown)[]): Promise<void> {
  const failures: unknown[] = [];
  for (const close of opened.toReversed()) {
    try {
      await close();
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}

function makeDirectory(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true });
  } catch (error) {
    throw new NostosError('IO_FAILED', `cannot make the data directory ${dir}: ${(error as Error).message}`, {
      cause: error,
      details: { dir },
    });
  }
}

function checkDir(dir: unknown): string {
  if (typeof dir !== 'string' || dir.length === 0 || dir.includes('\0'))
    throw new NostosError('INVALID_ARGUMENT', 'openNode needs dir, the path of its data directory');
  return resolve(dir);
}

function checkLimits(given: NodeOptions['limits'] = {}): Limits {
  for (const [name, value] of Object.entries(given)) {
    if (!(LIMIT_NAMES as readonly string[]).includes(name))
      throw new NostosError('INVALID_ARGUMENT', `there is no limit ${name}; the limits are ${LIMIT_NAMES.join(', ')}`);
    const least = name.endsWith('Max') ? 1 : 0;
    if (!Number.isSafeInteger(value) || value < least)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `the limit ${name} must be a whole number from ${least} on, got ${String(value)}`,
      );
  }
  const limits = { ...DEFAULT_LIMITS, ...given };
  if (limits.recordBytesMax < RECORD_BYTES_LEAST)
    throw new NostosError(
      'INVALID_ARGUMENT',
      `recordBytesMax must be at least ${RECORD_BYTES_LEAST}, got ${limits.recordBytesMax}`,
    );
  return { ...limits, openFilesMax: Math.min(limits.openFilesMax, Math.floor(openFilesLimit() / 2)) };
}
