/** Backups know of a replacement: those made before it, while the content is on its way, and after. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Lsn } from '../base/brands.ts';
import { backupNode } from './backup-operations.ts';
import { restoreBackup } from './backup-restore.ts';
import type { NostosNode } from './node.ts';
import { openNode } from './open-node.ts';
import type { Node } from './types.ts';

const bodiesOf = (node: Node): Promise<unknown[]> =>
  node
    .tenant('acme')
    .read((reader) => reader.all('select distinct body from item order by body').map(({ body }) => body));

test(
  'a restore to before, amidst and after a replacement has the content of that moment',
  { timeout: 120_000 },
  async (t) => {
    const root = mkdtempSync(join(tmpdir(), 'nostos-reset-backup-'));
    t.after(() => rmSync(root, { recursive: true, force: true }));
    const to = join(root, 'backup');
    const points: { readonly lsn: Lsn; readonly bodies: readonly string[] }[] = [];
    {
      await using node = (await openNode({ dir: join(root, 'node'), scrubIntervalMs: false })) as NostosNode;
      const acme = await node.tenants.create('acme');
      await acme.migrate(['create table item (id integer primary key, body text)']);
      const fill = (body: string, rows: number): Promise<unknown> =>
        acme.write((tx) =>
          tx.run(
            `with recursive n (i) as (select 1 union all select i + 1 from n where i < ?) insert or replace into item select i, ? from n`,
            [rows, body],
          ),
        );
      await fill('before', 3_000);
      const file = join(root, 'plain.sqlite');
      await acme.exportFile(file);
      await fill('after', 3_000);
      await backupNode(node, { to });
      points.push({ lsn: node.watermark, bodies: ['after'] });
      const amidst: Promise<unknown>[] = [];
      const { position } = await node.tenants.replace('acme', file, {
        onProgress: ({ phase, done }) => {
          if (phase !== 'copying rows of item' || done === 0 || amidst.length > 0) return;
          points.push({ lsn: node.watermark, bodies: ['after'] });
          amidst.push(backupNode(node, { to, full: true }));
        },
      });
      assert.equal(amidst.length, 1);
      await Promise.all(amidst).catch((error: unknown) => assert.fail(`the backup amidst: ${String(error)}`));
      points.push({ lsn: position.lsn, bodies: ['before'] });
      await acme.write((tx) => tx.run("insert into item (body) values ('later')"));
      await backupNode(node, { to });
      points.push({ lsn: node.watermark, bodies: ['before', 'later'] });
    }
    for (const [index, { lsn, bodies }] of points.entries()) {
      const dir = join(root, `restored-${index}`);
      await restoreBackup({ from: `file:${to}`, dir, mode: 'new_cluster', toLsn: lsn });
      await using node = await openNode({ dir, scrubIntervalMs: false });
      assert.deepEqual(await bodiesOf(node), bodies, `at LSN ${lsn}`);
      assert.equal(await node.tenants.count(), 1);
      await node.tenant('acme').write((tx) => tx.run("insert into item (body) values ('goes on')"));
      assert.deepEqual((await node.verify()).problems, []);
    }
  },
);
