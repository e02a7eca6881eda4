/**
 * Who a certificate says a node is: `URI:nostos:node:<id>` and, where its authority belongs to a cluster,
 * `URI:nostos:cluster:<id>` among the subject's alternative names. Both sides of a connection show one; that it comes
 * from the given authority is checked by TLS itself, before this.
 */
import { X509Certificate } from 'node:crypto';
import { NostosError } from '../base/errors.ts';
import type { ClusterId, NodeId } from '../base/brands.ts';

export const NODE_URI = 'nostos:node:';
export const CLUSTER_URI = 'nostos:cluster:';

/** What a node needs for TLS, as PEM. `nostos certs` makes the files. */
export interface TlsIdentity {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export interface PeerIdentity {
  readonly node: NodeId;
  readonly cluster: ClusterId | undefined;
}

/** The names in the text that Node.js makes of them; undefined unless there is exactly one node and at most one cluster. */
export function parseIdentity(subjectAltName: string | undefined): PeerIdentity | undefined {
  // A name with a separator in it is quoted, and could look like two: no certificate of ours has one.
  if (subjectAltName === undefined || subjectAltName.includes('"')) return undefined;
  const names = subjectAltName.split(', ');
  const nodes = parseIds(names, `URI:${NODE_URI}`);
  const clusters = parseIds(names, `URI:${CLUSTER_URI}`);
  if (nodes.length !== 1 || clusters.length > 1 || [...nodes, ...clusters].includes(undefined)) return undefined;
  return { node: nodes[0] as NodeId, cluster: clusters[0] as ClusterId | undefined };
}

/**
 * Which node a certificate of our own names. Refuses one that is of no use: TLS 1.3 closes the connection without a word to
 * a client whose certificate has ended.
 */
export function ownNode({ cert }: Pick<TlsIdentity, 'cert'>, nowMs: number): NodeId | undefined {
  const remedy = 'make another one with nostos certs node';
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(cert);
  } catch (cause) {
    throw new NostosError('INVALID_ARGUMENT', `the certificate of this node cannot be read; ${remedy}`, { cause });
  }
  if (certificate.validToDate.getTime() <= nowMs)
    throw new NostosError(
      'INVALID_ARGUMENT',
      `the certificate of this node ended on ${certificate.validTo}; ${remedy}`,
    );
  return parseIdentity(certificate.subjectAltName)?.node;
}

/** What follows the prefix in the names that have it; undefined where that is no id. */
export function parseIds(names: readonly string[], prefix: string): (string | undefined)[] {
  const ids = names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  return ids.map((id) => (/^[0-9a-f]{32}$/.test(id) ? id : undefined));
}

export interface Expectation {
  readonly cluster?: string | undefined;
  /** The node that must be at the other end. */
  readonly node?: string | undefined;
  /** Nodes that may connect: their ids, or who decides. */
  readonly allowNodes?: readonly string[] | ((peer: PeerIdentity) => boolean) | undefined;
}

/** The identity in the certificate, where it is one that was expected. */
export function checkIdentity(subjectAltName: string | undefined, peer: string, expected: Expectation): PeerIdentity {
  const identity = parseIdentity(subjectAltName);
  if (identity === undefined)
    throw refused(peer, 'NO_NODE_ID', 'its certificate names no node; make one with nostos certs node');
  const { node, cluster } = identity;
  if (expected.cluster !== undefined && cluster !== expected.cluster)
    throw refused(
      peer,
      'OTHER_CLUSTER',
      `it belongs to ${cluster === undefined ? 'no cluster' : `cluster ${cluster}`}, not ${expected.cluster}`,
    );
  if (expected.node !== undefined && node !== expected.node)
    throw refused(peer, 'OTHER_NODE', `it is node ${node}, not ${expected.node}`);
  const { allowNodes } = expected;
  const allowed = typeof allowNodes === 'function' ? allowNodes(identity) : (allowNodes?.includes(node) ?? true);
  if (!allowed) throw refused(peer, 'NOT_ALLOWED', `node ${node} is not among those that may connect here`);
  return identity;
}

export function refused(peer: string, reason: string, why: string, cause?: unknown): NostosError {
  return new NostosError('PEER_REFUSED', `${peer} is refused: ${why}`, { details: { peer, reason }, cause });
}
