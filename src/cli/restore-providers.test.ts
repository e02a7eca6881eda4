import assert from 'node:assert/strict';
import { test } from 'node:test';
import { join } from 'node:path';
import { openNode } from '../node/open-node.ts';
import type { Node } from '../node/types.ts';
import { restoreDirectory, type RestoreReport } from '../restore/local/restore-directory.ts';
import { nostos, temporaryDirectory } from './nostos-process.fixture.ts';
import { openProviders, restoreDeps } from './restore-run.ts';
import type { ProviderEvent } from '../restore/provider-feed.ts';

const LISTEN = { host: '127.0.0.1', port: 0 };

async function restoreFrom(
  dir: string,
  from: readonly string[],
  options: { readonly rate?: number; readonly onBytes?: (done: number, total: number) => void } = {},
): Promise<{ report: RestoreReport; events: ProviderEvent[] }> {
  const events: ProviderEvent[] = [];
  const { rate, onBytes } = options;
  const report = await restoreDirectory(restoreDeps, {
    dir,
    reserveBytes: 1,
    openFeed: (marker, signal = new AbortController().signal) =>
      openProviders(
        dir,
        { from, onEvent: (event) => events.push(event), ...(rate === undefined ? {} : { rateBytesPerSecond: rate }) },
        { marker, signal },
      ),
    onProgress: ({ unit, done, total = 0 }) => unit === 'bytes' && onBytes?.(done, total),
  });
  return { report, events };
}

test('the provider stops in the middle; the primary goes on, and nothing is fetched twice', async (t) => {
  const cwd = await temporaryDirectory(t);
  const primary = await openNode({ dir: join(cwd, 'primary'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => primary.close());
  for (const name of ['a', 'b', 'c']) {
    const tenant = await primary.tenants.create(name);
    await tenant.migrate(['create table item (id integer primary key not null, body blob)']);
    await tenant.write((tx) =>
      tx.run(`with recursive n(i) as (select 1 union all select i + 1 from n where i < 150)
        insert into item (body) select randomblob(10000) from n`),
    );
  }
  await restoreFrom(join(cwd, 'replica'), [primary.address!]);
  const replica: Node = await openNode({ dir: join(cwd, 'replica'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => replica.close());
  const addresses = { primary: primary.address!, replica: replica.address! };

  let stopped: Promise<void> | undefined;
  const { report, events } = await restoreFrom(join(cwd, 'third'), [addresses.primary, addresses.replica], {
    rate: 4 * 1024 * 1024,
    onBytes: (done, total) => {
      if (stopped === undefined && total > 0 && done > total * 0.4) stopped = replica.close();
    },
  });
  assert.ok(stopped !== undefined, 'the first provider was stopped');
  await stopped;
  const chosen = events.flatMap((event) => (event.kind === 'chosen' ? [event.candidate.member.address] : []));
  assert.deepEqual(
    chosen,
    [addresses.replica, addresses.primary],
    'the replica first, although the primary was named first',
  );
  const { bytes, bytesOnWire, bytesReused } = report.fetched!;
  assert.ok(bytesReused > bytes * 0.25, `${bytesReused} of ${bytes} were there already`);
  assert.ok(bytesOnWire < bytes * 1.25, `${bytesOnWire} on the wire for ${bytes}`);

  const third = await openNode({ dir: join(cwd, 'third'), scrubIntervalMs: false });
  t.after(() => third.close());
  for (const name of ['a', 'b', 'c'])
    assert.equal((await third.tenant(name).status()).fingerprint, (await primary.tenant(name).status()).fingerprint);
  const verified = await nostos(cwd, ['status', '--dir', 'third', '--json']);
  assert.match(verified.stdout, /"role": "copy"/);
});
