/**
 * (Re)opens the file of a tenant and applies what the log has and the file has not. A file that is lost or older than
 * it was is made again from the log, as long as that holds all that is missing.
 */
import { NO_LSN, type Lsn } from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { releaseBuffer } from '../base/release.ts';
import type { CommitLog, TenantLocation } from '../log/commit-log.ts';
import type { Connection } from './connection.ts';
import { createTenantFile } from './create-tenant-file.ts';
import { ExpectedFingerprint } from './expected-fingerprint.ts';
import type { OpenFile } from './open-file.ts';
import { checkChain, shapesFrom } from './replay.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { readFingerprint, readShapes, readTenantMeta, type TenantMeta } from './tenant-file.ts';

export interface RecoverOptions {
  /** LSN of the tenant's first record. */
  readonly createdAt: Lsn;
  /** Whether the tenant has been open before: then it has a file, or that is lost. */
  readonly opened: boolean;
  /** The file held everything up to here when it was last closed. */
  readonly held: Lsn;
}

/** What was found of the file before anything is read from it. */
interface Found {
  /** There was no file, and a new one was made. */
  readonly made: boolean;
  /** There was no WAL, so that everything in the file is there durably. */
  readonly wholeFile: boolean;
}

export async function recoverFile(file: OpenFile, log: CommitLog, options: RecoverOptions): Promise<void> {
  file.release();
  try {
    const made = await makeFile(file, log, options);
    const found = { made, wholeFile: file.walBytes() === 0 };
    await catchUp(file, log, options, found);
    file.stale = false;
  } catch (error) {
    file.release();
    file.stale = true;
    throw fromSqlite(error);
  }
}

/** Where there is no file, or an empty one, makes a new one; true if it did. */
async function makeFile(file: OpenFile, log: CommitLog, options: RecoverOptions): Promise<boolean> {
  if (file.bytes() > 0) return false;
  if (options.opened) await assertRebuildable(file, log, options);
  await createTenantFile(file.path, file.identity);
  return true;
}

async function catchUp(file: OpenFile, log: CommitLog, options: RecoverOptions, found: Found): Promise<void> {
  const { createdAt, held } = options;
  const { identity } = file;
  const opened = file.openMain();
  const meta = readOwnMeta(file, opened);
  const noted = readFingerprint(opened);
  const expected = ExpectedFingerprint.parse(identity.uuid, noted?.buckets);
  if (noted !== undefined) releaseBuffer(noted.buckets);
  const content = {
    applied: meta,
    schemaVersion: meta.schemaVersion,
    shapes: shapesFrom(readShapes(opened)),
    expected,
  };
  file.noted = noted?.lsn ?? NO_LSN;
  // When it was closed like that, everything was synced, the directories too.
  file.findable ||= !found.made && meta.lsn > NO_LSN && held === meta.lsn;
  const until = log.watermark;
  const location = await log.locate(identity.id, meta.lsn);
  if (location.at !== undefined) checkChain(location.at, meta);
  else if (meta.lsn > log.watermark) throw aheadOfLog(file, meta.lsn, log.watermark);
  file.durable = Math.max(file.durable, durablyHeld(meta.lsn, file.noted, location, found.wholeFile)) as Lsn;
  // A file that holds less than it did is an older copy; what it lacks is below what the log counts as done.
  const older = !found.made && meta.lsn < held;
  const rebuild = older || (found.made && options.opened);
  // Up to `location.durable` the file lacks nothing, and the log below may be gone.
  const from = Math.max(file.noted + 1, rebuild ? createdAt : Math.max(createdAt, location.durable + 1)) as Lsn;
  // What this node has acknowledged as `local` is in its file, or must come into it, before the group has it.
  const local = Math.max(meta.lsn, file.acknowledged) as Lsn;
  const uncommitted = local > until;
  const to = uncommitted ? local : rebuild ? log.watermark : location.last;
  if (to >= from) {
    if (file.role === 'primary') file.release();
    const applier = file.role === 'primary' ? file.connect('applier') : opened;
    try {
      await file.replayOn(applier, content).run(log, { from, to, tenant: identity.id, uncommitted });
    } catch (error) {
      throw older && isNostosError(error, 'LOG_PRUNED') ? olderFile(file, meta.lsn, { held, cause: error }) : error;
    } finally {
      if (applier !== opened) applier.close();
    }
  }
  file.openMain();
  const { applied } = content;
  file.quiet = { after: applied.lsn, until };
  file.appliedTo = Math.max(applied.lsn, until) as Lsn;
  file.hold(content);
  if (!Buffer.from(expected.total()).equals(applied.fingerprint))
    throw new NostosError(
      'TENANT_DAMAGED',
      `${file.path}: its stored fingerprint does not lead to the one of record ${applied.lsn}`,
    );
}

function readOwnMeta({ path, identity }: OpenFile, connection: Connection): TenantMeta {
  const meta = readTenantMeta(connection);
  if (meta === undefined)
    throw new NostosError(
      'TENANT_DAMAGED',
      `${path} is not the file of a tenant; restore this tenant from a backup or a peer`,
    );
  if (meta.identity.uuid !== identity.uuid)
    throw new NostosError('TENANT_DAMAGED', `${path} belongs to tenant ${meta.identity.name} (${meta.identity.uuid})`);
  return meta;
}

/** The file is lost: it may be made again from the log as long as that holds all of the tenant. */
async function assertRebuildable(file: OpenFile, log: CommitLog, { createdAt }: RecoverOptions): Promise<void> {
  const { at } = await log.locate(file.identity.id, createdAt);
  if (at !== undefined) return;
  throw new NostosError(
    'TENANT_DAMAGED',
    `${file.path} is missing or empty, and the log no longer holds all of tenant ${file.identity.name}, which began at record ${createdAt}; restore this tenant from a backup or a peer`,
    { details: { path: file.path, createdAt } },
  );
}

function olderFile({ path }: OpenFile, lsn: Lsn, { held, cause }: { held: Lsn; cause: unknown }): NostosError {
  return new NostosError(
    'TENANT_DAMAGED',
    `${path} is an older copy: it holds record ${lsn} and held ${held}, and the log no longer has what lies between; restore this tenant from a backup or a peer`,
    { cause, details: { lsn, held, path } },
  );
}

function aheadOfLog({ identity }: OpenFile, lsn: Lsn, watermark: Lsn): NostosError {
  return new NostosError(
    'LOG_DAMAGED',
    `tenant ${identity.name} holds record ${lsn}, the log ends at ${watermark}: the log has lost acknowledged records`,
    { details: { lsn, watermark } },
  );
}

/** The position that a file holds even after a power cut, as far as can be told on opening. */
function durablyHeld(applied: Lsn, noted: Lsn, location: TenantLocation, wholeFile: boolean): Lsn {
  if (location.last === NO_LSN) return applied; // nobody waits for anything of this tenant
  return wholeFile ? noted : (Math.min(noted, location.durable) as Lsn);
}
