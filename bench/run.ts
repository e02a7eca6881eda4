/**
 * `npm run bench -- [--only name,…] [--json] [--quick] [--dir D]`: every figure with its peer, gate and goal. Exit code 1
 * when a gate does not hold, 2 for a wrong command line.
 *
 * Each benchmark runs in a process of its own. Flags of Node reach it: `node --cpu-prof bench/run.ts --only writers-64`
 * leaves one profile per thread in the working directory.
 */
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { parseArgs } from 'node:util';
import { inChild, note } from './child.ts';
import {
  formatNumber,
  holds,
  measureFdatasync,
  percentile,
  temporaryDirectory,
  type Bench,
  type Figure,
} from './harness.ts';

const NAMES = [
  'writers-64',
  'writer-1',
  'import',
  'replay',
  'fingerprint',
  'tenants-10k',
  'stall',
  'memory',
  'restore',
  'restore-node',
  'backup-restore',
  'serving',
  'group-writers',
  'group-failover',
  'group-lag',
  'group-rollback',
  'backup',
] as const;

interface BenchInput {
  readonly name: string;
  readonly parent: string;
  readonly quick: boolean;
}

/** One benchmark, in the process that is its own. */
export async function runBench({ name, parent, quick }: BenchInput): Promise<Figure[]> {
  const { bench } = (await import(`./${name}.ts`)) as { bench: Bench };
  using dir = temporaryDirectory(parent);
  return await bench.run({ dir: dir.path, quick, progress: note });
}

interface Machine {
  readonly cores: number;
  readonly cpu: string;
  readonly node: string;
  readonly sqlite: string;
  readonly fdatasyncP50Ms: number;
  readonly fdatasyncP99Ms: number;
}

function describeMachine(parent: string): Machine {
  using dir = temporaryDirectory(parent);
  const fdatasync = measureFdatasync(dir.path, 1_000);
  return {
    cores: availableParallelism(),
    cpu: cpus()[0]?.model ?? 'unknown',
    node: process.version,
    sqlite: process.versions['sqlite'] ?? 'unknown',
    fdatasyncP50Ms: percentile(fdatasync, 0.5),
    fdatasyncP99Ms: percentile(fdatasync, 0.99),
  };
}

function line(figure: Figure): string {
  const { ours, peer, value, bound } = figure;
  const side = ({ value, unit }: Figure['ours']): string => `${formatNumber(value)} ${unit}`;
  const sign = bound.kind === 'atLeast' ? '>=' : '<=';
  const gate = bound.gate === undefined ? '' : ` gate ${sign} ${bound.gate}`;
  const goal = bound.goal === undefined ? '' : ` [goal ${bound.goal}]`;
  const verdict = bound.gate === undefined ? '' : holds(figure) ? ' holds' : ' FAILS';
  return (
    `${figure.name.padEnd(22)} ours ${side(ours).padEnd(18)} peer ${side(peer).padEnd(18)} ` +
    `ratio ${formatNumber(value).padEnd(7)}${gate}${goal}${verdict}`
  );
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      json: { type: 'boolean', default: false },
      quick: { type: 'boolean', default: false },
      dir: { type: 'string', default: tmpdir() },
    },
  });
  const { json, quick, dir } = values;
  const wanted = values.only?.split(',') ?? [...NAMES];
  const unknown = wanted.filter((name) => !(NAMES as readonly string[]).includes(name));
  if (unknown.length > 0) {
    console.error(`there is no benchmark ${unknown.join(', ')}; there are ${NAMES.join(', ')}`);
    return 2;
  }
  const machine = describeMachine(dir);
  if (!json)
    console.log(
      `${machine.cores} cores, ${machine.cpu}, Node ${machine.node}, SQLite ${machine.sqlite}; ` +
        `fdatasync p50 ${formatNumber(machine.fdatasyncP50Ms)} ms, p99 ${formatNumber(machine.fdatasyncP99Ms)} ms\n`,
    );
  const figures: Figure[] = [];
  const errors: { readonly name: string; readonly error: string }[] = [];
  const showProgress = process.stderr.isTTY && !json;
  for (const name of wanted) {
    const onNote = (text: string): void => {
      if (showProgress) process.stderr.write(`\r\u001b[K${name}: ${text}`);
    };
    try {
      const input: BenchInput = { name, parent: dir, quick };
      const found = await inChild<Figure[]>(import.meta.url, 'runBench', input, { onNote });
      if (showProgress) process.stderr.write('\r\u001b[K');
      figures.push(...found);
      if (!json) for (const figure of found) console.log(line(figure));
    } catch (error) {
      errors.push({ name, error: (error as Error).message });
      if (!json) console.log(`${name.padEnd(22)} ERROR ${(error as Error).message}`);
    }
  }
  if (json) {
    const judged = figures.map((figure) => ({ ...figure, holds: holds(figure) }));
    console.log(JSON.stringify({ machine, quick, figures: judged, errors }, undefined, 2));
  }
  return errors.length === 0 && figures.every(holds) ? 0 : 1;
}

if (import.meta.main) process.exitCode = await main();
