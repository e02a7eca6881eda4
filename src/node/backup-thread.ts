/**
 * The thread that makes backups: it reads files and log, hashes, compresses, encrypts and stores. What the node holds for it
 * meanwhile it asks the node's own thread for, so that writers do not wait for it.
 */
import { readlinkSync } from 'node:fs';
import { constants as osConstants, setPriority } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { GROWN_BYTES_BACKGROUND, collectIfGrown } from '../base/collect.ts';
import { NostosError, deserializeError, isNostosError, serializeError } from '../base/errors.ts';
import { KeyringFile } from '../backup/repository/keyring-file.ts';
import { prune } from '../backup/repository/prune.ts';
import { writeForgets } from '../backup/repository/forgets.ts';
import { createRepository, openRepository, type Repository } from '../backup/repository/repository.ts';
import { Archiver } from './backup-archiver.ts';
import { createBackup } from './backup-create.ts';
import type { ArchiveHost } from './backup-host.ts';
import { BackupLog } from './backup-log.ts';
import type {
  BackupCalls,
  BackupMethod,
  BackupThreadOptions,
  FromBackupThread,
  HostQuestion,
  ToBackupThread,
} from './backup-thread-protocol.ts';
import type { RestoreHost } from './restore-host.ts';
import type { LongCallOptions } from './types.ts';

assert(parentPort !== null, 'backups are made in a worker thread');
const port = parentPort;
const { dir, url, keys: keysPath, limits } = workerData as BackupThreadOptions;

interface Waiting {
  resolve(output: unknown): void;
  reject(error: unknown): void;
}

const waiting = new Map<number, Waiting>();
const running = new Map<number, AbortController>();
let nextId = 1;

function tell(message: FromBackupThread): void {
  port.postMessage(message);
}

function asking<T extends object>(...methods: (HostQuestion & keyof T)[]): T {
  const ask =
    (method: HostQuestion) =>
    (...input: unknown[]): Promise<unknown> =>
      new Promise((resolve, reject) => {
        const id = nextId++;
        waiting.set(id, { resolve, reject });
        tell({ kind: 'ask', id, method, input });
      });
  return Object.fromEntries(methods.map((method) => [method, ask(method)])) as T;
}

const host = asking<RestoreHost>('begin', 'hold', 'release', 'logFiles', 'end', 'openLog', 'closeLog', 'info');
const archiveHost = asking<ArchiveHost>('openArchive', 'archiveFiles', 'archived', 'closeArchive', 'generations');

/** Where cores are scarce, writers come first. Linux knows priorities of threads; elsewhere it stays as it is. */
function yieldToWriters(): void {
  try {
    const thread = Number(readlinkSync('/proc/thread-self').split('/').at(-1));
    setPriority(thread, osConstants.priority.PRIORITY_LOW);
  } catch {
    // It is a courtesy.
  }
}

interface Opened {
  readonly keyring: KeyringFile | undefined;
  readonly repository: Repository;
  readonly archiver: Archiver;
  readonly log: BackupLog;
}

let opened: Promise<Opened> | undefined;

/** Kept open; after a failure it is opened again. */
function open({ make = true } = {}): Promise<Opened> {
  opened ??= (async () => {
    const keyring = keysPath === undefined ? undefined : KeyringFile.open(keysPath);
    const keys = keyring === undefined ? {} : { keys: keyring };
    const onWarning = (message: string): void => tell({ kind: 'warning', message });
    const repository = await (make ? createRepository : openRepository)(url, { ...keys, limits, onWarning });
    const log = new BackupLog(dir);
    return { keyring, repository, log, archiver: new Archiver({ host: archiveHost, repository, log, dir }) };
  })();
  opened.catch(() => (opened = undefined));
  return opened;
}

type Calls = { [M in BackupMethod]: (input: Parameters<BackupCalls[M]>[0], call: LongCallOptions) => unknown };

const calls: Calls = {
  create: async (options, call) => {
    const parts = await open({ make: options.dryRun !== true }).catch((error: unknown) => {
      if (options.dryRun !== true || !isNostosError(error, 'BACKUP_NOT_FOUND')) throw error;
      throw new NostosError('BACKUP_NOT_FOUND', `${error.message} yet; the first one makes it and reads every file`, {
        details: error.details,
        cause: error,
      });
    });
    return createBackup({ host, archiveHost, dir, limits, ...parts }, { ...options, ...call });
  },
  archive: async (_, { signal }) => (await open()).archiver.catchUp(undefined, { signal }),
  newest: async (_, { signal }) => {
    const { repository } = await open();
    const { identity } = await host.info();
    const ids = await Array.fromAsync(repository.snapshotIds({ signal }));
    for (const id of ids.toReversed()) {
      const snapshot = await repository.findSnapshot(id, { signal });
      if (snapshot?.cluster === identity.cluster)
        return { id, createdAtMs: snapshot.createdAtMs, lsn: snapshot.position.lsn };
    }
    return null;
  },
  prune: async (keep, { signal }) => {
    const { repository } = await open();
    const { removed, bytesRemoved } = await prune(repository, { keep, ...(signal === undefined ? {} : { signal }) });
    return { removed: removed.length, bytesRemoved };
  },
  forget: async (entries, { signal }) => writeForgets((await open()).repository, entries, { signal }),
};

/** Runs on files and archive come one after the other. */
let queue: Promise<unknown> = Promise.resolve();

async function answer({ id, method, input }: Extract<ToBackupThread, { kind: 'call' }>): Promise<void> {
  const cancelled = new AbortController();
  running.set(id, cancelled);
  const { signal } = cancelled;
  const onProgress: LongCallOptions['onProgress'] = (progress) => tell({ kind: 'progress', id, progress });
  const run = async (): Promise<unknown> => {
    signal.throwIfAborted();
    (await opened)?.keyring?.refresh();
    return calls[method](input as never, { signal, onProgress });
  };
  try {
    const done = method === 'forget' ? run() : queue.then(run);
    if (method !== 'forget') queue = done.catch(() => undefined);
    tell({ kind: 'done', id, output: await done });
  } catch (error) {
    tell({ kind: 'failed', id, error: serializeError(error) });
    // What the storage said may no longer hold, and neither what the keyring did.
    if (isNostosError(error) && method !== 'forget') await close();
  } finally {
    running.delete(id);
    collectIfGrown(GROWN_BYTES_BACKGROUND);
  }
}

async function close(): Promise<void> {
  const last = opened;
  opened = undefined;
  const parts = await last?.catch(() => undefined);
  await parts?.archiver.close();
  await parts?.repository.close();
}

async function stop(): Promise<void> {
  const reason = new NostosError('CLOSED', 'the node is closing');
  for (const cancelled of running.values()) cancelled.abort(reason);
  await queue;
  await close();
  port.close();
}

yieldToWriters();
port.on('message', (message: ToBackupThread) => {
  if (message.kind === 'call') void answer(message);
  else if (message.kind === 'cancel') running.get(message.id)?.abort(new NostosError('CLOSED', 'it was cancelled'));
  else if (message.kind === 'stop') void stop();
  else {
    const asked = waiting.get(message.id);
    waiting.delete(message.id);
    if (message.kind === 'answer') asked?.resolve(message.output);
    else asked?.reject(deserializeError(message.error));
  }
});
