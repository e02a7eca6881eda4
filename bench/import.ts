/**
 * Import of an existing database. The peer is what one would type: attach the file, create the same tables,
 * `INSERT … SELECT`, create the same indexes, all in one transaction (WAL, `synchronous=NORMAL`, foreign keys on as
 * `node:sqlite` has them), and a checkpoint. Ours does more: it checks the file and its foreign keys first, and every
 * chunk of rows is captured, fingerprinted, appended to the log and fsynced. Both times end with a count of all rows, so
 * that nothing is put off.
 *
 * Two other ways of copying stand in the notes: with the indexes made before the rows, and page by page, which SQLite does
 * where source and target are alike, and which is not a copy of rows.
 */
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { openNode, type Node } from '../src/index.ts';
import { interleave, median, type Bench } from './harness.ts';
import { openPlain } from './plain.ts';
import { SHOP_CREATE_INDEXES, SHOP_CREATE_TABLES, SHOP_TABLES, generateShop } from './shop.ts';

export const bench: Bench = {
  name: 'import',
  what: 'import of a database file into a new tenant',
  async run(context) {
    const { dir, quick } = context;
    const source = join(dir, 'shop.sqlite');
    context.progress('generating the file');
    const rows = generateShop(source, quick ? 50_000 : 1_000_000);
    await using node = await openNode({ dir: join(dir, 'node') });
    const rounds = await interleave(quick ? 1 : 3, {
      ours: (round) => {
        context.progress(`round ${round + 1}`);
        return importOurs(node, source, rows);
      },
      peer: () => {
        const copy = (how: How): number => copyPlain(source, join(dir, 'plain.sqlite'), rows, how);
        return { plainMs: copy('rows'), indexesFirstMs: copy('indexes first'), pagesMs: copy('pages') };
      },
    });
    const ratios = rounds.map(({ ours, peer }) => peer.plainMs / ours);
    const perSecond = (ms: number): number => rows / (ms / 1000);
    return [
      {
        name: 'import',
        what: 'rows per second, ours / plain SQLite INSERT … SELECT',
        ours: { value: median(rounds.map(({ ours }) => perSecond(ours))), unit: 'rows/s' },
        peer: { value: median(rounds.map(({ peer }) => perSecond(peer.plainMs))), unit: 'rows/s' },
        value: median(ratios),
        bound: { kind: 'atLeast', gate: 0.2, goal: 0.3 },
        rounds: ratios,
        notes: {
          rows,
          fileBytes: statSync(source).size,
          oursMs: median(rounds.map(({ ours }) => ours)),
          plainMs: median(rounds.map(({ peer }) => peer.plainMs)),
          ratioToIndexesFirst: median(rounds.map(({ ours, peer }) => peer.indexesFirstMs / ours)),
          ratioToPageCopy: median(rounds.map(({ ours, peer }) => peer.pagesMs / ours)),
        },
      },
    ];
  },
};

async function importOurs(node: Node, source: string, rows: number): Promise<number> {
  const startedMs = performance.now();
  const tenant = node.tenant('shop');
  await tenant.importFile(source);
  const counted = await tenant.read((reader) =>
    SHOP_TABLES.reduce((sum, table) => sum + reader.value<number>(`select count(*) from ${table}`)!, 0),
  );
  const elapsedMs = performance.now() - startedMs;
  if (counted !== rows) throw new Error(`${counted} of ${rows} rows were imported`);
  await node.tenants.drop('shop');
  return elapsedMs;
}

type How = 'rows' | 'indexes first' | 'pages';

function copyPlain(source: string, target: string, rows: number, how: How): number {
  const startedMs = performance.now();
  const database = openPlain(target, 'normal');
  try {
    if (how === 'pages') database.exec('pragma foreign_keys = off');
    database.prepare('attach ? as source').run(source);
    database.exec('begin');
    for (const statement of SHOP_CREATE_TABLES) database.exec(statement);
    if (how !== 'rows') for (const statement of SHOP_CREATE_INDEXES) database.exec(statement);
    for (const table of SHOP_TABLES) {
      // With a condition SQLite goes row by row.
      const condition = how === 'pages' ? '' : 'where true';
      database.exec(`insert into main.${table} select * from source.${table} ${condition}`);
    }
    if (how === 'rows') for (const statement of SHOP_CREATE_INDEXES) database.exec(statement);
    database.exec('commit; pragma wal_checkpoint(truncate)');
    const count = SHOP_TABLES.map((table) => `(select count(*) from main.${table})`).join(' + ');
    const counted = database.prepare(`select ${count} as n`).get()!['n'];
    const elapsedMs = performance.now() - startedMs;
    if (counted !== rows) throw new Error(`${String(counted)} of ${rows} rows were copied`);
    return elapsedMs;
  } finally {
    database.close();
    rmSync(target);
  }
}
