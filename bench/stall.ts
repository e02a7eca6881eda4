/**
 * What users do for ten seconds must not stall the engine: a query in a reader thread, then that and a busy loop in the
 * user's own thread. Meanwhile the engine thread runs a 10 ms timer and appends with every tick; how late the latest tick
 * came is the figure. During the query, a short one of another tenant must answer too.
 */
import { join } from 'node:path';
import { openNode, type Tenant } from '../src/index.ts';
import type { NostosNode } from '../src/node/node.ts';
import { percentile, type Bench, type Figure } from './harness.ts';
import { INSERT_ROW, ROWS_SCHEMA } from './plain.ts';

const COUNT = 'with recursive n (i) as (select 1 union all select i + 1 from n where i < ?) select max(i) as n from n';
const SHORT = 'select count(*) from item';
const CALIBRATION_STEPS = 1_000_000;
const LATE_MAX_MS = 50;
const TICK_MS = 10;

export const bench: Bench = {
  name: 'stall',
  what: 'a long query and a busy user thread beside a 10 ms timer and appends in the engine thread',
  async run(context) {
    const durationMs = context.quick ? 1_000 : 10_000;
    const node = (await openNode({ dir: join(context.dir, 'node'), migrations: [ROWS_SCHEMA] })) as NostosNode;
    await using _ = node;
    const busy = await node.tenants.create('busy');
    const other = await node.tenants.create('other');
    for (const tenant of [busy, other]) await tenant.write((tx) => tx.run(INSERT_ROW, ['row']));
    // Starting a thread is not what is measured: both are there.
    await Promise.all([busy.query(COUNT, [CALIBRATION_STEPS]), other.query(SHORT)]);

    context.progress('idle');
    const idle = await node.probe(durationMs / 5);
    const idleAnswersMs = await askMeanwhile(other, durationMs / 5);
    context.progress('a long query');
    const steps = await stepsFor(busy, durationMs);
    const ended = longQuery(busy, steps);
    const probing = node.probe(durationMs);
    const answersMs = await askMeanwhile(other, durationMs);
    const query = await probing;
    const queryMs = await ended;
    context.progress('a long query and a busy thread');
    const endedToo = longQuery(busy, steps);
    const probingToo = node.probe(durationMs);
    await new Promise((resolve) => setTimeout(resolve, 100)); // both are under way
    const untilMs = performance.now() + durationMs;
    while (performance.now() < untilMs);
    const both = await probingToo;
    const queryTooMs = await endedToo;

    const figure = (name: string, what: string, probe: typeof idle, queryMs: number): Figure => ({
      name: `stall ${name}`,
      what: `latest tick of the engine's timer in ms, ${what}`,
      ours: { value: probe.latenessMaxMs, unit: 'ms late' },
      peer: { value: idle.latenessMaxMs, unit: 'ms idle' },
      value: probe.latenessMaxMs,
      bound: { kind: 'atMost', gate: LATE_MAX_MS },
      notes: { ticks: probe.ticks, appends: probe.appends, durationMs, queryMs },
    });
    const appendMs = (probe: typeof idle, ms: number): number => ms / probe.ticks - TICK_MS;
    return [
      figure('query', 'during a query', query, queryMs),
      figure('cpu', 'during a query and a busy user thread', both, queryTooMs),
      {
        name: 'stall appends',
        what: 'mean time beyond 10 ms from append to append in the engine, ms, during both',
        ours: { value: appendMs(both, durationMs), unit: 'ms' },
        peer: { value: appendMs(idle, durationMs / 5), unit: 'ms idle' },
        value: appendMs(both, durationMs),
        bound: { kind: 'atMost', gate: LATE_MAX_MS },
      },
      {
        name: 'stall other tenant',
        what: 'p99 of the short queries of another tenant during the long one, ms',
        ours: { value: percentile(answersMs, 0.99), unit: 'ms' },
        peer: { value: percentile(idleAnswersMs, 0.99), unit: 'ms idle' },
        value: percentile(answersMs, 0.99),
        bound: { kind: 'atMost', gate: LATE_MAX_MS },
        notes: { answers: answersMs.length, maxMs: Math.max(...answersMs) },
      },
    ];
  },
};

/** A count to so many takes about that long here; SQLite cannot be interrupted, so a query must end by itself. */
async function stepsFor(tenant: Tenant, durationMs: number): Promise<number> {
  const startedMs = performance.now();
  await tenant.query(COUNT, [CALIBRATION_STEPS]);
  return Math.ceil((CALIBRATION_STEPS * durationMs) / (performance.now() - startedMs));
}

/** Milliseconds that it took. */
async function longQuery(tenant: Tenant, steps: number): Promise<number> {
  const startedMs = performance.now();
  await tenant.query(COUNT, [steps], { timeoutMs: 600_000 });
  return performance.now() - startedMs;
}

async function askMeanwhile(tenant: Tenant, durationMs: number): Promise<number[]> {
  const answersMs: number[] = [];
  const untilMs = performance.now() + durationMs - 100;
  while (performance.now() < untilMs) {
    const startedMs = performance.now();
    await tenant.query(SHORT);
    answersMs.push(performance.now() - startedMs);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return answersMs;
}
