/**
 * Network restore between two processes over loopback, against rsync from a daemon on loopback. Both sides of ours are
 * processes of their own, as are rsync's; each fetch ends with every file fsynced, ours also verified by BLAKE3. What is
 * timed is the whole process that fetches, from its start to its end, of ours as of the others.
 */
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readdirSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { createServer, connect as connectTcp, type AddressInfo } from 'node:net';
import { randomFillSync } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { seededRandom } from '../src/base/random.ts';
import { connectToService } from '../src/wire/connect.ts';
import { inChild } from './child.ts';
import type { Fetch, Fetched } from './restore-receiver.ts';
import { STOP_SERVICE } from './restore-source.ts';
import { interleave, median, type Bench, type BenchContext, type Bound, type Figure } from './harness.ts';

const MIB = 1024 * 1024;
const PAGE_BYTES = 4096;
const FILES = 64;
const RECEIVER = import.meta.resolve('./restore-receiver.ts');
const SOURCE = import.meta.resolve('./restore-source.ts');

export const bench: Bench = {
  name: 'restore',
  what: 'network restore over loopback',
  async run(context) {
    const { dir, quick } = context;
    const source = join(dir, 'source');
    const totalBytes = (quick ? 64 : 2048) * MIB;
    context.progress('writing the source');
    generate(source, totalBytes / FILES);
    // What Node takes to strip types, 30 MiB, is no memory of a restore: the children find their code compiled.
    process.env['NODE_COMPILE_CACHE'] = join(dir, 'compile-cache');
    await inChild(RECEIVER, 'compile', undefined);
    await inChild(SOURCE, 'compile', undefined);
    await using server = await startServer(source);
    const speed = await measureSpeed(context, source, server.port, totalBytes);
    const changed = await measureChanged(context, source, server.port, totalBytes);
    const resumed = await measureResume(context, server.port, totalBytes);
    return [
      ...speed.figures,
      memoryFigure('client', speed.clientPeakBytes),
      memoryFigure('server', await server.stop()),
      changed,
      resumed,
    ];
  },
};

async function measureSpeed(
  { dir, quick, progress }: BenchContext,
  source: string,
  port: number,
  totalBytes: number,
): Promise<{ readonly figures: Figure[]; readonly clientPeakBytes: number }> {
  const whyNot = rsyncRefusal();
  await using daemon = whyNot === undefined ? await startRsyncDaemon(dir, source) : undefined;
  const target = join(dir, 'target');
  const timed = async (run: () => Promise<number>): Promise<number> => {
    rmSync(target, { recursive: true, force: true });
    mkdirSync(target);
    runNow('sync', '-f', dir);
    const ms = await run();
    checkCopy(target, totalBytes);
    return ms;
  };
  let clientPeakBytes = 0;
  const ours = (): Promise<number> =>
    timed(async () => {
      const startedMs = performance.now();
      const { peakBytes } = await fetchInChild({ port, target });
      clientPeakBytes = Math.max(clientPeakBytes, peakBytes);
      return performance.now() - startedMs;
    });
  const copy = (): Promise<number> =>
    timed(() => command('sh', '-c', 'cp -r "$1"/. "$2" && sync -f "$2"', 'sh', source, target));
  const rsync = (): Promise<number> =>
    timed(() =>
      command('rsync', '-r', '--whole-file', '--fsync', `rsync://127.0.0.1:${daemon!.port}/source/`, `${target}/`),
    );
  const rounds = await interleave(quick ? 1 : 5, {
    ours: async (round) => {
      progress(`round ${round + 1}`);
      return await ours();
    },
    peer: async () => ({ rsyncMs: daemon === undefined ? undefined : await rsync(), copyMs: await copy() }),
  });
  rmSync(target, { recursive: true, force: true });
  const gibPerSecond = (ms: number): number => totalBytes / MIB / 1024 / (ms / 1000);
  const figure = (name: string, peer: string, peerMs: readonly number[], bound: Bound): Figure => {
    const ratios = rounds.map((round, index) => peerMs[index]! / round.ours);
    return {
      name,
      what: `speed of ${FILES} files, fsynced and verified, ours / ${peer}`,
      ours: { value: median(rounds.map((round) => gibPerSecond(round.ours))), unit: 'GiB/s' },
      peer: { value: median(peerMs.map(gibPerSecond)), unit: 'GiB/s' },
      value: median(ratios),
      bound,
      rounds: ratios,
    };
  };
  const copies = rounds.map(({ peer }) => peer.copyMs);
  const rsyncs = rounds.flatMap(({ peer }) => peer.rsyncMs ?? []);
  const figures = [figure('restore / cp', 'cp + sync', copies, { kind: 'atLeast', goal: 0.9 })];
  if (daemon === undefined) process.stderr.write(`restore: no figure against rsync: ${whyNot}\n`);
  else figures.unshift(figure('restore / rsync', 'rsync --whole-file --fsync', rsyncs, { kind: 'atLeast', gate: 1 }));
  return { figures, clientPeakBytes };
}

function memoryFigure(side: string, peakBytes: number): Figure {
  return {
    name: `restore memory ${side}`,
    what: `most memory that the ${side} had resident, MiB`,
    ours: { value: peakBytes / MIB, unit: 'MiB' },
    peer: { value: 128, unit: 'MiB' },
    value: peakBytes / MIB,
    bound: { kind: 'atMost', gate: 128 },
  };
}

/** A copy, then 1 % of the source's pages overwritten at random, then the copy as the base of another one. */
async function measureChanged(
  { dir, progress }: BenchContext,
  source: string,
  port: number,
  totalBytes: number,
): Promise<Figure> {
  progress('1 % of the pages changed');
  const [target, bases] = [join(dir, 'next'), join(dir, 'bases')];
  mkdirSync(target);
  runNow('cp', '-r', source, bases);
  const changedBytes = changePages(source, 0.01);
  const { report } = await fetchInChild({ port, target, bases });
  checkCopy(target, totalBytes);
  rmSync(target, { recursive: true });
  rmSync(bases, { recursive: true });
  const bound = 1.2 * changedBytes + 0.01 * totalBytes;
  return {
    name: 'restore changed pages',
    what: 'bytes on the wire / (1.2 x the changed bytes + 1 % of all), 1 % of the 4 KiB pages changed',
    ours: { value: report.bytesOnWire / MIB, unit: 'MiB' },
    peer: { value: bound / MIB, unit: 'MiB' },
    value: report.bytesOnWire / bound,
    bound: { kind: 'atMost', gate: 1 },
    notes: { changedMib: changedBytes / MIB, elapsedMs: report.elapsedMs },
  };
}

async function measureResume({ dir, progress }: BenchContext, port: number, totalBytes: number): Promise<Figure> {
  progress('killed halfway and resumed');
  const target = join(dir, 'resumed');
  mkdirSync(target);
  await inChild(RECEIVER, 'fetchOnce', { port, target, noteHalf: true } satisfies Fetch, { killAtNote: 'half' });
  const { report } = await fetchInChild({ port, target });
  checkCopy(target, totalBytes);
  rmSync(target, { recursive: true });
  return {
    name: 'restore resume',
    what: 'bytes on the wire / all, after a kill -9 of the receiver halfway',
    ours: { value: report.bytesOnWire / MIB, unit: 'MiB' },
    peer: { value: totalBytes / MIB, unit: 'MiB' },
    value: report.bytesOnWire / totalBytes,
    bound: { kind: 'atMost', gate: 0.55 },
    notes: { elapsedMs: report.elapsedMs },
  };
}

const fetchInChild = (input: Fetch): Promise<Fetched> => inChild<Fetched>(RECEIVER, 'fetchOnce', input);

interface Server extends AsyncDisposable {
  readonly port: number;
  stop(): Promise<number>;
}

async function startServer(source: string): Promise<Server> {
  const started = Promise.withResolvers<string>();
  const done = inChild<number>(SOURCE, 'serve', { source }, { onNote: started.resolve });
  done.catch(started.reject);
  const address = await started.promise;
  let stopping: Promise<number> | undefined;
  const stop = (): Promise<number> =>
    (stopping ??= (async () => {
      (await connectToService(address, STOP_SERVICE)).close();
      return await done;
    })());
  return { port: Number(address.split(':').at(-1)), stop, [Symbol.asyncDispose]: async () => void (await stop()) };
}

function generate(dir: string, fileBytes: number): void {
  mkdirSync(dir);
  const block = Buffer.alloc(Math.min(8 * MIB, fileBytes));
  for (let file = 0; file < FILES; file += 1) {
    const fd = openSync(join(dir, `part-${String(file).padStart(2, '0')}.bin`), 'w');
    for (let at = 0; at < fileBytes; at += block.length) writeSync(fd, randomFillSync(block), 0, block.length, at);
    closeSync(fd);
  }
}

/** Overwrites this share of all pages, each picked at random; returns their bytes. */
function changePages(dir: string, share: number): number {
  const random = seededRandom(1);
  let changed = 0;
  for (const name of readdirSync(dir)) {
    const path = join(dir, name);
    const pages = statSync(path).size / PAGE_BYTES;
    const picked = new Set<number>();
    while (picked.size < Math.round(pages * share)) picked.add(random.below(pages));
    const fd = openSync(path, 'r+');
    for (const page of picked)
      writeSync(fd, randomFillSync(Buffer.alloc(PAGE_BYTES)), 0, PAGE_BYTES, page * PAGE_BYTES);
    closeSync(fd);
    changed += picked.size * PAGE_BYTES;
  }
  return changed;
}

/** Ours compares hashes; this only sees that both sides did all of the work. */
function checkCopy(target: string, totalBytes: number): void {
  const bytes = readdirSync(target).reduce((sum, name) => sum + statSync(join(target, name)).size, 0);
  if (bytes !== totalBytes) throw new Error(`${bytes} of ${totalBytes} bytes are in ${target}`);
}

function rsyncRefusal(): string | undefined {
  const { status, stdout, error } = spawnSync('rsync', ['--help'], { encoding: 'utf8' });
  if (error !== undefined || status !== 0) return 'rsync is not installed';
  return stdout.includes('--fsync') ? undefined : 'this rsync has no --fsync (3.2.4 or newer)';
}

async function startRsyncDaemon(dir: string, source: string): Promise<AsyncDisposable & { readonly port: number }> {
  const port = await freePort();
  const config = join(dir, 'rsyncd.conf');
  writeFileSync(config, `use chroot = no\nlog file = /dev/null\n[source]\npath = ${source}\nread only = yes\n`);
  const daemon = spawn(
    'rsync',
    ['--daemon', '--no-detach', '--address=127.0.0.1', `--port=${port}`, `--config=${config}`],
    {
      stdio: 'ignore',
    },
  );
  const gone = new Promise<void>((resolve) => daemon.once('exit', () => resolve()));
  while (!(await answers(port))) await sleep(20);
  return {
    port,
    [Symbol.asyncDispose]: async () => {
      daemon.kill();
      await gone;
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

const answers = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connectTcp(port, '127.0.0.1');
    socket.once('connect', () => resolve(socket.destroy().destroyed));
    socket.once('error', () => resolve(false));
  });

/** Milliseconds that the command took. */
async function command(name: string, ...args: string[]): Promise<number> {
  const startedMs = performance.now();
  const child = spawn(name, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  const code = await new Promise<number | null>((resolve) => child.once('exit', resolve));
  if (code !== 0) throw new Error(`${name} ended with ${code}`);
  return performance.now() - startedMs;
}

function runNow(name: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(name, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${name}: ${stderr}`);
}
