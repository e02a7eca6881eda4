/**
 * What a lost tenant file costs. A process writes mixed work and is killed; then the tenant's file is put back as it was
 * before, without its WAL, so that the next open has to apply the whole of it from the log. Ours is timed from
 * `openNode` to the first answer from that tenant: threads, lock, the check of the log's tail, replay. The peer is the
 * least that any replay could do: `applyChangeset` of the same records, already in memory, concatenated in batches of the
 * same size, each with BEGIN and COMMIT, on a copy of the same file.
 */
import { cpSync, existsSync, globSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { HybridClock, systemClock } from '../src/base/clock.ts';
import { systemDisk } from '../src/base/disk.ts';
import { openNode, toLsn, type Generation } from '../src/index.ts';
import { Log } from '../src/log/log.ts';
import { applyInBatches, changesetsFrom } from './bare-changesets.ts';
import { inChild, note } from './child.ts';
import { interleave, median, type Bench } from './harness.ts';

const TENANT = 'accounts';
const SCHEMA = [
  `create table account (id integer primary key not null, owner text not null, balance integer not null, note text);
   create index account_by_owner on account (owner);
   create table entry (id integer primary key not null, account_id integer not null references account (id),
     amount integer not null, memo text not null);
   create index entry_by_account on entry (account_id)`,
];
const ACCOUNTS = 20_000;
const WRITERS = 4;
/** No checkpoint may bring the file up to date meanwhile. */
const LIMITS = { checkpointBytes: 2 ** 40, checkpointHoldBytes: 2 ** 40 };

interface WriteInput {
  readonly dir: string;
  readonly writes: number;
}

export const bench: Bench = {
  name: 'replay',
  what: 'opening a tenant whose file lacks the last records',
  async run(context) {
    const { dir, quick } = context;
    const writes = quick ? 4_000 : 100_000;
    const original = join(dir, 'original');
    await seed(original);
    const file = tenantFile(original);
    const saved = join(dir, 'saved.sqlite');
    cpSync(file, saved);
    const durable = readFileSync(durableFile(original), 'utf8');
    context.progress(`writing ${writes} transactions`);
    await inChild(import.meta.url, 'writeUntilKilled', { dir: original, writes } satisfies WriteInput, {
      killAtNote: 'written',
    });
    // A tenant that lags for long is checkpointed all the same; the log must not count on that.
    writeFileSync(durableFile(original), durable);
    const changesets = readChangesets(original);
    const rounds = await interleave(quick ? 1 : 5, {
      ours: async (round) => {
        context.progress(`round ${round + 1}`);
        const copy = join(dir, 'copy');
        cpSync(original, copy, { recursive: true });
        putBack(tenantFile(copy), saved);
        return openAndRead(copy).finally(() => rmSync(copy, { recursive: true }));
      },
      peer: () => applyBare(join(dir, 'bare.sqlite'), saved, changesets),
    });
    for (const { ours, peer } of rounds)
      if (ours.entries !== peer.entries) throw new Error(`${ours.entries} entries after replay, ${peer.entries} bare`);
    const ratios = rounds.map(({ ours, peer }) => peer.elapsedMs / ours.elapsedMs);
    const perSecond = (ms: number): number => changesets.length / (ms / 1000);
    return [
      {
        name: 'replay',
        what: 'records per second, ours from openNode to the first answer / bare loop of applyChangeset',
        ours: { value: median(rounds.map(({ ours }) => perSecond(ours.elapsedMs))), unit: 'records/s' },
        peer: { value: median(rounds.map(({ peer }) => perSecond(peer.elapsedMs))), unit: 'records/s' },
        value: median(ratios),
        bound: { kind: 'atLeast', gate: 0.5 },
        rounds: ratios,
        notes: {
          records: changesets.length,
          transactions: writes,
          changesetBytes: changesets.reduce((sum, changeset) => sum + changeset.length, 0),
          oursMs: median(rounds.map(({ ours }) => ours.elapsedMs)),
          ofThatOpenNodeMs: median(rounds.map(({ ours }) => ours.openMs)),
          bareMs: median(rounds.map(({ peer }) => peer.elapsedMs)),
        },
      },
    ];
  },
};

async function seed(dir: string): Promise<void> {
  await using node = await openNode({ dir });
  const tenant = await node.tenants.create(TENANT);
  await tenant.migrate(SCHEMA);
  await tenant.write((tx) => {
    for (let id = 1; id <= ACCOUNTS; id += 1)
      tx.run('insert into account values (?, ?, ?, ?)', [id, `owner ${id % 977}`, 1_000, null]);
  });
}

/** Inserts, updates and deletes; each of the writers waits for its acknowledgement. Never returns. */
export async function writeUntilKilled({ dir, writes }: WriteInput): Promise<never> {
  const node = await openNode({ dir, limits: LIMITS });
  const tenant = node.tenant(TENANT);
  let next = 1;
  const writer = async (): Promise<void> => {
    for (let at = next++; at <= writes; at = next++) {
      const from = 1 + ((at * 7_919) % ACCOUNTS);
      const to = 1 + ((at * 104_729) % ACCOUNTS);
      await tenant.write((tx) => {
        tx.run('update account set balance = balance - 1 where id = ?', [from]);
        tx.run('update account set balance = balance + 1, note = ? where id = ?', [`transfer ${at}`, to]);
        tx.run('insert into entry values (?, ?, ?, ?)', [at, to, at % 100, `from ${from} to ${to}, number ${at}`]);
        if (at % 10 === 0 && at > 100) tx.run('delete from entry where id = ?', [at - 99]);
      });
    }
  };
  await Promise.all(Array.from({ length: WRITERS }, writer));
  note('written');
  return new Promise(() => {});
}

/** Up to where the log counts on the files. */
const durableFile = (dir: string): string => join(dir, 'log', 'durable');

function tenantFile(dir: string): string {
  const [file] = globSync(join(dir, 'tenants', '*', 'data.sqlite'));
  if (file === undefined) throw new Error(`no tenant in ${dir}`);
  return file;
}

function putBack(file: string, saved: string): void {
  for (const suffix of ['', '-wal', '-shm']) rmSync(file + suffix, { force: true });
  cpSync(saved, file);
}

async function openAndRead(dir: string): Promise<{ elapsedMs: number; openMs: number; entries: number }> {
  const startedMs = performance.now();
  const node = await openNode({ dir });
  try {
    const openMs = performance.now() - startedMs;
    const entries = await node.tenant(TENANT).read((reader) => reader.value<number>('select count(*) from entry')!);
    return { elapsedMs: performance.now() - startedMs, openMs, entries };
  } finally {
    await node.close();
  }
}

/** The changesets that the file saved before lacks, in the order of the log. */
function readChangesets(dir: string): Uint8Array[] {
  const copy = `${dir}-log`;
  cpSync(join(dir, 'log'), copy, { recursive: true });
  const durable = toLsn((JSON.parse(readFileSync(durableFile(dir), 'utf8')) as { lsn: unknown }).lsn);
  const { generation } = JSON.parse(readFileSync(join(dir, 'node.json'), 'utf8')) as { generation: Generation };
  const clock = new HybridClock(systemClock);
  const { log } = Log.open({ disk: systemDisk, clock }, { dir: copy, generation });
  const changesets = changesetsFrom(log, toLsn(durable + 1));
  log.close();
  rmSync(copy, { recursive: true });
  return changesets;
}

function applyBare(
  path: string,
  saved: string,
  changesets: readonly Uint8Array[],
): { elapsedMs: number; entries: number } {
  if (existsSync(path)) putBack(path, saved);
  else cpSync(saved, path);
  const startedMs = performance.now();
  using database = new DatabaseSync(path, { enableForeignKeyConstraints: false });
  applyInBatches(database, changesets);
  const entries = database.prepare('select count(*) as n from entry').get()!['n'] as number;
  return { elapsedMs: performance.now() - startedMs, entries };
}
