/**
 * Runs one exported function of a module in a process of its own: what it measures, above all memory, is then not what
 * others left behind. Input and output pass as structured clones.
 */
import { fork } from 'node:child_process';
import { readFileSync } from 'node:fs';

interface Job {
  readonly module: string;
  readonly name: string;
  readonly input: unknown;
}

type Message = { readonly note: string } | { readonly output: unknown } | { readonly error: string };

export interface ChildOptions {
  readonly onNote?: (note: string) => void;
  /** At this note the process is killed with SIGKILL; the result is then undefined. */
  readonly killAtNote?: string;
}

export function inChild<T>(module: string, name: string, input: unknown, options: ChildOptions = {}): Promise<T> {
  return new Promise((resolve, reject) => {
    const child = fork(import.meta.filename, { serialization: 'advanced' });
    let output: unknown;
    let failure: string | undefined;
    let killed = false;
    child.on('message', (message: Message) => {
      if ('output' in message) output = message.output;
      else if ('error' in message) failure = message.error;
      else if (message.note === options.killAtNote) killed = child.kill('SIGKILL');
      else options.onNote?.(message.note);
    });
    child.on('error', reject);
    child.on('exit', (code, signal) => {
      if (failure !== undefined) reject(new Error(failure));
      else if (code === 0 || killed) resolve(output as T);
      else reject(new Error(`${name} ended with ${signal ?? `exit code ${String(code)}`}`));
    });
    child.send({ module, name, input } satisfies Job);
  });
}

/** Tells the parent something while the function still runs. */
export function note(text: string): void {
  process.send?.({ note: text } satisfies Message);
}

/**
 * The most memory that this process has ever had resident. `maxRSS` is the second choice: on Linux it begins with what
 * the parent had before exec.
 */
export function peakResidentBytes(): number {
  if (process.platform !== 'linux') return process.resourceUsage().maxRSS * 1024;
  return Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;
}

if (import.meta.main) {
  process.once('message', ({ module, name, input }: Job) => {
    const finish = (message: Message): void => void process.send?.(message, () => process.disconnect?.());
    void (async () => {
      try {
        const loaded = (await import(module)) as Record<string, (input: unknown) => unknown>;
        finish({ output: await loaded[name]?.(input) });
      } catch (error) {
        finish({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
      }
    })();
  });
}
