/**
 * A first backup of one large tenant against `sqlite3 .backup` of the same file; what a recovery point takes after 1 % of the
 * rows were changed at random; the memory that a backup takes; and what writers notice of it. The place is a directory on
 * the same disk, so both sides read and write there.
 */
import { execFileSync } from 'node:child_process';
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { openNode, type Node } from '../src/index.ts';
import { backupNode } from '../src/node/backup-operations.ts';
import type { NostosNode } from '../src/node/node.ts';
import { inChild, note } from './child.ts';
import { interleave, median, percentile, type Bench, type Figure } from './harness.ts';
import { writeOurs } from './writers.ts';
import { ROWS_SCHEMA } from './plain.ts';

const MIB = 1024 * 1024;
const SCHEMA =
  'create table item (id integer primary key not null, kind text not null, n integer not null, body text not null)';
const BODY_BYTES = 900;
const ROWS_PER_WRITE = 1_000;
const MEMORY_GATE_MIB = 256;

interface Place {
  readonly dir: string;
  readonly bytes: number;
  readonly quick: boolean;
}

export const bench: Bench = {
  name: 'backup',
  what: 'backups of a node',
  async run({ dir, quick, progress }) {
    const place: Place = { dir, quick, bytes: (quick ? 64 : 1024) * MIB };
    progress('filling');
    await inChild(import.meta.url, 'fill', place);
    const figures = await inChild<Figure[]>(import.meta.url, 'first', place, { onNote: progress });
    figures.push(await inChild<Figure>(import.meta.url, 'memory', place, { onNote: progress }));
    for (const writers of [64, 1])
      figures.push(await inChild<Figure>(import.meta.url, 'writers', { ...place, writers }, { onNote: progress }));
    return figures;
  },
};

async function open({ dir }: Place): Promise<NostosNode> {
  return (await openNode({ dir: join(dir, 'node'), scrubIntervalMs: false })) as NostosNode;
}

/** Half of the text is random, so it compresses by about as much as text does. */
export async function fill(place: Place): Promise<null> {
  await using node = await open(place);
  const tenant = await node.tenants.create('large');
  await tenant.migrate([SCHEMA]);
  const rows = Math.floor(place.bytes / (BODY_BYTES + 60));
  for (let row = 0; row < rows; row += ROWS_PER_WRITE)
    await tenant.write((tx) =>
      tx.run(
        `with recursive n (i) as (select ?1 union all select i + 1 from n where i < ?2)
         insert into item select i, 'kind ' || (i % 10), 0, hex(randomblob(${BODY_BYTES / 4})) || printf('%.${BODY_BYTES / 2}c', 'x') from n`,
        [row + 1, row + ROWS_PER_WRITE],
      ),
    );
  const busy = await node.tenants.create('busy');
  await busy.migrate([ROWS_SCHEMA]);
  return null;
}

async function fileOf(node: Node): Promise<string> {
  return join(node.dir, 'tenants', `tenant_${(await node.tenants.get('large'))!.id}`, 'data.sqlite');
}

export async function first(place: Place): Promise<Figure[]> {
  await using node = await open(place);
  const file = await fileOf(node);
  const at = (name: string): string => join(place.dir, name);
  const rounds = await interleave(place.quick ? 1 : 3, {
    ours: async (round) => {
      note(`first backup, round ${round + 1}`);
      rmSync(at('ours'), { recursive: true, force: true });
      const startedMs = performance.now();
      const { bytesStored } = await backupNode(node, { to: at('ours') });
      return { ms: performance.now() - startedMs, stored: bytesStored };
    },
    peer: (round) => {
      note(`sqlite3 .backup, round ${round + 1}`);
      rmSync(at('peer'), { force: true });
      const startedMs = performance.now();
      execFileSync('sqlite3', [file, `.backup '${at('peer')}'`]);
      execFileSync('sync', [at('peer')]);
      return performance.now() - startedMs;
    },
  });
  rmSync(at('peer'), { force: true });
  const ratios = rounds.map(({ ours, peer }) => ours.ms / peer);
  const { stored } = rounds.at(-1)!.ours;
  note('changing 1 % of the rows');
  const tenant = node.tenant('large');
  const rows = await tenant.read((reader) => reader.value<number>('select max(id) from item')!);
  for (let changed = 0; changed < rows / 100; changed += 50)
    await tenant.write((tx) => {
      for (let n = 0; n < 50; n += 1)
        tx.run(
          `update item set n = n + 1, body = hex(randomblob(${BODY_BYTES / 4})) || printf('%.${BODY_BYTES / 2}c', 'y') where id = ?`,
          [1 + Math.floor(Math.random() * rows)],
        );
    });
  const point = await backupNode(node, { to: at('ours') });
  rmSync(at('ours'), { recursive: true, force: true });
  return [
    {
      name: 'backup first',
      what: 'first backup, into a directory, ours / sqlite3 .backup + sync, s',
      ours: { value: median(rounds.map(({ ours }) => ours.ms)) / 1000, unit: 's' },
      peer: { value: median(rounds.map(({ peer }) => peer)) / 1000, unit: 's' },
      value: median(ratios),
      bound: { kind: 'atMost', gate: 2 },
      rounds: ratios,
      notes: { fileMib: statSync(file).size / MIB, storedMib: stored / MIB },
    },
    {
      name: 'backup recovery point',
      what: 'bytes of a recovery point after 1 % of the rows changed at random, log included / first backup',
      ours: { value: point.bytesStored / MIB, unit: 'MiB' },
      peer: { value: stored / MIB, unit: 'MiB first' },
      value: point.bytesStored / stored,
      bound: { kind: 'atMost', gate: 0.1 },
      notes: { ms: point.elapsedMs, filesRead: point.tenants.read, recordsArchived: point.archive.records },
    },
  ];
}

export async function memory(place: Place): Promise<Figure> {
  await using node = await open(place);
  await node.tenant('large').read((reader) => reader.value('select count(*) from item where id < 100'));
  globalThis.gc?.();
  await new Promise((resolve) => void setTimeout(resolve, 1_000));
  const idle = process.memoryUsage.rss();
  let peak = idle;
  const timer = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 10);
  note('memory');
  const to = join(place.dir, 'memory');
  await backupNode(node, { to, keys: join(place.dir, 'keys') });
  clearInterval(timer);
  rmSync(to, { recursive: true, force: true });
  return {
    name: 'backup memory',
    what: 'MiB more than idle while an encrypted backup is made',
    ours: { value: peak / MIB, unit: 'MiB at most' },
    peer: { value: idle / MIB, unit: 'MiB idle' },
    value: (peak - idle) / MIB,
    bound: { kind: 'atMost', gate: MEMORY_GATE_MIB },
  };
}

export async function writers(place: Place & { readonly writers: number }): Promise<Figure> {
  await using node = await open(place);
  const busy = node.tenant('busy');
  const roundMs = place.quick ? 500 : 1_500;
  await writeOurs(busy, place.writers, roundMs / 2);
  const to = join(place.dir, 'writers');
  let backups = 0;
  const rounds = await interleave(place.quick ? 1 : 7, {
    ours: async (round) => {
      note(`${place.writers} writers, round ${round + 1}`);
      rmSync(to, { recursive: true, force: true });
      const stop = new AbortController();
      const copying = Promise.withResolvers<void>();
      const run = backupNode(node, { to }, { signal: stop.signal, onProgress: () => copying.resolve() });
      await Promise.race([copying.promise, run]);
      const { latencies } = await writeOurs(busy, place.writers, roundMs);
      stop.abort();
      await run.then(
        () => (backups += 1),
        () => {}, // it was under way all the time
      );
      return latencies;
    },
    peer: async () => (await writeOurs(busy, place.writers, roundMs)).latencies,
  });
  rmSync(to, { recursive: true, force: true });
  const ratios = rounds.map(({ ours, peer }) => percentile(ours, 0.99) / percentile(peer, 0.99));
  return {
    name: `backup ${place.writers} writers`,
    what: `p99 of ${place.writers} writers while a backup is made / without, ms`,
    ours: { value: median(rounds.map(({ ours }) => percentile(ours, 0.99))), unit: 'ms' },
    peer: { value: median(rounds.map(({ peer }) => percentile(peer, 0.99))), unit: 'ms alone' },
    value: median(ratios),
    bound: { kind: 'atMost', gate: 2 },
    rounds: ratios,
    notes: {
      p50Ms: median(rounds.map(({ ours }) => percentile(ours, 0.5))),
      p50AloneMs: median(rounds.map(({ peer }) => percentile(peer, 0.5))),
      endedBeforeTheWriters: backups,
    },
  };
}
