import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { toTenantUuid, type Lsn, type TenantId } from '../base/brands.ts';
import { RecordKind } from '../log/record.ts';
import { Catalog } from './catalog.ts';
import { encodeTenantCreate } from './payload.ts';

test('the WAL of the catalog stays bounded while tenants are created without pause', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-catalog-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const path = join(dir, 'catalog.sqlite');
  const catalog = Catalog.open(path);
  t.after(() => catalog.close());
  let walBytesMax = 0;
  for (let id = 1; id <= 5_000; id += 1) {
    const uuid = toTenantUuid(id.toString(16).padStart(32, '0'));
    const payload = encodeTenantCreate({ name: `tenant ${id}`, uuid });
    catalog.apply({ kind: RecordKind.tenantCreate, lsn: id as Lsn, tenant: id as TenantId, payload });
    walBytesMax = Math.max(walBytesMax, statSync(`${path}-wal`).size);
  }
  assert.equal(catalog.count(), 5_000);
  assert.ok(walBytesMax > 8 * 1024 * 1024, `it began anew: ${walBytesMax} bytes`);
  assert.ok(walBytesMax < 24 * 1024 * 1024, `${walBytesMax} bytes`);
});
