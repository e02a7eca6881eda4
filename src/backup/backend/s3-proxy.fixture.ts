/** An HTTP proxy before an S3 server that spoils the next requests of one kind, and counts those that it spoiled. */
import { once } from 'node:events';
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import { createServer, request as httpRequest } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { TestContext } from 'node:test';

export const S3_FAULTS = {
  'an internal error': ({ answer }) => answer(500, 'InternalError'),
  'a request to slow down': ({ answer }) => answer(503, 'SlowDown'),
  'a conflict': ({ answer }) => answer(409, 'ConditionalRequestConflict'),
  'a time limit of the store': ({ answer }) => answer(400, 'RequestTimeout'),
  silence: () => Promise.resolve(),
  'a lost request': ({ hangUp }) => Promise.resolve(hangUp()),
  'a lost reply': async ({ forward, hangUp }) => {
    await forward();
    hangUp();
  },
  'a cut reply': async ({ forward, response }) => {
    const { status, headers, body } = await forward();
    response.writeHead(status, { ...headers, 'content-length': body.length + 10 });
    response.write(body.subarray(0, body.length / 2), () => response.destroy());
  },
  'an error after the headers': ({ response }) => {
    response.writeHead(200, { 'content-type': 'application/xml' });
    response.end('<?xml version="1.0"?><Error><Code>InternalError</Code><Message>later</Message></Error>');
    return Promise.resolve();
  },
} as const satisfies Record<string, (exchange: Exchange) => Promise<void>>;
export type S3Fault = keyof typeof S3_FAULTS;

interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

interface Exchange {
  readonly response: ServerResponse;
  forward(): Promise<Reply>;
  answer(status: number, code: string): Promise<void>;
  hangUp(): void;
}

export interface S3Proxy {
  readonly endpoint: string;
  /** Spoils the next so many requests for which this holds. */
  spoil(fault: S3Fault, times: number, isMeant: (method: string, url: string) => boolean): void;
  fired(): number;
  /** As a store that ignores conditions. */
  ignoreConditions(): void;
  requests(): readonly string[];
}

export async function startS3Proxy(t: TestContext, upstream: string): Promise<S3Proxy> {
  let next: { fault: S3Fault; left: number; isMeant: (method: string, url: string) => boolean } | undefined;
  let fired = 0;
  let isBlind = false;
  const requests: string[] = [];
  const { hostname, port } = new URL(`http://${upstream}`);

  const forward = async (request: IncomingMessage, body: Buffer): Promise<Reply> => {
    const { method = 'GET', url = '/' } = request;
    const headers = { ...request.headers };
    if (isBlind) delete headers['if-none-match'];
    const onward = httpRequest({ host: hostname, port, method, path: url, headers, agent: false });
    onward.end(body);
    const [response] = (await once(onward, 'response')) as [IncomingMessage];
    const chunks = (await Array.fromAsync(response)) as Buffer[];
    return { status: response.statusCode ?? 502, headers: response.headers, body: Buffer.concat(chunks) };
  };

  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { method = '', url = '' } = request;
    const body = Buffer.concat((await Array.fromAsync(request)) as Buffer[]);
    requests.push(`${method} ${url}`);
    if (next !== undefined && next.left > 0 && next.isMeant(method, url)) {
      next.left -= 1;
      fired += 1;
      await S3_FAULTS[next.fault]({
        response,
        forward: () => forward(request, body),
        answer(status, code) {
          response.writeHead(status, { 'content-type': 'application/xml' });
          response.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>${code}</Message></Error>`);
          return Promise.resolve();
        },
        hangUp: () => void request.socket.destroy(),
      });
      return;
    }
    const reply = await forward(request, body);
    response.writeHead(reply.status, reply.headers);
    response.end(reply.body);
  };

  const sockets = new Set<Socket>();
  const server = createServer((request, response) => {
    serve(request, response).catch(() => response.destroy());
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return {
    endpoint: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    spoil(fault, times, isMeant) {
      next = { fault, left: times, isMeant };
      fired = 0;
    },
    fired: () => fired,
    ignoreConditions() {
      isBlind = true;
    },
    requests: () => requests,
  };
}
