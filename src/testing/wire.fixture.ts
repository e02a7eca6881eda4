/** For tests of what goes over sockets: certificates, dispatchers and raw peers that end with the test. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import type { TestContext } from 'node:test';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { createAuthority, createNodeCertificate, type KeyPair } from '../wire/certificates.ts';
import type { Channel, ServiceHandler } from '../wire/channel.ts';
import { TcpServiceDispatcher, type DispatcherOptions } from '../wire/dispatcher.ts';
import { parseAddress } from '../wire/address.ts';
import { encodePreamble } from '../wire/preamble.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';

export const CLUSTER = 'c'.repeat(32);
export const NODE_A = 'a'.repeat(32);
export const NODE_B = 'b'.repeat(32);

const validity = { nowMs: Date.now(), days: 30 };

export const authority: Promise<KeyPair> = createAuthority(CLUSTER, validity);

export async function tlsIdentity(
  node: string,
  from: KeyPair | Promise<KeyPair> = authority,
  hosts: readonly string[] = ['127.0.0.1', 'localhost'],
): Promise<TlsIdentity> {
  const issuer = await from;
  return { ca: issuer.cert, ...(await createNodeCertificate(issuer, { node, hosts }, validity)) };
}

/** A dispatcher on a free loopback port, stopped with the test. */
export async function startDispatcher(
  t: TestContext,
  handlers: readonly ServiceHandler[],
  options: DispatcherOptions = {},
): Promise<{ readonly dispatcher: TcpServiceDispatcher; readonly address: string }> {
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0', options);
  for (const handler of handlers) dispatcher.register(handler);
  const address = await dispatcher.start();
  t.after(() => dispatcher.stop());
  return { dispatcher, address };
}

export function handler(serviceName: string, handle: ServiceHandler['handle']): ServiceHandler {
  return { serviceName, handle };
}

/** Sends back what it gets. */
export const ECHO: ServiceHandler = handler('ECHO', async (channel, { signal }) => {
  for (;;) {
    const frame = await channel.receive(60_000, { signal });
    if (frame !== null) await channel.send(frame);
  }
});

/** A service that hands its channel to the test and lives as long as the channel. */
export function handOver(serviceName: string): {
  readonly service: ServiceHandler;
  readonly channel: Promise<Channel>;
} {
  const { promise, resolve } = Promise.withResolvers<Channel>();
  const service = handler(serviceName, async (channel, { signal }) => {
    resolve(channel);
    if (!signal.aborted) await once(signal, 'abort');
  });
  return { service: { ...service, requestBytesMax: DEFAULT_LIMITS.frameBytesMax }, channel: promise };
}

/** A socket without any of our code, ended with the test. */
export async function rawClient(t: TestContext, address: string): Promise<Socket> {
  const socket = connect({ ...parseAddress(address), allowHalfOpen: true });
  t.after(() => socket.destroy());
  socket.on('error', () => {});
  await once(socket, 'connect');
  return socket;
}

/** A server that does with each connection what the test says, ended with the test. */
export async function rawServer(t: TestContext, serve: (socket: Socket) => void): Promise<string> {
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket.on('error', () => {}));
    serve(socket);
  }).listen(0, '127.0.0.1');
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  await once(server, 'listening');
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Everything that the peer sends until it ends; fails where it does not end in time. */
export async function untilEnd(socket: Socket, timeoutMs = 5_000): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const timer = setTimeout(() => reject(new Error(`the peer did not end in ${timeoutMs} ms`)), timeoutMs);
  socket.once('end', resolve).once('close', resolve);
  if (socket.readableEnded || socket.destroyed) resolve();
  await promise;
  clearTimeout(timer);
  return Buffer.concat(chunks);
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

export function frame(payload: string | Uint8Array): Buffer {
  const bytes = Buffer.from(payload as string);
  return Buffer.concat([u32(bytes.length), bytes]);
}

export function preamble(name: string): Buffer {
  return Buffer.from(encodePreamble(name));
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Waits until it holds; fails when it does not in time. */
export async function eventually(holds: () => boolean, what: string, timeoutMs = 5_000): Promise<void> {
  const until = performance.now() + timeoutMs;
  while (!holds()) {
    assert.ok(performance.now() < until, `in ${timeoutMs} ms: ${what}`);
    await sleep(2);
  }
}
