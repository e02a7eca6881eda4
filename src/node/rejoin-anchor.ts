/**
 * Before a copy takes the place of anything: whether its last record is on the log of who leads. The primary is asked as a
 * follower asks it for the common point, under the id of nobody, and the conversation ends with its answer. A member that
 * serves copies may be a clone, or of a history that the group has dropped; what it serves checks out all the same.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { toBootId, toHash, toStoreId, type ClusterId, type Generation } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import type { Coordination } from '../coordination/coordination.ts';
import type { Versioned } from '../coordination/coordinator.ts';
import type { ChainPoint } from '../log/chain.ts';
import type { ChannelId, PointAnswer } from '../replication/messages.ts';
import { GROUP_SERVICE_NAME, Peers } from '../replication/peers.ts';
import { connectToService } from '../wire/connect.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';
import { readStopped } from './stopped-directory.ts';

export interface AnchorOptions {
  /** Of the group. */
  readonly name: string;
  readonly tls?: TlsIdentity | undefined;
  readonly limits: Limits;
  readonly signal: AbortSignal;
}

const ANSWER_MS = 5_000;

/** Resolves with the record of the group that names who has answered; rejects with VERIFY_FAILED where the copy is none. */
export async function assertOnPrimary(
  coordination: Coordination,
  staged: string,
  options: AnchorOptions,
): Promise<Versioned> {
  const { cluster, generation, end, endHash } = readStopped(staged).report;
  const point = { ...end, hash: toHash(Buffer.from(endHash, 'hex')) };
  const { leaseMs, takeoverMs } = boundsOf(options.limits);
  const untilMs = performance.now() + takeoverMs;
  let why = 'nobody leads';
  // Another one may be about to take over.
  for (; performance.now() < untilMs; await sleep(leaseMs / 4, undefined, { signal: options.signal })) {
    const current = await coordination.group(options.name).read();
    if (current === undefined || current.record.primary === null) continue;
    if (current.record.generation !== generation) {
      why = `the group is of generation ${current.record.generation}, the copy of ${generation}`;
      break;
    }
    const answer = await ask(coordination, current, { ...options, cluster, generation, point }).catch(
      (error: unknown) => (error as Error).message,
    );
    options.signal.throwIfAborted();
    if (typeof answer === 'string') why = answer;
    else if (answer.held === 'held') return current;
    else throw notHeld(point, answer);
  }
  throw new NostosError(
    'NO_PROVIDER',
    `no primary has said whether the copy is of its history: ${why}. Nothing was set aside`,
  );
}

function boundsOf({ leaseMs, commitStallMs }: Limits): { readonly leaseMs: number; readonly takeoverMs: number } {
  return { leaseMs, takeoverMs: 2 * leaseMs + commitStallMs + ANSWER_MS };
}

interface Question extends AnchorOptions {
  readonly cluster: ClusterId;
  readonly generation: Generation;
  readonly point: ChainPoint;
}

async function ask(
  coordination: Coordination,
  { record: { primary, term } }: Versioned,
  { cluster, generation, point, tls, limits, signal }: Question,
): Promise<PointAnswer> {
  const to = primary!.store;
  const entry = (await coordination.member(to).read())?.record;
  if (entry === undefined) throw new NostosError('NETWORK_FAILED', `nobody says where store ${to} is reached`);
  const { frameBytesMax } = limits;
  const identity =
    tls === undefined ? {} : { tls: { ca: tls.ca, cert: tls.cert, key: tls.key, node: entry.node, cluster } };
  const within = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
  const answered = Promise.withResolvers<PointAnswer>();
  const fail = (why: string): void =>
    answered.reject(new NostosError('NETWORK_FAILED', `${entry.address}, which leads, ${why}`));
  const [boot, store] = [toBootId(randomHex128(systemRandom)), toStoreId(randomHex128(systemRandom))];
  const channel = `${boot}:1` as ChannelId;
  const peers = new Peers(
    {
      connect: (_, open) =>
        connectToService(entry.address, GROUP_SERVICE_NAME, {
          signal: AbortSignal.any([open, within]),
          frameBytesMax,
          ...identity,
        }),
      onMessage: (_, message) => {
        if (message.kind === 'point' && message.lsn === point.lsn) answered.resolve(message.answer);
        if (message.kind === 'refused') fail(`refused to answer (${message.reason})`);
      },
      onClosed: (_, wrong) => fail(wrong?.message ?? 'closed the connection, or is not there'),
    },
    { cluster, store, frameBytesMax },
  );
  within.addEventListener('abort', () => fail('did not answer in time'), { once: true });
  try {
    peers.open(channel, to);
    void peers.send(channel, { kind: 'open', generation, term, store, boot, eligible: true, point });
    return await answered.promise;
  } finally {
    peers.stop();
  }
}

function notHeld({ term, lsn }: ChainPoint, answer: PointAnswer): NostosError {
  const why =
    answer.held === 'pruned'
      ? 'which the primary holds no more: it is too old to go on from'
      : 'which is not on the log of the primary: its source is of another history';
  return new NostosError('VERIFY_FAILED', `the copy ends with record ${lsn} of term ${term}, ${why}`, {
    details: { term, lsn, held: answer.held },
  });
}
