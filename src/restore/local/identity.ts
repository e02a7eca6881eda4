/**
 * Who a data directory is. What `node.json` looks like is the node's business (`node/node-file.ts`), so its codec is
 * passed in; a restore only decides which identities it takes over and which it mints.
 */
import type { ClusterId, Generation, Lsn, NodeId, StoreId, Term } from '../../base/brands.ts';

export interface DirectoryIdentity {
  readonly node: NodeId;
  readonly store: StoreId;
  readonly cluster: ClusterId;
  readonly generation: Generation;
}

export interface IdentityCodec {
  /** Reads the content of `node.json`; throws where it is none. */
  parse(bytes: Uint8Array): DirectoryIdentity;
  /** The content of `node.json` of a copy: a node that starts no term. */
  formatCopy(identity: DirectoryIdentity, origin: StagedOrigin): Uint8Array;
}

export interface StagedOrigin {
  /** The store that was copied, where that is known. */
  readonly source: StoreId | null;
  /** W that the source had when the copy was cut: a log that ends below it is not whole. */
  readonly reaches: { readonly term: Term; readonly lsn: Lsn } | null;
}

/** The history that a run fetches: any provider of it may go on with what another one began. */
export interface SourceHistory {
  readonly cluster: ClusterId;
  readonly generation: Generation;
}

export function sameHistory(a: SourceHistory, b: SourceHistory): boolean {
  return a.cluster === b.cluster && a.generation === b.generation;
}
