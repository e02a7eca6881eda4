/**
 * A member of a group in a process of its own, as an application runs one: it opens its node, and closes it and opens it
 * again when that has left its group. What it is asked over IPC the node of that moment answers.
 */
import { randomBytes } from 'node:crypto';
import { NostosError, serializeError, type SerializedError } from '../base/errors.ts';
import type { MemberChange } from '../replication/effects.ts';
import { openNode } from './open-node.ts';
import type { Node, NodeOptions, NodeStatus, VerifyReport } from './types.ts';

export const TENANT = 'acme';
export const MIGRATIONS = ['create table item (id integer primary key not null, body text not null)'];

export interface Calls {
  insert: [{ readonly from: number; readonly count: number; readonly bytes: number }, undefined];
  count: [undefined, number];
  status: [undefined, NodeStatus];
  fingerprint: [undefined, { readonly fingerprint: string; readonly lsn: number }];
  verify: [undefined, VerifyReport];
  changeMembers: [MemberChange, undefined];
  close: [undefined, undefined];
}

export type Method = keyof Calls;
export type FromChild =
  | { readonly opened: string }
  /** What is done before a node is open. */
  | { readonly step: string }
  | { readonly failed: SerializedError }
  | { readonly id: number; readonly output: unknown }
  | { readonly id: number; readonly error: SerializedError };

type Answers = { readonly [M in Method]: (node: Node, input: Calls[M][0]) => Promise<Calls[M][1]> };

const ANSWERS: Answers = {
  insert: async (node, { from, count, bytes }) => {
    for (let id = from; id < from + count; id += 1)
      await node.tenant(TENANT).write((tx) => {
        tx.run('insert into item values (?, ?)', [id, randomBytes(bytes / 2).toString('hex')]);
      });
    return undefined;
  },
  count: (node) =>
    node.tenant(TENANT).read((reader) => reader.value<number>('select count(*) from item') ?? 0, { stale: true }),
  status: (node) => node.status(),
  fingerprint: async (node) => {
    const { fingerprint, applied } = await node.tenant(TENANT).status();
    return { fingerprint, lsn: applied.lsn };
  },
  verify: (node) => node.verify(),
  changeMembers: async (node, change) => {
    await node.group?.changeMembers(change);
    return undefined;
  },
  close: async (node) => {
    await node.close();
    return undefined;
  },
};

const say = (message: FromChild): void => void process.send?.(message);

async function main(options: NodeOptions & { readonly group: NonNullable<NodeOptions['group']> }): Promise<void> {
  process.on('disconnect', () => process.exit(1));
  let node: Node | undefined;
  process.on('message', ({ id, method, input }: { id: number; method: Method; input: never }) => {
    const answer = async (): Promise<void> => {
      try {
        if (node === undefined) throw new NostosError('CLOSED', 'the node is on its way home');
        say({ id, output: await ANSWERS[method](node, input) });
        if (method === 'close') process.exit(0);
      } catch (error) {
        say({ id, error: serializeError(error) });
      }
    };
    void answer();
  });
  const group = { ...options.group, onRejoin: (step: string) => say({ step }) };
  for (;;) {
    const opened = await openNode({ ...options, group });
    node = opened;
    say({ opened: (await opened.status()).store });
    const left = opened.group!.left;
    if (!left.aborted) await new Promise((resolve) => left.addEventListener('abort', resolve, { once: true }));
    node = undefined;
    await opened.close();
  }
}

const [, , options = ''] = process.argv;
if (import.meta.main)
  await main(JSON.parse(options)).catch((error: unknown) => {
    say({ failed: serializeError(error) });
    process.disconnect?.();
  });
