/** The node's thread as a member, on an engine that is a log in memory: what it says tenants have, they have. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { test, type TestContext } from 'node:test';
import { NO_LSN, toTerm, type Lsn } from '../base/brands.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { Appended, LogEntry } from '../log/commit-log.ts';
import type { CatalogEntry } from '../store/catalog.ts';
import { OpenTenants } from '../store/open-tenants.ts';
import { migrateStore } from '../store/tenant.ts';
import type { TenantStore } from '../store/tenant-store.ts';
import { MemoryLog } from '../testing/memory-log.ts';
import { groupLog, identity, stores, write } from '../testing/tenant-store.fixture.ts';
import type { EngineMethod, EngineOpened, GroupNotice } from './engine-protocol.ts';
import { GroupMember, type GroupMemberDeps } from './group-member.ts';

const ROWS = ['create table rows (id integer primary key, body text)'];
const TURNS_MAX = 1_000;
const term = toTerm(1);
const entry: CatalogEntry = { ...identity, createdAt: 1 as Lsn, schemaVersion: 0, opened: false, held: NO_LSN };
const insert = (store: TenantStore): Promise<unknown> =>
  write(store, 'quorum', (tx) => tx.run("insert into rows (body) values ('a row')"));

class FakeEngine extends MemoryLog {
  readonly asked: EngineMethod[] = [];
  onNotice: (notice: GroupNotice) => void = () => {};
  /** Who has appended hears of it after that. */
  answering: Promise<void> | undefined;

  get opened(): EngineOpened {
    const { watermark } = this;
    return { watermark, term, dirty: [], generations: [], durable: NO_LSN };
  }

  readonly inGroup: GroupMemberDeps['engine']['inGroup'] = async (method) => {
    this.asked.push(method);
    return undefined;
  };

  override async append(...args: Parameters<MemoryLog['append']>): Promise<Appended> {
    const appended = await super.append(...(args as [readonly LogEntry[]]));
    await this.answering;
    return appended;
  }
}

interface Following {
  readonly engine: FakeEngine;
  readonly member: GroupMember;
  readonly store: TenantStore;
  /** Fails where the tenant lacks a row that it says it has. */
  look(): Promise<void>;
  until(asked: EngineMethod): Promise<void>;
}

/** A member with a tenant open, whose log has rows that are not committed yet. */
async function following(t: TestContext): Promise<Following> {
  const files = stores(t);
  const log = await groupLog({ prompt: true });
  const primary = await files.open(log, { path: files.newPath() });
  await migrateStore(primary, ROWS);
  const committed = log.watermark;
  const rowsAt = new Map<Lsn, number>();
  for (let rows = 1; rows <= 5; rows += 1) {
    await insert(primary);
    rowsAt.set(log.watermark, rows);
  }
  const engine = new FakeEngine();
  engine.committing = false;
  engine.records.push(...log.records);
  engine.commitTo(committed);
  const givenTo = (): Lsn => member.givenTo;
  const path = files.newPath();
  const tenants = new OpenTenants(
    { open: () => files.open(engine, { path, role: member.role, givenTo }), pause: async () => {} },
    { openFilesMax: 100 },
  );
  const member: GroupMember = new GroupMember({
    engine,
    tenants,
    catalog: { byId: () => entry },
    limits: DEFAULT_LIMITS,
    applyCatalog: async () => {},
    rollback: { run: async () => {}, finish: async () => {}, isUnderWay: false },
    rejoin: () => ({
      start: () => {},
      stop: async () => {},
      left: new AbortController().signal,
      progress: undefined,
      found: () => {},
      decided: () => {},
      failed: () => {},
    }),
  });
  member.start();
  t.after(() => member.stop());
  const store = await tenants.with(entry, (opened) => opened);
  const count = ({ database }: { database: { prepare(sql: string): { get(): unknown } } }): number =>
    (database.prepare('select count(*) as n from rows').get() as { n: number }).n;
  return {
    engine,
    member,
    store,
    look: async () => {
      const { appliedTo } = store;
      const due = rowsAt.get(appliedTo) ?? Math.max(0, appliedTo - committed);
      const rows = await store.read(count);
      assert.ok(rows >= due, `the tenant says that it has LSN ${appliedTo}, and has ${rows} of ${due} rows`);
    },
    until: async (asked) => {
      for (let turns = 0; !engine.asked.includes(asked); turns += 1) {
        assert.ok(turns < TURNS_MAX, `${asked} was not said`);
        await turn();
      }
    },
  };
}

test('who stood in vain lacks what became committed meanwhile, until it is given that', async (t) => {
  const { engine, store, look, until } = await following(t);
  await until('settled');
  const end = engine.records.length as Lsn;
  engine.commitTo(end);
  engine.onNotice({ kind: 'step-down', term, reason: 'stopped' });
  for (let turns = 0; store.applied.lsn < end; turns += 1) {
    await look();
    assert.ok(turns < TURNS_MAX, 'it was never given them');
    await Promise.resolve(turns % 50 === 49 ? turn() : undefined);
  }
  await look();
  await until('steppedDown');
});

test('who led says that its tenants have its records once they do, and goes on from there', async (t) => {
  const { engine, member, store, look, until } = await following(t);
  engine.commitTo(engine.records.length as Lsn);
  engine.onNotice({ kind: 'lead', term });
  while (member.role !== 'primary' || store.role !== 'primary') await turn();
  await look();
  const answering = Promise.withResolvers<void>();
  engine.answering = answering.promise;
  const written = insert(store);
  for (let turns = 0; turns < 10; turns += 1) await turn();
  engine.commitTo(engine.records.length as Lsn);
  engine.onNotice({ kind: 'step-down', term, reason: 'stopped' });
  try {
    for (let turns = 0; turns < 20; turns += 1) {
      await look();
      await turn();
    }
    assert.equal(store.role, 'replica');
    assert.equal(engine.asked.includes('steppedDown'), false, 'a write of the reign is still under way');
  } finally {
    answering.resolve();
  }
  await written;
  await until('steppedDown');
  assert.equal(member.givenTo, engine.watermark);
  await look();
});
