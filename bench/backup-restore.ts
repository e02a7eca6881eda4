/**
 * Coming back from a backup in a directory. One large tenant: restored, verified and fsynced, as `nostos restore` does it,
 * against `cp` and fsync of the same file. And a position many records after the snapshot, against the least that any replay
 * could do: `applyChangeset` of the same records, already in memory, concatenated in batches of the same size.
 */
import { closeSync, copyFileSync, cpSync, fsyncSync, globSync, openSync, rmSync, statSync } from 'node:fs';
import { randomFillSync } from 'node:crypto';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { HybridClock, systemClock } from '../src/base/clock.ts';
import { systemDisk } from '../src/base/disk.ts';
import { openNode, toLsn, type Generation, type Node } from '../src/index.ts';
import { Log } from '../src/log/log.ts';
import { restoreBackup } from '../src/node/backup-restore.ts';
import { loadNode } from '../src/node/node-file.ts';
import { runOperation } from '../src/node/operations.ts';
import { applyInBatches, changesetsFrom } from './bare-changesets.ts';
import { inChild, peakResidentBytes } from './child.ts';
import { interleave, median, type Bench, type BenchContext, type Figure } from './harness.ts';

const MIB = 1024 * 1024;
const TENANT = 'accounts';
const ROW_BYTES = 16 * 1024;
const WRITERS = 4;
const ACCOUNTS = 20_000;
/** The log stays, so that the peer finds the records. */
const LIMITS = { logRetainBytes: 2 ** 40 };

export const bench: Bench = {
  name: 'backup-restore',
  what: 'restore from a backup in a directory',
  run: async (context) => [...(await whole(context)), await position(context)],
};

async function backUp(node: Node, to: string): Promise<string> {
  const context = { signal: new AbortController().signal, onProgress: () => {}, emit: async () => {} };
  const { snapshot } = await runOperation(node, { name: 'backup.create', input: { to } }, context);
  return snapshot!;
}

interface Restored {
  readonly elapsedMs: number;
  readonly fetchMs: number;
  readonly peakBytes: number;
}

interface RestoreInput {
  readonly from: string;
  readonly dir: string;
  readonly snapshot?: string;
  readonly toLsn?: number;
}

export async function restoreOne(input: RestoreInput): Promise<Restored> {
  const startedMs = performance.now();
  const { fetched } = await restoreBackup({ ...input, mode: 'new_cluster' });
  return {
    elapsedMs: performance.now() - startedMs,
    fetchMs: fetched!.elapsedMs,
    peakBytes: peakResidentBytes(),
  };
}

/** Half of each row compresses. */
export async function fill({ dir, rows, to }: { dir: string; rows: number; to: string }): Promise<void> {
  await using node = await openNode({ dir, scrubIntervalMs: false });
  const tenant = await node.tenants.create(TENANT);
  await tenant.migrate(['create table item (id integer primary key not null, body blob not null)']);
  const body = Buffer.alloc(ROW_BYTES, 7);
  for (let from = 1; from <= rows; from += 32)
    await tenant.write((tx) => {
      for (let id = from; id < from + 32; id += 1) {
        randomFillSync(body, 0, ROW_BYTES / 2);
        tx.run('insert into item values (?, ?)', [id, body]);
      }
    });
  await backUp(node, to);
}

async function whole({ dir, quick, progress }: BenchContext): Promise<Figure[]> {
  const [source, to, target] = [join(dir, 'source'), join(dir, 'backup'), join(dir, 'target')];
  const bytes = (quick ? 64 : 1024) * MIB;
  progress('writing and backing up one large tenant');
  await inChild(import.meta.url, 'fill', { dir: source, rows: bytes / ROW_BYTES, to });
  const [file] = globSync(join(source, 'tenants', '*', 'data.sqlite'));
  const rounds = await interleave(quick ? 1 : 5, {
    ours: async (round) => {
      progress(`round ${round + 1}`);
      const input = { from: `file:${to}`, dir: target } satisfies RestoreInput;
      return inChild<Restored>(import.meta.url, 'restoreOne', input).finally(() => rmSync(target, { recursive: true }));
    },
    peer: () => copyAndSync(file!, join(dir, 'copied')),
  });
  const ratios = rounds.map(({ ours, peer }) => ours.elapsedMs / peer);
  const ours = median(rounds.map((round) => round.ours.elapsedMs));
  const peer = median(rounds.map((round) => round.peer));
  const peakMib = Math.max(...rounds.map((round) => round.ours.peakBytes)) / MIB;
  const notes = {
    mib: statSync(file!).size / MIB,
    ofThatFetchMs: median(rounds.map((round) => round.ours.fetchMs)),
    fetchRatio: median(rounds.map((round) => round.ours.fetchMs / round.peer)),
  };
  rmSync(to, { recursive: true });
  rmSync(source, { recursive: true });
  return [
    {
      name: 'one tenant',
      what: 'time, ours (fetched, opened, every row verified, fsynced) / cp and fsync of the same file',
      ours: { value: ours, unit: 'ms' },
      peer: { value: peer, unit: 'ms' },
      value: median(ratios),
      bound: { kind: 'atMost', gate: 1.5, goal: 1.1 },
      rounds: ratios,
      notes,
    },
    {
      name: 'memory',
      what: 'most memory that the restoring process had resident, MiB',
      ours: { value: peakMib, unit: 'MiB' },
      peer: { value: 256, unit: 'MiB' },
      value: peakMib,
      bound: { kind: 'atMost', gate: 256 },
    },
  ];
}

function copyAndSync(from: string, to: string): number {
  const startedMs = performance.now();
  copyFileSync(from, to);
  const fd = openSync(to, 'r');
  fsyncSync(fd);
  closeSync(fd);
  const elapsedMs = performance.now() - startedMs;
  rmSync(to);
  return elapsedMs;
}

interface History {
  readonly snapshot: string;
  readonly from: number;
  readonly lsn: number;
}

interface WriteInput {
  readonly dir: string;
  readonly to: string;
  readonly saved: string;
  readonly writes: number;
}

/** A snapshot, then many transactions, each in a record of its own as far as writers leave them apart. */
export async function writeHistory({ dir, to, saved, writes }: WriteInput): Promise<History> {
  let snapshot: string;
  let from: number;
  {
    await using node = await openNode({ dir, limits: LIMITS, scrubIntervalMs: false });
    const tenant = await node.tenants.create(TENANT);
    await tenant.migrate([
      `create table account (id integer primary key not null, owner text not null, balance integer not null, note text);
       create index account_by_owner on account (owner);
       create table entry (id integer primary key not null, account_id integer not null, amount integer not null, memo text not null);
       create index entry_by_account on entry (account_id)`,
    ]);
    await tenant.write((tx) => {
      for (let id = 1; id <= ACCOUNTS; id += 1)
        tx.run('insert into account values (?, ?, 1000, null)', [id, `owner ${id % 977}`]);
    });
    snapshot = await backUp(node, to);
    from = (await node.status()).log.watermark;
  }
  cpSync(globSync(join(dir, 'tenants', '*', 'data.sqlite'))[0]!, saved);
  await using node = await openNode({ dir, limits: LIMITS, scrubIntervalMs: false });
  const tenant = node.tenant(TENANT);
  let next = 1;
  const writer = async (): Promise<void> => {
    for (let at = next++; at <= writes; at = next++) {
      const [one, other] = [1 + ((at * 7_919) % ACCOUNTS), 1 + ((at * 104_729) % ACCOUNTS)];
      await tenant.write((tx) => {
        tx.run('update account set balance = balance - 1 where id = ?', [one]);
        tx.run('update account set balance = balance + 1, note = ? where id = ?', [`transfer ${at}`, other]);
        tx.run('insert into entry values (?, ?, ?, ?)', [at, other, at % 100, `from ${one} to ${other}, number ${at}`]);
      });
    }
  };
  await Promise.all(Array.from({ length: WRITERS }, writer));
  await backUp(node, to);
  return { snapshot, from, lsn: (await tenant.position()).lsn };
}

async function position({ dir, quick, progress }: BenchContext): Promise<Figure> {
  const [source, to, target, saved] = ['history', 'archive', 'restored', 'saved'].map((name) => join(dir, name)) as [
    string,
    string,
    string,
    string,
  ];
  const writes = quick ? 4_000 : 200_000;
  progress(`writing ${writes} transactions`);
  const history = await inChild<History>(import.meta.url, 'writeHistory', { dir: source, to, saved, writes });
  const changesets = readChangesets(source, history.from);
  const rounds = await interleave(quick ? 1 : 5, {
    ours: async (round) => {
      progress(`round ${round + 1}`);
      const input = { from: `file:${to}`, dir: target, snapshot: history.snapshot, toLsn: history.lsn };
      return inChild<Restored>(import.meta.url, 'restoreOne', input).finally(() => rmSync(target, { recursive: true }));
    },
    peer: () => applyBare(join(dir, 'bare.sqlite'), saved, changesets),
  });
  const ratios = rounds.map(({ ours, peer }) => peer / ours.elapsedMs);
  const perSecond = (ms: number): number => changesets.length / (ms / 1000);
  return {
    name: 'position',
    what: 'records per second, ours from the first request to the end of verifying / bare loop of applyChangeset',
    ours: { value: perSecond(median(rounds.map(({ ours }) => ours.elapsedMs))), unit: 'records/s' },
    peer: { value: perSecond(median(rounds.map(({ peer }) => peer))), unit: 'records/s' },
    value: median(ratios),
    bound: { kind: 'atLeast', gate: 0.5 },
    rounds: ratios,
    notes: {
      records: changesets.length,
      transactions: writes,
      oursMs: median(rounds.map(({ ours }) => ours.elapsedMs)),
      ofThatFetchAndApplyMs: median(rounds.map(({ ours }) => ours.fetchMs)),
      bareMs: median(rounds.map(({ peer }) => peer)),
    },
  };
}

function readChangesets(dir: string, after: number): Uint8Array[] {
  const { generation } = loadNode(dir, undefined) as { generation: Generation };
  const clock = new HybridClock(systemClock);
  using log = Log.open({ disk: systemDisk, clock }, { dir: join(dir, 'log'), generation }).log;
  return changesetsFrom(log, toLsn(after + 1));
}

function applyBare(path: string, saved: string, changesets: readonly Uint8Array[]): number {
  for (const suffix of ['', '-wal', '-shm']) rmSync(path + suffix, { force: true });
  cpSync(saved, path);
  const startedMs = performance.now();
  using database = new DatabaseSync(path, { enableForeignKeyConstraints: false });
  applyInBatches(database, changesets);
  return performance.now() - startedMs;
}
