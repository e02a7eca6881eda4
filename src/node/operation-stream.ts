/**
 * An operation over HTTP, on the admin socket and in `/v1`: the answer is NDJSON, one object per line, the last one
 * `{result}` or `{error}`; before it any number of `{progress}` and `{item}`. A line that is missing its end, or an
 * answer without its last line, means that the connection broke: whether a write happened is then not known.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { isUtf8 } from 'node:buffer';
import { once } from 'node:events';
import { NostosError, deserializeError, serializeError } from '../base/errors.ts';
import { parseJson, stringifyJson } from './json-values.ts';
import type { OperationContext } from './operations.ts';
import type { Progress } from './types.ts';

/** Progress is for people: more lines than this say nothing more. */
const PROGRESS_INTERVAL_MS = 100;

export const NDJSON = 'application/x-ndjson';

export async function readBody(request: IncomingMessage, bytesMax: number): Promise<string> {
  const tooLarge = (): NostosError =>
    new NostosError('FRAME_TOO_LARGE', `the request is larger than requestBytesMax (${bytesMax} bytes)`);
  // Told at once, since it may wait for a word before it sends them (Expect: 100-continue).
  if (Number(request.headers['content-length'] ?? 0) > bytesMax) throw tooLarge();
  const chunks: Buffer[] = [];
  let bytes = 0;
  // Whoever sent too much is to hear it, so the connection stays.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bytesMax) throw tooLarge();
    chunks.push(chunk);
  }
  const body = Buffer.concat(chunks);
  if (!isUtf8(body)) throw new NostosError('INVALID_ARGUMENT', 'the request is not UTF-8; encode its text as such');
  return body.toString('utf8');
}

/**
 * Aborts when the client goes away before its answer is complete, or with `parent`. Not by `AbortSignal.any`: its signals
 * stay in memory, with whatever listens to them, for as long as `parent` lives.
 */
export function disconnectSignal(response: ServerResponse, parent: AbortSignal): AbortSignal {
  const gone = new AbortController();
  const follow = (): void => gone.abort(parent.reason);
  if (parent.aborted) follow();
  else parent.addEventListener('abort', follow);
  response.once('close', () => {
    parent.removeEventListener('abort', follow);
    if (!response.writableFinished) gone.abort(new NostosError('CLOSED', 'the client went away'));
  });
  return gone.signal;
}

/** Runs `run` and writes what it emits; resolves when the answer is out, or its reader gone. Never rejects. */
export async function respondWithStream(
  response: ServerResponse,
  signal: AbortSignal,
  run: (context: OperationContext) => Promise<unknown>,
): Promise<void> {
  let progressAtMs = -Infinity;
  const writeLine = async (line: object): Promise<void> => {
    if (response.destroyed) return;
    if (!response.headersSent) response.writeHead(200, { 'content-type': NDJSON, 'cache-control': 'no-store' });
    if (!response.write(`${stringifyJson(line)}\n`)) await once(response, 'drain', { signal }).catch(() => {});
  };
  const context: OperationContext = {
    signal,
    onProgress: (progress: Progress) => {
      const nowMs = performance.now();
      if (nowMs - progressAtMs < PROGRESS_INTERVAL_MS && progress.done !== progress.total) return;
      progressAtMs = nowMs;
      void writeLine({ progress });
    },
    emit: async (item) => {
      signal.throwIfAborted();
      await writeLine({ item });
    },
  };
  try {
    await writeLine({ result: (await run(context)) ?? null });
  } catch (error) {
    await writeLine({ error: serializeError(error) });
  }
  response.end();
}

export interface StreamHandlers {
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  readonly onItem?: ((item: unknown) => void | Promise<void>) | undefined;
}

/** Lines of a UTF-8 byte stream; what follows the last `\n` is not a line. */
async function* lines(source: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let parts: string[] = [];
  for await (const chunk of source) {
    const [first, ...rest] = decoder.decode(chunk, { stream: true }).split('\n');
    parts.push(first!);
    for (const next of rest) {
      yield parts.join('');
      parts = [next];
    }
  }
}

/** Reads such an answer; undefined where it broke off before its last line. */
export async function readStream(
  source: AsyncIterable<Uint8Array>,
  handlers: StreamHandlers,
): Promise<{ readonly result: unknown } | undefined> {
  for await (const line of lines(source)) {
    const message = parseJson(line) as { progress?: Progress; item?: unknown; result?: unknown; error?: unknown };
    if (message.progress !== undefined) handlers.onProgress?.(message.progress);
    else if ('item' in message) await handlers.onItem?.(message.item);
    else if (message.error !== undefined) throw deserializeError(message.error);
    else if ('result' in message) return { result: message.result };
  }
  return undefined;
}
