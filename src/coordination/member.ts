/**
 * Where the node that has a store open can be reached. Each node writes the entry of its own store when it starts to serve
 * the others; nothing is decided by it. Who answers at an address shows by store and boot, in the messages of the group,
 * who he is; an entry that is old costs a connection that fails.
 */
import type { NodeId } from '../base/brands.ts';
import { toNodeId } from '../base/brands.ts';
import type { RecordKind } from './coordinator.ts';
import { coordinatorDamaged, nonce, object } from './coordinator.ts';

export interface MemberEntry {
  readonly node: NodeId;
  /** `host:port` of its service to other nodes, as they reach it. */
  readonly address: string;
  /** New with every write, so that a writer recognises its own entry when the answer got lost. */
  readonly nonce: string;
}

const FIELDS = ['node', 'address', 'nonce'];
/** Who connects parses it in full. */
const ADDRESS = /^[!-~]{1,300}:([1-9]\d{0,4})$/;

export const MEMBER_ENTRY: RecordKind<MemberEntry> = {
  name: 'member',
  encode: (entry) => JSON.stringify(entry, FIELDS),
  parse(value, source) {
    try {
      const fields = object(value, 'the entry', FIELDS);
      const { address } = fields;
      if (typeof address !== 'string' || !(Number(ADDRESS.exec(address)?.[1]) <= 65_535))
        throw new Error('address is not host:port');
      return { node: toNodeId(fields.node), address, nonce: nonce(fields.nonce) };
    } catch (cause) {
      throw coordinatorDamaged(source, cause);
    }
  },
};
