/**
 * Servers that speak S3 on loopback. One is a real implementation by others (moto, where Python has it), with its checks
 * made one at a time. The other is a fake of our own that knows four requests and may be told to break a rule.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

export interface S3Server {
  /** `host:port`. */
  readonly endpoint: string;
  close(): Promise<void>;
}

export const S3_BUCKET = 'nostos-test';

/** The credentials that both servers take, for a process and its children. */
export function useTestCredentials(): void {
  Object.assign(process.env, {
    AWS_ACCESS_KEY_ID: 'test',
    AWS_SECRET_ACCESS_KEY: 'test',
    AWS_EC2_METADATA_DISABLED: 'true',
  });
}

/** Why no real S3 server can be started here; undefined where one can. */
export function realS3Missing(): string | undefined {
  const { status } = spawnSync('python3', ['-c', 'import moto.server, flask, werkzeug'], { stdio: 'ignore' });
  return status === 0 ? undefined : 'there is no S3 server that honours conditions (pip install "moto[s3,server]")';
}

/** moto checks a condition and writes in two steps, so requests are let in one by one, after their bodies were read. */
const MOTO = `
import io, sys, threading
from moto.server import create_backend_app
from werkzeug.serving import make_server, WSGIRequestHandler
app = create_backend_app("s3")
lock = threading.Lock()
def one_by_one(environ, start_response):
    size = int(environ.get("CONTENT_LENGTH") or 0)
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(size))
    with lock:
        return list(app(environ, start_response))
class Silent(WSGIRequestHandler):
    def log(self, *args): pass
server = make_server("127.0.0.1", 0, one_by_one, threaded=True, request_handler=Silent)
print(server.server_port, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
server.serve_forever()
`;

/** It ends with its standard input, so also when this process is killed. */
export async function startRealS3(): Promise<S3Server> {
  const child: ChildProcess = spawn('python3', ['-c', MOTO], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = once(child, 'exit').then(() => Promise.reject(new Error('the S3 server ended as it started')));
  const started = once(createInterface({ input: child.stdout! }), 'line') as Promise<[string]>;
  const [port] = await Promise.race([started, ended]);
  ended.catch(() => undefined);
  const endpoint = `127.0.0.1:${port}`;
  const created = await fetch(`http://${endpoint}/${S3_BUCKET}`, { method: 'PUT' });
  if (!created.ok) throw new Error(`the bucket was not created: ${created.status} ${await created.text()}`);
  return {
    endpoint,
    async close() {
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    },
  };
}

/** What a store may do wrong; each of them would let two primaries win. */
export const FAKE_S3_FAULTS = [
  'ignores-conditions',
  'ignores-if-match',
  'ignores-if-none-match',
  'checks-then-writes',
  'writes-then-refuses',
  'gives-one-etag',
  'serves-old-content',
  'knows-no-conditions',
  'denies-access',
  'has-no-bucket',
] as const;
export type FakeS3Fault = (typeof FAKE_S3_FAULTS)[number];

export interface FakeS3 extends S3Server {
  /** How often it broke its rule. */
  fired(): number;
  keys(): string[];
}

/** Not S3: just enough of it for an adapter, with checks that are atomic because one thread makes them in one step. */
export async function startFakeS3(fault?: FakeS3Fault): Promise<FakeS3> {
  const objects = new Map<string, Buffer>();
  const first = new Map<string, Buffer>();
  let fired = 0;
  const fires = (wanted: FakeS3Fault): boolean => {
    if (fault !== wanted) return false;
    fired += 1;
    return true;
  };
  const etagOf = (body: Buffer): string =>
    fires('gives-one-etag') ? '"0"' : `"${createHash('md5').update(body).digest('hex')}"`;

  const put = async (key: string, body: Buffer, request: IncomingMessage): Promise<Reply> => {
    const wanted = { match: request.headers['if-match'], none: request.headers['if-none-match'] };
    if (wanted.match === undefined && wanted.none === undefined) return failure(400, 'UnconditionalWrite');
    if (fires('knows-no-conditions')) return failure(501, 'NotImplemented');
    const present = objects.get(key);
    if (wanted.match !== undefined && present === undefined) return failure(404, 'NoSuchKey');
    const holds =
      wanted.match === undefined ? present === undefined : present !== undefined && etagOf(present) === wanted.match;
    const ignored =
      !holds &&
      (fires('ignores-conditions') ||
        (wanted.match !== undefined && fires('ignores-if-match')) ||
        (wanted.none !== undefined && fires('ignores-if-none-match')));
    if (!holds && fires('writes-then-refuses')) objects.set(key, body);
    if (!holds && !ignored) return failure(412, 'PreconditionFailed');
    if (fires('checks-then-writes')) await sleep(20);
    if (!first.has(key)) first.set(key, body);
    objects.set(key, body);
    return { status: 200, headers: { etag: etagOf(body) }, body: '' };
  };

  const list = (query: URLSearchParams): Reply => {
    const prefix = query.get('prefix') ?? '';
    const after = query.get('start-after') ?? '';
    const keys = [...objects.keys()].filter((key) => key.startsWith(prefix) && key > after);
    const page = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    const contents = page
      .slice(0, Number(query.get('max-keys') ?? 1_000))
      .map((key) => `<Contents><Key>${key}</Key></Contents>`);
    return { status: 200, headers: {}, body: `<ListBucketResult>${contents.join('')}</ListBucketResult>` };
  };

  const answer = async (request: IncomingMessage): Promise<Reply> => {
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const url = new URL(request.url ?? '/', 'http://fake');
    const [, bucket, ...path] = decodeURIComponent(url.pathname).split('/');
    const key = path.join('/');
    if (bucket !== S3_BUCKET || fires('has-no-bucket')) return failure(404, 'NoSuchBucket');
    if (fires('denies-access')) return failure(403, 'AccessDenied');
    if (request.method === 'PUT') return put(key, Buffer.concat(chunks), request);
    if (request.method === 'DELETE') objects.delete(key);
    if (request.method === 'DELETE') return { status: 204, headers: {}, body: '' };
    if (key === '') return list(url.searchParams);
    const body = fires('serves-old-content') ? first.get(key) : objects.get(key);
    if (body === undefined) return failure(404, 'NoSuchKey');
    return { status: 200, headers: { etag: etagOf(body) }, body };
  };

  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    answer(request)
      .then(({ status, headers, body }) => {
        response.writeHead(status, { 'content-length': Buffer.byteLength(body), ...headers });
        return response.end(body);
      })
      .catch(() => response.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    endpoint: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    fired: () => fired,
    keys: () => [...objects.keys()],
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

interface Reply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | Buffer;
}

function failure(status: number, code: string): Reply {
  return { status, headers: {}, body: `<Error><Code>${code}</Code><Message>${code}</Message></Error>` };
}
