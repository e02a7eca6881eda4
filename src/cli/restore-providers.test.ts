import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { ZERO_HASH, type Generation, type Lsn, type Term } from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { encodeSegmentHeader } from '../log/segment-header.ts';
import { openNode } from '../node/open-node.ts';
import type { Node } from '../node/types.ts';
import { NetworkRestoreServer } from '../restore/reference/server.ts';
import { TcpServiceDispatcher } from '../wire/dispatcher.ts';
import { nostos, temporaryDirectory } from './nostos-process.fixture.ts';
import { restoreDeps, restoreFromProviders, type RestoreRunEvent, type RunReport } from '../node/restore-run.ts';

const LISTEN = { host: '127.0.0.1', port: 0 };

interface Options {
  readonly rate?: number;
  readonly onBytes?: (done: number, total: number) => void;
  readonly verify?: typeof restoreDeps.verify;
}

async function restoreFrom(
  dir: string,
  from: readonly string[],
  { rate, onBytes, verify = restoreDeps.verify }: Options = {},
): Promise<{ report: RunReport; events: RestoreRunEvent[]; dropped: string[] }> {
  const events: RestoreRunEvent[] = [];
  const report = await restoreFromProviders(
    async () => ({ from, rateBytesPerSecond: rate, onEvent: (event) => events.push(event) }),
    {
      dir,
      reserveBytes: 1,
      onProgress: ({ unit, done, total = 0 }) => unit === 'bytes' && onBytes?.(done, total),
    },
    { ...restoreDeps, verify },
  );
  const dropped = events.flatMap((event) =>
    event.kind === 'dropped' ? [`${event.dropped.member.address}: ${event.dropped.why}`] : [],
  );
  return { report, events, dropped };
}

async function nodeWithTenant(t: TestContext, dir: string): Promise<{ node: Node; address: string }> {
  const node = await openNode({ dir, listen: LISTEN, scrubIntervalMs: false });
  t.after(() => node.close());
  const tenant = await node.tenants.create('a');
  await tenant.migrate(['create table item (id integer primary key not null, body text)']);
  return { node, address: node.address! };
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
  const primary = await nodeWithTenant(t, join(cwd, 'primary'));
  await restoreFrom(join(cwd, 'copy'), [primary.address]);
  const copy = await openNode({ dir: join(cwd, 'copy'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => copy.close());
  for (let i = 0; i < 20; i++)
    await primary.node.tenant('a').write((tx) => tx.run("insert into item (body) values ('acknowledged')"));

  const { report, dropped } = await restoreFrom(join(cwd, 'third'), [copy.address!, primary.address]);
  const { watermark } = (await primary.node.status()).log;
  assert.equal(report.verified?.lsn, watermark);
  assert.deepEqual(report.provider, {
    address: primary.address,
    role: 'primary',
    watermark,
    bestWatermark: watermark,
  });
  assert.equal(dropped.length, 1);
  assert.ok(
    dropped[0]!.startsWith(`${copy.address}: it is 20 records behind another one, and a copy`),
    String(dropped),
  );

  const other = await nodeWithTenant(t, join(cwd, 'other'));
  const both = [other.address, primary.address];
  await assert.rejects(restoreFrom(join(cwd, 'fourth'), both), (error: unknown) =>
    isNostosError(error, 'DIRECTORY_FOREIGN'),
  );
  const again = await restoreFrom(join(cwd, 'third'), both);
  assert.equal(again.report.identity.cluster, report.identity.cluster, 'the directory says whose history is wanted');
});

test('what one member sent does not check out: the next one goes on in the same run, with what is there', async (t) => {
  const cwd = await temporaryDirectory(t);
  const primary = await nodeWithTenant(t, join(cwd, 'primary'));
  await primary.node.tenant('a').write((tx) => tx.run('insert into item (body) values (hex(randomblob(500000)))'));
  await restoreFrom(join(cwd, 'copy'), [primary.address]);
  const copy = await openNode({ dir: join(cwd, 'copy'), listen: LISTEN, scrubIntervalMs: false });
  t.after(() => copy.close());
  const members = [primary.address, copy.address!];
  const failing = (times: number): { verify: typeof restoreDeps.verify; count: () => number } => {
    let count = 0;
    return {
      count: () => count,
      verify: async (dir, options) => {
        count += 1;
        if (count <= times) throw new NostosError('VERIFY_FAILED', `bad row ${count}`);
        return restoreDeps.verify(dir, options);
      },
    };
  };

  const once = failing(1);
  const { report, dropped } = await restoreFrom(join(cwd, 'third'), members, once);
  assert.equal(once.count(), 2);
  assert.deepEqual(dropped, [`${primary.address}: bad row 1`]);
  assert.equal(report.provider?.address, copy.address);
  assert.ok(report.fetched!.bytesReused > 500_000, JSON.stringify(report.fetched));

  const always = failing(99);
  await assert.rejects(
    restoreFrom(join(cwd, 'fourth'), members, always),
    (error: unknown) => isNostosError(error, 'VERIFY_FAILED') && error.message === 'bad row 2',
  );
  assert.equal(always.count(), 2, 'each member once');
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

  await assert.rejects(
    restoreFrom(join(cwd, 'copy'), [address]),
    (error: unknown) =>
      isNostosError(error, 'CHANNEL_CLOSED') && error.message.endsWith(`say --from reference:${address}`),
    'only where it is asked for',
  );
  const { report, events } = await restoreFrom(join(cwd, 'copy'), [`reference:${address}`]);
  assert.equal(report.verified?.tenants, 1);
  const used = { address, service: 'RESTORE', cluster: report.identity.cluster, minted: true };
  assert.deepEqual(report.provider, used, 'it is said that the cluster id is new');
  assert.deepEqual(events, [{ kind: 'reference', used }]);
  const again = (await restoreFrom(join(cwd, 'copy'), [`reference:${address}`])).report;
  assert.deepEqual(again.provider, { ...used, minted: false }, 'a directory keeps its own');
  rmSync(join(cwd, 'copy', 'set-aside.1'), { recursive: true });
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
      restoreFrom(join(cwd, 'copy'), [`reference:${address}`]),
      (error: unknown) =>
        isNostosError(error, 'NO_PROVIDER') && says.test(error.message) && /nostos serve/.test(error.message),
    );
    assert.deepEqual(readdirSync(join(cwd, 'copy')), ['lock']);
  });

test('a peer with neither service is not taken for one that has either', async (t) => {
  const cwd = await temporaryDirectory(t);
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  const address = await dispatcher.start();
  t.after(() => dispatcher.stop());
  for (const from of [address, `reference:${address}`])
    await assert.rejects(restoreFrom(join(cwd, 'copy'), [from]), (error: unknown) =>
      isNostosError(error, 'CHANNEL_CLOSED'),
    );
  await assert.rejects(
    restoreFrom(join(cwd, 'copy'), [`reference:${address}`, address]),
    (error: unknown) => isNostosError(error, 'INVALID_ARGUMENT') && /name it alone/.test(error.message),
  );
});

test('a copy that is half fetched is not gone on with through the reference’s service', async (t) => {
  const cwd = await temporaryDirectory(t);
  const primary = await nodeWithTenant(t, join(cwd, 'primary'));
  const verify = async (): Promise<never> => {
    throw new NostosError('VERIFY_FAILED', 'cut off');
  };
  await assert.rejects(restoreFrom(join(cwd, 'copy'), [primary.address], { verify }), /cut off/);
  await assert.rejects(
    restoreFrom(join(cwd, 'copy'), [`reference:${primary.address}`]),
    (error: unknown) => isNostosError(error, 'RESTORE_UNFINISHED') && /--abandon/.test(error.message),
  );
});
