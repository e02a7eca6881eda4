/** The choice of providers over real sessions: what a source that fails at one item costs. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { NostosError, isNostosError } from '../base/errors.ts';
import { itemPath } from './item-name.ts';
import { ProviderFeed } from './provider-feed.ts';
import type { ProviderInfo } from './provider.ts';
import { RestoreClient, requestInfo } from './stream/client.ts';
import { randomFiles, startWorld } from './stream/stream.fixture.ts';

/** Its hashes alone are more than 64 KiB. */
const LARGE = 48 * 2 ** 20;

const HISTORY = { cluster: 'a'.repeat(32), generation: 'b'.repeat(32) };

test('a source that fails at the same item each time is given up, although comparing hashes takes many bytes', async () => {
  let failed = 0;
  let allButOne: () => void;
  let rest: Promise<void>;
  const nextSession = (): void => {
    const { promise, resolve } = Promise.withResolvers<void>();
    [rest, allButOne] = [promise, resolve];
  };
  await using world = await startWorld({
    files: randomFiles(1, [LARGE, 1024]),
    wrap: (source) => ({
      async begin(signal) {
        nextSession();
        const session = await source.begin(signal);
        return {
          ...session,
          open: async (name, open) => {
            if (name !== 'file/part-1') return session.open(name, open);
            await rest;
            failed += 1;
            throw new NostosError('IO_FAILED', 'bad sector');
          },
        };
      },
    }),
  });
  // A source of plain files has no history; a member has.
  const feed = await ProviderFeed.open(
    {
      ask: async () => ({ ...(await requestInfo({ connect: world.connect })), ...HISTORY }) satisfies ProviderInfo,
      open: async (_member, signal) => {
        const client = await RestoreClient.open({ connect: world.connect }, signal);
        return {
          plan: { ...client.plan, ...HISTORY, kind: 'node' },
          fetchAll: (target, options) => client.fetchAll(target, options),
          close: () => client.close(),
        };
      },
      timers: {
        monotonicMs: () => 0,
        after(_ms, run) {
          queueMicrotask(run);
          return () => undefined;
        },
      },
    },
    { members: [{ address: world.address }], attemptsMax: 3, sessionsMax: 100, lagRecordsMax: 10 },
  );
  let wire = 0;
  const fetched = feed.fetchAll(
    { pathOf: (name) => join(world.targetDir, ...itemPath(name)), baseOf: () => undefined },
    {
      onProgress: ({ bytesDone, bytesOnWire }) => {
        wire = bytesOnWire;
        if (bytesDone >= LARGE) allButOne();
      },
    },
  );
  await assert.rejects(
    fetched,
    (error: unknown) => isNostosError(error, 'IO_FAILED') && /bad sector/.test(error.message),
  );
  await feed.close();
  assert.equal(failed, 4, 'once it came further, three times it did not');
  assert.ok(wire < LARGE * 1.1, `${wire} bytes on the wire: the large item was sent once`);
});
