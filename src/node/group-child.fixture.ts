/**
 * One node of a group in a process of its own, which the group harness tells over IPC what to do, and kills, stops and cuts
 * off. What it answers was done; what it does not answer may have been.
 */
import { flushCompileCache } from 'node:module';
import { NostosError, serializeError, type SerializedError } from '../base/errors.ts';
import type { BootId, Position, StoreId } from '../base/brands.ts';
import type { MemberChange } from '../replication/effects.ts';
import { openNode } from './open-node.ts';
import { tenantPath } from './paths.ts';
import type { Node, NodeOptions, NodeStatus, Tenant, Transaction } from './types.ts';

export const TENANT = 'acme';
/** Of `local` writes: they leave no position behind in the other one that may be lost. */
export const LOCAL_TENANT = 'notes';
export const MIGRATIONS = [
  'create table register (key integer primary key not null, value text not null)',
  'create table item (id integer primary key not null, body text not null)',
];

interface Behind {
  readonly min: Position;
  readonly timeoutMs: number;
}

export interface Calls {
  put: [{ readonly key: number; readonly value: string; readonly id?: string }, { readonly position: Position }];
  /** Puts `value` where `expected` is, and answers with what was found. */
  replace: [
    { readonly key: number; readonly expected: string | null; readonly value: string; readonly id?: string },
    { readonly found: string | null },
  ];
  /** On the primary, under its lease. */
  read: [{ readonly key: number }, string | null];
  /** On any member. */
  readBehind: [{ readonly key: number } & Behind, string | null];
  insert: [
    { readonly ids: readonly number[]; readonly bytes?: number; readonly id?: string },
    { readonly position: Position },
  ];
  insertLocal: [{ readonly ids: readonly number[] }, undefined];
  /** Whether a row is there, on any member. */
  has: [{ readonly id: number } & Behind, boolean];
  ids: [undefined, readonly number[]];
  localIds: [undefined, readonly number[]];
  status: [undefined, NodeStatus];
  fingerprint: [undefined, { readonly fingerprint: string; readonly lsn: number }];
  tenantFile: [undefined, string];
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

export interface Opened {
  readonly store: StoreId;
  readonly boot: BootId;
  /** Where the other members reach it. */
  readonly address: string | undefined;
}

export type FromChild =
  /** Also when it has come home by itself. */
  | { readonly opened: Opened }
  /** What is done to come home. */
  | { readonly step: string }
  | { readonly failed: SerializedError }
  | { readonly id: number; readonly output: unknown }
  | { readonly id: number; readonly error: SerializedError };

function currentValue(tx: Pick<Transaction, 'value'>, key: number): string | null {
  return tx.value<string>('select value from register where key = ?', [key]) ?? null;
}

function insertAll(tx: Transaction, ids: readonly number[], bytes: number): number {
  for (const id of ids) tx.run('insert into item values (?, ?)', [id, `${id}`.padEnd(bytes, '.')]);
  return ids.length;
}

function idsOf(tenant: Tenant): Promise<readonly number[]> {
  return tenant.read((reader) => reader.all<{ id: number }>('select id from item').map(({ id }) => id));
}

/** That it cannot be told says nothing about the write before. */
async function positionBehind(tenant: Tenant): Promise<Position> {
  try {
    return await tenant.position();
  } catch (cause) {
    throw new NostosError('OUTCOME_UNKNOWN', 'it was written, and its position cannot be told', { cause });
  }
}

function idOf(id: string | undefined): { readonly id?: string } {
  return id === undefined ? {} : { id };
}

const SET = 'insert into register values (?1, ?2) on conflict do update set value = ?2';

type Answers = { readonly [M in Method]: (input: Calls[M][0]) => Calls[M][1] | Promise<Calls[M][1]> };

function answersOf(node: Node): Answers {
  const [tenant, local] = [node.tenant(TENANT), node.tenant(LOCAL_TENANT)];
  const inGroup = (): NonNullable<Node['group']> => {
    if (node.group === undefined) throw new NostosError('INVALID_ARGUMENT', 'this node is in no group');
    return node.group;
  };
  const assertPrimary = (): void => {
    if (node.role !== 'primary') throw new NostosError('NOT_PRIMARY', 'only the primary reads what is newest');
  };
  return {
    put: async ({ key, value, id }) => {
      // What an id answers with has to be something.
      await tenant.write((tx) => tx.run(SET, [key, value]).changes, idOf(id));
      return { position: await positionBehind(tenant) };
    },
    replace: async ({ key, expected, value, id }) => ({
      found: await tenant.write((tx) => {
        const found = currentValue(tx, key);
        if (found === expected) tx.run(SET, [key, value]);
        return found;
      }, idOf(id)),
    }),
    read: async ({ key }) => {
      assertPrimary();
      const value = await tenant.read((reader) => currentValue(reader, key));
      assertPrimary();
      return value;
    },
    readBehind: ({ key, ...behind }) => tenant.read((reader) => currentValue(reader, key), behind),
    insert: async ({ ids, bytes = 8, id }) => {
      await tenant.write((tx) => insertAll(tx, ids, bytes), idOf(id));
      return { position: await positionBehind(tenant) };
    },
    insertLocal: async ({ ids }) => {
      await local.write((tx) => insertAll(tx, ids, 8), { durability: 'local' });
      return undefined;
    },
    has: ({ id, ...behind }) =>
      tenant.read((reader) => reader.value('select 1 from item where id = ?', [id]) !== undefined, behind),
    ids: () => idsOf(tenant),
    localIds: () => idsOf(local),
    status: () => node.status(),
    fingerprint: async () => {
      const [main, notes] = [await tenant.status(), await local.status()];
      return { fingerprint: `${main.fingerprint} ${notes.fingerprint}`, lsn: main.applied.lsn };
    },
    tenantFile: async () => tenantPath(node.dir, (await tenant.status()).id),
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

/** A node that has left its group comes home when it is opened again. */
async function main(options: NodeOptions): Promise<void> {
  const say = (message: FromChild): void => void process.send?.(message);
  process.on('disconnect', () => process.exit(1));
  const onRejoin = (step: string): void => say({ step });
  const told = options.group === undefined ? {} : { group: { ...options.group, onRejoin } };
  const serve = async (): Promise<void> => {
    const node = await openNode({ ...options, ...told });
    const answers = answersOf(node);
    const hear = (call: Call): void =>
      void perform(answers, call)
        .then(say)
        .then(() => call.method === 'close' && process.exit(0));
    process.on('message', hear);
    const { store, boot, group } = await node.status();
    say({ opened: { store, boot, address: group?.address } });
    flushCompileCache(); // it will be killed
    node.group?.left.addEventListener('abort', () => {
      process.off('message', hear);
      // What is asked meanwhile is not answered; whoever asks knows nothing then, and asks again.
      void node.close().then(serve).catch(failed);
    });
  };
  const failed = (error: unknown): void => {
    say({ failed: serializeError(error) });
    process.disconnect?.();
  };
  await serve().catch(failed);
}

const [, , options = '{}'] = process.argv;
if (import.meta.main) await main(JSON.parse(options) as NodeOptions);
