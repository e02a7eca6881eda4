/** For tests: runs the command as a process of its own. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { PassThrough, Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

export const ENTRY = fileURLToPath(new URL('../../bin/nostos.js', import.meta.url));

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export async function temporaryDirectory(t: TestContext): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'nostos-test-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

/** Runs `nostos …` in `cwd` to its end. */
export async function nostos(cwd: string, args: readonly string[], stdin = ''): Promise<Ended> {
  const env = { ...process.env, NOSTOS_DIR: undefined, NOSTOS_TENANT: undefined };
  const child = spawn(process.execPath, [ENTRY, ...args], { cwd, env, stdio: 'pipe' });
  child.stdin.on('error', () => {});
  child.stdin.end(stdin);
  const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  return { code: child.exitCode, stdout, stderr };
}

/** Without a process of its own: only what is killed needs one. */
export async function inProcess(cwd: string, args: readonly string[], terminal = false): Promise<Ended> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const output = Promise.all([text(stdout), text(stderr)]);
  const { runCli } = await import('./program.ts');
  const code = await runCli(args, {
    stdin: Readable.from([]),
    stdout,
    stderr,
    stdinIsTty: false,
    stdoutIsTty: false,
    stderrIsTty: terminal,
    columns: 100,
    color: false,
    cwd,
    env: {},
    signal: new AbortController().signal,
  });
  stdout.end();
  stderr.end();
  const [out, err] = await output;
  return { code, stdout: out, stderr: err };
}
