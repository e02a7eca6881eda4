import { X509Certificate } from 'node:crypto';
import { join, resolve } from 'node:path';
import { once } from 'node:events';
import { Option, type Command } from 'commander';
import { toNodeId } from '../base/brands.ts';
import { GROWN_BYTES_BACKGROUND, collectIfGrown } from '../base/collect.ts';
import { systemClock } from '../base/clock.ts';
import { makeDirectories } from '../base/make-directory.ts';
import { isServed } from '../node/admin-socket.ts';
import { addToken, hashToken, ownerToken, readTokenFile, type Grant } from '../node/http/tokens.ts';
import { loadNode } from '../node/node-file.ts';
import type { Access } from '../node/operations.ts';
import type { GroupConfig } from '../node/group-config.ts';
import type { Node, NodeOptions } from '../node/types.ts';
import { parseAddress } from '../wire/address.ts';
import { readTlsIdentity } from '../wire/tls-files.ts';
import { parseIdentity } from '../wire/tls-identity.ts';
import { keepPolicy, scheduleOptions, timeSpan, type ServeBackupOptions } from './backup-options.ts';
import { ExitError } from './exit-codes.ts';
import { readGroupConfig, withGroupOptions } from './group-options.ts';
import { print, type Io } from './io.ts';
import { isDataDirectory } from './node-access.ts';
import { style } from './render.ts';
import { answer, byteRate, verb, wholeNumber, type VerbOptions } from './verb.ts';

interface ServeOptions extends VerbOptions, ServeBackupOptions {
  readonly host: string;
  readonly port: number;
  readonly tokenFile?: string;
  readonly newToken?: Access;
  readonly tenants: string;
  readonly listen?: string;
  readonly copyRate?: number;
  readonly tlsDir?: string;
  readonly allowNode: readonly string[];
  readonly restoreFrom: readonly string[];
  readonly copies: boolean;
}

export const OWNER_TOKEN_FILE = 'owner.token';

async function makeToken(io: Io, options: ServeOptions): Promise<void> {
  if (options.tokenFile === undefined)
    throw new ExitError('usage', '--new-token adds to a token file', 'Say which: --token-file tokens.json');
  const file = resolve(io.cwd, options.tokenFile);
  const tenants = options.tenants.split(',').map((name) => name.trim());
  const token = await addToken(file, { tenants, access: options.newToken! });
  await answer(io, options, { token, file, tenants, access: options.newToken }, () => token);
}

interface GrantedAccess {
  readonly grants: readonly Grant[];
  /** The owner's token, where there is no token file. */
  readonly token?: string;
}

/** Without a token file one token counts, which only the owner of the data directory can read. */
async function readGrants(io: Io, options: ServeOptions, dir: string): Promise<GrantedAccess> {
  if (options.tokenFile !== undefined) return { grants: await readTokenFile(resolve(io.cwd, options.tokenFile)) };
  const token = await ownerToken(join(dir, OWNER_TOKEN_FILE));
  return { grants: [{ hash: hashToken(token), tenants: ['*'], access: 'admin' }], token };
}

async function announce(
  io: Io,
  options: ServeOptions,
  served: { url: string; dir: string; address: string | undefined } & GrantedAccess,
): Promise<void> {
  const { url, dir, address, token } = served;
  if (options.json) return answer(io, options, { url, dir, address, pid: process.pid }, () => '');
  // A token on a terminal is for its reader; elsewhere it would end up in a log.
  const page = token !== undefined && io.stdoutIsTty ? `${url}/#token=${token}` : `${url}/`;
  const how =
    token === undefined
      ? `tokens of ${options.tokenFile}`
      : `the token in ${join(dir, OWNER_TOKEN_FILE)}, for its owner only`;
  const nodes = address === undefined ? '' : `  other nodes  ${address}: nostos restore --from ${address}\n`;
  return print(
    io.stdout,
    `serving ${style(io, 'bold', dir)}\n  status page  ${style(io, 'cyan', page)}\n  API          ${url}/v1/…  metrics ${url}/metrics\n  access       ${how}\n${nodes}Ctrl-C ends it.\n`,
  );
}

/** Where other nodes connect; `undefined` where none do. */
async function listenOptions(
  io: Io,
  options: ServeOptions,
  dir: string,
  inGroup: boolean,
): Promise<NodeOptions['listen']> {
  const { listen, tlsDir, allowNode, copyRate } = options;
  if (!options.copies && listen !== undefined)
    throw new ExitError('usage', '--no-copies contradicts --listen', 'Give one of the two.');
  if (listen === undefined) {
    if (!options.copies) return false;
    if ((tlsDir === undefined || inGroup) && allowNode.length === 0 && copyRate === undefined) return undefined;
    const option =
      tlsDir !== undefined && !inGroup ? '--tls-dir' : allowNode.length > 0 ? '--allow-node' : '--copy-rate';
    throw new ExitError('usage', `${option} is for --listen`, 'Say where other nodes connect: --listen host:port');
  }
  const address = { ...parseAddress(listen), ...(copyRate === undefined ? {} : { rateBytesPerSecond: copyRate }) };
  if (tlsDir === undefined) {
    if (allowNode.length === 0) return address;
    throw new ExitError('usage', '--allow-node needs --tls-dir', 'Without TLS nobody shows which node it is.');
  }
  for (const id of allowNode) toNodeId(id);
  const tls = await readTlsIdentity(resolve(io.cwd, tlsDir));
  // A member that has nothing yet becomes the node that its certificate names.
  if (!inGroup || (await isDataDirectory(dir))) await checkCertificate(options, dir, tls.cert);
  return { ...address, tls: allowNode.length === 0 ? tls : { ...tls, allowNodes: allowNode } };
}

/** Nobody would let in, or find, a node whose certificate is of another one. */
async function checkCertificate(
  { dir: shown, tlsDir, allowNode }: ServeOptions,
  dir: string,
  cert: string,
): Promise<void> {
  const remedy = `nostos certs node --ca <dir of the authority> --dir ${shown} --host <name> --out <path> makes the right one.`;
  const refusal = (why: string): ExitError => new ExitError('usage', `the certificate in ${tlsDir} ${why}`, remedy);
  if (!(await isDataDirectory(dir)))
    throw refusal(
      `is of no node, since there is none at ${dir} yet; make it first, as with nostos serve --dir ${shown}`,
    );
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(cert);
  } catch (error) {
    throw refusal(`cannot be read: ${(error as Error).message}`);
  }
  const { node, cluster } = loadNode(dir, undefined);
  const named = parseIdentity(certificate.subjectAltName);
  if (named?.node !== node)
    throw refusal(`names ${named === undefined ? 'no node' : `node ${named.node}`}; this is ${node}`);
  // The peers have theirs from the same authority.
  const clusterMatters = named?.cluster !== undefined || allowNode.length === 0;
  if (clusterMatters && named?.cluster !== cluster)
    throw refusal(
      `names ${named?.cluster === undefined ? 'no cluster' : `cluster ${named.cluster}`}; this node is of ${cluster}`,
    );
  if (certificate.validToDate.getTime() <= systemClock.nowMs()) throw refusal(`ended on ${certificate.validTo}`);
}

async function serve(io: Io, options: ServeOptions, command: Command): Promise<void> {
  const dir = resolve(io.cwd, options.dir);
  if (await isServed(dir))
    throw new ExitError(
      'retry',
      `a process has ${dir} open already`,
      'End it first; nostos status --dir shows which it is.',
    );
  const config = await readGroupConfig(io, command);
  if (config === undefined && options.restoreFrom.length > 0)
    throw new ExitError('usage', '--restore-from is for a member of a group', 'Name its coordinator: --coordinator');
  if (config === undefined && !options.copies)
    throw new ExitError('usage', '--no-copies is for a member of a group', 'Others copy nobody who has no --listen.');
  const listen = await listenOptions(io, options, dir, config !== undefined);
  const group = config === undefined ? {} : await groupOptions(io, options, config);
  const backup = scheduleOptions(io, options);
  makeDirectories(dir);
  const access = await readGrants(io, options, dir);
  const served = {
    dir,
    access,
    node: { dir, signal: io.signal, ...group, ...backup, ...(listen === undefined ? {} : { listen }) },
  };
  // A node that has left its group comes home when it is opened again; how often, `rejoin.json` counts.
  while ((await serveOnce(io, options, served)) === 'left');
}

/** Until the user ends it, or the node has to be opened again. */
async function serveOnce(
  io: Io,
  options: ServeOptions,
  { dir, access, node: nodeOptions }: { dir: string; access: GrantedAccess; node: NodeOptions },
): Promise<'ended' | 'left'> {
  const { openNode } = await import('../node/open-node.ts');
  const { serveHttp } = await import('../node/http/server.ts');
  await using node = await openNode(nodeOptions);
  const { listen } = nodeOptions;
  const server = await serveHttp({ node, host: options.host, port: options.port, grants: access.grants });
  try {
    if (listen !== undefined && listen !== false && listen.tls === undefined)
      await print(
        io.stderr,
        'warning: --listen without --tls-dir: every local user of this machine can copy this node.\n',
      );
    await announce(io, options, { url: server.url, dir, address: node.address, ...access });
    collectIfGrown(GROWN_BYTES_BACKGROUND); // what starting has left
    const left = node.group?.left;
    const stop = left === undefined ? io.signal : AbortSignal.any([io.signal, left]);
    if (!stop.aborted) await once(stop, 'abort');
    if (io.signal.aborted || left === undefined) return 'ended';
    await print(io.stderr, `${(left.reason as Error).message}\n`);
    return 'left';
  } finally {
    await server.close();
    await leave(io, node);
  }
}

/** A primary that ends hands over first, where somebody can take over: nobody has to wait for its lease then. */
async function leave(io: Io, node: Node): Promise<void> {
  if (node.group === undefined || node.role !== 'primary') return;
  if ((await node.group.report()).replicas.length === 0) return;
  try {
    await node.group.handover();
  } catch (error) {
    await print(io.stderr, `no handover: ${(error as Error).message}\n`);
  }
}

async function groupOptions(
  io: Io,
  { restoreFrom }: ServeOptions,
  config: GroupConfig,
): Promise<Pick<NodeOptions, 'group' | 'limits'>> {
  const { coordinator, group: name, listen, advertise, tlsDir, durability, limits } = config;
  const tls = tlsDir === undefined ? {} : { tls: await readTlsIdentity(tlsDir) };
  const address = { ...parseAddress(listen), ...tls };
  const where = advertise === undefined ? {} : { advertise };
  const onRejoin = (text: string): void => void print(io.stderr, `${text}\n`);
  return { group: { coordinator, name, listen: address, durability, restoreFrom, onRejoin, ...where }, limits };
}

function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

export function serveVerb(io: Io): Command {
  const command = verb('serve', {
    summary: 'Run a node with HTTP: API, metrics and a status page.',
    description:
      'Serves HTTP on loopback only. Requests to /v1 and /metrics need a bearer token: those of --token-file, or without one ' +
      `the owner's, which is kept in <dir>/${OWNER_TOKEN_FILE} with mode 0600. /healthz and /readyz need none. Makes the ` +
      'data directory where there is none. With --listen other nodes may copy this one (nostos restore --from); any address ' +
      'but loopback needs --tls-dir, and then every node whose certificate names this cluster may, or those of --allow-node ' +
      'only. Without --tls-dir nobody is asked who he is: every local user of the machine can copy the node, whatever the ' +
      'modes of its files are. Ends with exit code 0 on Ctrl-C or SIGTERM.',
    examples: [
      ['nostos serve', 'on http://127.0.0.1:4040, with the owner’s token'],
      [
        'nostos serve --new-token read --tenants acme,globex --token-file tokens.json',
        'make a token and print it, once',
      ],
      ['nostos serve --token-file tokens.json --port 8080', 'only these tokens count'],
      ['nostos serve --listen 127.0.0.1:4041', 'and let other nodes copy this one'],
      [
        'nostos serve --coordinator etcd://10.0.0.9:2379 --group-listen db1:4100 --tls-dir certs',
        'as a member of the group main',
      ],
      [
        'nostos serve --backup-to s3://backups/shop --backup-keep last=24,daily=14',
        'and back it up every hour, its log every ten seconds',
      ],
      ['curl -H "Authorization: Bearer $TOKEN" 127.0.0.1:4040/v1/status', 'ask it'],
    ],
  })
    .option('--host <address>', 'loopback address', '127.0.0.1')
    .option('--port <number>', '0: any free one', wholeNumber('--port'), 4040)
    .option('--listen <host:port>', 'serve other nodes there; port 0: any free one')
    .option(
      '--copy-rate <bytes>',
      'copies take at most so much per second together; not those of the service RESTORE of the reference',
      byteRate('--copy-rate'),
    )
    .option('--tls-dir <dir>', 'ca.crt, node.crt and node.key, made by nostos certs node')
    .option('--allow-node <id>', 'only this node may copy; may be repeated', collect, [])
    .option(
      '--restore-from <host:port>',
      'in a group: a further node that can be copied, to begin, or when this one needs a copy; members say by themselves where they can be; may be repeated',
      collect,
      [],
    )
    .option('--no-copies', 'in a group: do not let the other members copy this one')
    .option('--backup-to <url>', 'make backups there: a directory, file:<directory> or s3://<bucket>/<prefix>')
    .option('--backup-every <span>', 'between snapshots, such as 15m or 1h (default)', timeSpan('--backup-every'))
    .option('--archive-every <span>', 'between runs of the log archive (default 10s)', timeSpan('--archive-every'))
    .option('--backup-keys <file>', 'keyring: encrypt the backups; made where there is none')
    .option(
      '--backup-keep <policy>',
      'after each snapshot remove those that this does not keep, such as last=24,daily=14',
      keepPolicy('--backup-keep'),
    )
    .option('--token-file <file>', 'JSON file of hashed tokens')
    .addOption(new Option('--new-token <access>', 'make a token, print it and end').choices(['read', 'write', 'admin']))
    .option('--tenants <names>', 'for --new-token: comma-separated, * for all', '*')
    .action((options: ServeOptions) =>
      options.newToken === undefined ? serve(io, options, command) : makeToken(io, options),
    );
  return withGroupOptions(command, ['coordinator', 'group', 'listen', 'advertise', 'durability', 'limits']);
}
