/**
 * One node of a group in a process of its own, which the group harness tells over IPC what to do, and kills, stops and cuts
 * off. What it answers was done; what it does not answer may have been.
 */
import { NostosError, serializeError, type SerializedError } from '../base/errors.ts';
import type { StoreId, BootId } from '../base/brands.ts';
import type { Durability } from '../log/commit-log.ts';
import type { MemberChange } from '../replication/effects.ts';
import { openNode } from './open-node.ts';
import type { Node, NodeOptions, NodeStatus, Transaction } from './types.ts';

export const TENANT = 'acme';
export const MIGRATIONS = [
  'create table register (key integer primary key not null, value text not null)',
  'create table item (id integer primary key not null, body text not null)',
];

export interface Calls {
  put: [{ readonly key: number; readonly value: string }, undefined];
  /** Puts `value` where `expected` is, and answers with what was found. */
  replace: [{ readonly key: number; readonly expected: string | null; readonly value: string }, string | null];
  /** On the primary, under its lease. */
  read: [{ readonly key: number }, string | null];
  insert: [{ readonly ids: readonly number[]; readonly bytes?: number; readonly durability?: Durability }, undefined];
  ids: [undefined, readonly number[]];
  status: [undefined, NodeStatus];
  fingerprint: [undefined, { readonly fingerprint: string; readonly lsn: number }];
  handover: [{ readonly to?: StoreId }, undefined];
  changeMembers: [MemberChange, undefined];
  /** The wall clock of its process. */
  clock: [undefined, number];
  close: [undefined, undefined];
}

export type Method = keyof Calls;
export interface Call<M extends Method = Method> {
  readonly id: number;
  readonly method: M;
  readonly input: Calls[M][0];
}

export type FromChild =
  | { readonly opened: { readonly store: StoreId; readonly boot: BootId } }
  | { readonly failed: SerializedError }
  | { readonly id: number; readonly output: unknown }
  | { readonly id: number; readonly error: SerializedError };

function currentValue(tx: Pick<Transaction, 'value'>, key: number): string | null {
  return tx.value<string>('select value from register where key = ?', [key]) ?? null;
}

const SET = 'insert into register values (?1, ?2) on conflict do update set value = ?2';

type Answers = { readonly [M in Method]: (input: Calls[M][0]) => Calls[M][1] | Promise<Calls[M][1]> };

function answersOf(node: Node): Answers {
  const tenant = node.tenant(TENANT);
  const inGroup = (): NonNullable<Node['group']> => {
    if (node.group === undefined) throw new NostosError('INVALID_ARGUMENT', 'this node is in no group');
    return node.group;
  };
  const assertPrimary = (): void => {
    if (node.role !== 'primary') throw new NostosError('NOT_PRIMARY', 'only the primary reads what is newest');
  };
  return {
    put: async ({ key, value }) => tenant.write((tx) => void tx.run(SET, [key, value])),
    replace: async ({ key, expected, value }) =>
      tenant.write((tx) => {
        const found = currentValue(tx, key);
        if (found === expected) tx.run(SET, [key, value]);
        return found;
      }),
    read: async ({ key }) => {
      assertPrimary();
      const value = await tenant.read((reader) => currentValue(reader, key));
      assertPrimary();
      return value;
    },
    insert: async ({ ids, bytes = 8, durability = 'quorum' }) => {
      await tenant.write(
        (tx) => {
          for (const id of ids) tx.run('insert into item values (?, ?)', [id, `${id}`.padEnd(bytes, '.')]);
        },
        { durability },
      );
      return undefined;
    },
    ids: () => tenant.read((reader) => reader.all<{ id: number }>('select id from item').map(({ id }) => id)),
    status: () => node.status(),
    fingerprint: async () => {
      const { fingerprint, applied } = await tenant.status();
      return { fingerprint, lsn: applied.lsn };
    },
    handover: async ({ to }) => {
      await inGroup().handover(to);
      return undefined;
    },
    changeMembers: async (change) => {
      await inGroup().changeMembers(change);
      return undefined;
    },
    clock: () => Date.now(),
    close: async () => {
      await node.close();
      return undefined;
    },
  };
}

async function perform(answers: Answers, { id, method, input }: Call): Promise<FromChild> {
  const answer = answers[method] as (input: unknown) => unknown;
  try {
    return { id, output: await answer(input) };
  } catch (error) {
    return { id, error: serializeError(error) };
  }
}

async function main(options: NodeOptions): Promise<void> {
  const say = (message: FromChild): void => void process.send?.(message);
  process.on('disconnect', () => process.exit(1));
  let node: Node;
  try {
    node = await openNode(options);
  } catch (error) {
    say({ failed: serializeError(error) });
    process.disconnect?.();
    return;
  }
  const answers = answersOf(node);
  process.on('message', (call: Call) => {
    void perform(answers, call)
      .then(say)
      .then(() => call.method === 'close' && process.exit(0));
  });
  const { store, boot } = await node.status();
  say({ opened: { store, boot } });
}

const [, , options = '{}'] = process.argv;
if (import.meta.main) await main(JSON.parse(options) as NodeOptions);
