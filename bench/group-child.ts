/** A member of a group in a process of its own: does what `group-cluster.ts` asks of it. It ends with its parent. */
import { setTimeout as sleep } from 'node:timers/promises';
import { serializeError, type SerializedError } from '../src/base/errors.ts';
import { openNode, type Node, type NodeOptions } from '../src/index.ts';
import type { MemberChange } from '../src/replication/effects.ts';
import { BODY, INSERT_ROW } from './plain.ts';
import { writeOurs, type Writes } from './writers.ts';

export const TENANT = 'items';
const LOOK_MS = 1;
const LEADS_TIMEOUT_MS = 60_000;

export interface MemberRequests {
  /** Answers with its store. */
  open: [NodeOptions, string];
  /** Resolves once this member takes writes. */
  leads: [undefined, undefined];
  changeMembers: [MemberChange, undefined];
  /** Hands over to whoever is furthest. */
  handover: [undefined, undefined];
  /** As `writers.ts` measures it. */
  load: [{ readonly writers: number; readonly durationMs: number }, Writes];
  /** One row, idempotent. */
  write: [{ readonly id: string }, undefined];
  rows: [undefined, number];
  log: [undefined, LogEnds];
  close: [undefined, undefined];
}

/** How far a member has come. */
export interface LogEnds {
  readonly last: number;
  readonly watermark: number;
  /** What the tenant's file shows to readers. */
  readonly applied: number;
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

function lastEvents({ group }: Node): string {
  return (
    group?.events
      .slice(-5)
      .map(({ kind, text }) => `${kind}: ${text}`)
      .join('; ') ?? 'it is in no group'
  );
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
  leads: async () => {
    for (const untilMs = performance.now() + LEADS_TIMEOUT_MS; opened().role !== 'primary';) {
      if (performance.now() > untilMs) throw new Error(`nobody made it primary: ${lastEvents(opened())}`);
      await sleep(LOOK_MS);
    }
    return undefined;
  },
  changeMembers: async (change) => void (await opened().group?.changeMembers(change)) as undefined,
  handover: async () => void (await opened().group?.handover()) as undefined,
  load: ({ writers, durationMs }) => writeOurs(opened().tenant(TENANT), writers, durationMs),
  write: async ({ id }) =>
    void (await opened()
      .tenant(TENANT)
      .write((tx) => void tx.run(INSERT_ROW, [BODY]), { id })) as undefined,
  rows: () =>
    opened()
      .tenant(TENANT)
      .read((reader) => reader.value<number>('select count(*) from item') ?? 0),
  log: async () => {
    const { log } = await opened().status();
    const { applied } = await opened().tenant(TENANT).status();
    return { last: log.lastLsn, watermark: log.watermark, applied: applied.lsn };
  },
  close: async () => void (await opened().close()) as undefined,
};

if (import.meta.main) {
  process.on('message', ({ id, method, input }: MemberCall) => {
    const answer = (message: MemberAnswer): void => void process.send?.(message);
    (methods[method] as (input: unknown) => Promise<unknown>)(input).then(
      (output) => answer({ id, output }),
      (error: unknown) => answer({ id, error: serializeError(error) }),
    );
  });
  process.once('disconnect', () => process.kill(process.pid, 'SIGKILL'));
}
