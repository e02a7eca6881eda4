/** Directories, and peers that say exactly the bytes that a test gives them, in whatever way it wants. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { crc32 } from 'node:zlib';
import { encodeCount, encodeCrc, encodeFileHeader } from './body.ts';
import { STAGING } from './local-directory.ts';
import type { NetworkRestoreConfig, Trailer } from './types.ts';

export type Files = Readonly<Record<string, string>>;

/** A directory with these files, which goes with the test. */
export function directoryOf(t: TestContext, files: Files = {}): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-reference-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, name), text);
  return dir;
}

/** What a directory holds, without the lock that a restore leaves. What was staged shows by its name. */
export function contentOf(dir: string): Files {
  const entries = readdirSync(dir, { withFileTypes: true }).filter(({ name }) => name !== 'lock');
  return Object.fromEntries(
    entries.map((entry) => [
      entry.name,
      entry.isDirectory() ? '(directory)' : readFileSync(join(dir, entry.name), 'utf8'),
    ]),
  );
}

export function stagedIn(dir: string): string[] {
  return readdirSync(dir).includes(STAGING) ? readdirSync(join(dir, STAGING)) : [];
}

/** A restore body; `crc` lets a test lie about one file. */
export function bodyOf(
  files: Files,
  options: { trailer?: Trailer; crc?: (name: string, right: number) => number } = {},
): Buffer {
  const { trailer = 'crc32', crc = (_, right) => right } = options;
  const parts = Object.entries(files).flatMap(([name, text]) => [
    encodeFileHeader(name, Buffer.byteLength(text)),
    Buffer.from(text),
    ...(trailer === 'crc32' ? [encodeCrc(crc(name, crc32(text)))] : []),
  ]);
  return Buffer.concat([encodeCount(Object.keys(files).length), ...parts]);
}

export function frameOf(payload: Uint8Array): Buffer {
  return Buffer.concat([encodeCount(payload.length), payload]);
}

export interface Peer {
  readonly port: number;
  readonly address: string;
  /** What clients have sent, all of them together. */
  readonly received: () => Buffer;
  readonly connections: () => number;
}

/** Answers each connection with `answer` once `requestBytes` have come. */
export async function peerThat(
  t: TestContext,
  answer: (socket: Socket) => void | Promise<void>,
  requestBytes = 4,
): Promise<Peer> {
  let received = Buffer.alloc(0);
  let connections = 0;
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    connections += 1;
    let here = 0;
    sockets.add(socket);
    socket.on('error', () => {}).on('close', () => sockets.delete(socket));
    socket.on('data', (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      const before = here;
      here += chunk.length;
      if (before < requestBytes && here >= requestBytes) void answer(socket);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const { port } = server.address() as { port: number };
  return { port, address: `127.0.0.1:${port}`, received: () => received, connections: () => connections };
}

/** Bytes of the preamble, the frame header and the magic. */
export const DISPATCHER_REQUEST_BYTES = 4 + 7 + 4 + 4;

/** Writes these pieces, waits for an answer to end, and gives it back. */
export async function exchange(address: string, pieces: readonly Uint8Array[]): Promise<Buffer> {
  const [host, port] = address.split(':');
  const socket = connect(Number(port), host);
  socket.setNoDelay(true);
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  const closed = new Promise<void>((resolve) => {
    socket.on('error', () => {}).on('close', () => resolve());
  });
  for (const piece of pieces) await new Promise<void>((resolve) => socket.write(piece, () => resolve()));
  await closed;
  return Buffer.concat(chunks);
}

export function configFor(port: number, config: Partial<NetworkRestoreConfig> = {}): NetworkRestoreConfig {
  return { sourceNode: 'node1', sourceHost: '127.0.0.1', sourcePort: port, retainLogFiles: true, ...config };
}
