/** Faults of the disk under a process that runs, by strace: what it asks the kernel for is delayed, refused, or its end. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from './group-harness-member.fixture.ts';

export interface Injection {
  /** `fsync,fdatasync`. */
  readonly calls: string;
  /** `delay_enter=500000`, `error=EIO`, `signal=SIGKILL:when=2`. */
  readonly what: string;
  /** Only calls that concern this file. */
  readonly path?: string;
}

const ATTACH_MS = 5_000;
let refusal: { readonly why: string | undefined } | undefined;

/** Why no process can be disturbed here; undefined where it can. */
export function attachRefusal(): string | undefined {
  refusal ??= { why: attempt() };
  return refusal.why;
}

function attempt(): string | undefined {
  const { status, error, stderr } = spawnSync('strace', ['-o', '/dev/null', ...flagsOf(EXAMPLE), 'true'], {
    encoding: 'utf8',
  });
  return status === 0 ? undefined : `strace is not usable here: ${error?.message ?? stderr.trim()}`;
}

const EXAMPLE: Injection = { calls: 'fsync', what: 'delay_enter=1' };

function flagsOf({ calls, what, path }: Injection): readonly string[] {
  const filter = path === undefined ? [] : ['-P', path];
  return ['-f', ...filter, '-e', `trace=${calls}`, '-e', `inject=${calls}:${what}`];
}

/** The program that starts a process with the fault in it, under its own id. */
export function launcherWith(injection: Injection): readonly string[] {
  return ['strace', '-D', '-qq', '-o', '/dev/null', ...flagsOf(injection)];
}

/** Begins when it resolves, and ends with its disposal. */
export class Disturbance implements AsyncDisposable {
  readonly #dir: string;
  readonly #tracer: ReturnType<typeof spawn>;
  readonly #ended: Promise<unknown>;

  private constructor(pid: number, injection: Injection) {
    this.#dir = mkdtempSync(join(tmpdir(), 'nostos-strace-'));
    this.#tracer = spawn('strace', ['-o', join(this.#dir, 'trace'), ...flagsOf(injection), '-p', `${pid}`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#ended = once(this.#tracer, 'exit');
  }

  static async of(pid: number, injection: Injection): Promise<Disturbance> {
    const disturbance = new Disturbance(pid, injection);
    let said = '';
    disturbance.#tracer.stderr?.setEncoding('utf8').on('data', (text: string) => (said += text));
    try {
      await until(
        'strace is attached',
        () => said.includes('attached'),
        ATTACH_MS,
        () => said,
      );
      return disturbance;
    } catch (error) {
      await disturbance[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** How many calls were delayed or refused. */
  get happened(): number {
    const said = readFileSync(join(this.#dir, 'trace'), 'utf8');
    return said.match(/\((?:DELAYED|INJECTED)\)/g)?.length ?? 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#tracer.kill('SIGINT');
    await this.#ended;
    rmSync(this.#dir, { recursive: true, force: true });
  }
}
