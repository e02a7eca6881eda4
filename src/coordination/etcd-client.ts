/**
 * A thin client of etcd's v3 API, through the JSON gateway that every member serves on its client port. It talks to one
 * member until that one fails, then to the next.
 *
 * What must hold: a request that may change something reaches at most one member. It goes on to another one only where
 * no byte of it can have left (no connection was made) or etcd says that it was refused for its token. Anything else
 * throws, and the outcome is open: sent again, it could be refused because it had been carried out, and a writer that
 * has won would be told that it lost. Requests that only read go on to the next member until the time is over.
 */
import type { Agent, ClientRequest, IncomingMessage } from 'node:http';
import { Agent as HttpAgent, request as httpRequest } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { NostosError } from '../base/errors.ts';

export interface EtcdTls {
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
}

export interface EtcdClientOptions {
  /** `host:port` of each member. */
  readonly endpoints: readonly string[];
  /** PEM; present: TLS. */
  readonly tls?: EtcdTls;
  readonly user?: string;
  readonly password?: string;
  /** One member has so long to answer. */
  readonly attemptTimeoutMs?: number;
  /** A call takes at most so long, over all members. */
  readonly timeoutMs?: number;
}

export const ETCD_ATTEMPT_TIMEOUT_MS = 1_500;
export const ETCD_TIMEOUT_MS = 5_000;
/** Between one round of all members and the next. */
const ROUND_PAUSE_MS = 100;
const ANSWER_BYTES_MAX = 16 * 1024 * 1024;
/** A message of a watch; it holds a few records at most. */
const STREAM_LINE_BYTES_MAX = 4 * 1024 * 1024;
/** gRPC: invalid argument, not found, permission denied, failed precondition, unimplemented, unauthenticated. */
const FINAL_CODES = new Set([3, 5, 7, 9, 12, 16]);
/** Said of a token before anything is done with the request that it came with. */
const TOKEN_REFUSED = /invalid auth token|revision of auth store is old|user name is empty/;

export type Json = Readonly<Record<string, unknown>>;

interface Answer {
  readonly status: number;
  readonly text: string;
}

/** Why one attempt failed, and whether the member may have the request all the same. */
class AttemptFailed extends Error {
  readonly sent: boolean;

  constructor(message: string, sent: boolean) {
    super(message);
    this.sent = sent;
  }
}

interface OpenStream {
  readonly endpoint: number;
  readonly end: () => void;
}

export class EtcdClient {
  readonly #options: EtcdClientOptions;
  readonly #attemptTimeoutMs: number;
  readonly #timeoutMs: number;
  readonly #agent: Agent;
  readonly #streams = new Set<OpenStream>();
  #endpoint = 0;
  #token: string | undefined;
  #closed = false;

  constructor(options: EtcdClientOptions) {
    this.#options = options;
    this.#attemptTimeoutMs = options.attemptTimeoutMs ?? ETCD_ATTEMPT_TIMEOUT_MS;
    this.#timeoutMs = options.timeoutMs ?? ETCD_TIMEOUT_MS;
    this.#agent = options.tls === undefined ? new HttpAgent({ keepAlive: true }) : new HttpsAgent({ keepAlive: true });
  }

  get name(): string {
    return `etcd at ${this.#options.endpoints.join(',')}`;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** A request that only reads. */
  ask(path: string, body?: Json): Promise<Json> {
    return this.#call(path, body, { once: false });
  }

  /** A request that may change something: at most one member gets it. */
  send(path: string, body: Json): Promise<Json> {
    return this.#call(path, body, { once: true });
  }

  async #call(path: string, body: Json | undefined, { once }: { once: boolean }): Promise<Json> {
    const { endpoints, user } = this.#options;
    const deadlineMs = performance.now() + this.#timeoutMs;
    let lastFailure = 'there was no time';
    for (let attempt = 0; !this.#closed; attempt++) {
      if (attempt > 0 && attempt % endpoints.length === 0) await sleep(ROUND_PAUSE_MS);
      const leftMs = deadlineMs - performance.now();
      if (leftMs <= 0) break;
      const endpoint = this.#endpoint;
      try {
        if (user !== undefined) this.#token ??= await this.#authenticate(endpoint, leftMs);
        const answer = await this.#exchange(endpoint, { path, body, timeoutMs: leftMs });
        const json = this.#read(answer, path);
        if (json !== undefined) return json;
        this.#token = undefined;
        lastFailure = 'its token was refused';
      } catch (failure) {
        if (!(failure instanceof AttemptFailed)) throw failure;
        lastFailure = `${endpoints[endpoint]}: ${failure.message}`;
        this.#leave(endpoint);
        if (once && failure.sent) throw this.#unavailable(lastFailure, 'It is open whether the record was replaced');
      }
    }
    if (this.#closed) throw new NostosError('CLOSED', `The connection to ${this.name} is closed`);
    throw this.#unavailable(lastFailure, once ? 'Nothing was sent' : `No member answered within ${this.#timeoutMs} ms`);
  }

  /** What the member answered; undefined when it wants another token. */
  #read({ status, text }: Answer, path: string): Json | undefined {
    const json = parseObject(text);
    if (status === 200 && json !== undefined) return json;
    const message = typeof json?.error === 'string' ? json.error : text.slice(0, 200).trim();
    if (this.#options.user !== undefined && this.#token !== undefined && TOKEN_REFUSED.test(message)) return undefined;
    if (json === undefined ? status === 404 : FINAL_CODES.has(Number(json.code)))
      throw new NostosError(
        'COORDINATOR_UNSUITABLE',
        `${this.name} refused ${path}: ${message}. It must be etcd 3.4 or newer, and its user may read and write the prefix`,
        { details: { path, status, message } },
      );
    throw new AttemptFailed(`${status} ${message}`, true);
  }

  async #authenticate(endpoint: number, timeoutMs: number): Promise<string> {
    const { user, password = '' } = this.#options;
    const path = '/v3/auth/authenticate';
    try {
      const answer = await this.#exchange(endpoint, { path, body: { name: user, password }, timeoutMs });
      const token = this.#read(answer, path)?.token;
      if (typeof token === 'string') return token;
    } catch (failure) {
      if (!(failure instanceof AttemptFailed)) throw failure;
      // What the token is for was not sent yet.
      throw new AttemptFailed(failure.message, false);
    }
    throw new AttemptFailed('it gave no token', false);
  }

  /**
   * Messages of a call that goes on, each as one line of JSON, until the member ends it, fails, or the signal does. It
   * ends too when another call finds the member silent: a stopped one closes nothing.
   */
  async stream(path: string, body: Json, { signal, onMessage }: StreamOptions): Promise<void> {
    const ended = Promise.withResolvers<void>();
    const endpoint = this.#endpoint;
    const { user, endpoints } = this.#options;
    if (user !== undefined) this.#token ??= await this.#authenticate(endpoint, this.#attemptTimeoutMs);
    if (signal.aborted || this.#closed) return;
    const request = this.#request(endpoints[endpoint]!, path, Buffer.from(JSON.stringify(body)));
    let wanted = false;
    const end = (): void => {
      wanted = true;
      request.destroy();
    };
    const stream = { endpoint, end };
    this.#streams.add(stream);
    signal.addEventListener('abort', end, { once: true });
    request.on('response', (response) => readLines(response, onMessage, end));
    request.on('error', () => {
      if (!wanted) this.#leave(endpoint);
    });
    request.on('close', () => ended.resolve());
    await ended.promise;
    signal.removeEventListener('abort', end);
    this.#streams.delete(stream);
  }

  close(): void {
    this.#closed = true;
    for (const { end } of this.#streams) end();
    this.#agent.destroy();
  }

  /** From here on calls go to the next member, and streams from this one begin anew there. */
  #leave(endpoint: number): void {
    if (this.#endpoint === endpoint) this.#endpoint = (endpoint + 1) % this.#options.endpoints.length;
    for (const stream of this.#streams) if (stream.endpoint === endpoint) stream.end();
  }

  async #exchange(endpoint: number, { path, body, timeoutMs }: Exchange): Promise<Answer> {
    const answered = Promise.withResolvers<Answer>();
    const limitMs = Math.max(1, Math.min(timeoutMs, this.#attemptTimeoutMs));
    const bytes = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
    const request = this.#request(this.#options.endpoints[endpoint]!, path, bytes);
    let sent = false;
    request.on('socket', (socket: Duplex & { connecting?: boolean }) => {
      if (socket.connecting === false) sent = true;
      else socket.once(this.#options.tls === undefined ? 'connect' : 'secureConnect', () => (sent = true));
    });
    const fail = (error: Error): void => answered.reject(new AttemptFailed(error.message, sent));
    const timer = setTimeout(() => request.destroy(new Error(`no answer within ${Math.ceil(limitMs)} ms`)), limitMs);
    request.on('response', (response) => void readAnswer(response).then(answered.resolve, fail));
    request.on('error', fail);
    try {
      return await answered.promise;
    } finally {
      clearTimeout(timer);
    }
  }

  #request(endpoint: string, path: string, body: Buffer | undefined): ClientRequest {
    const { hostname, port } = new URL(`http://${endpoint}`);
    const { tls } = this.#options;
    const options = {
      host: hostname.replace(/^\[|\]$/g, ''),
      port: port === '' ? 80 : Number(port),
      path,
      method: body === undefined ? 'GET' : 'POST',
      agent: this.#agent,
      headers: {
        ...(body && { 'content-type': 'application/json', 'content-length': body.length }),
        ...(this.#token !== undefined && path !== '/v3/auth/authenticate' && { authorization: this.#token }),
      },
    };
    const request = tls === undefined ? httpRequest(options) : httpsRequest({ ...options, ...tls });
    request.end(body);
    return request;
  }

  #unavailable(reason: string, consequence: string): NostosError {
    return new NostosError('COORDINATOR_UNAVAILABLE', `${this.name} does not answer (${reason}). ${consequence}`, {
      details: { endpoints: this.#options.endpoints, reason },
    });
  }
}

interface Exchange {
  readonly path: string;
  readonly body: Json | undefined;
  readonly timeoutMs: number;
}

export interface StreamOptions {
  readonly signal: AbortSignal;
  onMessage(message: Json): void;
}

async function readAnswer(response: IncomingMessage): Promise<Answer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > ANSWER_BYTES_MAX) throw new Error(`the answer is longer than ${ANSWER_BYTES_MAX} bytes`);
    chunks.push(chunk);
  }
  return { status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() };
}

function readLines(response: IncomingMessage, onMessage: (message: Json) => void, end: () => void): void {
  let rest = '';
  response.setEncoding('utf8');
  response.on('data', (chunk: string) => {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      const message = parseObject(line);
      if (message === undefined) return end();
      onMessage(message);
    }
    if (rest.length > STREAM_LINE_BYTES_MAX) end();
  });
  response.on('end', end);
  response.on('error', end);
}

function parseObject(text: string): Json | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : undefined;
  } catch {
    return undefined;
  }
}
