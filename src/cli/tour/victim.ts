/** Runs `crash-writer` and kills it under load, keeping book of what it asked for and what was acknowledged to it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { extname } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Workload } from './workload.ts';

export interface VictimOptions {
  readonly dir: string;
  readonly tenant: string;
  readonly workload: Workload;
  /** Number of its first write. */
  readonly first: number;
  /** It is killed when so many writes were acknowledged, */
  readonly killAfter: number;
  /** and so much later: while the next group of writes is on its way to the disk. */
  readonly killDelayMs: number;
  readonly signal: AbortSignal;
}

export interface VictimBook {
  readonly asked: ReadonlySet<number>;
  readonly acknowledged: ReadonlySet<number>;
}

const TIMEOUT_MS = 60_000;
const STDERR_CHARACTERS_MAX = 4_000;

/** Resolves once the process is dead and the last word it got out is read. */
export async function runVictim(options: VictimOptions): Promise<VictimBook> {
  const { dir, tenant, workload, first, killAfter } = options;
  const entry = fileURLToPath(new URL(`./crash-writer${extname(import.meta.url)}`, import.meta.url));
  const child = spawn(process.execPath, [entry, dir, tenant, String(first), JSON.stringify(workload)], {
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const stop = (): void => void child.kill('SIGKILL');
  const timeout = setTimeout(stop, TIMEOUT_MS);
  options.signal.addEventListener('abort', stop);

  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr = (stderr + chunk.toString()).slice(-STDERR_CHARACTERS_MAX);
  });
  const asked = new Set<number>();
  const acknowledged = new Set<number>();
  createInterface({ input: child.stdout }).on('line', (line) => {
    const id = Number(line.slice(1));
    if (line.startsWith('+')) asked.add(id);
    else acknowledged.add(id);
    if (acknowledged.size === killAfter) setTimeout(stop, options.killDelayMs);
  });
  try {
    const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
    options.signal.throwIfAborted();
    if (signal !== 'SIGKILL' || acknowledged.size < killAfter)
      throw new Error(`the writing process ended by itself (${signal ?? `exit code ${code}`}): ${stderr.trim()}`);
    return { asked, acknowledged };
  } finally {
    clearTimeout(timeout);
    options.signal.removeEventListener('abort', stop);
  }
}
