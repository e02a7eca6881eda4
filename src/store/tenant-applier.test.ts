/** One reader of the log for all tenants of a replica. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { test } from 'node:test';
import { NO_LSN, toTenantId, type Lsn, type TenantId } from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { RecordKind } from '../log/record.ts';
import { MemoryLog } from '../testing/memory-log.ts';
import { contentOf, identity, stores, write, type Stores } from '../testing/tenant-store.fixture.ts';
import type { CatalogEntry } from './catalog.ts';
import { OpenTenants } from './open-tenants.ts';
import { decodeTenantCreate, encodeTenantCreate, encodeTenantDrop } from './payload.ts';
import { TenantApplier } from './tenant-applier.ts';
import type { TenantStore } from './tenant-store.ts';
import { migrateStore } from './tenant.ts';

const ROWS = ['create table rows (id integer primary key autoincrement, body text)'];
const end = (log: MemoryLog): Lsn => log.records.length as Lsn;
const identityOf = (id: TenantId) => ({ ...identity, id, name: `tenant ${id}` });

/** Three tenants on one log, one of which is dropped; writes in turn. */
async function primary(files: Stores): Promise<{ log: MemoryLog; tenants: Map<TenantId, TenantStore> }> {
  const log = new MemoryLog();
  const tenants = new Map<TenantId, TenantStore>();
  const random = seededRandom(5);
  for (const number of [1, 2, 3]) {
    const id = toTenantId(number);
    await log.append([{ tenant: id, kind: RecordKind.tenantCreate, payload: encodeTenantCreate(identityOf(id)) }]);
    const store = await files.open(log, { path: files.newPath(), identity: identityOf(id) });
    await migrateStore(store, ROWS);
    tenants.set(id, store);
    for (let i = 0; i < 20; i++) {
      const ids = [...tenants.keys()];
      const one = tenants.get(ids[random.below(ids.length)]!)!;
      await write(one, 'quorum', (tx) => tx.run('insert into rows (body) values (?)', [`row ${i}`]));
    }
  }
  const dropped = toTenantId(2);
  await log.append([{ tenant: dropped, kind: RecordKind.tenantDrop, payload: encodeTenantDrop() }]);
  await tenants.get(dropped)!.close();
  tenants.delete(dropped);
  return { log, tenants };
}

interface Replica {
  readonly log: MemoryLog;
  readonly applier: TenantApplier;
  readonly opened: Map<TenantId, TenantStore>;
  readonly failures: unknown[];
  /** Opening this tenant fails. */
  failing: TenantId | undefined;
}

function replica(files: Stores): Replica {
  const log = new MemoryLog();
  log.committing = false;
  const entries = new Map<TenantId, CatalogEntry>();
  const opened = new Map<TenantId, TenantStore>();
  const paths = new Map<TenantId, string>();
  const failures: unknown[] = [];
  const tenants = new OpenTenants(
    {
      open: async ({ id }) => {
        if (self.failing === id) throw new NostosError('DISK_FULL', 'no room for a file');
        const path = paths.get(id) ?? files.newPath();
        paths.set(id, path);
        const givenTo = (): Lsn => self.applier.givenTo;
        const store = await files.open(log, { path, identity: identityOf(id), role: 'replica', givenTo });
        opened.set(id, store);
        return store;
      },
      pause: async () => {},
    },
    { openFilesMax: 100 },
  );
  const catalog = {
    byId: (id: TenantId) => entries.get(id),
    apply: async ({ kind, tenant: id, payload, lsn }: MemoryLog['records'][number]) => {
      if (kind === RecordKind.tenantCreate) {
        const { name, uuid } = decodeTenantCreate(payload);
        entries.set(id, { id, name, uuid, createdAt: lsn, schemaVersion: 0, opened: false, held: NO_LSN });
        return;
      }
      entries.delete(id);
      await tenants.closed(id, async () => rmSync(paths.get(id)!, { force: true }));
      opened.delete(id);
    },
  };
  const applier = new TenantApplier({ log, tenants, catalog, onFailed: (_id, error) => failures.push(error) }, NO_LSN);
  const self: Replica = { log, applier, opened, failures, failing: undefined };
  return self;
}

test('each tenant has its rows, whatever becomes committed when, and who had none is not behind', async (t) => {
  const files = stores(t);
  const { log, tenants } = await primary(files);
  const { log: own, applier, opened, failures } = replica(files);
  const random = seededRandom(3);
  const stop = new AbortController();
  const running = applier.run(stop.signal);
  const ended = assert.rejects(running, (error) => error === stop.signal.reason);
  own.records.push(...log.records);
  while (own.watermark < end(log)) {
    own.commitTo(Math.min(end(log), own.watermark + 1 + random.below(9)) as Lsn);
    if (random.chance(0.5)) await turn();
  }
  while (applier.givenTo < end(log)) await turn();
  stop.abort();
  await ended;
  assert.deepEqual(failures, []);
  assert.deepEqual(
    [...opened.keys()].toSorted((a, b) => a - b),
    [1, 3],
    'the dropped one is gone',
  );
  for (const [id, store] of tenants) assert.deepEqual(contentOf(opened.get(id)!), contentOf(store), `tenant ${id}`);
  for (const store of opened.values()) {
    assert.equal(store.appliedTo, end(log));
    await store.checkpoint();
    assert.equal(store.lag, undefined);
  }
  assert.ok(own.pagesRead < end(log), `${own.pagesRead} pages for ${end(log)} records of three tenants`);
});

test('a tenant that cannot take its records holds up nobody but the log, and catches up', async (t) => {
  const files = stores(t);
  const { log, tenants } = await primary(files);
  const self = replica(files);
  const { log: own, applier, opened, failures } = self;
  self.failing = toTenantId(1);
  own.records.push(...log.records);
  const stuckAt = (log.records.find(({ tenant, kind }) => tenant === 1 && kind === RecordKind.changeset)!.lsn -
    2) as Lsn;
  own.commitTo((end(log) - 15) as Lsn);
  await applier.catchUp();
  assert.equal(applier.givenTo, end(log) - 15);
  assert.ok(applier.lowest <= stuckAt, `${applier.lowest}`);
  assert.ok(failures.length > 0 && failures.every((error) => isNostosError(error, 'DISK_FULL')));
  self.failing = undefined;
  own.commitTo(end(log));
  await applier.catchUp();
  for (const [id, store] of tenants) assert.deepEqual(contentOf(opened.get(id)!), contentOf(store), `tenant ${id}`);
  assert.equal(applier.lowest, end(log));
});
