/**
 * `node.json`: who this node is. Written when a directory is formatted, or by the restore that made it; then the node is a
 * copy, which starts no term and appends nothing.
 */
import { join } from 'node:path';
import {
  toClusterId,
  toGeneration,
  toLsn,
  toNodeId,
  toStoreId,
  toTerm,
  type ClusterId,
  type Generation,
  type Lsn,
  type NodeId,
  type StoreId,
  type Term,
} from '../base/brands.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';

export const NODE_FORMAT = 1;
/** Of a copy: a Nostos that knows no copies must not open it, since it would start a term. */
const COPY_FORMAT = 2;
const NODE_FILE = 'node.json';

export interface NodeIdentity {
  readonly node: NodeId;
  readonly store: StoreId;
  readonly cluster: ClusterId;
  readonly generation: Generation;
  /** Where the node is a copy that a restore made. */
  readonly copy?: CopyOrigin;
}

export interface CopyOrigin {
  /** The store that was copied, where that is known. */
  readonly source: StoreId | null;
  /**
   * The log reaches up to here, or has lost something: W of the source when the copy was cut, the end of the log once it
   * was verified. Null where the source does not say.
   */
  readonly reaches: { readonly term: Term; readonly lsn: Lsn } | null;
}

/** Reads the identity of a directory, or formats an empty one. */
export function loadNode(dir: string, cluster: ClusterId | undefined): NodeIdentity {
  const path = join(dir, NODE_FILE);
  const bytes = readIfExists(systemDisk, path);
  const identity = bytes === undefined ? formatNode(dir, cluster) : parseNode(path, bytes);
  if (cluster !== undefined && identity.cluster !== cluster)
    throw new NostosError(
      'DIRECTORY_FOREIGN',
      `${dir} belongs to cluster ${identity.cluster}, not ${cluster}; give the directory of this cluster, or an empty one`,
      { details: { dir, found: identity.cluster, wanted: cluster } },
    );
  return identity;
}

function formatNode(dir: string, cluster: ClusterId | undefined): NodeIdentity {
  // A log without an identity is not ours to adopt: whoever made it, it must not be continued under a new name.
  if (systemDisk.exists(join(dir, 'log')) && systemDisk.list(join(dir, 'log')).some((name) => name.endsWith('.ndb')))
    throw new NostosError(
      'DIRECTORY_FOREIGN',
      `${dir} has a log but no ${NODE_FILE}; put that file back, or give an empty directory`,
    );
  const identity: NodeIdentity = {
    node: toNodeId(randomHex128(systemRandom)),
    store: toStoreId(randomHex128(systemRandom)),
    cluster: cluster ?? toClusterId(randomHex128(systemRandom)),
    generation: toGeneration(randomHex128(systemRandom)),
  };
  writeNode(dir, identity);
  return identity;
}

export function writeNode(dir: string, identity: NodeIdentity, disk: Disk = systemDisk): void {
  writeDurably(disk, join(dir, NODE_FILE), encodeNode(identity));
}

export function encodeNode(identity: NodeIdentity): Uint8Array {
  const { node, store, cluster, generation, copy } = identity;
  const format = copy === undefined ? NODE_FORMAT : COPY_FORMAT;
  return Buffer.from(`${JSON.stringify({ format, node, store, cluster, generation, copy }, null, 2)}\n`);
}

/** How a restore reads and writes `node.json` (`IdentityCodec` of `restore/local`). */
export const nodeFileCodec = {
  parse: (bytes: Uint8Array): NodeIdentity => parseNode(NODE_FILE, bytes),
  formatCopy: (identity: NodeIdentity, copy: CopyOrigin): Uint8Array => encodeNode({ ...identity, copy }),
};

function parseNode(path: string, bytes: Uint8Array): NodeIdentity {
  let fields: Record<string, unknown>;
  try {
    fields = JSON.parse(Buffer.from(bytes).toString()) as Record<string, unknown>;
    if (typeof fields !== 'object' || fields === null) throw new Error('it is not an object');
  } catch (error) {
    throw new NostosError('UNSUPPORTED_FORMAT', `${path} is not a node file of Nostos`, { cause: error });
  }
  if (fields['format'] !== NODE_FORMAT && fields['format'] !== COPY_FORMAT)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `${path} has format ${String(fields['format'])}, this Nostos knows up to ${COPY_FORMAT}; run the version that wrote it, or a newer one`,
      { details: { format: fields['format'], known: COPY_FORMAT } },
    );
  try {
    return {
      node: toNodeId(fields['node']),
      store: toStoreId(fields['store']),
      cluster: toClusterId(fields['cluster']),
      generation: toGeneration(fields['generation']),
      ...(fields['format'] === COPY_FORMAT ? { copy: parseCopy(fields['copy']) } : {}),
    };
  } catch (error) {
    if (!isNostosError(error)) throw error;
    throw new NostosError('UNSUPPORTED_FORMAT', `${path} cannot be read: ${error.message}`, { cause: error });
  }
}

function parseCopy(value: unknown): CopyOrigin {
  if (typeof value !== 'object' || value === null)
    throw new NostosError('INVALID_ARGUMENT', 'it does not say what it is a copy of');
  const { source = null, reaches = null } = value as { source?: unknown; reaches?: unknown };
  const { term, lsn } = Object(reaches) as { term?: unknown; lsn?: unknown };
  return {
    source: source === null ? null : toStoreId(source),
    reaches: reaches === null ? null : { term: toTerm(term), lsn: toLsn(lsn) },
  };
}
