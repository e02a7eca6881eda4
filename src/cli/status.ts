import type { Command } from 'commander';
import type { NodeStatus } from '../node/types.ts';
import type { Io } from './io.ts';
import { bytes, count, duration, fields, style } from './render.ts';
import { answer, verb, withNode, type VerbOptions } from './verb.ts';

function describe(io: Io, status: NodeStatus, via: 'running' | 'opened'): string {
  const { log, tenants, writes, scrub, recovery } = { ...status, recovery: status.log.recovery };
  const upMs = Date.now() - status.startedAtMs;
  const running: readonly (readonly [string, unknown])[] = [
    ['running', `process ${status.pid}, for ${duration(upMs)}`],
    ['writes', `${count(writes.committed)} committed, ${count(writes.failed)} failed since it was opened`],
    [
      'other nodes',
      status.address === null
        ? 'none are served'
        : `${status.address}; ${count(status.serving.length)} copying this one` +
          status.serving.map((copy) => `, ${bytes(copy.bytesSent)} sent`).join('') +
          Object.entries(status.refusedPeers)
            .map(([reason, times]) => `; ${count(times)} refused: ${reason}`)
            .join(''),
    ],
    ['process', `${bytes(status.residentBytes)} resident, ${count(status.openFiles)} open files`],
  ];
  return fields(io, [
    ['directory', status.dir],
    ['node', `${status.node}, ${status.role}, Nostos ${status.version}`],
    ...(status.copy === undefined ? [] : ([['copy', describeCopy(status.copy)]] as const)),
    ...(via === 'running' ? running : ([['running', 'no; opened for this look']] as const)),
    ['log', `records ${count(log.firstLsn)} to ${count(log.lastLsn)}, ${bytes(log.bytes)} in ${log.segments} segments`],
    ['committed', `up to record ${count(log.watermark)}, term ${log.term}, generation ${log.generation}`],
    [
      'last opening',
      `${count(recovery.recordsScanned)} records read in ${duration(recovery.elapsedMs)}` +
        (recovery.tornBytes > 0 ? `, ${bytes(recovery.tornBytes)} of an unfinished write cut` : ''),
    ],
    ['tenants', `${count(tenants.total)}, ${count(tenants.open)} open`],
    [
      'damaged',
      scrub.damaged.length === 0
        ? scrub.tenants === 0
          ? 'none known; the background check has not run yet'
          : `none (${count(scrub.rows)} rows checked in the background)`
        : style(io, 'red', `${scrub.damaged.join(', ')}: run nostos verify`),
    ],
  ]);
}

function describeCopy({ source, reaches }: NonNullable<NodeStatus['copy']>): string {
  const from = source === null ? 'another node' : `store ${source}`;
  return `of ${from}${reaches === null ? '' : ` up to record ${count(reaches.lsn)}`}; it appends nothing`;
}

export function statusVerb(io: Io): Command {
  return verb('status', {
    summary: 'Show what a node is and how it does.',
    examples: [
      ['nostos status', 'of the node in ./nostos-data, running or not'],
      ['nostos status --dir /var/lib/app --json', 'for a program'],
    ],
  }).action(async (options: VerbOptions) => {
    await withNode(io, options, async (node) => {
      const status = await node.call('status', {});
      await answer(io, options, status, () => describe(io, status, node.via));
    });
  });
}
