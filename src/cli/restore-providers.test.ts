import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { ZERO_HASH, type Generation, type Lsn, type Term } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import { encodeSegmentHeader } from '../log/segment-header.ts';
import { openNode } from '../node/open-node.ts';
import type { Node } from '../node/types.ts';
import { restoreDirectory, type RestoreReport } from '../restore/local/restore-directory.ts';
import { NetworkRestoreServer } from '../restore/reference/server.ts';
import { TcpServiceDispatcher } from '../wire/dispatcher.ts';
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

test('the primary stops in the middle; a copy that is as far goes on, and nothing is fetched twice', async (t) => {
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
  await restoreFrom(join(cwd, 'copy'), [primary.address!]);
  const copy: Node = await openNode({ dir: join(cwd, 'copy'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => copy.close());
  const addresses = { primary: primary.address!, copy: copy.address! };

  let stopped: Promise<void> | undefined;
  const { report, events } = await restoreFrom(join(cwd, 'third'), [addresses.copy, addresses.primary], {
    rate: 4 * 1024 * 1024,
    onBytes: (done, total) => {
      if (stopped === undefined && total > 0 && done > total * 0.4) stopped = primary.close();
    },
  });
  assert.ok(stopped !== undefined, 'the first provider was stopped');
  await stopped;
  const chosen = events.flatMap((event) => (event.kind === 'chosen' ? [event.candidate.member.address] : []));
  assert.deepEqual(chosen, [addresses.primary, addresses.copy], 'the primary first, although the copy was named first');
  const { bytes, bytesOnWire, bytesReused } = report.fetched!;
  assert.ok(bytesReused > bytes * 0.25, `${bytesReused} of ${bytes} were there already`);
  assert.ok(bytesOnWire < bytes * 1.25, `${bytesOnWire} on the wire for ${bytes}`);

  const third = await openNode({ dir: join(cwd, 'third'), scrubIntervalMs: false });
  t.after(() => third.close());
  for (const name of ['a', 'b', 'c'])
    assert.equal((await third.tenant(name).status()).fingerprint, (await copy.tenant(name).status()).fingerprint);
  const verified = await nostos(cwd, ['status', '--dir', 'third', '--json']);
  assert.match(verified.stdout, /"role": "copy"/);
});

test('an old copy is not taken while the primary answers: nothing acknowledged is lost', async (t) => {
  const cwd = await temporaryDirectory(t);
  const primary = await openNode({ dir: join(cwd, 'primary'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => primary.close());
  const tenant = await primary.tenants.create('a');
  await tenant.migrate(['create table item (id integer primary key not null, body text)']);
  await restoreFrom(join(cwd, 'copy'), [primary.address!]);
  const copy = await openNode({ dir: join(cwd, 'copy'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => copy.close());
  for (let i = 0; i < 20; i++) await tenant.write((tx) => tx.run("insert into item (body) values ('acknowledged')"));

  const { report, events } = await restoreFrom(join(cwd, 'third'), [copy.address!, primary.address!]);
  assert.equal(report.verified?.lsn, (await primary.status()).log.watermark);
  const dropped = events.flatMap((event) => (event.kind === 'dropped' ? [event.dropped] : []));
  assert.deepEqual(
    dropped.map(({ member }) => member.address),
    [copy.address],
  );
  assert.match(dropped[0]!.why, /records behind another one, and a copy does not catch up/);

  const other = await openNode({ dir: join(cwd, 'other'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => other.close());
  const both = [other.address!, primary.address!];
  await assert.rejects(restoreFrom(join(cwd, 'fourth'), both), (error: unknown) =>
    isNostosError(error, 'DIRECTORY_FOREIGN'),
  );
  const again = await restoreFrom(join(cwd, 'third'), both);
  assert.equal(again.report.identity.cluster, report.identity.cluster, 'the directory says whose history is wanted');
});

/** A peer that knows nothing but the reference's service, on the log of a node that is closed. */
async function referencePeer(t: TestContext, logDir: string): Promise<string> {
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  dispatcher.register(new NetworkRestoreServer(logDir));
  const address = await dispatcher.start();
  t.after(() => dispatcher.stop());
  return address;
}

test('a peer with the reference’s service only: its whole log becomes a node', async (t) => {
  const cwd = await temporaryDirectory(t);
  const node = await openNode({ dir: join(cwd, 'node'), scrubIntervalMs: false });
  const tenant = await node.tenants.create('acme');
  await tenant.migrate(['create table item (id integer primary key not null, body text)']);
  for (let i = 0; i < 20; i++) await tenant.write((tx) => tx.run("insert into item (body) values ('x')"));
  const { fingerprint } = await tenant.status();
  await node.close();
  const address = await referencePeer(t, join(cwd, 'node', 'log'));

  const { report } = await restoreFrom(join(cwd, 'copy'), [address]);
  assert.equal(report.verified?.tenants, 1);
  const copy = await openNode({ dir: join(cwd, 'copy'), scrubIntervalMs: false });
  t.after(() => copy.close());
  assert.equal((await copy.status()).role, 'copy');
  assert.equal((await copy.tenant('acme').status()).fingerprint, fingerprint);
});

const NOT_WHOLE: readonly {
  readonly name: string;
  readonly files: Readonly<Record<string, Buffer>>;
  readonly says: RegExp;
}[] = [
  { name: 'no segment', files: {}, says: /it has none/ },
  { name: 'segments of something else', files: { '00000001.ndb': Buffer.from('abc') }, says: /no segment of Nostos/ },
  {
    name: 'a log whose beginning is gone',
    files: {
      '00000003.ndb': encodeSegmentHeader({
        number: 3,
        anchor: { generation: '1'.repeat(32) as Generation, term: 2 as Term, lsn: 500 as Lsn, hash: ZERO_HASH },
      }),
    },
    says: /begins after record 500/,
  },
];

for (const { name, files, says } of NOT_WHOLE)
  test(`a peer with the reference’s service and ${name} is refused, and nothing is changed`, async (t) => {
    const cwd = await temporaryDirectory(t);
    mkdirSync(join(cwd, 'log'));
    for (const [file, bytes] of Object.entries(files)) writeFileSync(join(cwd, 'log', file), bytes);
    const address = await referencePeer(t, join(cwd, 'log'));
    await assert.rejects(
      restoreFrom(join(cwd, 'copy'), [address]),
      (error: unknown) =>
        isNostosError(error, 'NO_PROVIDER') && says.test(error.message) && /nostos serve/.test(error.message),
    );
    assert.deepEqual(readdirSync(join(cwd, 'copy')), ['lock']);
  });

test('a peer with neither service is not taken for one that has the other', async (t) => {
  const cwd = await temporaryDirectory(t);
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  const address = await dispatcher.start();
  t.after(() => dispatcher.stop());
  await assert.rejects(restoreFrom(join(cwd, 'copy'), [address]), (error: unknown) =>
    isNostosError(error, 'CHANNEL_CLOSED'),
  );
});
