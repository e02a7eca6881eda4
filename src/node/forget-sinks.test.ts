/** What was forgotten reaches every sink, whatever fails, and who forgets is told when it takes too long. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { mkdtempSync, mkdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { toGeneration, toTenantUuid, toTerm, type Lsn } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS, type Limits } from '../base/limits.ts';
import { ForgetLedger, type LedgerEntry } from '../log/ledger.ts';
import { FORGET_SINKS_FILE, ForgetSinks, type ForgetSink } from './forget-sinks.ts';
import { until } from './group.fixture.ts';
import type { NostosNode } from './node.ts';
import { openNode } from './open-node.ts';

const entry = (lsn: number): LedgerEntry => ({
  uuid: toTenantUuid('ab'.repeat(16)),
  position: { generation: toGeneration('0a'.repeat(16)), term: toTerm(1), lsn: lsn as Lsn },
  atMs: lsn,
  hashKey: new Uint8Array(32),
  keys: [{ table: 't', hash: new Uint8Array(16).fill(lsn) }],
});

interface Setup {
  readonly dir: string;
  readonly ledger: ForgetLedger;
  open(limits?: Partial<Limits>): ForgetSinks;
}

function setUp(t: TestContext): Setup {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-sinks-'));
  mkdirSync(join(dir, 'log'));
  const ledger = ForgetLedger.open(systemDisk, join(dir, 'log'));
  const opened: ForgetSinks[] = [];
  t.after(async () => {
    for (const sinks of opened) await sinks.stop();
    rmSync(dir, { recursive: true, force: true });
  });
  return {
    dir,
    ledger,
    open: (limits = {}) => {
      const sinks = new ForgetSinks(
        { ledger: ForgetLedger.open(systemDisk, join(dir, 'log')), disk: systemDisk, dir },
        { ...DEFAULT_LIMITS, forgetRetryMs: 1, forgetRetryMaxMs: 4, ...limits },
      );
      opened.push(sinks);
      return sinks;
    },
  };
}

/** Keeps what it gets, and fails while it is told to. */
class TestSink implements ForgetSink {
  readonly name: string;
  readonly got: number[] = [];
  failing = false;
  calls = 0;
  failures = 0;

  constructor(name: string) {
    this.name = name;
  }

  async put(entries: readonly LedgerEntry[]): Promise<void> {
    this.calls += 1;
    if (this.failing) {
      this.failures += 1;
      throw new Error('no such bucket');
    }
    this.got.push(...entries.map(({ position }) => position.lsn));
  }
}

test('a sink gets everything in order, after a restart only what it lacks, and a new one all of it', async (t) => {
  const { dir, ledger, open } = setUp(t);
  for (let lsn = 1; lsn <= 600; lsn += 1) ledger.add([entry(lsn)]);
  const all = Array.from({ length: 600 }, (_, i) => i + 1);
  const first = new TestSink('a');
  const sinks = open();
  const remove = sinks.add(first);
  assert.throws(() => sinks.add(new TestSink('a')), { code: 'INVALID_ARGUMENT' });
  await sinks.delivered();
  assert.deepEqual(first.got, all);
  assert.ok(first.calls <= 3, `${first.calls} calls`);
  await remove();
  await sinks.stop();
  ledger.add([entry(601)]);

  const again = open();
  const [known, fresh] = [new TestSink('a'), new TestSink('b')];
  again.add(known);
  again.add(fresh);
  await again.delivered();
  assert.deepEqual(known.got, [601]);
  assert.deepEqual(fresh.got, [...all, 601]);
  await again.stop();

  const file = join(dir, FORGET_SINKS_FILE);
  for (const spoilt of [
    '',
    '{"a":{"offset":1e9,"crc":1}}',
    readFileSync(file, 'utf8').replaceAll(/"crc": \d+/g, '"crc": 7'),
  ]) {
    writeFileSync(file, spoilt);
    const anew = open();
    const sink = new TestSink('a');
    anew.add(sink);
    await anew.delivered();
    assert.deepEqual(sink.got, [...all, 601], 'a point that is none is the beginning');
    await anew.stop();
  }
});

test('whoever forgets waits for all sinks, up to a bound; what failed is tried until it is there', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-sinks-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const limits = { forgetTimeoutMs: 100, forgetRetryMs: 5, forgetRetryMaxMs: 20 };
  await using node = (await openNode({ dir, scrubIntervalMs: false, limits })) as NostosNode;
  const tenant = await node.tenants.create('acme');
  await tenant.migrate(['create table users (id integer primary key)']);
  await tenant.write((tx) => tx.run('insert into users values (1), (2), (3)'));
  const [good, bad] = [new TestSink('good'), new TestSink('bad')];
  node.forgets.add(good);
  node.forgets.add(bad);
  assert.equal(await tenant.write((tx) => tx.forget('users', { id: 1 })), true);
  assert.deepEqual([good.got.length, bad.got.length], [1, 1], 'it is there before anybody is told');

  bad.failing = true;
  for (const run of [
    () => tenant.write((tx) => tx.forget('users', { id: 2 })),
    () => tenant.transaction(async (tx) => tx.forget('users', { id: 3 })),
  ])
    await assert.rejects(run(), (error) => {
      assert.ok(isNostosError(error, 'FORGET_PENDING'), String(error));
      assert.deepEqual(error.details['sinks'], [{ name: 'bad', error: 'no such bucket' }]);
      assert.equal(error.retry, 'with-id');
      return true;
    });
  assert.ok(bad.failures > 1);
  assert.deepEqual(
    await tenant.read((reader) => reader.all('select id from users')),
    [],
    'it is committed all the same',
  );
  assert.equal(good.got.length, 3);
  assert.deepEqual(node.forgets.status(), [
    { name: 'good', pending: false },
    { name: 'bad', pending: true, error: 'no such bucket' },
  ]);
  const other = tenant.write((tx) => tx.run('insert into users values (9)').changes);
  assert.equal(await other, 1, 'who forgets nothing does not wait');
  bad.failing = false;
  await until('the sink has it', () => bad.got.length === 3);
  await node.forgets.delivered();
  assert.deepEqual(bad.got, good.got);
});
