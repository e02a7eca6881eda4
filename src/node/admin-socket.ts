/**
 * The admin socket of an open node: HTTP on `<dir>/admin.sock`, for its owner only. `POST /operations/<name>` takes the
 * input as JSON and answers as `operation-stream.ts` says.
 *
 * At no moment can another user connect: the socket is bound in a directory of mode 0700, made 0600 and only then renamed
 * to its name, which also replaces the one that a crashed process left. That is safe since the caller holds the lock of
 * the data directory. Where the path would pass what a socket address can hold, the socket stays in a private temporary
 * directory and `admin.sock` is a symbolic link to it.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { connect } from 'node:net';
import { once } from 'node:events';
import { chmod, mkdtemp, readlink, realpath, rename, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { nodeHttp } from '../base/builtins.ts';
import { NostosError, serializeError } from '../base/errors.ts';
import { parseJson, stringifyJson } from './json-values.ts';
import {
  NDJSON,
  disconnectSignal,
  readBody,
  readStream,
  respondWithStream,
  type StreamHandlers,
} from './operation-stream.ts';
import type { OperationInput, OperationName, OperationResult } from './operations.ts';
import type { Node } from './types.ts';

export const ADMIN_SOCKET = 'admin.sock';

/** A socket address holds 108 bytes on Linux and 104 on macOS, with the byte that ends it. */
const SOCKET_PATH_BYTES_MAX = 100;
const PRIVATE_PREFIX = 'nostos-admin-';
const HEADERS_TIMEOUT_MS = 10_000;

export interface AdminSocketOptions {
  readonly node: Node;
  /** Of the socket: `<dir>/admin.sock`. */
  readonly path: string;
  readonly limits?: { readonly requestBytesMax: number; readonly adminConnectionsMax: number };
}

export interface AdminSocket {
  readonly path: string;
  /** Cancels what is running and removes the socket. Safe to call twice. */
  close(): Promise<void>;
}

/** Removes the private directory of the node that crashed, if `admin.sock` leads to one. */
async function removeStale(path: string): Promise<void> {
  const target = await readlink(path).catch(() => undefined);
  if (target === undefined) return;
  const directory = dirname(target);
  if (dirname(directory) === tmpdir() && basename(directory).startsWith(PRIVATE_PREFIX))
    await rm(directory, { recursive: true, force: true });
}

async function respond(
  { node, limits }: Required<AdminSocketOptions>,
  exchange: { readonly request: IncomingMessage; readonly response: ServerResponse; readonly signal: AbortSignal },
): Promise<void> {
  const { request: incoming, response } = exchange;
  const name = /^\/operations\/([\w.]+)$/.exec(incoming.url ?? '')?.[1] ?? '';
  const signal = disconnectSignal(response, exchange.signal);
  await respondWithStream(response, signal, async (context) => {
    // Loaded when something is asked: most nodes of an application never are.
    const { OPERATIONS, isOperationName, runOperation } = await import('./operations.ts');
    if (incoming.method !== 'POST' || !isOperationName(name))
      throw new NostosError(
        'INVALID_ARGUMENT',
        `there is no operation ${incoming.method} ${incoming.url}; POST /operations/<name> knows ${Object.keys(OPERATIONS).join(', ')}`,
      );
    const input = parseJson(await readBody(incoming, limits.requestBytesMax));
    return runOperation(node, { name, input }, context);
  });
}

/** Serves `node` until `close`. The caller holds the lock of the data directory. */
export async function serveAdmin(options: AdminSocketOptions): Promise<AdminSocket> {
  const { path, limits = DEFAULT_LIMITS } = options;
  const closing = new AbortController();
  const running = new Set<Promise<void>>();
  let connections = 0;

  const server = nodeHttp().createServer(
    { headersTimeout: HEADERS_TIMEOUT_MS, keepAlive: false },
    (incoming, response) => {
      if (connections > limits.adminConnectionsMax) {
        const error = new NostosError(
          'QUEUE_FULL',
          `more than adminConnectionsMax (${limits.adminConnectionsMax}) connections`,
        );
        response.writeHead(503, { 'content-type': NDJSON, connection: 'close' });
        response.end(`${stringifyJson({ error: serializeError(error) })}\n`);
        return;
      }
      const done = respond({ ...options, limits }, { request: incoming, response, signal: closing.signal });
      running.add(done);
      void done.finally(() => running.delete(done));
    },
  );
  // Beyond what is refused politely, so that idle connections cannot use up the process's descriptors either.
  server.maxConnections = limits.adminConnectionsMax * 2;
  server.on('connection', (socket) => {
    connections += 1;
    socket.once('close', () => (connections -= 1));
  });

  await removeStale(path);
  let directory = await mkdtemp(join(dirname(path), `.${PRIVATE_PREFIX}`));
  const fits = (candidate: string): boolean => Buffer.byteLength(candidate) <= SOCKET_PATH_BYTES_MAX;
  const inPlace = fits(join(directory, 's')) && fits(path);
  if (!inPlace) {
    await rm(directory, { recursive: true });
    directory = await mkdtemp(join(tmpdir(), PRIVATE_PREFIX));
  }
  const bound = join(directory, 's');
  try {
    server.listen(bound);
    await once(server, 'listening');
    await chmod(bound, 0o600);
    if (inPlace) {
      await rename(bound, path);
      await rm(directory, { recursive: true });
    } else {
      await rm(path, { force: true });
      await symlink(bound, path);
    }
  } catch (error) {
    server.close();
    await rm(directory, { recursive: true, force: true });
    throw error;
  }

  let closed: Promise<void> | undefined;
  const close = async (): Promise<void> => {
    await rm(path, { force: true });
    closing.abort(new NostosError('CLOSED', 'the node is closing'));
    const ended = once(server, 'close');
    server.close();
    await Promise.allSettled(running);
    server.closeAllConnections();
    await ended;
    if (!inPlace) await rm(directory, { recursive: true, force: true });
  };
  return { path, close: () => (closed ??= close()) };
}

async function socketOf(dir: string): Promise<string> {
  const path = join(dir, ADMIN_SOCKET);
  // Too long for an address, it is a link to one that is not.
  return (
    (await readlink(path).then(
      () => realpath(path),
      () => undefined,
    )) ?? path
  );
}

/** Whether a node serves this data directory now. */
export async function isServed(dir: string): Promise<boolean> {
  const socket = connect(await socketOf(dir));
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

export interface CallOptions extends StreamHandlers {
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs an operation in the process that serves `dir`. Without one it fails with `CLOSED`; when the connection breaks
 * after a call that may have changed something, with `OUTCOME_UNKNOWN`.
 */
export async function callAdmin<Name extends OperationName>(
  dir: string,
  call: { readonly name: Name; readonly input: OperationInput<Name> },
  options: CallOptions = {},
): Promise<OperationResult<Name>> {
  const { signal } = options;
  const socketPath = await socketOf(dir);
  const outgoing = nodeHttp().request({
    socketPath,
    path: `/operations/${call.name}`,
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    agent: false,
    ...(signal === undefined ? {} : { signal }),
  });
  let connected = false;
  outgoing.once('socket', (socket) => socket.once('connect', () => (connected = true)));
  outgoing.end(stringifyJson(call.input));
  try {
    const [response] = (await once(outgoing, 'response')) as [IncomingMessage];
    const answer = await readStream(response, options);
    if (answer !== undefined) return answer.result as OperationResult<Name>;
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof NostosError) throw error;
    if (!connected) throw new NostosError('CLOSED', `no node serves ${dir}`, { cause: error });
  } finally {
    outgoing.destroy();
  }
  signal?.throwIfAborted();
  const { OPERATIONS } = await import('./operations.ts');
  const changed = OPERATIONS[call.name].access !== 'read';
  throw new NostosError(
    changed ? 'OUTCOME_UNKNOWN' : 'IO_FAILED',
    `the node that serves ${dir} went away during ${call.name}${changed ? '; look whether it was done before you repeat it' : ''}`,
  );
}
