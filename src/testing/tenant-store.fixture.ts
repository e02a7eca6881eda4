/** Tenants on logs in memory, in a directory that goes with the test. */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { NO_LSN, toTenantId, toTenantUuid, type Lsn } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { isNostosError, type ErrorCode } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { Durability } from '../log/commit-log.ts';
import { ForgetLedger } from '../log/ledger.ts';
import { RecordKind } from '../log/record.ts';
import { dumpDatabase, type DatabaseDump } from './dump-database.fixture.ts';
import { MemoryLog } from './memory-log.ts';
import { checkpointFile } from '../store/checkpoint.ts';
import type { Maintenance } from '../store/maintenance.ts';
import { encodeTenantCreate } from '../store/payload.ts';
import { scrubFile } from '../store/scrub.ts';
import type { TenantIdentity } from '../store/tenant-file.ts';
import { TenantStore, type TenantRole } from '../store/tenant-store.ts';
import type { WriterTransaction } from '../store/writer-transaction.ts';

export const identity = { id: toTenantId(1), uuid: toTenantUuid('ab'.repeat(16)), name: 'acme' };
export const OTHER_TENANT = toTenantId(2);

const maintenance = {
  checkpoint: async (path, mode) => checkpointFile({ path, mode, directories: [], hold: false }),
  checkpointAndClose: async (path, directories, close) => {
    const result = checkpointFile({ path, mode: 'truncate', directories, hold: false });
    close();
    return result;
  },
} satisfies Partial<Maintenance> as unknown as Maintenance;

export interface OpenOptions {
  readonly path: string;
  readonly role?: TenantRole;
  readonly identity?: TenantIdentity;
  readonly givenTo?: () => Lsn;
  /** One of its own where it is absent. */
  readonly ledger?: ForgetLedger;
}

/** That of the node whose only tenant has this file. */
export function ledgerBeside(path: string, disk: Disk = systemDisk): ForgetLedger {
  const dir = `${path}.log`;
  disk.makeDirectory(dir);
  return ForgetLedger.open(disk, dir);
}

export interface Stores {
  readonly dir: string;
  /** A file name that nobody had before. */
  newPath(): string;
  open(log: MemoryLog, options: OpenOptions): Promise<TenantStore>;
}

export function stores(t: TestContext): Stores {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-store-'));
  const opened: TenantStore[] = [];
  let files = 0;
  t.after(async () => {
    for (const store of opened) await store.close();
    rmSync(dir, { recursive: true, force: true });
  });
  return {
    dir,
    newPath: () => join(dir, `${(files += 1)}.sqlite`),
    open: async (log, { path, role = 'primary', identity: owner = identity, givenTo, ledger = ledgerBeside(path) }) => {
      const store = await TenantStore.open(
        { log, clock: systemClock, maintenance, ledger, ...(givenTo === undefined ? {} : { givenTo }) },
        {
          identity: owner,
          path,
          limits: DEFAULT_LIMITS,
          createdAt: 1 as Lsn,
          opened: existsSync(path),
          held: NO_LSN,
          role,
        },
      );
      opened.push(store);
      return store;
    },
  };
}

/** The log of a group: what is `quorum` waits for `commitTo`, or, with `prompt`, is committed as soon as it waits. */
export async function groupLog({ prompt = false } = {}): Promise<MemoryLog> {
  const log = new MemoryLog();
  await log.append([{ tenant: identity.id, kind: RecordKind.tenantCreate, payload: encodeTenantCreate(identity) }]);
  log.committing = false;
  log.commitTo(log.records.length as Lsn);
  if (prompt) log.onQuorum = () => log.commitTo(log.records.length as Lsn);
  return log;
}

/** Another log with the same records, up to `end`, all of them committed. */
export function copyOf(log: MemoryLog, end = log.records.length): MemoryLog {
  const copy = new MemoryLog();
  copy.records.push(...log.records.slice(0, end));
  return copy;
}

export function write<T>(store: TenantStore, durability: Durability, fn: (tx: WriterTransaction) => T): Promise<T> {
  return store.write<T>(fn, { int64: 'number', durability });
}

/** What a process that is killed leaves, or, without the WAL, a power cut. */
export function copyFiles(from: string, to: string, { wal = true } = {}): void {
  copyFileSync(from, to);
  if (wal && existsSync(`${from}-wal`)) copyFileSync(`${from}-wal`, `${to}-wal`);
}

/** All that users see of a tenant, and what its fingerprint must be. Where it stands in the log is left out. */
export function contentOf(store: TenantStore): { dump: DatabaseDump; fingerprint: string } {
  const { schema, rows, settings } = dumpDatabase(store.path);
  const kept = Object.entries(rows).filter(([table]) => table !== 'nostos_meta' && table !== 'nostos_fingerprint');
  return {
    dump: { schema, rows: Object.fromEntries(kept), settings },
    fingerprint: Buffer.from(store.expected.total()).toString('hex'),
  };
}

/** The rows, by SQLite's own account and by the fingerprint, are what the log says. */
export function assertSound(store: TenantStore): void {
  const report = scrubFile({ path: store.path, integrity: true }, () => {});
  assert.deepEqual(report.integrity, []);
  assert.equal(report.actual, report.expected);
  assert.equal(report.expected, Buffer.from(store.expected.total()).toString('hex'));
}

export async function failsWith(running: Promise<unknown>, code: ErrorCode): Promise<void> {
  await assert.rejects(running, (error) => isNostosError(error, code) || assert.fail(`${code}, not ${String(error)}`));
}
