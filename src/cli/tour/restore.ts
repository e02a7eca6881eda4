/**
 * The part `restore`: a node is copied over a socket, its directory is destroyed and brought back from the copy, by a
 * process that is killed halfway first. What each tenant must hold is known from before: the fingerprint of all its cells,
 * and, for the visitor's own file, that file itself, compared by plain SQLite.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, rm, stat, writeFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { isNostosError } from '../../base/errors.ts';
import { openNode } from '../../node/open-node.ts';
import type { Node } from '../../node/types.ts';
import type { RestoreReport } from '../../restore/local/restore-directory.ts';
import { callWithDisplay } from '../progress.ts';
import { bytes, count, duration } from '../render.ts';
import { compareFiles } from './compare.ts';
import { check, type Check, type PartResult, type TourContext } from './part.ts';

/** The first one holds the source file as it is; the others make the node one of several tenants. */
const TENANTS = ['first', 'second', 'third'] as const;
/** A large database of the visitor's own is imported once: its copies would only take time. */
const OWN_BYTES_MAX = 8 * 1024 * 1024;
const LISTEN = { host: '127.0.0.1', port: 0 } as const;
/** The restore that is killed is held to a speed at which it takes about so long. */
const SLOW_MS = 2_500;
const RATE_LEAST = 512 * 1024;
const TIMEOUT_MS = 60_000;
const STDERR_CHARACTERS_MAX = 4_000;

interface Killed {
  readonly done: number;
  readonly total: number;
}

interface ChildOptions {
  readonly dir: string;
  readonly from: string;
  readonly rate?: number;
  /** End it with SIGKILL once so much of it is there. */
  readonly killAtShare?: number;
  readonly signal: AbortSignal;
}

/** Resolves with the report, or with how far it was when it was killed. */
async function runChild({ dir, from, rate = 0, killAtShare, signal }: ChildOptions): Promise<RestoreReport | Killed> {
  const entry = fileURLToPath(new URL(`./restore-child${extname(import.meta.url)}`, import.meta.url));
  const child = spawn(process.execPath, [entry, dir, from, String(rate)], { stdio: ['pipe', 'pipe', 'pipe'] });
  const stop = (): void => void child.kill('SIGKILL');
  const timeout = setTimeout(stop, TIMEOUT_MS);
  signal.addEventListener('abort', stop);
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr = (stderr + chunk.toString()).slice(-STDERR_CHARACTERS_MAX);
  });
  let report: RestoreReport | undefined;
  let killed: Killed | undefined;
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (!line.startsWith('~')) {
      report = JSON.parse(line) as RestoreReport;
      return;
    }
    const [done, total] = line.slice(1).split(' ').map(Number) as [number, number];
    if (killAtShare === undefined || killed !== undefined || done < total * killAtShare) return;
    killed = { done, total };
    stop();
  });
  try {
    await once(child, 'close');
    signal.throwIfAborted();
    if (report === undefined && killed === undefined)
      throw new Error(`the restoring process ended by itself: ${stderr.trim()}`);
    return report ?? killed!;
  } finally {
    clearTimeout(timeout);
    signal.removeEventListener('abort', stop);
  }
}

async function restoreWhole(options: Omit<ChildOptions, 'killAtShare'>): Promise<RestoreReport> {
  return (await runChild(options)) as RestoreReport;
}

async function prepare(context: TourContext, node: Node): Promise<void> {
  const { size } = await stat(context.source.file);
  const names = context.source.kind === 'own' && size > OWN_BYTES_MAX ? TENANTS.slice(0, 1) : TENANTS;
  let rows = 0;
  for (const name of names) {
    const tenant = await node.tenants.create(name);
    const report = await callWithDisplay(context.io, (onProgress) =>
      tenant.importFile(context.source.file, {
        addKey: true,
        keepViolations: true,
        onProgress,
        signal: context.signal,
      }),
    );
    rows += report.rows;
  }
  await context.say(`A node serves ${count(names.length)} tenants with ${count(rows)} rows at ${node.address}.`);
}

async function fingerprintsOf(node: Node): Promise<Map<string, string>> {
  const all = new Map<string, string>();
  for (const { name } of await node.tenants.list()) all.set(name, (await node.tenant(name).status()).fingerprint);
  return all;
}

function checkFingerprints(
  where: string,
  expected: ReadonlyMap<string, string>,
  found: ReadonlyMap<string, string>,
): Check[] {
  return [...expected].map(([name, fingerprint]) =>
    check(`${where}: all cells of tenant ${name} are equal`, found.get(name) === fingerprint, fingerprint.slice(0, 16)),
  );
}

/** Everything but the directory itself goes, as after a disk was replaced; somebody has put a file there since. */
async function destroy(dir: string): Promise<void> {
  for (const name of await readdir(dir)) await rm(join(dir, name), { recursive: true });
  await writeFile(join(dir, 'catalog.sqlite'), 'what a careless copy left');
}

async function interruptedRestore(context: TourContext, dir: string, from: string): Promise<Check[]> {
  const { signal } = context;
  const copied = join(context.dir, 'copy');
  const total = (await sizeOf(join(copied, 'tenants'))) + (await sizeOf(join(copied, 'log')));
  const rate = Math.max(RATE_LEAST, Math.round((total / SLOW_MS) * 1000));
  const killed = await runChild({ dir, from, rate, killAtShare: 0.5, signal });
  if ('dir' in killed) throw new Error('the restore was through before it could be killed');
  await context.say(`Killed (SIGKILL) when ${bytes(killed.done)} of ${bytes(killed.total)} were there.`);
  const refused = await openNode({ dir }).then(
    async (node) => {
      await node.close();
      return undefined;
    },
    (error: unknown) => error,
  );
  const report = await restoreWhole({ dir, from, signal });
  const { bytes: whole, bytesOnWire, elapsedMs } = report.fetched!;
  await context.say(
    `Run again: ${bytes(bytesOnWire)} over the wire in ${duration(elapsedMs)}, then verified and put in place.`,
  );
  const share = Math.round((bytesOnWire / whole) * 100);
  return [
    check(
      'half restored, the directory opens for nobody',
      isNostosError(refused, 'RESTORE_UNFINISHED'),
      isNostosError(refused) ? refused.code : 'it opened',
    ),
    check(
      'run again, it goes on instead of starting over',
      report.resumed === 'fetching' && share <= 55,
      `${share} % of ${bytes(whole)} sent again`,
    ),
    check('what lay there was set aside, not lost', report.setAside !== null, report.setAside ?? 'nothing'),
  ];
}

async function sizeOf(dir: string): Promise<number> {
  let sum = 0;
  for (const entry of await readdir(dir, { recursive: true, withFileTypes: true }))
    if (entry.isFile()) sum += (await stat(join(entry.parentPath, entry.name))).size;
  return sum;
}

async function checkRestored(
  context: TourContext,
  dir: string,
  expected: ReadonlyMap<string, string>,
): Promise<Check[]> {
  const { signal } = context;
  await using node = await openNode({ dir, scrubIntervalMs: false, signal });
  const report = await callWithDisplay(context.io, (onProgress) => node.verify({ onProgress, signal }));
  const problems = report.problems.map(({ where, what }) => `${where}: ${what}`).join('; ');
  const exported = join(context.dir, 'exported.sqlite');
  await node.tenant(TENANTS[0]).exportFile(exported, { overwrite: true, signal });
  const { tables, rows, cells, differences } = compareFiles(context.source.file, exported);
  return [
    ...checkFingerprints('brought back', expected, await fingerprintsOf(node)),
    check(
      'every checksum, every link of the hash chain, every row against the log',
      report.ok,
      problems || `${count(report.log.records)} records, ${count(report.tenants.length)} files`,
    ),
    check(
      'exported, it equals the file that was imported at first',
      differences === 0 && rows > 0,
      `${count(cells)} cells in ${count(rows)} rows of ${count(tables.length)} tables, ${count(differences)} differ`,
    ),
    check('it is a copy: it reads, and starts no term', (await node.status()).role === 'copy', 'role copy'),
  ];
}

export async function restore(context: TourContext): Promise<PartResult> {
  const { signal } = context;
  const [dir, copyDir] = [join(context.dir, 'node'), join(context.dir, 'copy')];
  let expected: ReadonlyMap<string, string>;
  const checks: Check[] = [];
  {
    await using node = await openNode({ dir, listen: LISTEN, scrubIntervalMs: false, signal });
    await prepare(context, node);
    expected = await fingerprintsOf(node);
    const { fetched, elapsedMs } = await restoreWhole({ dir: copyDir, from: node.address!, signal });
    await context.say(
      `Copied over a socket: ${bytes(fetched!.bytes)}, fetched and verified in ${duration(elapsedMs)}.`,
    );
  }
  await using copy = await openNode({ dir: copyDir, listen: LISTEN, scrubIntervalMs: false, signal });
  checks.push(...checkFingerprints('the copy', expected, await fingerprintsOf(copy)));
  await destroy(dir);
  await context.say('The directory of the first node is destroyed. It is restored from the copy.');
  checks.push(...(await interruptedRestore(context, dir, copy.address!)));
  checks.push(...(await checkRestored(context, dir, expected)));
  return { checks, dir };
}
