/** What the verbs of backups have in common: where the backups are, their keys, policies and spans of time. */
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Option } from 'commander';
import type { KeepPolicy } from '../backup/repository/policy.ts';
import type { Repository } from '../backup/repository/repository.ts';
import type { BackupOptions } from '../node/types.ts';
import { ExitError } from './exit-codes.ts';
import { print, type Io } from './io.ts';

const URL_HELP = 'directory, file:<directory> or s3://<bucket>/<prefix>?endpoint=…&region=… (credentials by AWS_*)';

export interface RepositoryOptions {
  readonly from: string;
  readonly keys?: string;
}

export function placeOption(flag: '--to' | '--from'): Option {
  return new Option(`${flag} <url>`, URL_HELP).env('NOSTOS_BACKUP').makeOptionMandatory();
}

export function keysOption(): Option {
  return new Option('--keys <file>', 'keyring, made with the first key where there is none').env('NOSTOS_BACKUP_KEYS');
}

/** A relative path is one of the caller's directory, wherever the node that gets it runs. */
export function absoluteUrl(io: Io, url: string): string {
  if (/^(?:s3|file):\/\//.test(url)) return url;
  const path = url.startsWith('file:') ? url.slice('file:'.length) : url;
  if (path === '' || /^[a-z0-9+]{2,}:/i.test(path))
    throw new ExitError('usage', `${JSON.stringify(url)} names no place for backups`, `Give a ${URL_HELP}.`);
  return pathToFileURL(resolve(io.cwd, path)).href;
}

export function keysPath(io: Io, keys: string | undefined): { readonly keys?: string } {
  return keys === undefined ? {} : { keys: resolve(io.cwd, keys) };
}

/** Calls `use` with what is there; no node is needed for that. */
export async function withRepository<T>(
  io: Io,
  { from, keys }: RepositoryOptions,
  use: (repository: Repository) => Promise<T>,
): Promise<T> {
  // `nostos serve` reads its options here, and has no use for them.
  const [{ openRepository }, { KeyringFile }] = await Promise.all([
    import('../backup/repository/repository.ts'),
    import('../backup/repository/keyring-file.ts'),
  ]);
  const path = keysPath(io, keys).keys;
  const onWarning = (message: string): void => void print(io.stderr, `warning: ${message}\n`);
  await using repository = await openRepository(absoluteUrl(io, from), {
    ...(path === undefined ? {} : { keys: KeyringFile.open(path) }),
    onWarning,
    signal: io.signal,
  });
  return await use(repository);
}

const UNITS_MS: Readonly<Record<string, number>> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `10s`, `15m`, `1h`, `7d`. */
export function timeSpan(name: string): (text: string) => number {
  return (text) => {
    const match = /^(\d{1,6})([smhd])$/.exec(text);
    const ms = Number(match?.[1] ?? 0) * (UNITS_MS[match?.[2] ?? ''] ?? 0);
    if (ms > 0) return ms;
    throw new ExitError(
      'usage',
      `${name} takes a span of time such as 10s, 15m, 1h or 7d, got ${JSON.stringify(text)}`,
    );
  };
}

const KEEPS = ['last', 'hourly', 'daily', 'weekly'] as const;

/** `last=3,daily=7`. */
export function keepPolicy(name: string): (text: string) => KeepPolicy {
  return (text) => {
    const policy: { -readonly [K in keyof KeepPolicy]: number } = {};
    for (const part of text.split(',')) {
      const match = /^\s*(last|hourly|daily|weekly)=(\d{1,6})\s*$/.exec(part);
      const kind = KEEPS.find((one) => one === match?.[1]);
      if (kind === undefined || policy[kind] !== undefined)
        throw new ExitError(
          'usage',
          `${name} takes counts of ${KEEPS.join(', ')}, such as last=3,daily=7,weekly=4, got ${JSON.stringify(text)}`,
        );
      policy[kind] = Number(match![2]);
    }
    if (Object.values(policy).every((count) => count === 0))
      throw new ExitError('usage', `${name} ${text} would keep nothing but the newest one; say what to keep`);
    return policy;
  };
}

export interface ServeBackupOptions {
  readonly backupTo?: string;
  readonly backupEvery?: number;
  readonly archiveEvery?: number;
  readonly backupKeys?: string;
  readonly backupKeep?: KeepPolicy;
}

/** Of `nostos serve`. */
export function scheduleOptions(io: Io, options: ServeBackupOptions): { readonly backup?: BackupOptions } {
  const { backupTo, backupEvery, archiveEvery, backupKeys, backupKeep } = options;
  if (backupTo === undefined) {
    const given = { '--backup-every': backupEvery, '--archive-every': archiveEvery, '--backup-keep': backupKeep };
    const name = Object.entries(given).find(([, value]) => value !== undefined)?.[0];
    if (name === undefined) return {};
    throw new ExitError(
      'usage',
      `${name} needs --backup-to`,
      'Say where the backups go: --backup-to s3://bucket/prefix',
    );
  }
  return {
    backup: {
      to: absoluteUrl(io, backupTo),
      ...keysPath(io, backupKeys),
      ...(backupEvery === undefined ? {} : { everyMs: backupEvery }),
      ...(archiveEvery === undefined ? {} : { archiveEveryMs: archiveEvery }),
      ...(backupKeep === undefined ? {} : { keep: backupKeep }),
    },
  };
}
