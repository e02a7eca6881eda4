/**
 * Memory of a restore as its users run it: `nostos restore`, which fetches, opens and verifies, and `nostos serve --listen`,
 * which it fetches from; both as installed, from JavaScript. Of both the most that was ever resident counts. It must not
 * depend on bytes, be they in small rows or in large ones, nor on the number of tenants. Nobody writes meanwhile.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { openNode } from '../src/index.ts';
import { inChild } from './child.ts';
import type { Bench, Figure } from './harness.ts';

const MIB = 1024 * 1024;
const ROOT = join(import.meta.dirname, '..');
const SAMPLE_MS = 5;

interface Shape {
  readonly name: string;
  readonly what: string;
  readonly tenants: number;
  readonly rows: number;
  readonly rowBytes: number;
}

const SHAPES: readonly Shape[] = [
  {
    name: 'small rows',
    what: '1 tenant, 1 GiB in rows of 400 bytes',
    tenants: 1,
    rows: 2_600_000,
    rowBytes: 400,
  },
  {
    name: 'large rows',
    what: '1 tenant, 1 GiB in rows of 500 kB',
    tenants: 1,
    rows: 2_100,
    rowBytes: 500_000,
  },
  {
    name: 'tenants',
    what: '2,000 tenants, 50 rows each',
    tenants: 2_000,
    rows: 50,
    rowBytes: 400,
  },
];

export const bench: Bench = {
  name: 'restore-node',
  what: 'memory of nostos restore and of the node that it fetches from',
  async run({ dir, quick, progress }) {
    const installed = install(dir);
    const figures: Figure[] = [];
    for (const full of SHAPES) {
      const shape = quick ? { ...full, tenants: Math.min(full.tenants, 20), rows: Math.ceil(full.rows / 200) } : full;
      const [source, target] = [join(dir, 'source'), join(dir, 'target')];
      progress(`making a node: ${shape.what}`);
      await inChild(import.meta.url, 'fill', { ...shape, dir: source } satisfies Fill);
      progress(`restoring: ${shape.what}`);
      const startedMs = performance.now();
      const { client, server } = await restore(installed, source, target);
      const notes = { elapsedMs: performance.now() - startedMs, mib: sizeOf(target) / MIB };
      figures.push(figure('client', shape, client, notes), figure('server', shape, server, notes));
      for (const used of [source, target]) rmSync(used, { recursive: true });
    }
    return figures;
  },
};

function figure(side: string, shape: Shape, peakBytes: number, notes: Record<string, number>): Figure {
  return {
    name: `${side}, ${shape.name}`,
    what: `most memory that the ${side} had resident, MiB: ${shape.what}`,
    ours: { value: peakBytes / MIB, unit: 'MiB' },
    peer: { value: 128, unit: 'MiB' },
    value: peakBytes / MIB,
    bound: { kind: 'atMost', gate: 128 },
    notes,
  };
}

/** The package as npm would install it, beside the dependencies that are installed here. */
function install(dir: string): string {
  const { status, stderr } = spawnSync(process.execPath, [join(ROOT, 'scripts', 'build.ts')], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`the build failed: ${stderr}`);
  const to = join(dir, 'installed');
  mkdirSync(to);
  for (const name of ['bin', 'dist', 'package.json']) cpSync(join(ROOT, name), join(to, name), { recursive: true });
  symlinkSync(join(ROOT, 'node_modules'), join(to, 'node_modules'));
  return join(to, 'bin', 'nostos.js');
}

type Fill = Shape & { readonly dir: string };

export async function fill({ dir, tenants, rows, rowBytes }: Fill): Promise<void> {
  await using node = await openNode({
    dir,
    migrations: ['create table item (id integer primary key not null, body blob not null)'],
  });
  const rowsPerWrite = Math.max(1, Math.min(1_000, Math.floor(500_000 / rowBytes)));
  const body = Buffer.alloc(rowBytes);
  for (let at = 0; at < tenants; at += 1) {
    const tenant = await node.tenants.create(`tenant${at}`);
    for (let row = 0; row < rows; row += rowsPerWrite)
      await tenant.write((tx) => {
        for (let id = row; id < Math.min(rows, row + rowsPerWrite); id += 1)
          tx.run('insert into item values (?, ?)', [id, randomFillSync(body)]);
      });
  }
}

interface Peaks {
  readonly client: number;
  readonly server: number;
}

async function restore(nostos: string, source: string, target: string): Promise<Peaks> {
  const args = ['serve', '--dir', source, '--port', '0', '--listen', '127.0.0.1:0'];
  const server = new Watched(spawn(process.execPath, [nostos, ...args], { stdio: ['ignore', 'pipe', 'inherit'] }));
  try {
    const address = await listeningAt(server.process);
    const from = ['restore', '--from', address, '--dir', target];
    const client = new Watched(spawn(process.execPath, [nostos, ...from], { stdio: ['ignore', 'ignore', 'inherit'] }));
    const code = await client.ended();
    if (code !== 0) throw new Error(`nostos restore ended with ${code}`);
    return { client: client.peakBytes, server: server.peakBytes };
  } finally {
    server.process.kill();
    await server.ended();
  }
}

async function listeningAt({ stdout }: ChildProcess): Promise<string> {
  for await (const line of createInterface({ input: stdout! })) {
    const address = /other nodes +(\S+): /.exec(line)?.[1];
    if (address !== undefined) return address;
  }
  throw new Error('the node does not listen');
}

/** A process whose most memory is asked for until it ends. */
class Watched {
  readonly process: ChildProcess;
  peakBytes = 0;
  readonly #ended: Promise<unknown>;
  readonly #timer: NodeJS.Timeout;

  constructor(child: ChildProcess) {
    this.process = child;
    this.#ended = once(child, 'exit');
    this.#timer = setInterval(() => this.#look(), SAMPLE_MS);
  }

  async ended(): Promise<number | null> {
    await this.#ended;
    clearInterval(this.#timer);
    return this.process.exitCode;
  }

  #look(): void {
    try {
      const status = readFileSync(`/proc/${this.process.pid}/status`, 'utf8');
      const peak = /^VmHWM:\s+(\d+) kB/m.exec(status)?.[1];
      if (peak !== undefined) this.peakBytes = Math.max(this.peakBytes, Number(peak) * 1024);
    } catch {
      // It has ended.
    }
  }
}

function sizeOf(dir: string): number {
  const { stdout } = spawnSync('du', ['-sb', dir], { encoding: 'utf8' });
  return Number(/^\d+/.exec(stdout)?.[0]);
}
