/** A reset in the catalog: whatever of it the catalog knew before, also one of an older Nostos. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test, type TestContext } from 'node:test';
import { toTenantId, toTenantUuid, type Lsn, type TenantId, type Term } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import { RecordKind } from '../log/record.ts';
import { Catalog, replacementName, type CatalogRecord } from './catalog.ts';
import { decodeTenantReset, encodeTenantCreate, encodeTenantReset } from './payload.ts';

const UUID = toTenantUuid('ab'.repeat(16));
const [OLD, HIDDEN] = [toTenantId(1), toTenantId(2)];

function path(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-catalog-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return join(dir, 'catalog.sqlite');
}

const create = (tenant: TenantId, lsn: number, name: string): CatalogRecord => ({
  kind: RecordKind.tenantCreate,
  lsn: lsn as Lsn,
  tenant,
  payload: encodeTenantCreate({ name, uuid: UUID }),
});
const reset: CatalogRecord = {
  kind: RecordKind.tenantReset,
  term: 3 as Term,
  lsn: 9 as Lsn,
  tenant: OLD,
  payload: encodeTenantReset({ name: 'acme', uuid: UUID, tenant: HIDDEN }),
};

/** What came before in the log that is still there. */
const HISTORIES: readonly (readonly [name: string, records: readonly CatalogRecord[], createdAt: number])[] = [
  ['all of it', [create(OLD, 2, 'acme'), create(HIDDEN, 5, replacementName(OLD))], 5],
  ['the hidden one alone', [create(HIDDEN, 5, replacementName(OLD))], 5],
  ['the old one alone', [create(OLD, 2, 'acme')], 1],
  ['nothing', [], 1],
];

for (const [name, records, createdAt] of HISTORIES)
  test(`the new content has the name; the log had ${name}`, (t) => {
    const catalog = Catalog.open(path(t));
    t.after(() => catalog.close());
    for (const record of [...records, reset, reset]) catalog.apply(record);
    const entry = catalog.get('acme')!;
    assert.deepEqual(
      [entry.id, entry.uuid, entry.createdAt, entry.reset],
      [HIDDEN, UUID, createdAt, { term: 3, lsn: 9 }],
    );
    assert.equal(catalog.byId(OLD), undefined);
    assert.deepEqual([catalog.count(), catalog.hidden(9).length, catalog.applied, catalog.takeId()], [1, 0, 9, 3]);
  });

test('hidden ones are not counted, and found unless their file is all that is known', (t) => {
  const catalog = Catalog.open(path(t));
  t.after(() => catalog.close());
  catalog.apply(create(OLD, 2, 'acme'));
  catalog.apply(create(HIDDEN, 5, replacementName(OLD)));
  catalog.adopt({ id: toTenantId(7), name: replacementName(toTenantId(6)), uuid: UUID });
  assert.equal(catalog.count(), 1);
  assert.deepEqual(
    catalog.hidden(9).map(({ id }) => id),
    [HIDDEN],
  );
});

test('a catalog of before resets is gone on with', (t) => {
  const file = path(t);
  {
    const catalog = Catalog.open(file);
    catalog.apply(create(OLD, 2, 'acme'));
    catalog.close();
    const db = new DatabaseSync(file);
    for (const column of ['reset_term', 'reset_lsn']) db.exec(`alter table tenants drop column ${column}`);
    db.close();
  }
  const catalog = Catalog.open(file);
  t.after(() => catalog.close());
  assert.deepEqual([catalog.get('acme')?.id, catalog.get('acme')?.reset], [OLD, undefined]);
  catalog.apply(reset);
  assert.equal(catalog.get('acme')?.id, HIDDEN);
});

test('a payload that is cut, or lacks the new content, is refused', () => {
  const good = encodeTenantReset({ name: 'acme', uuid: UUID, tenant: HIDDEN });
  assert.deepEqual(decodeTenantReset(good), { name: 'acme', uuid: UUID, tenant: HIDDEN });
  const bad = [
    good.subarray(0, 0),
    encodeTenantCreate({ name: 'acme', uuid: UUID }),
    Uint8Array.of(9, ...good.subarray(1)),
  ];
  for (let end = 1; end < good.length; end += 1) bad.push(good.subarray(0, end));
  for (const bytes of bad)
    assert.throws(
      () => decodeTenantReset(bytes),
      (error) => isNostosError(error, 'LOG_DAMAGED') || isNostosError(error, 'UNSUPPORTED_FORMAT'),
    );
});
