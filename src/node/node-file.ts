/** `node.json`: who this node is. Written once, when a directory is formatted. */
import { join } from 'node:path';
import {
  toClusterId,
  toGeneration,
  toNodeId,
  toStoreId,
  type ClusterId,
  type Generation,
  type NodeId,
  type StoreId,
} from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { randomHex128, systemRandom } from '../base/random.ts';

export const NODE_FORMAT = 1;
const NODE_FILE = 'node.json';

export interface NodeIdentity {
  readonly node: NodeId;
  readonly store: StoreId;
  readonly cluster: ClusterId;
  readonly generation: Generation;
}

/** Reads the identity of a directory, or formats an empty one. */
export function loadNode(dir: string, cluster: ClusterId | undefined): NodeIdentity {
  const path = join(dir, NODE_FILE);
  const bytes = readIfExists(systemDisk, path);
  const identity = bytes === undefined ? formatNode(dir, path, cluster) : parseNode(path, bytes);
  if (cluster !== undefined && identity.cluster !== cluster)
    throw new NostosError(
      'DIRECTORY_FOREIGN',
      `${dir} belongs to cluster ${identity.cluster}, not ${cluster}; give the directory of this cluster, or an empty one`,
      { details: { dir, found: identity.cluster, wanted: cluster } },
    );
  return identity;
}

function formatNode(dir: string, path: string, cluster: ClusterId | undefined): NodeIdentity {
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
  writeDurably(systemDisk, path, Buffer.from(`${JSON.stringify({ format: NODE_FORMAT, ...identity }, null, 2)}\n`));
  return identity;
}

function parseNode(path: string, bytes: Uint8Array): NodeIdentity {
  let fields: Record<string, unknown>;
  try {
    fields = JSON.parse(Buffer.from(bytes).toString()) as Record<string, unknown>;
    if (typeof fields !== 'object' || fields === null) throw new Error('it is not an object');
  } catch (error) {
    throw new NostosError('UNSUPPORTED_FORMAT', `${path} is not a node file of Nostos`, { cause: error });
  }
  if (fields['format'] !== NODE_FORMAT)
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `${path} has format ${String(fields['format'])}, this Nostos knows ${NODE_FORMAT}; run the version that wrote it, or a newer one`,
      { details: { format: fields['format'], known: NODE_FORMAT } },
    );
  try {
    return {
      node: toNodeId(fields['node']),
      store: toStoreId(fields['store']),
      cluster: toClusterId(fields['cluster']),
      generation: toGeneration(fields['generation']),
    };
  } catch (error) {
    if (!isNostosError(error)) throw error;
    throw new NostosError('UNSUPPORTED_FORMAT', `${path} cannot be read: ${error.message}`, { cause: error });
  }
}
