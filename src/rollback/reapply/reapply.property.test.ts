import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom, type SeededRandom } from '../../base/random.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { DIR, batched, headerOf, makeTail, writerDeps } from '../file/tail.fixture.ts';
import { writeRollbackFile } from '../file/writer.ts';
import { reapplyFile } from './reapply.ts';
import { FixtureTenant, targetOf } from './tenant.fixture.ts';
import { POLICIES } from './types.ts';

const SCHEMA = `create table a (id integer primary key, x, y text); create table b (k text not null, i integer not null, v real, primary key (k, i)) without rowid;
  insert into a values (1, 1, 'a'), (2, 2.5, 'b'), (3, x'00', null); insert into b values ('k', 1, 1), ('k', 2, 2)`;
const SEEDS = 100;

/** Few keys, so that everything collides with everything. */
function statement(random: SeededRandom): string {
  const value = ['null', '7', '7.0', "'text'", "x'ff'", String(random.below(5))][random.below(6)]!;
  const [id, i] = [1 + random.below(6), 1 + random.below(4)];
  return [
    `insert or replace into a values (${id}, ${value}, 'n${random.below(3)}')`,
    `update a set x = ${value} where id = ${id}`,
    `update a set y = 'u${random.below(3)}' where id >= ${id}`,
    `delete from a where id = ${id}`,
    `insert or ignore into b values ('k', ${i}, ${random.below(9)})`,
    `update b set v = ${random.below(3)} where i = ${i}`,
    `delete from b where i = ${i}`,
  ][random.below(7)]!;
}

const history = (random: SeededRandom, count: number): string[] =>
  Array.from({ length: count }, () => Array.from({ length: 1 + random.below(4) }, () => statement(random)).join('; '));

const content = (tenant: FixtureTenant): unknown => [
  tenant.rows('select id, typeof(x), hex(x), y from a order by id'),
  tenant.rows('select * from b order by k, i'),
];

test('random tails: onto where they began they give the same rows; elsewhere a dry run says what happens', async () => {
  const seen = { conflicts: 0, applied: 0, present: 0 };
  for (let seed = 0; seed < SEEDS; seed++) {
    const random = seededRandom(seed);
    const old = new FixtureTenant(SCHEMA);
    const records = history(random, 6).flatMap((sql) => {
      const payload = old.record(sql);
      return payload.length > 24 ? [{ payload }] : [];
    });
    if (records.length === 0) continue;
    const disk = new FaultyDisk();
    disk.makeDirectory(DIR);
    const deps = writerDeps(disk, { schemaOf: () => old.schema });
    const { path } = await writeRollbackFile(deps, headerOf(records.length), () => batched(makeTail(records)));

    const same = new FixtureTenant(SCHEMA);
    const clean = await reapplyFile({ disk, target: targetOf({ acme: same }) }, path);
    assert.deepEqual(content(same), content(old), `seed ${seed}`);
    assert.deepEqual(clean.conflicts, []);

    const since = history(random, 3).join('; ');
    for (const policy of POLICIES) {
      const target = new FixtureTenant(SCHEMA).exec(since);
      const run = (dryRun: boolean): ReturnType<typeof reapplyFile> =>
        reapplyFile({ disk, target: targetOf({ acme: target }) }, path, { policy, dryRun });
      const [before, dry] = [content(target), await run(true)];
      assert.deepEqual(content(target), before);
      const report = await run(false);
      assert.deepEqual(dry, { ...report, dryRun: true }, `seed ${seed}, ${policy}`);
      const after = content(target);
      // What had conflicts is looked at again; nothing comes twice.
      await run(false);
      if (policy !== 'skip') assert.deepEqual(content(target), after, `seed ${seed}, ${policy}, again`);
      seen.conflicts += report.rows.conflicts;
      seen.applied += report.rows.applied;
      seen.present += report.rows.present;
    }
  }
  assert.ok(seen.conflicts > 500 && seen.applied > 1_000 && seen.present > 100, JSON.stringify(seen));
});
