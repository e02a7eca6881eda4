/** Backups of nodes that go on meanwhile, read back by the repository's reader alone. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { verify } from '../backup/repository/verify.ts';
import { backupNode } from './backup-operations.ts';
import { add, newTenant, openFor, rowsAt, scratch, SMALL, snapshotsOf, writeMeanwhile } from './backup.fixture.ts';

const upTo = (last: number): number[] => Array.from({ length: last }, (_, index) => index + 1);

test('a backup under load is at one position of all tenants: each has a prefix of its writes', async (t) => {
  const path = scratch(t);
  await using node = await openFor(path('node'), { limits: SMALL });
  const names = ['a', 'b', 'c', 'd', 'e'];
  const tenants = await Promise.all(names.map((name) => newTenant(node, name)));
  for (const tenant of tenants) for (let n = 0; n < 20; n += 1) await add(tenant);
  const stop = writeMeanwhile(tenants);
  const report = await backupNode(node, { to: path('backup') });
  const during = await stop();
  assert.ok(during > 0, 'writers went on');
  assert.deepEqual([report.tenants, report.archive.gaps], [{ read: 5, reused: 0, dropped: 0 }, []]);
  const { repository, all } = await snapshotsOf(path('backup'));
  const [snapshot] = all;
  assert.equal(snapshot?.id, report.snapshot);
  const counts: number[] = [];
  for (const name of names) {
    const rows = await rowsAt(repository, snapshot!, { name, path: path(`${name}.sqlite`) });
    assert.deepEqual(rows, upTo(rows.length), `${name} has no hole`);
    counts.push(rows.length);
  }
  assert.ok(
    counts[0]! >= 20 && counts.toSorted((a, b) => b - a).join() === counts.join(),
    `in order: ${counts.join()}`,
  );
  assert.ok(counts[0]! - counts.at(-1)! <= 1, `one position: ${counts.join()}`);
  assert.deepEqual((await verify(repository)).problems, []);
  await repository.close();
});
