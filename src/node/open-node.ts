/**
 * The composition root: opens a directory and puts lock, engine, tenants, threads and admin socket together.
 *
 * Order of opening: lock, identity, engine (log and term), catalog, admin socket, network. Closing goes the other way, and
 * a failure while opening closes what was opened. A directory with an unfinished restore is not opened.
 *
 * A member of a group comes home first (`rejoin-home.ts`): what its directory lacks is fetched under the lock, before
 * anything is opened, and once more where opening finds the log damaged.
 */
import { rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { NO_LSN, toBootId, type NodeId } from '../base/brands.ts';
import { systemClock } from '../base/clock.ts';
import { acquireDirectoryLock, type DirectoryLock } from '../base/directory-lock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS, LIMIT_NAMES, type Limits } from '../base/limits.ts';
import { makeDirectories } from '../base/make-directory.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { ForgetLedger } from '../log/ledger.ts';
import { unfinished } from '../restore/local/decision.ts';
import { readMarker } from '../restore/local/marker.ts';
import { checkRate } from '../restore/stream/limits.ts';
import { RESTORE_MARKER } from '../backup/reference/marker.ts';
import { Catalog } from '../store/catalog.ts';
import { formatAddress, parseAddress } from '../wire/address.ts';
import { serveAdmin } from './admin-socket.ts';
import { CatalogLog } from './catalog-log.ts';
import { EngineClient } from './engine-client.ts';
import type { GroupSettings } from './engine-protocol.ts';
import { ForgetSinks } from './forget-sinks.ts';
import { ThreadMaintenance } from './maintenance.ts';
import { NostosNode, type NodeSettings } from './node.ts';
import { loadNode } from './node-file.ts';
import { RECOVERY_FILE } from './paths.ts';
import { QueryProcesses } from './query-processes.ts';
import { openFilesLimit } from './process-limits.ts';
import { SERVING_DIR } from './restore-source.ts';
import { VERSION, assertRuntime } from './runtime.ts';
import { damageOf } from './rejoin-decision.ts';
import type { RejoinFile } from './rejoin-file.ts';
import type { HomeOptions } from './rejoin-home.ts';
import type { GroupOptions, ListenAddress, Node, NodeOptions } from './types.ts';
import { WireServer } from './wire-server.ts';

/** A record needs room beside the changeset that it carries. */
const RECORD_BYTES_LEAST = 96 * 1024;

/**
 * Opens the node in `dir`, which is formatted when it is empty. One process at a time may have a directory open.
 *
 * @example
 * await using node = await openNode({ dir: './data' })
 */
export async function openNode(options: NodeOptions): Promise<Node> {
  assertRuntime();
  const dir = checkDir(options.dir);
  const limits = checkLimits(options.limits);
  const listen = listenOf(options);
  if (listen !== undefined) checkListen(listen);
  makeDirectories(dir);
  return closingOnFailure(async (opened) => {
    const lock: DirectoryLock = await acquireDirectoryLock(
      { dir, timeoutMs: limits.lockTimeoutMs, holder: { command: process.argv.slice(1).join(' '), version: VERSION } },
      options.signal === undefined ? {} : { signal: options.signal },
    );
    opened.push(() => lock.release());
    const node = await openHome({ ...options, dir }, limits, opened);
    const admin = await serveAdmin({ node, path: join(dir, 'admin.sock'), limits });
    opened.push(() => admin.close());
    if (listen !== undefined) {
      const { identity } = node;
      const onLost = (): void => node.listening(undefined);
      const wire = await WireServer.start(
        { host: node.restoreHost, onLost, onRefused: (refused) => node.refused(refused) },
        { dir, listen, limits, identity },
      );
      opened.push(() => wire.stop());
      node.listening(wire.address);
      if (options.group !== undefined) await node.copiesAt(copyAddress(wire.address, options.group));
    }
    if (options.backup !== undefined) {
      // Who makes no backups has no use for them.
      const schedule = (await import('./backup-operations.ts')).makeSchedule(node, options.backup);
      schedule.start();
      opened.push(() => schedule.stop());
      node.backingUp(schedule);
    }
    node.start(() => closeInTurn(opened));
    return node;
  });
}

/** A directory that a restore has staged: nobody else knows of it, and it is under the lock of the restore. */
export async function openStaged(options: Pick<NodeOptions, 'dir' | 'limits'>): Promise<NostosNode> {
  assertRuntime();
  const dir = checkDir(options.dir);
  return closingOnFailure(async (opened) => {
    const limits = checkLimits(options.limits);
    const node = await openParts({ dir, scrubIntervalMs: false }, { limits, writers: false }, opened);
    node.start(() => closeInTurn(opened));
    return node;
  });
}

/** A member of a group lets itself be copied where it does not say otherwise. */
function listenOf({ listen, group }: NodeOptions): ListenAddress | undefined {
  if (listen !== undefined || group === undefined) return listen || undefined;
  const { host, tls } = group.listen;
  return { port: 0, ...(host === undefined ? {} : { host }), ...(tls === undefined ? {} : { tls }) };
}

/** As the others reach it: at the host that they have for this member. */
function copyAddress(bound: string, { advertise }: GroupOptions): string {
  if (advertise === undefined) return bound;
  return formatAddress({ host: parseAddress(advertise).host, port: parseAddress(bound).port });
}

/** Opens the directory; as a member of a group it may have to come back to that first. */
async function openHome(options: NodeOptions, limits: Limits, opened: (() => unknown)[]): Promise<NostosNode> {
  const { dir, group, signal = new AbortController().signal } = options;
  if (systemDisk.exists(join(dir, RECOVERY_FILE)))
    (await import('./group-recovery-journal.ts')).assertNoRecovery(systemDisk, dir);
  if (group === undefined) {
    assertNoRestore(dir);
    return openParts(options, { limits, writers: true }, opened);
  }
  // Who is in no group has no use for them.
  const [{ comeHome }, { RejoinFile }] = await Promise.all([import('./rejoin-home.ts'), import('./rejoin-file.ts')]);
  const file = new RejoinFile(systemDisk, dir);
  const { coordinator, name = 'main', restoreFrom = [], onRejoin: onStep = () => {} } = group;
  const { tls } = group.listen;
  const home: HomeOptions = { dir, coordinator, name, tls, restoreFrom, limits, signal, clock: systemClock, onStep };
  for (let times = 1; ; times += 1) {
    await comeHome(file, home);
    assertNoRestore(dir);
    const parts: (() => unknown)[] = [];
    try {
      const node = await openParts(options, { limits, writers: true }, parts, file);
      opened.push(...parts);
      return node;
    } catch (error) {
      await closeInTurn(parts).catch(() => {}); // the first error says more
      if (!isNostosError(error, 'LOG_DAMAGED') || times > limits.rejoinAttemptsMax) throw error;
      file.add(loadNode(dir, options.cluster).store, { damage: damageOf(error) });
    }
  }
}

/** Everything between the lock and those who are served. What is to be closed is added to `opened`. */
async function openParts(
  options: NodeOptions,
  { limits, writers }: { readonly limits: Limits; readonly writers: boolean },
  opened: (() => unknown)[],
  rejoinFile?: RejoinFile,
): Promise<NostosNode> {
  const { dir } = options;
  const startedAtMs = systemClock.nowMs();
  const identity = loadNode(dir, options.cluster);
  const boot = toBootId(randomHex128(systemRandom));
  rmSync(join(dir, SERVING_DIR), { recursive: true, force: true });
  const { node: _, copy, ...log } = identity;
  const reaches = copy === undefined ? {} : { copy: { lsn: copy.reaches?.lsn ?? NO_LSN } };
  const lostRecords = rejoinFile?.findingOf(identity.store)?.stopped === 'lost-records';
  const group =
    options.group === undefined ? {} : { group: { ...groupSettings(options.group, identity.node), lostRecords } };
  const engineOptions = { dir, boot, limits, ...log, ...reaches, ...group };
  const engine = await (writers ? EngineClient.start(engineOptions) : EngineClient.startHere(engineOptions));
  opened.push(() => engine.close());
  const catalog = Catalog.open(join(dir, 'catalog.sqlite'));
  opened.push(() => catalog.close());
  const ledger = ForgetLedger.open(systemDisk, join(dir, 'log'));
  const forgets = new ForgetSinks({ ledger, disk: systemDisk, dir }, limits);
  opened.push(() => forgets.stop());
  const catalogLog = new CatalogLog({ engine, catalog, ledger }, dir);
  await catalogLog.open();
  const maintenance = new ThreadMaintenance({ writers });
  opened.push(() => maintenance.close());
  const queries = new QueryProcesses(limits);
  opened.push(() => queries.close());
  const node = new NostosNode(
    { engine, catalog, catalogLog, ledger, forgets, queries, maintenance, clock: systemClock },
    {
      dir,
      identity: { ...identity, boot },
      limits,
      int64: options.int64 ?? 'number',
      migrations: options.migrations,
      scrubIntervalMs: options.scrubIntervalMs ?? 60 * 60 * 1000,
      startedAtMs,
      makeMember: await memberMaker(options.group, rejoinFile),
      durability: options.group?.durability ?? 'quorum',
    },
  );
  opened.push(() => node.stop());
  return node;
}

async function memberMaker(
  group: GroupOptions | undefined,
  rejoinFile: RejoinFile | undefined,
): Promise<NodeSettings['makeMember']> {
  if (group === undefined || rejoinFile === undefined) return undefined;
  const { makeMember } = await import('./group-parts.ts');
  const { coordinator, name = 'main', restoreFrom = [] } = group;
  const place = { coordinator, group: name, tls: group.listen.tls, restoreFrom, rejoinFile };
  return (parts) => makeMember(parts, place);
}

async function closingOnFailure<T>(open: (opened: (() => unknown)[]) => Promise<T>): Promise<T> {
  const opened: (() => unknown)[] = [];
  try {
    return await open(opened);
  } catch (error) {
    await closeInTurn(opened).catch(() => {}); // the first error says more
    throw error;
  }
}

/** Checked under the lock: a restore that runs holds it, one that was cut off has left its marker. */
function assertNoRestore(dir: string): void {
  const marker = readMarker(systemDisk, dir);
  if (marker !== undefined) throw unfinished(marker);
  if (systemDisk.exists(join(dir, RESTORE_MARKER)))
    throw new NostosError(
      'RESTORE_UNFINISHED',
      `${join(dir, RESTORE_MARKER)} says that a restore of nostos/backup into this directory is unfinished: make the same call of RestoreExecutor.execute once more, which ends it, or abandon() it`,
      { details: { dir } },
    );
}

/** The last opened first; one that fails does not keep the others, above all the lock, from being let go. */
async function closeInTurn(opened: readonly (() => unknown)[]): Promise<void> {
  const failures: unknown[] = [];
  for (const close of opened.toReversed()) {
    try {
      await close();
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}

function groupSettings({ coordinator, name = 'main', listen, advertise }: GroupOptions, node: NodeId): GroupSettings {
  checkListen(listen);
  const { tls, host, port } = listen;
  const address = { port, ...(host === undefined ? {} : { host }), ...(tls === undefined ? {} : { tls }) };
  return { coordinator, name, node, listen: address, ...(advertise === undefined ? {} : { advertise }) };
}

function checkListen({ host, port, rateBytesPerSecond }: ListenAddress): void {
  checkRate(rateBytesPerSecond);
  if (host !== undefined && (typeof host !== 'string' || host.length === 0))
    throw new NostosError('INVALID_ARGUMENT', `listen.host must be an address or a name, got ${JSON.stringify(host)}`);
  if (!Number.isInteger(port) || port < 0 || port > 65_535)
    throw new NostosError('INVALID_ARGUMENT', `listen.port must be 0 to 65535, got ${String(port)}`);
  parseAddress(formatAddress({ host: host ?? '127.0.0.1', port }));
}

function checkDir(dir: unknown): string {
  if (typeof dir !== 'string' || dir.length === 0 || dir.includes('\0'))
    throw new NostosError('INVALID_ARGUMENT', 'openNode needs dir, the path of its data directory');
  return resolve(dir);
}

function checkLimits(given: NodeOptions['limits'] = {}): Limits {
  for (const [name, value] of Object.entries(given)) {
    if (!(LIMIT_NAMES as readonly string[]).includes(name))
      throw new NostosError('INVALID_ARGUMENT', `there is no limit ${name}; the limits are ${LIMIT_NAMES.join(', ')}`);
    const least = name.endsWith('Max') ? 1 : 0;
    if (name === 'clockDriftMax') continue; // a share; the engine of a group checks it
    if (!Number.isSafeInteger(value) || value < least)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `the limit ${name} must be a whole number from ${least} on, got ${String(value)}`,
      );
  }
  const limits = { ...DEFAULT_LIMITS, ...given };
  if (limits.recordBytesMax < RECORD_BYTES_LEAST)
    throw new NostosError(
      'INVALID_ARGUMENT',
      `recordBytesMax must be at least ${RECORD_BYTES_LEAST}, got ${limits.recordBytesMax}`,
    );
  return { ...limits, openFilesMax: Math.min(limits.openFilesMax, Math.floor(openFilesLimit() / 2)) };
}
