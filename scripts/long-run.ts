/** What `npm run sim` and `npm run soak` share: flags, progress, and the seed with which a failure comes back. */
import { parseArgs } from 'node:util';
import { pathToFileURL } from 'node:url';
import { resolve } from 'node:path';

export interface LongRunFlags {
  /** How many seeds, from `seed` on. */
  readonly seeds: number;
  readonly seed: number;
  /** Rounds per seed, where a run has them. */
  readonly rounds: number | undefined;
  /** Names of runs; none: all. */
  readonly only: readonly string[];
}

const PROGRESS_INTERVAL_MS = 5_000;

function numberFlag(name: string, text: string): number {
  if (!/^\d{1,10}$/.test(text)) throw new Error(`--${name} takes a whole number, got ${text}`);
  return Number(text);
}

export function readFlags(defaults: { readonly seeds: number }): LongRunFlags {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      seeds: { type: 'string', default: String(defaults.seeds) },
      seed: { type: 'string', default: '1' },
      rounds: { type: 'string' },
    },
  });
  return {
    seeds: numberFlag('seeds', values.seeds),
    seed: numberFlag('seed', values.seed),
    rounds: values.rounds === undefined ? undefined : numberFlag('rounds', values.rounds),
    only: positionals,
  };
}

/** A function of the sources by its name; a run whose module is not there yet says so and counts as failed. */
export async function load<T>(path: string, name: string): Promise<T> {
  const module = (await import(pathToFileURL(resolve(path)).href).catch((error: NodeJS.ErrnoException) => {
    throw error.code === 'ERR_MODULE_NOT_FOUND' ? new Error(`${path} is not there: ${error.message}`) : error;
  })) as Record<string, T>;
  if (module[name] === undefined) throw new Error(`${path} has no ${name}`);
  return module[name];
}

/** Adds counts of one seed to those before. */
function add(totals: Record<string, number>, counts: object): void {
  for (const [name, value] of Object.entries(counts))
    if (typeof value === 'number') totals[name] = (totals[name] ?? 0) + value;
}

/** Runs one seed after the other; true when all passed. */
export async function runSeeds(
  name: string,
  flags: LongRunFlags,
  run: (seed: number) => Promise<object> | object,
): Promise<boolean> {
  const totals: Record<string, number> = {};
  let shownMs = performance.now();
  for (let seed = flags.seed; seed < flags.seed + flags.seeds; seed++) {
    try {
      add(totals, await run(seed));
    } catch (error) {
      console.error(`${name}: seed ${seed} failed; again with: ${name} --seed ${seed} --seeds 1\n`, error);
      return false;
    }
    if (performance.now() - shownMs < PROGRESS_INTERVAL_MS) continue;
    shownMs = performance.now();
    console.log(`${name}: ${seed - flags.seed + 1} of ${flags.seeds} seeds`, JSON.stringify(totals));
  }
  console.log(`${name}: ${flags.seeds} seeds passed`, JSON.stringify(totals));
  return true;
}

export interface LongRun {
  readonly name: string;
  readonly run: (flags: LongRunFlags) => Promise<boolean>;
}

/** Runs those that were asked for, all of them even when one fails; the exit code says whether every one passed. */
export async function runAll(runs: readonly LongRun[], flags: LongRunFlags): Promise<void> {
  const unknown = flags.only.filter((name) => runs.every((run) => run.name !== name));
  if (unknown.length > 0)
    throw new Error(`there is no run ${unknown.join(', ')}; there are ${runs.map(({ name }) => name).join(', ')}`);
  for (const { name, run } of runs) {
    if (flags.only.length > 0 && !flags.only.includes(name)) continue;
    const passed = await run(flags).catch((error: unknown) => {
      console.error(`${name}: could not run:`, error instanceof Error ? error.message : error);
      return false;
    });
    if (!passed) process.exitCode = 1;
  }
}
