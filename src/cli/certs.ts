import { open, readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { systemClock } from '../base/clock.ts';
import { makeDirectories } from '../base/make-directory.ts';
import { isDataDirectory } from './node-access.ts';
import { ExitError } from './exit-codes.ts';
import type { Io } from './io.ts';
import { fields } from './render.ts';
import { answer, plainVerb, wholeNumber, type PlainOptions } from './verb.ts';

const CA_FILES = { cert: 'ca.crt', key: 'ca.key' } as const;
const AUTHORITY_DAYS = 3650;
/** Node certificates are to be renewed now and then; the authority stays. */
const NODE_DAYS = 825;

interface FileToWrite {
  readonly name: string;
  readonly text: string;
  readonly private?: true;
}

/** Writes all or none; a file that is there is never replaced. */
async function writeNew(dir: string, files: readonly FileToWrite[]): Promise<void> {
  makeDirectories(dir, 0o700);
  const written: string[] = [];
  try {
    for (const { name, text, private: isPrivate } of files) {
      const path = join(dir, name);
      const file = await open(path, 'wx', isPrivate ? 0o600 : 0o644);
      written.push(path);
      try {
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
    }
  } catch (error) {
    for (const path of written) await rm(path, { force: true });
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    const { path } = error as NodeJS.ErrnoException;
    throw new ExitError(
      'failed',
      `${path} is there already, and is not replaced`,
      'Give another directory with --out.',
    );
  }
}

/** What the data directory says of itself. */
async function identityOf(io: Io, dir: string): Promise<{ readonly node: string; readonly cluster: string }> {
  const path = resolve(io.cwd, dir);
  if (!(await isDataDirectory(path)))
    throw new ExitError('notFound', `there is no Nostos data directory at ${path}`, 'Give its path with --dir.');
  const { loadNode } = await import('../node/node-file.ts');
  return loadNode(path, undefined);
}

async function readAuthority(dir: string): Promise<{ readonly cert: string; readonly key: string }> {
  try {
    const [cert, key] = await Promise.all([
      readFile(join(dir, CA_FILES.cert), 'utf8'),
      readFile(join(dir, CA_FILES.key), 'utf8'),
    ]);
    return { cert, key };
  } catch (error) {
    throw new ExitError(
      'notFound',
      `${dir} holds no authority: ${(error as Error).message}`,
      'nostos certs init --out <path> makes one.',
    );
  }
}

interface InitOptions extends PlainOptions {
  readonly out: string;
  readonly cluster?: string;
  readonly dir?: string;
  readonly days: number;
}

function initVerb(io: Io): Command {
  return plainVerb('init', {
    summary: 'Make an authority: the one whose certificates your nodes accept.',
    description:
      'Writes ca.crt, which every node gets, and ca.key, which makes certificates: keep it away from the nodes. With ' +
      '--cluster or --dir its certificates are for nodes of that cluster only.',
    examples: [
      ['nostos certs init --out ca', 'an authority in ./ca'],
      ['nostos certs init --out ca --dir ./nostos-data', 'for the cluster that this node belongs to'],
    ],
  })
    .requiredOption('--out <path>', 'directory to write into; nothing in it is replaced')
    .option('--cluster <id>', 'cluster of the nodes, 32 hex digits')
    .option('--dir <path>', 'data directory of a node of the cluster')
    .option('--days <count>', 'how long it is valid', wholeNumber('--days'), AUTHORITY_DAYS)
    .action(async (options: InitOptions) => {
      const { createAuthority, summarize } = await import('../wire/certificates.ts');
      const cluster = options.cluster ?? (options.dir && (await identityOf(io, options.dir)).cluster);
      const { cert, key } = await createAuthority(cluster, { nowMs: systemClock.nowMs(), days: options.days });
      const dir = resolve(io.cwd, options.out);
      await writeNew(dir, [
        { name: CA_FILES.key, text: key, private: true },
        { name: CA_FILES.cert, text: cert },
      ]);
      const { notAfter } = summarize(cert);
      const result = { dir, cert: join(dir, CA_FILES.cert), key: join(dir, CA_FILES.key), cluster, notAfter };
      await answer(io, options, result, () =>
        fields(io, [
          ['authority', result.cert],
          ['its key', `${result.key}   keep it secret, and away from the nodes`],
          ['cluster', cluster ?? 'any'],
          ['valid until', notAfter],
          ['next', `nostos certs node --ca ${options.out} --dir <data directory> --host <name> --out <path>`],
        ]),
      );
    });
}

interface NodeOptions extends PlainOptions {
  readonly ca: string;
  readonly out: string;
  readonly node?: string;
  readonly dir?: string;
  readonly host: readonly string[];
  readonly days: number;
}

async function makeNode(io: Io, options: NodeOptions): Promise<void> {
  const { createNodeCertificate, summarize } = await import('../wire/certificates.ts');
  const { TLS_FILES } = await import('../wire/tls-files.ts');
  const authority = await readAuthority(resolve(io.cwd, options.ca));
  const found = options.dir === undefined ? undefined : await identityOf(io, options.dir);
  const node = options.node ?? found?.node;
  if (node === undefined)
    throw new ExitError('usage', 'a certificate is for a node', 'Give its id with --node, or its data with --dir.');
  if (found !== undefined && node !== found.node)
    throw new ExitError(
      'usage',
      `--node ${node} is not the node of --dir, which is ${found.node}`,
      'Give one of them.',
    );
  const issuer = summarize(authority.cert);
  if (found !== undefined && issuer.cluster !== undefined && issuer.cluster !== found.cluster)
    throw new ExitError('usage', `the authority is of cluster ${issuer.cluster}, the node of cluster ${found.cluster}`);
  const validity = { nowMs: systemClock.nowMs(), days: options.days };
  const { cert, key } = await createNodeCertificate(authority, { node, hosts: options.host }, validity);
  const dir = resolve(io.cwd, options.out);
  await writeNew(dir, [
    { name: TLS_FILES.key, text: key, private: true },
    { name: TLS_FILES.cert, text: cert },
    { name: TLS_FILES.ca, text: authority.cert },
  ]);
  const { cluster, notAfter } = summarize(cert);
  const result = { dir, node, cluster, hosts: options.host, notAfter };
  await answer(io, options, result, () =>
    fields(io, [
      ['written', `${dir}: ${Object.values(TLS_FILES).join(', ')}`],
      ['node', node],
      ['cluster', cluster ?? 'any'],
      ['hosts', options.host.join(', ') || 'none: peers must know its id'],
      ['valid until', notAfter],
    ]),
  );
}

function nodeVerb(io: Io): Command {
  return plainVerb('node', {
    summary: 'Make the certificate of a node, signed by the authority.',
    description:
      'Writes node.crt, node.key and a copy of ca.crt: what the node needs to speak with others. It proves the id of the ' +
      'node; others let it in by that id. Whoever connects without knowing the id checks the name that it connects to, ' +
      'so give every DNS name and IP address under which the node is reached.',
    examples: [
      [
        'nostos certs node --ca ca --dir ./nostos-data --host db1.example.com --out certs',
        'for the node in ./nostos-data',
      ],
      ['nostos certs node --ca ca --node 0f…32 hex digits…9c --host 10.0.0.7 --out certs', 'for a node elsewhere'],
    ],
  })
    .requiredOption('--ca <path>', 'directory of the authority, from nostos certs init')
    .requiredOption('--out <path>', 'directory to write into; nothing in it is replaced')
    .option('--dir <path>', 'data directory of the node')
    .option('--node <id>', 'or its id, 32 hex digits, as nostos status shows it')
    .option('--host <name>', 'DNS name or IP address of the node; may be repeated', collect, [])
    .option(
      '--days <count>',
      'how long it is valid, at most as long as the authority',
      wholeNumber('--days'),
      NODE_DAYS,
    )
    .action((options: NodeOptions) => makeNode(io, options));
}

function collect(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

export function certsVerb(io: Io): Command {
  return new Command('certs')
    .summary('Make the certificates with which nodes know each other.')
    .description(
      'Make the certificates with which nodes know each other.\n\n' +
        'A node that listens on anything but loopback needs TLS, and so does every node that connects to it. First make ' +
        'an authority (nostos certs init), then a certificate for each node (nostos certs node), and copy its directory ' +
        'to the machine of the node. Private keys get mode 0600.',
    )
    .addCommand(initVerb(io))
    .addCommand(nodeVerb(io));
}
