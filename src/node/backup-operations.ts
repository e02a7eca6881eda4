/** `backup.create` of a node that is open: in a thread of its own, or in that of its schedule where the place is the same. */
import { systemClock } from '../base/clock.ts';
import { systemRandom } from '../base/random.ts';
import type { Limits } from '../base/limits.ts';
import type { BackupReport, CreateBackupOptions } from './backup-create.ts';
import { BackupSchedule, assertOutside, backupUrl } from './backup-schedule.ts';
import { BackupThread } from './backup-thread-client.ts';
import type { NostosNode } from './node.ts';
import type { BackupOptions, LongCallOptions } from './types.ts';

export interface BackupRequest extends CreateBackupOptions {
  readonly to: string;
  readonly keys?: string | undefined;
}

export async function backupNode(
  node: NostosNode,
  { to, keys, ...options }: BackupRequest,
  call: LongCallOptions = {},
): Promise<BackupReport & { readonly warnings: readonly string[] }> {
  assertOutside(to, node.dir);
  const url = backupUrl(to);
  const { schedule } = node;
  if (schedule?.covers(url, keys) === true) return { ...(await schedule.create(options, call)), warnings: [] };
  const warnings: string[] = [];
  const thread = threadOf(node, { url, keys, limits: node.limits }, (message) => warnings.push(message));
  try {
    return { ...(await thread.call('create', options, call)), warnings };
  } finally {
    await thread.stop();
  }
}

export function makeSchedule(node: NostosNode, options: BackupOptions): BackupSchedule {
  assertOutside(options.to, node.dir);
  const { limits } = node;
  const thread = threadOf(node, { url: backupUrl(options.to), keys: options.keys, limits });
  const deps = { thread, forgets: node.forgets, watermark: () => node.watermark, clock: systemClock };
  return new BackupSchedule({ ...deps, random: systemRandom }, options, limits);
}

function threadOf(
  { dir, restoreHost, backupHost }: NostosNode,
  options: { readonly url: string; readonly keys: string | undefined; readonly limits: Limits },
  onWarning?: (message: string) => void,
): BackupThread {
  const deps = { host: restoreHost, archiveHost: backupHost };
  return new BackupThread(onWarning === undefined ? deps : { ...deps, onWarning }, { dir, ...options });
}
