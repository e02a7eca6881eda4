/**
 * HTTP on an open node. Loopback only: beyond it, everything would cross the network in the clear.
 *
 * | path | token |
 * |---|---|
 * | `/healthz`, `/readyz` | none: they say one word |
 * | `/` | none: the page holds no data, and asks for a token to fetch it |
 * | `/metrics` | read, on all tenants |
 * | `/v1/…` | what the operation needs, on its tenant or on all |
 */
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { BlockList, isIP, type AddressInfo } from 'node:net';
import findMyWay from 'find-my-way';
import { nodeHttp } from '../../base/builtins.ts';
import { DEFAULT_LIMITS } from '../../base/limits.ts';
import { NostosError, isNostosError, serializeError, type ErrorCode, type SerializedError } from '../../base/errors.ts';
import { parseJson, stringifyJson } from '../json-values.ts';
import { NDJSON, disconnectSignal, readBody, respondWithStream } from '../operation-stream.ts';
import { OPERATIONS, runOperation, type Access } from '../operations.ts';
import type { Node, NodeStatus } from '../types.ts';
import { EVENT_STREAM, respondWithEvents } from './event-stream.ts';
import { ROUTES, type RequestParts, type Route } from './routes.ts';
import { renderStatusPage } from './status-page.ts';
import { allows, findGrant, type Grant } from './tokens.ts';

export interface HttpOptions {
  readonly node: Node;
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port: number;
  readonly grants: readonly Grant[];
  readonly limits?: { readonly requestBytesMax: number };
}

export interface HttpServer {
  /** `http://127.0.0.1:4040` */
  readonly url: string;
  close(): Promise<void>;
}

interface Context extends Required<HttpOptions> {
  readonly closing: AbortSignal;
}

const REQUEST_TIMEOUT_MS = 60_000;
/** Longer than proxies keep a connection (60 s): one that is closed as the proxy uses it again fails a request. */
const KEEP_ALIVE_MS = 72_000;
const TENANT_NAME_MAX = 1_000;

const STATUS_BY_CODE: Partial<Record<ErrorCode, number>> = {
  INVALID_ARGUMENT: 400,
  UNAUTHORIZED: 403,
  TENANT_NOT_FOUND: 404,
  TENANT_EXISTS: 409,
  POSITION_LOST: 410,
  LOG_PRUNED: 410,
  FRAME_TOO_LARGE: 413,
  QUEUE_FULL: 429,
  INTERNAL: 500,
  LOG_DAMAGED: 500,
  TENANT_DAMAGED: 500,
  OUTCOME_UNKNOWN: 500,
  QUERY_TIMEOUT: 504,
  DISK_FULL: 507,
};

function httpStatus(error: SerializedError): number {
  return STATUS_BY_CODE[error.code] ?? (error.retry === 'safe' ? 503 : 422);
}

/** What a stranger may know: the text of an unexpected error may hold anything. */
function publicError(error: unknown): SerializedError {
  if (isNostosError(error)) return error.toJSON();
  if (error instanceof DOMException) return serializeError(new NostosError('CLOSED', 'the call was cancelled'));
  return { code: 'INTERNAL', message: 'unexpected error; the log of the node has it', retry: 'never', details: {} };
}

interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly params: Readonly<Record<string, string | undefined>>;
  readonly query: Readonly<Record<string, string | undefined>>;
}

type Handler = (context: Context, exchange: Exchange) => Promise<void> | void;

interface Reply {
  readonly status?: number;
  readonly type: string;
  readonly headers?: Readonly<Record<string, string>>;
}

const JSON_TYPE = 'application/json; charset=utf-8';

function send(response: ServerResponse, text: string, { status = 200, type, headers = {} }: Reply): void {
  response.writeHead(status, { ...headers, 'content-type': type, 'content-length': Buffer.byteLength(text) });
  response.end(text);
}

function sendError(response: ServerResponse, error: unknown, more: Partial<Reply> = {}): void {
  const shape = publicError(error);
  if (response.headersSent) return void response.destroy();
  if (isBodyLeft(response.req)) response.setHeader('connection', 'close'); // it is not waited for
  send(response, stringifyJson({ error: shape }), { status: httpStatus(shape), type: JSON_TYPE, ...more });
}

/** A request that has no body is not complete either when its headers have just come. */
function isBodyLeft({ complete, headers }: IncomingMessage): boolean {
  return !complete && (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0);
}

const UNAUTHORIZED_HEADERS = { 'www-authenticate': 'Bearer', 'cache-control': 'no-store' };

/** What the bearer may do; without a token that is known, the request is answered. */
function grantOf({ grants }: Context, { request, response }: Exchange): Grant | undefined {
  const grant = findGrant(grants, request.headers.authorization);
  if (grant !== undefined) return grant;
  const error = new NostosError('UNAUTHORIZED', 'give a token: Authorization: Bearer …');
  sendError(response, error, { status: 401, headers: UNAUTHORIZED_HEADERS });
  return undefined;
}

/** True when the request may go on; else it is answered. */
function authorized(
  grant: Grant,
  { response }: Exchange,
  call: { readonly access: Access; readonly tenant: string | undefined },
): boolean {
  if (allows(grant, call)) return true;
  const where = call.tenant === undefined ? 'on all tenants' : `on tenant ${JSON.stringify(call.tenant)}`;
  const error = new NostosError('UNAUTHORIZED', `this token lacks the right; needed: ${call.access} ${where}`);
  sendError(response, error, { headers: UNAUTHORIZED_HEADERS });
  return false;
}

async function requestParts({ limits }: Context, { request, params, query }: Exchange): Promise<RequestParts> {
  const body = await jsonBody(request, limits.requestBytesMax);
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw new NostosError('INVALID_ARGUMENT', 'the body must be a JSON object');
  return { tenant: params['tenant'] ?? '', query, body: body as RequestParts['body'] };
}

async function jsonBody(request: IncomingMessage, bytesMax: number): Promise<unknown> {
  if (request.method === 'GET' || request.method === 'HEAD') return {};
  const text = await readBody(request, bytesMax);
  if (text === '') return {};
  const type = request.headers['content-type']?.split(';')[0]?.trim().toLowerCase();
  if (type !== 'application/json')
    throw new NostosError('INVALID_ARGUMENT', `the body must be application/json, got ${JSON.stringify(type ?? '')}`);
  try {
    return parseJson(text);
  } catch (error) {
    throw new NostosError('INVALID_ARGUMENT', `the body is not JSON: ${(error as Error).message}`, { cause: error });
  }
}

async function answer(context: Context, route: Route, exchange: Exchange): Promise<void> {
  const { request, response } = exchange;
  const grant = grantOf(context, exchange); // of a stranger no body is read
  if (grant === undefined) return;
  const input = route.input(await requestParts(context, exchange));
  const definition: { readonly access: Access; readonly streams?: true } = OPERATIONS[route.operation];
  const tenant = typeof input['tenant'] === 'string' ? input['tenant'] : undefined;
  if (!authorized(grant, exchange, { access: definition.access, tenant })) return;

  const call = { name: route.operation, input };
  const signal = disconnectSignal(response, context.closing);
  if (definition.streams) {
    const events = request.headers.accept?.includes('text/event-stream') ?? false;
    if (request.method === 'HEAD') {
      response.writeHead(200, { 'content-type': events ? EVENT_STREAM : NDJSON, 'cache-control': 'no-store' }).end();
      return;
    }
    const lastEventId = request.headers['last-event-id'];
    if (events && typeof lastEventId === 'string' && lastEventId !== '')
      call.input = { ...input, from: route.after?.(lastEventId) };
    const respond = events ? respondWithEvents : respondWithStream;
    await respond(response, signal, (operation) => runOperation(context.node, call, operation));
    return;
  }
  const result = await runOperation(context.node, call, { signal, onProgress: () => {}, emit: async () => {} });
  send(response, stringifyJson(result), { type: JSON_TYPE, headers: { 'cache-control': 'no-store' } });
}

/** In a group: it leads, or streams from whoever does. */
function isReady({ group }: NodeStatus): boolean {
  if (group === undefined) return true;
  return group.role === 'leading' || (group.role === 'follower' && group.following?.phase === 'streaming');
}

const PROBES_AND_PAGES: Readonly<Record<string, Handler>> = {
  '/healthz': (_context, { response }) => send(response, 'ok\n', { type: 'text/plain' }),
  '/readyz': async ({ node }, { response }) => {
    const ready = await node.status().then(isReady, () => false);
    send(response, ready ? 'ready\n' : 'not ready\n', { status: ready ? 200 : 503, type: 'text/plain' });
  },
  '/': (_context, { response }) => {
    const { html, policy } = renderStatusPage();
    send(response, html, {
      type: 'text/html; charset=utf-8',
      headers: {
        'content-security-policy': policy,
        'referrer-policy': 'no-referrer',
        'x-content-type-options': 'nosniff',
        'cache-control': 'no-store',
      },
    });
  },
  '/metrics': async (context, exchange) => {
    const grant = grantOf(context, exchange);
    if (grant === undefined || !authorized(grant, exchange, { access: 'read', tenant: undefined })) return;
    const call = { name: 'metrics', input: {} } as const;
    const signal = disconnectSignal(exchange.response, context.closing);
    const text = await runOperation(context.node, call, { signal, onProgress: () => {}, emit: async () => {} });
    send(exchange.response, text, { type: 'text/plain; version=0.0.4; charset=utf-8' });
  },
};

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

function requireLoopback(host: string): void {
  const family = isIP(host);
  if (host === 'localhost' || (family !== 0 && loopback.check(host, family === 6 ? 'ipv6' : 'ipv4'))) return;
  throw new NostosError(
    'INVALID_ARGUMENT',
    `refusing to serve on ${host}: tokens and data would cross the network in the clear. Serve on 127.0.0.1 and put a ` +
      'proxy with TLS, or a tunnel, in front of it',
  );
}

/** Answers requests by their path; one that fails gets the error, and none throws. */
function handlerOf(context: Context): (request: IncomingMessage, response: ServerResponse) => Promise<void> {
  const router = findMyWay({ maxParamLength: TENANT_NAME_MAX });
  const add = (method: Route['method'], path: string, handler: Handler): void => {
    // What a GET answers, a HEAD asks about.
    for (const one of method === 'GET' ? (['GET', 'HEAD'] as const) : [method])
      router.on(one, path, () => undefined, { handler });
  };
  for (const [path, handler] of Object.entries(PROBES_AND_PAGES)) add('GET', path, handler);
  for (const route of ROUTES) add(route.method, route.path, (with_, exchange) => answer(with_, route, exchange));

  return async (request, response) => {
    const { method = '', url = '' } = request;
    try {
      const found = router.find(method as Route['method'], url);
      if (found === null) {
        const error = new NostosError('INVALID_ARGUMENT', `there is no ${method} ${url.split('?')[0]}`);
        return sendError(response, error, { status: 404 });
      }
      const { handler } = found.store as { readonly handler: Handler };
      const query = found.searchParams as Exchange['query'];
      await handler(context, { request, response, params: found.params, query });
    } catch (error) {
      sendError(response, error);
    }
  };
}

/** Serves until `close`, which cancels what is running. The node stays open. */
export async function serveHttp(options: HttpOptions): Promise<HttpServer> {
  const { host = '127.0.0.1', limits = DEFAULT_LIMITS } = options;
  requireLoopback(host);
  const closing = new AbortController();
  const handle = handlerOf({ ...options, host, limits, closing: closing.signal });
  const server = nodeHttp().createServer((request, response) => void handle(request, response));
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  try {
    server.listen({ host, port: options.port });
    await once(server, 'listening');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new NostosError('IO_FAILED', `cannot listen on ${host}:${options.port}: ${code}`, { cause: error });
  }
  server.on('error', () => {}); // of a connection that could not be accepted
  const { address, port, family } = server.address() as AddressInfo;
  return {
    url: `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`,
    close: async () => {
      closing.abort(new NostosError('CLOSED', 'the server is closing'));
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}
