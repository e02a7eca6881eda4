/**
 * kill -9 of a restoring process, or of its source, at random points, again and again into one directory; the source is
 * written to all the while. After each kill the directory opens as it was, or refuses to and says why; what is run again
 * ends whole: verified, every tenant with rows 1 to n, and all that was acknowledged before the restore began.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom, type SeededRandom } from '../base/random.ts';
import { openNode } from '../node/open-node.ts';
import { readMarker } from '../restore/local/marker.ts';
import { abandonRestore, type RestoreReport } from '../restore/local/restore-directory.ts';
import { restoreDeps } from '../node/restore-run.ts';

export interface DirectoryKillOptions {
  readonly kills: number;
  readonly seed: number;
  readonly onProgress?: (progress: DirectoryKillProgress) => void;
}

export interface DirectoryKillProgress {
  readonly kill: number;
  readonly victim: 'restore' | 'source';
  readonly afterMs: number;
  /** What the directory was in afterwards. */
  readonly left: 'as-it-was' | 'fetching' | 'swapping' | 'disposing' | 'restored';
  readonly ended: 'resumed' | 'abandoned' | 'finished before the kill';
}

export interface DirectoryKillReport {
  kills: number;
  sourceKills: number;
  resumed: number;
  abandoned: number;
  refusedOpens: number;
  tooLate: number;
  rowsChecked: number;
}

const START_TIMEOUT_MS = 60_000;
/** A restore of a few megabytes is quick; held to this, a kill meets every phase of it. */
const RATE_BYTES = 12 * 1024 * 1024;

export async function runDirectoryKills({
  kills,
  seed,
  onProgress,
}: DirectoryKillOptions): Promise<DirectoryKillReport> {
  const random = seededRandom(seed);
  const root = await mkdtemp(join(tmpdir(), 'nostos-restore-kill-'));
  const dir = join(root, 'copy');
  const report: DirectoryKillReport = {
    kills: 0,
    sourceKills: 0,
    resumed: 0,
    abandoned: 0,
    refusedOpens: 0,
    tooLate: 0,
    rowsChecked: 0,
  };
  try {
    // Within: it writes until it is stopped, and then its directory is removed.
    await using source = new Source(join(root, 'source'));
    await source.start();
    let spanMs = await timed(() => restoreWhole(dir, source.address));
    let before = await checkCopy(dir, new Map(), report);
    while (report.kills < kills) {
      const victim = report.kills % 3 === 1 ? 'source' : 'restore';
      const afterMs = random.below(Math.ceil(spanMs * 1.1));
      const acknowledged = new Map(source.acknowledged);
      const through = await restoreAndKill(dir, source, victim, afterMs);
      if (through) {
        // Too late for a kill: that tells how long it takes.
        spanMs = Math.max(200, spanMs * 0.9);
        report.tooLate += 1;
        before = await checkCopy(dir, acknowledged, report);
        continue;
      }
      report.kills += 1;
      report.sourceKills += victim === 'source' ? 1 : 0;
      const left = await lookAt(dir, before, report);
      const ended = await bringToEnd(dir, source, random, left);
      if (ended === 'abandoned') {
        report.abandoned += 1;
        await assertUnchanged(dir, before);
      } else {
        report.resumed += 1;
        before = await checkCopy(dir, acknowledged, report);
      }
      onProgress?.({ kill: report.kills, victim, afterMs, left, ended });
    }
    return report;
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

/** Rows per tenant. */
type Rows = ReadonlyMap<string, number>;

class Source implements AsyncDisposable {
  readonly acknowledged = new Map<string, number>();
  address = '';
  readonly #dir: string;
  #child: ChildProcess | undefined;

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** On the same port as before, so that a run that is resumed finds it. */
  async start(): Promise<void> {
    const entry = fileURLToPath(new URL('./restore-kill-source.ts', import.meta.url));
    const port = this.address.split(':')[1] ?? '0';
    const child = spawn(process.execPath, [entry, this.#dir, port], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child = child;
    const timeout = setTimeout(() => child.kill('SIGKILL'), START_TIMEOUT_MS);
    const lines = createInterface({ input: child.stdout });
    await new Promise<void>((resolve, reject) => {
      child.once('exit', () => reject(new Error('the source has ended by itself')));
      lines.on('line', (line) => {
        if (!line.endsWith('}')) return; // cut by the kill
        const said = JSON.parse(line) as { address?: string; tenant?: string; id?: number };
        if (said.address !== undefined) {
          this.address = said.address;
          resolve();
        } else this.acknowledged.set(said.tenant!, said.id!);
      });
    }).finally(() => clearTimeout(timeout));
  }

  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

function startRestore(dir: string, from: string, rate: number): { child: ChildProcess; ended: Promise<Ended> } {
  const entry = fileURLToPath(new URL('../../bin/nostos.js', import.meta.url));
  const flags = ['--from', from, '--dir', dir, '--json', '--discard', '--connections', '2'];
  const child = spawn(process.execPath, [entry, 'restore', ...flags, ...(rate > 0 ? ['--rate', String(rate)] : [])], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  const ended = once(child, 'close').then(([code, signal]) => ({
    code: code as number | null,
    signal: signal as string | null,
    stdout,
    stderr,
  }));
  return { child, ended };
}

async function restoreWhole(dir: string, from: string): Promise<RestoreReport> {
  const { code, stdout, stderr } = await startRestore(dir, from, 0).ended;
  expect(code === 0, `a restore that nobody disturbs ended with ${code}: ${stderr}`);
  return JSON.parse(stdout) as RestoreReport;
}

/** True when the restore was through before the kill. */
async function restoreAndKill(
  dir: string,
  source: Source,
  victim: 'restore' | 'source',
  afterMs: number,
): Promise<boolean> {
  const { child, ended } = startRestore(dir, source.address, RATE_BYTES);
  const over = new AbortController();
  await Promise.race([ended, delay(afterMs, over.signal)]);
  over.abort();
  if (victim === 'restore') child.kill('SIGKILL');
  else await source.kill();
  const { code, signal, stderr } = await ended;
  if (victim === 'source') {
    await source.start();
    // It failed because the source is gone, or it no longer needed it.
    expect(
      code === 0 || (code === 75 && /NETWORK|CHANNEL|PROVIDER|RESERVATION|CLOSED/.test(stderr)),
      `it ended with ${code}: ${stderr}`,
    );
  } else expect(code === 0 || signal === 'SIGKILL', `it ended with ${code}: ${stderr}`);
  return code === 0;
}

async function lookAt(dir: string, before: Rows, report: DirectoryKillReport): Promise<DirectoryKillProgress['left']> {
  const marker = readMarker(systemDisk, dir);
  if (marker === undefined) {
    const rows = await rowsOf(dir);
    return [...before].every(([tenant, count]) => rows.get(tenant) === count) ? 'as-it-was' : 'restored';
  }
  const error = await openNode({ dir }).then(
    (node) => node.close(),
    (thrown: unknown) => thrown,
  );
  expect(
    isNostosError(error, 'RESTORE_UNFINISHED'),
    `a directory that is ${marker.phase} does not refuse: ${String(error)}`,
  );
  report.refusedOpens += 1;
  return marker.phase;
}

async function bringToEnd(
  dir: string,
  source: Source,
  random: SeededRandom,
  left: DirectoryKillProgress['left'],
): Promise<DirectoryKillProgress['ended']> {
  if (left === 'fetching' && random.chance(0.25)) {
    await abandonRestore(restoreDeps, { dir });
    return 'abandoned';
  }
  await restoreWhole(dir, source.address);
  return 'resumed';
}

async function rowsOf(dir: string): Promise<Rows> {
  const node = await openNode({ dir, scrubIntervalMs: false });
  try {
    const rows = new Map<string, number>();
    for (const { name } of await node.tenants.list()) {
      const { n, last } = (await node
        .tenant(name)
        .read((reader) => reader.get<{ n: number; last: number }>('select count(*) n, max(id) last from item')))!;
      expect(n === last, `${name} has ${n} rows up to ${last}`);
      rows.set(name, n);
    }
    return rows;
  } finally {
    await node.close();
  }
}

async function assertUnchanged(dir: string, before: Rows): Promise<void> {
  const rows = await rowsOf(dir);
  for (const [tenant, count] of before)
    expect(rows.get(tenant) === count, `${tenant} had ${count} rows before what was given up, now ${rows.get(tenant)}`);
}

/** Whole, verified, and not older than what was acknowledged before the restore began. */
async function checkCopy(dir: string, acknowledged: Rows, report: DirectoryKillReport): Promise<Rows> {
  expect(readMarker(systemDisk, dir) === undefined, 'a marker was left');
  const rows = await rowsOf(dir);
  const node = await openNode({ dir, scrubIntervalMs: false });
  try {
    const verified = await node.verify();
    expect(verified.ok, `verify found ${JSON.stringify(verified.problems)}`);
    expect((await node.status()).role === 'copy', 'it is no copy');
  } finally {
    await node.close();
  }
  for (const [tenant, last] of acknowledged)
    expect((rows.get(tenant) ?? 0) >= last, `${tenant} ends at ${rows.get(tenant)}, ${last} was acknowledged before`);
  for (const count of rows.values()) report.rowsChecked += count;
  return rows;
}

async function timed(run: () => Promise<unknown>): Promise<number> {
  const startedMs = performance.now();
  await run();
  return performance.now() - startedMs;
}

function delay(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

function expect(condition: boolean, message: string): void {
  if (!condition) throw new Error(message);
}
