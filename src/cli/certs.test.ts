import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable, Writable } from 'node:stream';
import { test } from 'node:test';
import { connectToService } from '../wire/connect.ts';
import { TcpServiceDispatcher } from '../wire/dispatcher.ts';
import { readTlsIdentity } from '../wire/tls-files.ts';
import { EXIT_CODES } from './exit-codes.ts';
import type { Io } from './io.ts';
import { temporaryDirectory, type Ended } from './nostos-process.fixture.ts';
import { runCli } from './program.ts';

const NODE = 'a'.repeat(32);
const OTHER = 'b'.repeat(32);
const CLUSTER = 'c'.repeat(32);

/** The command in this process: it starts none, and nothing that it does depends on one. */
async function nostos(cwd: string, args: readonly string[]): Promise<Ended> {
  const written = { stdout: '', stderr: '' };
  const into = (name: keyof typeof written) =>
    new Writable({
      write(chunk: Buffer, _encoding, done) {
        written[name] += chunk.toString();
        done();
      },
    });
  const io: Io = {
    stdin: Readable.from([]),
    stdout: into('stdout'),
    stderr: into('stderr'),
    stdinIsTty: false,
    stdoutIsTty: false,
    stderrIsTty: false,
    columns: 200,
    color: false,
    cwd,
    env: {},
    signal: new AbortController().signal,
  };
  return { code: await runCli(args, io), ...written };
}

async function okJson<T>(cwd: string, args: readonly string[]): Promise<T> {
  const ended = await nostos(cwd, [...args, '--json']);
  assert.equal(ended.code, 0, ended.stderr);
  return JSON.parse(ended.stdout) as T;
}

async function files(dir: string): Promise<Record<string, string>> {
  const names = (await readdir(dir)).toSorted();
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, ((await stat(join(dir, name))).mode & 0o777).toString(8)])),
  );
}

test('two nodes speak with certificates that the command made', async (t) => {
  const cwd = await temporaryDirectory(t);
  const ca = await okJson<{ cluster: string }>(cwd, ['certs', 'init', '--out', 'ca', '--cluster', CLUSTER]);
  assert.equal(ca.cluster, CLUSTER);
  assert.deepEqual(await files(join(cwd, 'ca')), { 'ca.crt': '644', 'ca.key': '600' });
  const make = (node: string, out: string) =>
    okJson<object>(cwd, ['certs', 'node', '--ca', 'ca', '--node', node, '--host', '127.0.0.1', '--out', out]);
  const made = await make(NODE, 'one');
  assert.deepEqual(
    { ...made, notAfter: '' },
    {
      dir: join(cwd, 'one'),
      node: NODE,
      cluster: CLUSTER,
      hosts: ['127.0.0.1'],
      notAfter: '',
    },
  );
  await make(OTHER, 'two');
  assert.deepEqual(await files(join(cwd, 'one')), { 'ca.crt': '644', 'node.crt': '644', 'node.key': '600' });

  const [one, two] = await Promise.all([readTlsIdentity(join(cwd, 'one')), readTlsIdentity(join(cwd, 'two'))]);
  await using dispatcher = new TcpServiceDispatcher('127.0.0.1:0', {
    tls: { ...one, allowNodes: [OTHER], cluster: CLUSTER },
  });
  dispatcher.register({ serviceName: 'WHO', handle: (channel) => channel.send(Buffer.from(channel.peerNode!)) });
  const channel = await connectToService(await dispatcher.start(), 'WHO', { tls: { ...two, cluster: CLUSTER } });
  assert.equal(Buffer.from((await channel.receive(5_000))!).toString(), OTHER);
  assert.equal(channel.peerNode, NODE);
  channel.close();
});

test('node and cluster come from a data directory', async (t) => {
  const cwd = await temporaryDirectory(t);
  assert.equal((await nostos(cwd, ['tenant', 'create', 'acme', '--dir', join(cwd, 'data')])).code, 0);
  const identity = JSON.parse(await readFile(join(cwd, 'data', 'node.json'), 'utf8')) as Record<string, string>;
  await okJson(cwd, ['certs', 'init', '--out', 'ca', '--dir', 'data']);
  const made = await okJson<Record<string, unknown>>(cwd, [
    'certs',
    'node',
    '--ca',
    'ca',
    '--dir',
    'data',
    '--out',
    'n',
  ]);
  assert.equal(made['node'], identity['node']);
  assert.equal(made['cluster'], identity['cluster']);
  await okJson(cwd, ['certs', 'init', '--out', 'other', '--cluster', CLUSTER]);
  const mismatch = await nostos(cwd, ['certs', 'node', '--ca', 'other', '--dir', 'data', '--out', 'x']);
  assert.equal(mismatch.code, EXIT_CODES.usage[0]);
  assert.match(mismatch.stderr, /cluster/);
});

test('nothing is replaced, and what is refused leaves nothing', async (t) => {
  const cwd = await temporaryDirectory(t);
  await okJson(cwd, ['certs', 'init', '--out', 'ca', '--days', '10']);
  await okJson(cwd, ['certs', 'node', '--ca', 'ca', '--node', NODE, '--out', 'n', '--days', '9999']);
  const ca = new X509Certificate(await readFile(join(cwd, 'ca', 'ca.crt')));
  const node = new X509Certificate(await readFile(join(cwd, 'n', 'node.crt')));
  assert.equal(node.validTo, ca.validTo, 'not longer than the authority');
  await mkdir(join(cwd, 'half'));
  await writeFile(join(cwd, 'half', 'node.crt'), 'mine');
  await writeFile(join(cwd, 'ca.key'), 'mine');
  const before = await readFile(join(cwd, 'n', 'node.key'), 'utf8');
  const cases: readonly (readonly [readonly string[], keyof typeof EXIT_CODES, RegExp])[] = [
    [['init', '--out', 'ca'], 'failed', /ca\.key is there already[^]*→ Give another directory/],
    [['init', '--out', '.'], 'failed', /is there already/],
    [['node', '--ca', 'ca', '--node', NODE, '--out', 'n'], 'failed', /is there already/],
    [['node', '--ca', 'ca', '--node', NODE, '--out', 'half'], 'failed', /node\.crt is there already/],
    [['init', '--out', 'x', '--cluster', 'mine'], 'usage', /cluster id must be 32/],
    [['init', '--out', 'x', '--days', '0'], 'usage', /1 to 36500 days/],
    [['init'], 'usage', /--out/],
    [['init', '--out', 'x', '--dir', 'nothing'], 'notFound', /no Nostos data directory/],
    [['node', '--ca', 'nothing', '--node', NODE, '--out', 'x'], 'notFound', /nostos certs init/],
    [['node', '--ca', 'ca', '--out', 'x'], 'usage', /--node, or its data with --dir/],
    [['node', '--ca', 'ca', '--node', '../../etc', '--out', 'x'], 'usage', /node id must be 32/],
    [['node', '--ca', 'ca', '--node', NODE, '--host', 'a:80', '--out', 'x'], 'usage', /without port/],
    [['node', '--ca', 'ca', '--node', NODE, '--host', 'a"b, URI:x', '--out', 'x'], 'usage', /a host is/],
    [['node', '--ca', 'ca', '--node', NODE, '--host', '999.1.1.1', '--out', 'x'], 'usage', /a host is/],
    [['node', '--ca', 'ca', '--node', NODE, '--host', '::::', '--out', 'x'], 'usage', /a host is/],
  ];
  for (const [args, exit, message] of cases) {
    const ended = await nostos(cwd, ['certs', ...args]);
    assert.equal(ended.code, EXIT_CODES[exit][0], `${args.join(' ')}: ${ended.stderr}`);
    assert.match(ended.stderr, message);
    assert.equal(ended.stdout, '');
  }
  assert.deepEqual((await readdir(cwd)).toSorted(), ['ca', 'ca.key', 'half', 'n']);
  assert.deepEqual(await readdir(join(cwd, 'half')), ['node.crt']);
  assert.equal(await readFile(join(cwd, 'n', 'node.key'), 'utf8'), before);
});
