/**
 * A member of the tour's group in a process of its own: it opens a node and does what it is asked, one answer for each
 * call. While it writes it says of each write when it asks for it and when it is acknowledged, never earlier.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { StoreId } from '../../base/brands.ts';
import { serializeError, type SerializedError } from '../../base/errors.ts';
import type { Durability } from '../../log/commit-log.ts';
import type { GroupLogEntry } from '../../node/group-member.ts';
import { openNode } from '../../node/open-node.ts';
import { reapplyInto } from '../../node/reapply-target.ts';
import type { Node, NodeOptions, VerifyReport } from '../../node/types.ts';
import type { ReapplyReport } from '../../rollback/reapply/types.ts';
import type { Row } from '../../store/values.ts';
import { runWrite, type Workload } from './workload.ts';

const WRITERS = 16;
/** Between two writes of one writer: the tour shows what happens to writes, not how many there may be. */
const PAUSE_MS = 10;

export interface Opened {
  readonly store: StoreId;
  readonly port: number;
}

export interface MemberState {
  readonly role: Node['role'];
  readonly applied: number;
  readonly fingerprint: string;
  readonly events: readonly GroupLogEntry[];
}

export interface Load {
  readonly workload: Workload;
  /** Number of the first write. */
  readonly first: number;
  readonly durability: Durability;
}

/** What a member can be asked: input and answer. */
export interface MemberCalls {
  open: [{ readonly options: NodeOptions; readonly tenant: string }, Opened];
  state: [undefined, MemberState];
  /** Takes a store into the group, and into those that must have each write. */
  add: [{ readonly store: StoreId; readonly minInSync: number }, undefined];
  /** Writes from many callers at once; answers when that has ended. */
  load: [Load, undefined];
  /** Ends the load; answers when all that it asked for is acknowledged. */
  rest: [undefined, undefined];
  /** Numbers of the writes that are here. */
  ids: [Workload, readonly number[]];
  /** The row of one write. */
  row: [{ readonly workload: Workload; readonly id: number }, Row | undefined];
  reapply: [{ readonly file: string }, ReapplyReport];
  exportTo: [string, undefined];
  verify: [undefined, VerifyReport];
}

export type MemberMethod = keyof MemberCalls;

export interface MemberCall {
  readonly id: number;
  readonly method: MemberMethod;
  readonly input: unknown;
}

export type MemberMessage =
  | { readonly kind: 'asked' | 'acknowledged'; readonly write: number }
  | { readonly kind: 'answer'; readonly id: number; readonly output: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: SerializedError };

type Methods = { readonly [M in MemberMethod]: (input: MemberCalls[M][0]) => Promise<MemberCalls[M][1]> };

const say = (message: MemberMessage): void => void process.send?.(message);

let node: Node;
let tenant: ReturnType<Node['tenant']>;
let rest = new AbortController();
let writing: Promise<unknown> = Promise.resolve();

const methods: Methods = {
  open: async ({ options, tenant: name }) => {
    node = await openNode(options);
    tenant = node.tenant(name);
    const { store, group } = await node.status();
    if (group === undefined) throw new Error('this node is in no group');
    return { store, port: Number(group.address.split(':').at(-1)) };
  },
  state: async () => {
    const { applied, fingerprint } = await tenant.status();
    return { role: node.role, applied: applied.lsn, fingerprint, events: node.group?.events ?? [] };
  },
  add: async ({ store, minInSync }) => {
    await node.group?.changeMembers({ add: store, minInSync });
    return undefined;
  },
  load: async ({ workload, first, durability }) => {
    const { signal } = (rest = new AbortController());
    let next = first;
    const write = async (): Promise<void> => {
      while (!signal.aborted) {
        const id = next++;
        say({ kind: 'asked', write: id });
        await tenant.write((tx) => runWrite(tx, workload, id), { durability });
        say({ kind: 'acknowledged', write: id });
        await sleep(PAUSE_MS);
      }
    };
    writing = Promise.all(Array.from({ length: WRITERS }, write));
    await writing;
    return undefined;
  },
  rest: async () => {
    rest.abort();
    await writing;
    return undefined;
  },
  ids: ({ prefix }) =>
    tenant.read((reader) => reader.all<{ id: number }>(`select id from ${prefix}_writes`).map(({ id }) => id)),
  row: ({ workload: { prefix }, id }) =>
    tenant.read((reader) => reader.get(`select id, body from ${prefix}_writes where id = ?`, [id])),
  reapply: ({ file }) => reapplyInto(node, file, {}),
  exportTo: async (file) => {
    await tenant.exportFile(file);
    return undefined;
  },
  verify: () => node.verify(),
};

process.on('message', ({ id, method, input }: MemberCall) => {
  (methods[method] as (input: unknown) => Promise<unknown>)(input).then(
    (output) => say({ kind: 'answer', id, output }),
    (error: unknown) => say({ kind: 'error', id, error: serializeError(error) }),
  );
});
// Ctrl-C on a terminal reaches every process of the tour; the tour ends this one.
process.on('SIGINT', () => {});
// When the tour itself dies, this process must not go on.
process.once('disconnect', () => process.exit(1));
