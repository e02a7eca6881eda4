/** The outside of the CLI: streams, environment and the signal of Ctrl-C. Verbs see this, never `process`. */
import type { Readable, Writable } from 'node:stream';
import type { ReadStream, WriteStream } from 'node:tty';

export interface Io {
  readonly stdin: Readable;
  readonly stdout: Writable;
  readonly stderr: Writable;
  readonly stdinIsTty: boolean;
  readonly stdoutIsTty: boolean;
  readonly stderrIsTty: boolean;
  /** Columns of the terminal. */
  readonly columns: number;
  readonly color: boolean;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
}

export function processIo(signal: AbortSignal): Io {
  const stdout = process.stdout as WriteStream;
  return {
    stdin: process.stdin,
    stdout,
    stderr: process.stderr,
    stdinIsTty: (process.stdin as Partial<ReadStream>).isTTY === true,
    stdoutIsTty: (stdout as Partial<WriteStream>).isTTY === true,
    stderrIsTty: (process.stderr as Partial<WriteStream>).isTTY === true,
    columns: stdout.columns || 100,
    color: (stdout as Partial<WriteStream>).isTTY === true && process.env['NO_COLOR'] === undefined,
    cwd: process.cwd(),
    env: process.env,
    signal,
  };
}

/** Writes and waits while the other side is not reading. */
export async function print(stream: Writable, text: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    stream.write(text, (error) => (error ? reject(error) : resolve()));
  });
}

export async function readAll(stream: Readable): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream as AsyncIterable<Buffer | string>) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks).toString('utf8');
}
