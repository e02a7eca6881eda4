/** How a backup is named as the source of a restore: on the command line, and in the marker of a run that is resumed. */
import { toLsn, type Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { SnapshotId } from '../backup/repository/manifest.ts';

export interface BackupSource {
  /** Of the repository. */
  readonly url: string;
  readonly snapshot?: SnapshotId | undefined;
  readonly lsn?: Lsn | undefined;
  /** Tenants that are left out. */
  readonly without: readonly string[];
}

export function isBackupSource(text: string): boolean {
  return /^(?:file|s3):/.test(text);
}

export function formatBackupSource({ url, snapshot, lsn, without }: BackupSource): string {
  const fragment = new URLSearchParams();
  if (snapshot !== undefined) fragment.set('snapshot', snapshot);
  if (lsn !== undefined) fragment.set('lsn', String(lsn));
  for (const name of without) fragment.append('without', name);
  return fragment.size === 0 ? url : `${url}#${fragment.toString()}`;
}

export function parseBackupSource(text: string): BackupSource {
  const at = text.search(/#(?:snapshot|lsn|without)=/);
  if (at === -1) return { url: text, without: [] };
  const fragment = new URLSearchParams(text.slice(at + 1));
  const [snapshot, lsn] = [fragment.get('snapshot') ?? undefined, fragment.get('lsn') ?? undefined];
  if (lsn !== undefined && !/^\d{1,16}$/.test(lsn))
    throw new NostosError('INVALID_ARGUMENT', `${JSON.stringify(text)} names no LSN`);
  return {
    url: text.slice(0, at),
    snapshot: snapshot as SnapshotId | undefined,
    lsn: lsn === undefined ? undefined : toLsn(Number(lsn)),
    without: fragment.getAll('without'),
  };
}
