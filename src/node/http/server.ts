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
import { BlockList, isIP, type AddressInfo } from 'node:net';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { DEFAULT_LIMITS } from '../../base/limits.ts';
import { NostosError, isNostosError, serializeError, type ErrorCode, type SerializedError } from '../../base/errors.ts';
import { parseJson, stringifyJson } from '../json-values.ts';
import { disconnectSignal, respondWithStream } from '../operation-stream.ts';
import { OPERATIONS, runOperation, type Access } from '../operations.ts';
import type { Node } from '../types.ts';
import { respondWithEvents } from './event-stream.ts';
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

function sendError(reply: FastifyReply, error: unknown): FastifyReply {
  const shape = publicError(error);
  return reply
    .status(httpStatus(shape))
    .type('application/json')
    .send(stringifyJson({ error: shape }));
}

/** True when the request may go on; else it is answered. */
function authorized(
  { grants }: Context,
  exchange: { readonly request: FastifyRequest; readonly reply: FastifyReply },
  call: { readonly access: Access; readonly tenant: string | undefined },
): boolean {
  const { request, reply } = exchange;
  const grant = findGrant(grants, request.headers.authorization);
  if (grant !== undefined && allows(grant, call)) return true;
  const where = call.tenant === undefined ? 'on all tenants' : `on tenant ${JSON.stringify(call.tenant)}`;
  const message = grant === undefined ? 'give a token: Authorization: Bearer …' : 'this token lacks the right';
  const error = new NostosError('UNAUTHORIZED', `${message}; needed: ${call.access} ${where}`);
  void reply.header('www-authenticate', 'Bearer').header('cache-control', 'no-store');
  if (grant === undefined) void reply.status(401).type('application/json').send(stringifyJson({ error }));
  else void sendError(reply, error);
  return false;
}

function requestParts(request: FastifyRequest): RequestParts {
  const body = request.body ?? {};
  if (typeof body !== 'object' || Array.isArray(body))
    throw new NostosError('INVALID_ARGUMENT', 'the body must be a JSON object');
  return {
    tenant: (request.params as { tenant?: string }).tenant ?? '',
    query: request.query as RequestParts['query'],
    body: body as RequestParts['body'],
  };
}

async function answer(context: Context, route: Route, request: FastifyRequest, reply: FastifyReply): Promise<void> {
  const input = route.input(requestParts(request));
  const definition: { readonly access: Access; readonly streams?: true } = OPERATIONS[route.operation];
  const tenant = typeof input['tenant'] === 'string' ? input['tenant'] : undefined;
  if (!authorized(context, { request, reply }, { access: definition.access, tenant })) return;

  const call = { name: route.operation, input };
  const signal = disconnectSignal(reply.raw, context.closing);
  if (definition.streams) {
    reply.hijack();
    const events = request.headers.accept?.includes('text/event-stream') ?? false;
    const lastEventId = request.headers['last-event-id'];
    if (events && typeof lastEventId === 'string') call.input = { ...input, from: lastEventId };
    const respond = events ? respondWithEvents : respondWithStream;
    await respond(reply.raw, signal, (operation) => runOperation(context.node, call, operation));
    return;
  }
  const result = await runOperation(context.node, call, { signal, onProgress: () => {}, emit: async () => {} });
  await reply.header('cache-control', 'no-store').type('application/json').send(stringifyJson(result));
}

function addProbes(app: FastifyInstance, { node }: Context): void {
  app.get('/healthz', (_request, reply) => reply.type('text/plain').send('ok\n'));
  app.get('/readyz', async (_request, reply) => {
    const ready = await node.status().then(
      () => true,
      () => false,
    );
    return reply
      .status(ready ? 200 : 503)
      .type('text/plain')
      .send(ready ? 'ready\n' : 'not ready\n');
  });
}

function addPages(app: FastifyInstance, context: Context): void {
  app.get('/', (_request, reply) => {
    const { html, policy } = renderStatusPage();
    return reply
      .headers({
        'content-security-policy': policy,
        'referrer-policy': 'no-referrer',
        'x-content-type-options': 'nosniff',
        'cache-control': 'no-store',
      })
      .type('text/html; charset=utf-8')
      .send(html);
  });
  app.get('/metrics', async (request, reply) => {
    if (!authorized(context, { request, reply }, { access: 'read', tenant: undefined })) return reply;
    const call = { name: 'metrics', input: {} } as const;
    const signal = disconnectSignal(reply.raw, context.closing);
    const text = await runOperation(context.node, call, { signal, onProgress: () => {}, emit: async () => {} });
    return reply.type('text/plain; version=0.0.4; charset=utf-8').send(text);
  });
}

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

function buildApp(context: Context): FastifyInstance {
  const app = fastify({
    bodyLimit: context.limits.requestBytesMax,
    requestTimeout: REQUEST_TIMEOUT_MS,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: TENANT_NAME_MAX },
  });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, body, done) => {
    try {
      done(null, body === '' ? undefined : parseJson(body as string));
    } catch (error) {
      done(error as Error);
    }
  });
  app.setErrorHandler((error: { code?: string; statusCode?: number; message: string }, _request, reply) => {
    const limit = context.limits.requestBytesMax;
    if (error.code === 'FST_ERR_CTP_BODY_TOO_LARGE')
      return sendError(
        reply,
        new NostosError('FRAME_TOO_LARGE', `the body is larger than requestBytesMax (${limit} bytes)`),
      );
    if (error.code?.startsWith('FST_') && error.statusCode !== undefined && error.statusCode < 500)
      return sendError(reply, new NostosError('INVALID_ARGUMENT', error.message));
    return sendError(reply, error);
  });
  app.setNotFoundHandler((request, reply) => {
    const error = new NostosError('INVALID_ARGUMENT', `there is no ${request.method} ${request.url.split('?')[0]}`);
    return reply.status(404).type('application/json').send(stringifyJson({ error }));
  });
  addProbes(app, context);
  addPages(app, context);
  for (const route of ROUTES)
    app.route({
      method: route.method,
      url: route.path,
      handler: (request, reply) => answer(context, route, request, reply),
    });
  return app;
}

/** Serves until `close`, which cancels what is running. The node stays open. */
export async function serveHttp(options: HttpOptions): Promise<HttpServer> {
  const { host = '127.0.0.1', limits = DEFAULT_LIMITS } = options;
  requireLoopback(host);
  const closing = new AbortController();
  const app = buildApp({ ...options, host, limits, closing: closing.signal });
  try {
    await app.listen({ host, port: options.port });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new NostosError('IO_FAILED', `cannot listen on ${host}:${options.port}: ${code}`, { cause: error });
  }
  const { address, port, family } = app.server.address() as AddressInfo;
  return {
    url: `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`,
    close: async () => {
      closing.abort(new NostosError('CLOSED', 'the server is closing'));
      await app.close();
    },
  };
}
