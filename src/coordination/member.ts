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
  /** `host:port` where it lets itself be copied; absent where it does not. */
  readonly copyAddress?: string;
  /** New with every write, so that a writer recognises its own entry when the answer got lost. */
  readonly nonce: string;
}

const FIELDS = ['node', 'address', 'copyAddress', 'nonce'];
/** Who connects parses it in full. */
const ADDRESS = /^[!-~]{1,300}:([1-9]\d{0,4})$/;

export const MEMBER_ENTRY: RecordKind<MemberEntry> = {
  name: 'member',
  encode: (entry) => JSON.stringify(entry, FIELDS),
  parse(value, source) {
    try {
      const fields = object(value, 'the entry', FIELDS);
      const { copyAddress } = fields;
      return {
        node: toNodeId(fields.node),
        address: checkAddress('address', fields.address),
        ...(copyAddress === undefined ? {} : { copyAddress: checkAddress('copyAddress', copyAddress) }),
        nonce: nonce(fields.nonce),
      };
    } catch (cause) {
      throw coordinatorDamaged(source, cause);
    }
  },
};

function checkAddress(name: string, value: unknown): string {
  if (typeof value === 'string' && Number(ADDRESS.exec(value)?.[1]) <= 65_535) return value;
  throw new Error(`${name} is not host:port`);
}
