/**
 * Ten thousand tenants in one process: what it takes to touch each once (create, migrate, one write), how many files and
 * how much memory that holds, how long opening one again takes, and whether opening a node depends on how many there are.
 *
 * Cold means that this process has not opened the tenant: the node is opened anew before. Its file may still be in the
 * page cache of the operating system.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { openNode, type Node } from '../src/index.ts';
import { peakResidentBytes } from './child.ts';
import { interleave, median, percentile, type Bench, type BenchContext } from './harness.ts';
import { BODY, INSERT_ROW, ROWS_SCHEMA } from './plain.ts';

const MIB = 1024 * 1024;
const CONCURRENCY = 16;
const FEW = 10;

export const bench: Bench = {
  name: 'tenants-10k',
  what: '10,000 tenants touched once each in one process',
  async run(context) {
    const many = context.quick ? 500 : 10_000;
    const dirs = { few: join(context.dir, 'few'), many: join(context.dir, 'many') };
    let filesMax = 0;
    const startedMs = performance.now();
    await touch(dirs.many, many, (touched) => {
      if (touched % 50 === 0) filesMax = Math.max(filesMax, openFiles());
      if (touched % 500 === 0) context.progress(`${touched} of ${many} tenants touched`);
    });
    const touchMs = performance.now() - startedMs;
    const coldMs = await openCold(dirs.many, many, context);
    filesMax = Math.max(filesMax, openFiles());
    const residentBytes = peakResidentBytes();
    context.progress('opening the node');
    await touch(dirs.few, FEW, () => {});
    await fillLog(dirs.few, dirs.many);
    const opens = await interleave(context.quick ? 3 : 15, {
      ours: () => openUntouched(dirs.many),
      peer: () => openUntouched(dirs.few),
    });
    const ratios = opens.map(({ ours, peer }) => ours.openMs / peer.openMs);
    return [
      {
        name: 'tenants-10k memory',
        what: `most memory resident while ${many} tenants are touched, in MiB`,
        ours: { value: residentBytes / MIB, unit: 'MiB' },
        peer: { value: 512, unit: 'MiB' },
        value: residentBytes / MIB,
        bound: { kind: 'atMost', gate: 512 },
        notes: { tenants: many, touchedPerSecond: many / (touchMs / 1000) },
      },
      {
        name: 'tenants-10k files',
        what: 'most file descriptors open meanwhile',
        ours: { value: filesMax, unit: 'files' },
        peer: { value: 900, unit: 'files' },
        value: filesMax,
        bound: { kind: 'atMost', gate: 900 },
      },
      {
        name: 'tenants-10k cold',
        what: 'p99 of the first read of a tenant that is not open, in ms',
        ours: { value: percentile(coldMs, 0.99), unit: 'ms' },
        peer: { value: 10, unit: 'ms' },
        value: percentile(coldMs, 0.99),
        bound: { kind: 'atMost', gate: 10 },
        notes: { samples: coldMs.length, p50Ms: percentile(coldMs, 0.5), maxMs: Math.max(...coldMs) },
      },
      {
        name: 'tenants-10k open',
        what: `opening a node with ${many} tenants / with ${FEW}, logs of equal size`,
        ours: { value: median(opens.map(({ ours }) => ours.openMs)), unit: 'ms' },
        peer: { value: median(opens.map(({ peer }) => peer.openMs)), unit: 'ms' },
        value: median(ratios),
        bound: { kind: 'atMost', gate: 1.25 },
        rounds: ratios,
        notes: { ofThatReadingTheLogMs: median(opens.map(({ ours }) => ours.recoveryMs)) },
      },
    ];
  },
};

const nameOf = (index: number): string => `tenant-${index}`;

const open = (dir: string): Promise<Node> => openNode({ dir, migrations: [ROWS_SCHEMA] });

async function touch(dir: string, count: number, onTouched: (touched: number) => void): Promise<void> {
  await using node = await open(dir);
  let next = 0;
  let touched = 0;
  const toucher = async (): Promise<void> => {
    while (next < count) {
      const tenant = await node.tenants.create(nameOf(next++));
      await tenant.write((tx) => tx.run(INSERT_ROW, [BODY]));
      onTouched(++touched);
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, toucher));
}

async function openCold(dir: string, count: number, context: BenchContext): Promise<number[]> {
  await using node = await open(dir);
  const coldMs: number[] = [];
  // A step that has no factor in common with `count` visits each at most once, in no order of the disk.
  for (let sample = 0; sample < Math.min(2_000, count); sample += 1) {
    if (sample % 200 === 0) context.progress(`cold open ${sample}`);
    const tenant = node.tenant(nameOf((sample * 7_919) % count));
    const startedMs = performance.now();
    const rows = await tenant.read((reader) => reader.value<number>('select count(*) from item'));
    coldMs.push(performance.now() - startedMs);
    if (rows !== 1) throw new Error(`${tenant.name} has ${rows} rows instead of 1`);
  }
  return coldMs;
}

async function openUntouched(dir: string): Promise<{ openMs: number; recoveryMs: number }> {
  const startedMs = performance.now();
  const node = await open(dir);
  const openMs = performance.now() - startedMs;
  const { recovery } = (await node.status()).log;
  await node.close();
  return { openMs, recoveryMs: recovery.elapsedMs };
}

/** Opening reads the segment of the log that still grows, whosever records it holds; so both get as much of it. */
async function fillLog(dir: string, like: string): Promise<void> {
  const bytes = await withNode(like, logBytes);
  await withNode(dir, async (node) => {
    const tenant = node.tenant(nameOf(0));
    while ((await logBytes(node)) < bytes)
      for (let write = 0; write < 200; write += 1) await tenant.write((tx) => tx.run(INSERT_ROW, [BODY]));
  });
}

const logBytes = async (node: Node): Promise<number> => (await node.status()).log.bytes;

async function withNode<T>(dir: string, fn: (node: Node) => Promise<T>): Promise<T> {
  await using node = await open(dir);
  return await fn(node);
}

function openFiles(): number {
  return process.platform === 'linux' ? readdirSync('/proc/self/fd').length : Number.NaN;
}
