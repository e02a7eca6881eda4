/**
 * Durable single-row writes: ours from some concurrent writers, each waiting for its own acknowledgement, and the same
 * transactions on plain SQLite with `synchronous=FULL`, one after another, as its one writer allows.
 */
import { join } from 'node:path';
import type { DatabaseSync } from 'node:sqlite';
import { openNode, type Tenant } from '../src/index.ts';
import { interleave, measureFdatasync, type BenchContext } from './harness.ts';
import { BODY, INSERT_ROW, ROWS_SCHEMA, openPlain } from './plain.ts';

export interface Writes {
  readonly perSecond: number;
  /** Milliseconds of each write. */
  readonly latencies: readonly number[];
}

export interface WriterRound {
  readonly ours: Writes;
  readonly plain: Writes;
  /** Milliseconds of each fdatasync. */
  readonly fdatasync: readonly number[];
}

export interface WriterOptions {
  readonly writers: number;
  readonly rounds: number;
  readonly roundMs: number;
}

export async function measureWriters(context: BenchContext, options: WriterOptions): Promise<WriterRound[]> {
  const { dir } = context;
  const { writers, rounds, roundMs } = options;
  await using node = await openNode({ dir: join(dir, 'node') });
  const tenant = await node.tenants.create('items');
  await tenant.migrate([ROWS_SCHEMA]);
  using plain = openPlain(join(dir, 'plain.sqlite'), 'full');
  plain.exec(ROWS_SCHEMA);
  await writeOurs(tenant, writers, roundMs / 2);
  writePlain(plain, roundMs / 2);
  const measured = await interleave(rounds, {
    ours: (round) => {
      context.progress(`round ${round + 1} of ${rounds}`);
      return writeOurs(tenant, writers, roundMs);
    },
    peer: () => ({ plain: writePlain(plain, roundMs), fdatasync: measureFdatasync(dir, context.quick ? 200 : 1_000) }),
  });
  return measured.map(({ ours, peer }) => ({ ours, ...peer }));
}

export async function writeOurs(tenant: Tenant, writers: number, durationMs: number): Promise<Writes> {
  const latencies: number[] = [];
  const startedMs = performance.now();
  const untilMs = startedMs + durationMs;
  const writer = async (): Promise<void> => {
    for (let nowMs = performance.now(); nowMs < untilMs;) {
      await tenant.write((tx) => tx.run(INSERT_ROW, [BODY]));
      const doneMs = performance.now();
      latencies.push(doneMs - nowMs);
      nowMs = doneMs;
    }
  };
  await Promise.all(Array.from({ length: writers }, writer));
  return { perSecond: (latencies.length / (performance.now() - startedMs)) * 1000, latencies };
}

function writePlain(database: DatabaseSync, durationMs: number): Writes {
  const insert = database.prepare(INSERT_ROW);
  const latencies: number[] = [];
  const startedMs = performance.now();
  const untilMs = startedMs + durationMs;
  for (let nowMs = startedMs; nowMs < untilMs;) {
    insert.run(BODY);
    const doneMs = performance.now();
    latencies.push(doneMs - nowMs);
    nowMs = doneMs;
  }
  return { perSecond: (latencies.length / (performance.now() - startedMs)) * 1000, latencies };
}
