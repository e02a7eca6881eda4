/**
 * Puts into etcd as its own clients send them: gRPC over HTTP/2, many calls on one connection. Only what a put needs of
 * gRPC is here: one message each way, written by hand, and the status in the trailers.
 */
import { connect, constants, type ClientHttp2Session } from 'node:http2';
import type { Writes } from './writers.ts';

const PUT = {
  [constants.HTTP2_HEADER_METHOD]: 'POST',
  [constants.HTTP2_HEADER_PATH]: '/etcdserverpb.KV/Put',
  [constants.HTTP2_HEADER_CONTENT_TYPE]: 'application/grpc',
  [constants.HTTP2_HEADER_TE]: 'trailers',
};
/** Keys of eight bytes, as those of etcd's own benchmark. */
const KEY_BYTES = 8;

export interface PutLoad {
  readonly writers: number;
  readonly durationMs: number;
  readonly valueBytes: number;
}

export async function putIntoEtcd(endpoint: string, load: PutLoad): Promise<Writes> {
  const session = connect(`http://${endpoint}`);
  try {
    return await measure(session, load);
  } finally {
    session.close();
  }
}

async function measure(session: ClientHttp2Session, { writers, durationMs, valueBytes }: PutLoad): Promise<Writes> {
  const latencies: number[] = [];
  const startedMs = performance.now();
  const untilMs = startedMs + durationMs;
  let next = 0;
  const writer = async (): Promise<void> => {
    for (let nowMs = performance.now(); nowMs < untilMs;) {
      await put(session, message(next++, valueBytes));
      const doneMs = performance.now();
      latencies.push(doneMs - nowMs);
      nowMs = doneMs;
    }
  };
  await Promise.all(Array.from({ length: writers }, writer));
  return { perSecond: (latencies.length / (performance.now() - startedMs)) * 1000, latencies };
}

function put(session: ClientHttp2Session, body: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    const stream = session.request(PUT);
    let status: unknown;
    stream.on('trailers', (trailers) => (status = trailers['grpc-status']));
    stream.on('error', reject);
    stream.on('close', () => {
      if (status === '0') resolve();
      else reject(new Error(`etcd refused a put: grpc-status ${String(status)}`));
    });
    stream.resume();
    stream.end(body);
  });
}

/** `PutRequest {key: 1, value: 2}`, behind the five bytes that gRPC puts before a message. */
function message(key: number, valueBytes: number): Uint8Array {
  const value = [0x12, ...varint(valueBytes)];
  const length = 2 + KEY_BYTES + value.length + valueBytes;
  const bytes = Buffer.alloc(5 + length, 'x');
  bytes.writeUInt8(0, 0);
  bytes.writeUInt32BE(length, 1);
  bytes.set([0x0a, KEY_BYTES], 5);
  bytes.write(String(key).padStart(KEY_BYTES, '0'), 7, 'latin1');
  bytes.set(value, 7 + KEY_BYTES);
  return bytes;
}

function varint(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...varint(value >>> 7)];
}
