/**
 * Three nodes hold one log, each in a process of its own on this machine; 64 writers, each of whose writes is on the disks
 * of all three before it is answered. The peer is an etcd of three members on the same disk, whose leader takes as many
 * puts at a time, of as many bytes; there two disks of three are enough.
 */
import { join } from 'node:path';
import { EtcdCluster, etcdMissing } from '../src/testing/etcd-cluster.ts';
import { inChild } from './child.ts';
import { putIntoEtcd, type PutLoad } from './etcd-puts.ts';
import { GroupCluster, MEMBERS } from './group-cluster.ts';
import { interleave, median, percentile, type Bench } from './harness.ts';
import { ROW_BYTES } from './plain.ts';
import type { Writes } from './writers.ts';

const WRITERS = 64;

export const bench: Bench = {
  name: 'group-writers',
  what: '64 concurrent writers of 100-byte rows, each acknowledged by three nodes',
  async run({ dir, quick, progress }) {
    const missing = etcdMissing();
    if (missing !== undefined) {
      process.stderr.write(`group-writers: no figures, since nothing is there to compare with: ${missing}\n`);
      return [];
    }
    const [rounds, durationMs] = quick ? [2, 1_000] : [7, 4_000];
    await using etcd = await EtcdCluster.start({ dir });
    const coordinator = `embedded:${join(dir, 'coordinator')}`;
    await using group = await GroupCluster.start(dir, { coordinator, minInSync: MEMBERS });
    const primary = await group.leader();
    const ours = (ms: number): Promise<Writes> => primary.ask('load', { writers: WRITERS, durationMs: ms });
    const peer = async (ms: number): Promise<Writes> => {
      const endpoint = etcd.endpoints[await etcd.leader()]!;
      return await inChild<Writes>(import.meta.url, 'put', {
        endpoint,
        load: { writers: WRITERS, durationMs: ms, valueBytes: ROW_BYTES },
      } satisfies Put);
    };
    await ours(durationMs / 2);
    await peer(durationMs / 2);
    const measured = await interleave(rounds, {
      ours: (round) => {
        progress(`round ${round + 1} of ${rounds}`);
        return ours(durationMs);
      },
      peer: () => peer(durationMs),
    });
    const p99 = measured.map(({ ours, peer }) => [percentile(ours.latencies, 0.99), percentile(peer.latencies, 0.99)]);
    const p50 = measured.map(({ ours, peer }) => [percentile(ours.latencies, 0.5), percentile(peer.latencies, 0.5)]);
    const ratios = measured.map(({ ours, peer }) => ours.perSecond / peer.perSecond);
    const shares = p99.map(([ours, peer]) => ours! / peer!);
    return [
      {
        name: 'group-writers',
        what: 'writes per second, ours fsynced on three nodes / etcd with three members',
        ours: { value: median(measured.map(({ ours }) => ours.perSecond)), unit: 'writes/s' },
        peer: { value: median(measured.map(({ peer }) => peer.perSecond)), unit: 'puts/s' },
        value: median(ratios),
        bound: { kind: 'atLeast', gate: 2, goal: 3 },
        rounds: ratios,
      },
      {
        name: 'group-writers p99',
        what: 'p99 of an acknowledgement, ours / etcd',
        ours: { value: median(p99.map(([ours]) => ours!)), unit: 'ms' },
        peer: { value: median(p99.map(([, peer]) => peer!)), unit: 'ms' },
        value: median(shares),
        bound: { kind: 'atMost', gate: 1 },
        rounds: shares,
        notes: {
          oursP50Ms: median(p50.map(([ours]) => ours!)),
          etcdP50Ms: median(p50.map(([, peer]) => peer!)),
        },
      },
    ];
  },
};

interface Put {
  readonly endpoint: string;
  readonly load: PutLoad;
}

/** In a process of its own, as ours have theirs. */
export function put({ endpoint, load }: Put): Promise<Writes> {
  return putIntoEtcd(endpoint, load);
}
