/** A source and a receiver over loopback, in directories that go away again. */
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { seededRandom } from '../../base/random.ts';
import type { Channel, ServiceHandler } from '../../wire/channel.ts';
import { connectToService } from '../../wire/connect.ts';
import { TcpServiceDispatcher } from '../../wire/dispatcher.ts';
import { DirectorySource } from '../directory-source.ts';
import { itemPath } from '../item-name.ts';
import type { RestoreSource } from '../source.ts';
import { RestoreClient, type StreamReport, type RestoreClientOptions } from './client.ts';
import type { FetchOptions } from '../feed.ts';
import { STREAM_SERVICE_NAME } from './messages.ts';
import { RestoreService, type RestoreServiceOptions } from './service.ts';

export interface World extends AsyncDisposable {
  readonly sourceDir: string;
  readonly targetDir: string;
  readonly address: string;
  /** What the handler failed with, channel by channel. */
  readonly failures: unknown[];
  connect(signal?: AbortSignal): Promise<Channel>;
  open(options?: Partial<RestoreClientOptions>): Promise<RestoreClient>;
  /** Opens, fetches all, closes. */
  fetch(options?: Partial<RestoreClientOptions>, fetching?: FetchOptions): Promise<StreamReport>;
}

export interface WorldOptions extends RestoreServiceOptions {
  readonly files?: Readonly<Record<string, Uint8Array>>;
  /** Instead of the files. */
  readonly source?: RestoreSource;
  readonly wrap?: (source: RestoreSource) => RestoreSource;
  /** Instead of the service. */
  readonly handler?: ServiceHandler;
  /** Between both: what to connect to, given where the service is. */
  readonly via?: (address: string) => Promise<string>;
  readonly bases?: string;
}

export async function startWorld(options: WorldOptions = {}): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-stream-'));
  const [sourceDir, targetDir] = [join(dir, 'source'), join(dir, 'target')];
  mkdirSync(sourceDir);
  mkdirSync(targetDir);
  for (const [name, bytes] of Object.entries(options.files ?? {})) writeFileSync(join(sourceDir, name), bytes);
  const source = options.source ?? new DirectorySource(sourceDir);
  const failures: unknown[] = [];
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0', { onError: (error) => failures.push(error) });
  dispatcher.register(options.handler ?? new RestoreService(options.wrap?.(source) ?? source, options));
  const bound = await dispatcher.start();
  const address = (await options.via?.(bound)) ?? bound;
  const connect = (signal?: AbortSignal): Promise<Channel> =>
    connectToService(address, STREAM_SERVICE_NAME, { signal });
  const open: World['open'] = (over = {}) =>
    RestoreClient.open({ connect, ...(options.limits === undefined ? {} : { limits: options.limits }), ...over });
  return {
    sourceDir,
    targetDir,
    address,
    failures,
    connect,
    open,
    async fetch(over, fetching) {
      const client = await open(over);
      try {
        return await client.fetchAll(
          {
            pathOf: (name) => join(targetDir, ...itemPath(name)),
            baseOf: (name) => (options.bases === undefined ? undefined : join(options.bases, ...itemPath(name))),
          },
          fetching,
        );
      } finally {
        await client.close();
      }
    },
    async [Symbol.asyncDispose]() {
      await dispatcher.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

export function randomFiles(seed: number, sizes: readonly number[]): Record<string, Uint8Array> {
  const random = seededRandom(seed);
  return Object.fromEntries(
    sizes.map((size, index) => {
      // Filled by hand: random bytes one by one are slow, and blocks that repeat would be compressible.
      const block = random.bytes(Math.min(size, 4096));
      const bytes = new Uint8Array(size);
      for (let at = 0; at < size; at += 4096) {
        bytes.set(block.subarray(0, Math.min(4096, size - at)), at);
        if (at + 4 <= size) new DataView(bytes.buffer).setUint32(at, at, true);
      }
      return [`part-${index}`, bytes];
    }),
  );
}

/** Name to digest of each file in a directory. */
export function digests(dir: string): Record<string, string> {
  return Object.fromEntries(
    readdirSync(dir).map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(join(dir, name)))
        .digest('hex'),
    ]),
  );
}

/** A promise of what `work` failed with. */
export async function failureOf(work: Promise<unknown>): Promise<Error> {
  try {
    await work;
  } catch (error) {
    return error as Error;
  }
  throw new Error('it did not fail');
}
