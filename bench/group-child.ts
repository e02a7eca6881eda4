/** A member of a group in a process of its own: does what `group-cluster.ts` asks of it. It ends with its parent. */
import { setTimeout as sleep } from 'node:timers/promises';
import { serializeError, type SerializedError } from '../src/base/errors.ts';
import { openNode, type Node, type NodeOptions } from '../src/index.ts';
import type { MemberChange } from '../src/replication/effects.ts';
import { peakResidentBytes } from './child.ts';
import { BODY, INSERT_ROW } from './plain.ts';
import { writeOurs, type Writes } from './writers.ts';

export const TENANT = 'items';
const LOOK_MS = 1;
const WAIT_MS = 60_000;

export interface MemberRequests {
  /** Answers with its store. */
  open: [NodeOptions, string];
  /** Whether this member takes writes. */
  leads: [undefined, boolean];
  changeMembers: [MemberChange, void];
  /** Hands over to whoever is furthest. */
  handover: [undefined, void];
  /** As `writers.ts` measures it. */
  load: [{ readonly writers: number; readonly durationMs: number }, Writes];
  /** One row, idempotent. */
  write: [{ readonly id: string }, void];
  /** Rows that only this member has, a record each, acknowledged as `local`. */
  tail: [{ readonly records: number; readonly rowBytes: number }, void];
  rows: [undefined, number];
  /** The in-sync set as this member last read it, and what happened here. */
  group: [undefined, { readonly inSync: readonly string[]; readonly events: readonly string[] }];
  /** When this member had dropped a tail, by the wall clock; waits for that. */
  rolledBack: [undefined, { readonly atMs: number; readonly peakBytes: number }];
  /** Of a primary: how many of its records each of its replicas has not acknowledged. */
  lag: [undefined, readonly number[]];
  /** The id of the newest row that readers see here. */
  newest: [undefined, number];
  close: [undefined, void];
}

export type MemberMethod = keyof MemberRequests;

export interface MemberCall {
  readonly id: number;
  readonly method: MemberMethod;
  readonly input: unknown;
}

export type MemberAnswer =
  | { readonly id: number; readonly output: unknown }
  | { readonly id: number; readonly error: SerializedError };

function lastEvents({ group }: Node): readonly string[] {
  return (group?.events ?? []).slice(-8).map(({ kind, text }) => `${kind}: ${text}`);
}

type Methods = { readonly [M in MemberMethod]: (input: MemberRequests[M][0]) => Promise<MemberRequests[M][1]> };

let node: Node | undefined;

function opened(): Node {
  if (node === undefined) throw new Error('the node of this member is not open');
  return node;
}

const methods: Methods = {
  open: async (options) => {
    node = await openNode(options);
    return (await node.status()).store;
  },
  leads: async () => opened().role === 'primary',
  changeMembers: async (change) => opened().group?.changeMembers(change),
  handover: async () => opened().group?.handover(),
  load: ({ writers, durationMs }) => writeOurs(opened().tenant(TENANT), writers, durationMs),
  write: ({ id }) =>
    opened()
      .tenant(TENANT)
      .write((tx) => void tx.run(INSERT_ROW, [BODY]), { id }),
  tail: async ({ records, rowBytes }) => {
    const body = 'x'.repeat(rowBytes);
    const tenant = opened().tenant(TENANT);
    for (let at = 0; at < records; at += 1)
      await tenant.write((tx) => void tx.run(INSERT_ROW, [body]), { durability: 'local' });
  },
  rows: () =>
    opened()
      .tenant(TENANT)
      .read((reader) => reader.value<number>('select count(*) from item') ?? 0),
  group: async () => {
    const report = await opened().group?.report();
    return { inSync: report?.record?.inSync ?? [], events: lastEvents(opened()) };
  },
  rolledBack: async () => {
    for (const untilMs = performance.now() + WAIT_MS; performance.now() < untilMs; await sleep(LOOK_MS)) {
      const event = opened().group?.events.find(({ kind }) => kind === 'rolled-back');
      if (event !== undefined) return { atMs: event.atMs, peakBytes: peakResidentBytes() };
    }
    throw new Error(`it has not rolled back: ${lastEvents(opened()).join('; ')}`);
  },
  lag: async () => {
    const report = await opened().group?.report();
    return (report?.replicas ?? []).map(({ acked }) => (report?.lastLsn ?? 0) - acked);
  },
  newest: () =>
    opened()
      .tenant(TENANT)
      .read((reader) => reader.value<number>('select max(id) from item') ?? 0),
  close: () => opened().close(),
};

if (import.meta.main) {
  process.on('message', ({ id, method, input }: MemberCall) => {
    const answer = (message: MemberAnswer): void => void process.send?.(message);
    (methods[method] as (input: unknown) => Promise<unknown>)(input).then(
      (output) => answer({ id, output }),
      (error: unknown) => answer({ id, error: serializeError(error) }),
    );
  });
  process.once('SIGTERM', () => process.exit(0)); // in good order, which leaves a profile where one is taken
  process.once('disconnect', () => process.kill(process.pid, 'SIGKILL'));
}
