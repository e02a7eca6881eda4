/**
 * An HTTP proxy in the path to a coordinator, that loses an answer or holds a request back until long after its sender
 * has given up. Each fault hits the next write, and says when it has.
 */
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, request as httpRequest } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { TestContext } from 'node:test';
import type { DisturbedNetwork, HeldWrite } from './coordinator-compliance.ts';

const TIMEOUT_MS = 30_000;

export interface ProxyOptions {
  /** `host:port` behind it. */
  readonly upstream: string;
  isWrite(method: string, path: string): boolean;
}

type Fault = (exchange: { forward(): Promise<void>; hangUp(): void }) => Promise<void>;

export async function startCoordinatorProxy(
  t: TestContext,
  { upstream, isWrite }: ProxyOptions,
): Promise<DisturbedNetwork & { readonly endpoint: string }> {
  let nextWrite: Fault | undefined;
  const { hostname, port } = new URL(`http://${upstream}`);

  const forward = async (request: IncomingMessage, body: Buffer): Promise<IncomingMessage> => {
    const { method = 'GET', url = '/', headers } = request;
    const onward = httpRequest({ host: hostname, port, method, path: url, headers, agent: false });
    onward.setTimeout(TIMEOUT_MS, () => onward.destroy(new Error('the upstream is silent')));
    onward.end(body);
    const [response] = (await once(onward, 'response')) as [IncomingMessage];
    return response;
  };

  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    const fault = isWrite(request.method ?? '', request.url ?? '') ? nextWrite : undefined;
    if (fault !== undefined) {
      nextWrite = undefined;
      await fault({
        forward: async () => {
          for await (const chunk of await forward(request, body)) void chunk;
        },
        hangUp: () => void request.socket.destroy(),
      });
      return;
    }
    const answer = await forward(request, body);
    response.writeHead(answer.statusCode ?? 502, answer.headers);
    response.flushHeaders();
    response.on('close', () => answer.destroy());
    answer.on('error', () => response.destroy());
    answer.pipe(response);
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
    loseNextReply() {
      const lost = Promise.withResolvers<void>();
      nextWrite = async ({ forward: deliver, hangUp }) => {
        await deliver();
        hangUp();
        lost.resolve();
      };
      return lost.promise;
    },
    holdNextWrite(): HeldWrite {
      const held = Promise.withResolvers<void>();
      const released = Promise.withResolvers<void>();
      const delivered = Promise.withResolvers<void>();
      nextWrite = async ({ forward: deliver }) => {
        held.resolve();
        await released.promise;
        await deliver().then(delivered.resolve, delivered.reject);
      };
      return {
        held: held.promise,
        deliver() {
          released.resolve();
          return delivered.promise;
        },
      };
    },
  };
}
