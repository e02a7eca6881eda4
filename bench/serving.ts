/**
 * What those who write notice of a copy being served: p99 of durable writes while another process takes copies of the
 * node, over loopback and as fast as they come, against p99 of the same writers without it. The receiver keeps nothing, as
 * if it were on another machine; it shares the cores of this one all the same.
 */
import { join } from 'node:path';
import { openNode, type Node, type Tenant } from '../src/index.ts';
import { inChild } from './child.ts';
import { interleave, median, percentile, type Bench, type BenchContext, type Figure } from './harness.ts';
import { ROWS_SCHEMA } from './plain.ts';
import type { SinkInput, Sunk } from './serving-sink.ts';
import { writeOurs } from './writers.ts';

const MIB = 1024 * 1024;
const SINK = import.meta.resolve('./serving-sink.ts');
const COLD_TENANTS = 4;
const COLD_ROW_BYTES = 512 * 1024;
/** The receiver goes on for so much longer than the writers are measured. */
const MARGIN_MS = 300;

export const bench: Bench = {
  name: 'serving',
  what: 'writers of a node while copies of it are taken',
  async run(context) {
    const { dir, quick } = context;
    await using node = await openNode({
      dir: join(dir, 'node'),
      listen: { port: 0 },
      migrations: [ROWS_SCHEMA],
      scrubIntervalMs: false,
    });
    const busy = await node.tenants.create('busy');
    context.progress('filling');
    await fill(node, (quick ? 32 : 512) * MIB);
    const figures: Figure[] = [];
    for (const writers of [64, 1]) figures.push(await measure(context, { node, busy, writers }));
    return figures;
  },
};

async function fill(node: Node, totalBytes: number): Promise<void> {
  for (let n = 0; n < COLD_TENANTS; n += 1) {
    const tenant = await node.tenants.create(`cold ${n}`);
    for (let bytes = 0; bytes < totalBytes / COLD_TENANTS; bytes += COLD_ROW_BYTES)
      await tenant.write((tx) => tx.run('insert into item (body) values (hex(randomblob(?)))', [COLD_ROW_BYTES / 2]));
  }
}

async function measure(
  { quick, progress }: BenchContext,
  { node, busy, writers }: { readonly node: Node; readonly busy: Tenant; readonly writers: number },
): Promise<Figure> {
  const roundMs = quick ? 500 : 1_500;
  await writeOurs(busy, writers, roundMs / 2);
  const rounds = await interleave(quick ? 1 : 13, {
    ours: async (round) => {
      progress(`${writers} writers, round ${round + 1}`);
      const began = Promise.withResolvers<void>();
      const input: SinkInput = { address: node.address!, durationMs: roundMs + MARGIN_MS, rateBytesPerSecond: null };
      const sunk = inChild<Sunk>(SINK, 'sink', input, { onNote: () => began.resolve() });
      await Promise.race([began.promise, sunk]);
      const { latencies } = await writeOurs(busy, writers, roundMs);
      return { latencies, sunk: await sunk };
    },
    peer: async () => (await writeOurs(busy, writers, roundMs)).latencies,
  });
  const ratios = rounds.map(({ ours, peer }) => percentile(ours.latencies, 0.99) / percentile(peer, 0.99));
  return {
    name: `serving ${writers} writers`,
    what: `p99 of ${writers} writers while a copy is served / without, ms`,
    ours: { value: median(rounds.map(({ ours }) => percentile(ours.latencies, 0.99))), unit: 'ms' },
    peer: { value: median(rounds.map(({ peer }) => percentile(peer, 0.99))), unit: 'ms alone' },
    value: median(ratios),
    bound: { kind: 'atMost', gate: 2 },
    rounds: ratios,
    notes: {
      p50Ms: median(rounds.map(({ ours }) => percentile(ours.latencies, 0.5))),
      p50AloneMs: median(rounds.map(({ peer }) => percentile(peer, 0.5))),
      maxMs: Math.max(...rounds.map(({ ours }) => percentile(ours.latencies, 1))),
      maxAloneMs: Math.max(...rounds.map(({ peer }) => percentile(peer, 1))),
      servedMibPerSecond: median(rounds.map(({ ours: { sunk } }) => sunk.bytes / MIB / (sunk.elapsedMs / 1000))),
      copies: rounds.reduce((sum, { ours }) => sum + ours.sunk.copies, 0),
    },
  };
}
