/** The metrics of a node, from one status: names that end in their unit, and none per tenant, which would not be bounded. */
import { REJOIN_ACTIONS } from './rejoin-decision.ts';
import type { NodeStatus } from './types.ts';

interface Metric {
  readonly name: string;
  readonly help: string;
  readonly kind?: 'counter';
  readonly value: (status: NodeStatus) => number;
}

const METRICS: readonly Metric[] = [
  {
    name: 'nostos_primary',
    help: '1 on the primary, 0 on a replica or a copy.',
    value: (s) => (s.role === 'primary' ? 1 : 0),
  },
  {
    name: 'nostos_group_in_sync',
    help: '1 where the node is in its group’s in-sync set; 0 elsewhere, and without a group.',
    value: (s) => (s.group?.inSync === true ? 1 : 0),
  },
  {
    name: 'nostos_group_term',
    help: 'Term of the newest group record that the node has read.',
    value: (s) => s.group?.term ?? 0,
  },
  {
    name: 'nostos_group_members',
    help: 'Members of the group.',
    value: (s) => s.group?.record?.members.length ?? 0,
  },
  {
    name: 'nostos_group_members_in_sync',
    help: 'Members in sync; alert where it is no more than the minimum, since then none may go.',
    value: (s) => s.group?.record?.inSync.length ?? 0,
  },
  {
    name: 'nostos_group_min_in_sync',
    help: 'Members that must have a write before it is committed.',
    value: (s) => s.group?.record?.minInSync ?? 0,
  },
  {
    name: 'nostos_group_peer_errors_total',
    help: 'Conversations of the group that were refused or ended by an error; the status has the last one.',
    kind: 'counter',
    value: (s) => s.group?.peerErrors.count ?? 0,
  },
  {
    name: 'nostos_rejoin_attempts_total',
    help: 'What was tried to come back to the group, in vain or not, since there is this directory.',
    kind: 'counter',
    value: (s) => s.group?.progress?.attemptsEver ?? 0,
  },
  {
    name: 'nostos_rejoin_attempts_pending',
    help: 'The same since the node was last where it belongs; alert where it stays above 0.',
    value: (s) => s.group?.progress?.attemptsTotal ?? 0,
  },
  {
    name: 'nostos_group_stopped',
    help: '1 where the node has left its group and somebody has to look; the status says why.',
    value: (s) => (s.group !== undefined && s.group.stopped !== null ? 1 : 0),
  },
  {
    name: 'nostos_group_uncommitted_records',
    help: 'Records above the watermark.',
    value: (s) => (s.group === undefined ? 0 : s.group.lastLsn - s.group.watermark),
  },
  {
    name: 'nostos_group_replica_lag_records',
    help: 'Of a primary: records that the replica furthest behind has not acknowledged.',
    value: (s) => Math.max(0, ...(s.group?.replicas ?? []).map(({ acked }) => (s.group?.lastLsn ?? acked) - acked)),
  },
  { name: 'nostos_start_time_seconds', help: 'When the node was opened.', value: (s) => s.startedAtMs / 1000 },
  { name: 'nostos_log_term', help: 'Term of the newest record.', value: (s) => s.log.term },
  { name: 'nostos_log_first_lsn', help: 'Oldest record that the log holds.', value: (s) => s.log.firstLsn },
  { name: 'nostos_log_last_lsn', help: 'Newest record of the log.', value: (s) => s.log.lastLsn },
  { name: 'nostos_log_watermark_lsn', help: 'Newest committed record.', value: (s) => s.log.watermark },
  { name: 'nostos_log_segments', help: 'Files of the log.', value: (s) => s.log.segments },
  { name: 'nostos_log_bytes', help: 'Size of the log on disk.', value: (s) => s.log.bytes },
  { name: 'nostos_tenants', help: 'Tenants of the node.', value: (s) => s.tenants.total },
  { name: 'nostos_tenants_open', help: 'Tenants whose file is open.', value: (s) => s.tenants.open },
  {
    name: 'nostos_copies_serving',
    help: 'Copies of this node that others are fetching.',
    value: (s) => s.serving.length,
  },
  {
    name: 'nostos_peers_refused_total',
    help: 'Connections of other nodes that were not let in or failed; the status has the reasons.',
    kind: 'counter',
    value: (s) => Object.values(s.refusedPeers).reduce((sum, count) => sum + count, 0),
  },
  {
    name: 'nostos_backup_last_success_time_seconds',
    help: 'When the newest snapshot of the scheduled backup was made; 0 where there is none. Alert on its age.',
    value: (s) => (s.backup?.last?.atMs ?? 0) / 1000,
  },
  {
    name: 'nostos_backup_archive_time_seconds',
    help: 'When everything that was committed then was seen to be archived; 0 before, and without a scheduled backup.',
    value: (s) => (s.backup?.archivedAtMs ?? 0) / 1000,
  },
  {
    name: 'nostos_backup_archive_lag_records',
    help: 'Committed records that are not archived yet: what a lost machine costs.',
    value: (s) => s.backup?.lagRecords ?? 0,
  },
  {
    name: 'nostos_backup_failures_total',
    help: 'Scheduled backups, and runs of the archive, that failed since the node was opened; the status has the last error.',
    kind: 'counter',
    value: (s) => s.backup?.failures ?? 0,
  },
  {
    name: 'nostos_rollback_files',
    help: 'Rollback files: what had to be dropped, until somebody deletes it; alert on any that nobody has looked at.',
    value: (s) => s.rollbackFiles.count,
  },
  { name: 'nostos_rollback_bytes', help: 'Their size on disk.', value: (s) => s.rollbackFiles.bytes },
  {
    name: 'nostos_writes_committed_total',
    help: 'Transactions committed since the node was opened.',
    kind: 'counter',
    value: (s) => s.writes.committed,
  },
  {
    name: 'nostos_writes_failed_total',
    help: 'Transactions that failed since the node was opened.',
    kind: 'counter',
    value: (s) => s.writes.failed,
  },
  {
    name: 'nostos_scrubbed_rows_total',
    help: 'Rows whose fingerprint was recomputed in the background.',
    kind: 'counter',
    value: (s) => s.scrub.rows,
  },
  {
    name: 'nostos_tenants_damaged',
    help: 'Tenants whose rows disagree with the log; alert on any.',
    value: (s) => s.scrub.damaged.length,
  },
  { name: 'nostos_open_files', help: 'File descriptors of the process.', value: (s) => s.openFiles },
  { name: 'nostos_resident_bytes', help: 'Resident memory of the process.', value: (s) => s.residentBytes },
];

/** Text in the format of Prometheus, from a registry of its own: the caller's default registry is not touched. */
export async function renderMetrics(status: NodeStatus): Promise<string> {
  // Takes 5 MiB, and most nodes are never asked.
  const { Counter, Gauge, Registry } = await import('prom-client');
  const registry = new Registry();
  for (const { name, help, kind, value } of METRICS) {
    if (kind === 'counter') new Counter({ name, help, registers: [registry] }).inc(value(status));
    else new Gauge({ name, help, registers: [registry] }).set(value(status));
  }
  new Gauge({
    name: 'nostos_build_info',
    help: 'Always 1; the version is a label.',
    labelNames: ['version'],
    registers: [registry],
  }).set({ version: status.version }, 1);
  const step = new Gauge({
    name: 'nostos_rejoin_step',
    help: '1 for what the node does now to be in its group; operator: it waits for a person.',
    labelNames: ['action'],
    registers: [registry],
  });
  const { progress } = status.group ?? {};
  if (progress !== undefined)
    for (const action of REJOIN_ACTIONS) step.set({ action }, action === progress?.current ? 1 : 0);
  return registry.metrics();
}
