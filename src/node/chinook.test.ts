/**
 * The main job on real input: import a real database, query and change it, kill -9 a process that is writing to it, open
 * it again, verify, export, and compare every table, row, column and type with the original plus what was acknowledged.
 */
import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { dumpDatabase } from '../testing/dump-database.fixture.ts';
import { chinookWrite } from './chinook-victim.fixture.ts';
import { openNode } from './open-node.ts';

const SAMPLE = resolve(
  process.env['NOSTOS_SAMPLE'] ?? fileURLToPath(new URL('../../../shared/data/chinook.sqlite', import.meta.url)),
);
const KILL_AFTER = 150;

test('a real database, imported, changed, killed, verified and exported', async (t) => {
  if (!existsSync(SAMPLE)) return t.skip(`there is no sample at ${SAMPLE}; name one with NOSTOS_SAMPLE`);
  const work = mkdtempSync(join(tmpdir(), 'nostos-chinook-'));
  t.after(() => rmSync(work, { recursive: true, force: true }));
  const dir = join(work, 'node');
  const expected = join(work, 'expected.sqlite');
  copyFileSync(SAMPLE, expected);
  {
    await using node = await openNode({ dir, scrubIntervalMs: false });
    const tenant = node.tenant('music');
    const report = await tenant.importFile(SAMPLE);
    ok(report.rows > 0);
    const back = join(work, 'unchanged.sqlite');
    await tenant.exportFile(back);
    deepStrictEqual(dumpDatabase(back), dumpDatabase(SAMPLE));
    const [most] = await tenant.query<{ Name: string; n: number }>(
      `select a.Name, count(*) as n from Artist a join Album b using (ArtistId) join Track c using (AlbumId)
       group by a.ArtistId order by n desc, a.Name limit 1`,
    );
    using plain = new DatabaseSync(SAMPLE, { readOnly: true });
    deepStrictEqual(
      { ...most },
      {
        ...plain
          .prepare(
            `select a.Name, count(*) as n from Artist a join Album b using (ArtistId) join Track c using (AlbumId)
             group by a.ArtistId order by n desc, a.Name limit 1`,
          )
          .get(),
      },
    );
  }

  const script = fileURLToPath(new URL('chinook-victim.fixture.ts', import.meta.url));
  const child = spawn(process.execPath, [script, dir], { stdio: ['ignore', 'pipe', 'inherit'] });
  const asked = new Set<number>();
  const acknowledged = new Set<number>();
  createInterface({ input: child.stdout }).on('line', (line) => {
    (line.startsWith('+') ? asked : acknowledged).add(Number(line.slice(1)));
    if (acknowledged.size === KILL_AFTER) child.kill('SIGKILL');
  });
  const [, signal] = (await once(child, 'close')) as [number | null, string | null];
  equal(signal, 'SIGKILL', 'the writer was killed under load');
  ok(acknowledged.size >= KILL_AFTER && asked.size >= acknowledged.size);

  await using node = await openNode({ dir, scrubIntervalMs: false });
  const tenant = node.tenant('music');
  deepStrictEqual((await node.verify()).problems, []);
  const done = new Set(
    (await tenant.query<{ id: number }>(`select PlaylistId as id from Playlist where Name like 'written %'`)).map(
      ({ id }) => id - 100_000,
    ),
  );
  deepStrictEqual(
    [...acknowledged].filter((id) => !done.has(id)),
    [],
    'acknowledged writes are lost',
  );
  deepStrictEqual(
    [...done].filter((id) => !asked.has(id)),
    [],
    'writes that nobody asked for',
  );
  const back = join(work, 'changed.sqlite');
  await tenant.exportFile(back);
  using plain = new DatabaseSync(expected);
  for (const id of [...done].toSorted((a, b) => a - b))
    chinookWrite((sql, values) => plain.prepare(sql).run(...values), id);
  plain.close();
  deepStrictEqual(dumpDatabase(back), dumpDatabase(expected));
});
