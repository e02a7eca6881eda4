/** Serves the engine at a port: takes requests, appends in groups, and answers them. */
import { join } from 'node:path';
import type { MessagePort } from 'node:worker_threads';
import { collectIfGrown } from '../base/collect.ts';
import { NostosError, deserializeError, isNostosError, serializeError } from '../base/errors.ts';
import { systemDisk } from '../base/disk.ts';
import { releaseBuffer } from '../base/release.ts';
import { EmbeddedCoordinator } from '../coordination/embedded.ts';
import { NewestSeen } from '../coordination/newest-seen.ts';
import { RememberingCoordinator } from '../coordination/remembering.ts';
import { SharedTail } from '../log/shared-tail.ts';
import { decodeAppend, encodeAnswer } from './append-frame.ts';
import { AppendRing } from './append-ring.ts';
import { Engine, type AppendCall } from './engine.ts';
import type {
  EngineMethod,
  EngineOpened,
  EngineOptions,
  EngineReply,
  EngineRequest,
  EngineRequests,
  GroupNotice,
  GroupSettings,
  SharedMemory,
} from './engine-protocol.ts';
import type { GroupEngine } from './group-engine.ts';
import { highestApplied } from './highest-applied.ts';

/**
 * How long the thread waits on the ring for the next append before it sleeps in its event loop, from where it takes ten
 * times as long to wake (ADR 0001).
 */
const LINGER_MS = 3;
/** After this long the rest of the thread has its turn, however many appends come. */
const TURN_MAX_MS = 1;

type AnyEngine = Engine | GroupEngine;

export interface EngineServing {
  readonly options: EngineOptions;
  /** Closed with the engine. */
  readonly port: MessagePort;
  readonly memory: SharedMemory;
}

/** Opens the engine, which is then served until it is closed. */
export async function serveEngine(serving: EngineServing): Promise<EngineOpened> {
  const { options, port, memory } = serving;
  const engine = await (options.group === undefined ? openLone(serving) : openInGroup(serving, options.group));
  serve(engine, port, new AppendRing(memory.ring));
  return engine.opened;
}

function openLone({ options, memory }: EngineServing): Promise<Engine> {
  const coordinator = new RememberingCoordinator(
    new EmbeddedCoordinator({ dir: join(options.dir, 'coordinator') }),
    new NewestSeen(systemDisk, join(options.dir, 'coordinator.json')),
  );
  const tail = new SharedTail(memory.tail);
  return Engine.open({ coordinator, highestApplied: () => highestApplied(options.dir), tail }, options).catch(
    (error: unknown) => {
      throw isNostosError(error, 'COORDINATOR_REGRESSED') ? memberOfGroup(options.dir, error) : error;
    },
  );
}

/** Alone it would lead a term of its own beside the group. */
function memberOfGroup(dir: string, cause: NostosError): NostosError {
  return new NostosError(
    'COORDINATOR_REGRESSED',
    `${dir} belongs to a group, or its own coordinator/ was set back: ${cause.message}. Open it with the coordinator of its group (--coordinator)`,
    { cause, details: cause.details },
  );
}

async function openInGroup({ options, port }: EngineServing, settings: GroupSettings): Promise<GroupEngine> {
  const { GroupEngine } = await import('./group-engine.ts');
  const tell = (notice: GroupNotice): void => port.postMessage({ notice } satisfies EngineReply);
  return GroupEngine.open({ tell, highestApplied: () => highestApplied(options.dir) }, options, settings);
}

function serve(engine: AnyEngine, port: MessagePort, ring: AppendRing): void {
  const reply = (message: EngineReply, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer);
  let appends: AppendCall[] = [];
  let appending = false;

  const flush = async (): Promise<void> => {
    if (appending) return; // the one that runs takes what came meanwhile
    appending = true;
    while (appends.length > 0) {
      const calls = appends;
      appends = [];
      if (!engine.appendNow(calls)) await engine.append(calls);
    }
    appending = false;
  };

  const answer = async ({ id, method, input }: EngineRequest): Promise<void> => {
    try {
      if (method === 'drained') drain(); // what was put into the ring before
      const output = await run(engine, method, input);
      reply({ id, ok: true, output }, MOVED.has(method) ? buffersOf(output as Moved) : []);
    } catch (error) {
      reply({ id, ok: false, error: serializeError(error) });
    }
    if (method === 'close') port.close();
    else collectIfGrown();
  };

  const take = (message: EngineRequest | Uint8Array): void => {
    if (!(message instanceof Uint8Array)) return void answer(message);
    const { id, entries, durability } = decodeAppend(message);
    appends.push({
      entries,
      durability,
      resolve: ({ term, firstLsn, hashes }) => {
        releaseBuffer(message);
        linger();
        port.postMessage(encodeAnswer(id, { term, firstLsn, hashes, watermark: engine.watermark }));
      },
      reject: (error) => reply({ id, ok: false, error: serializeError(error) }),
    });
  };

  /** Takes the appends that have arrived, which share the fsync; false when there were none. */
  const drain = (): boolean => {
    for (let frame = ring.take(); frame !== undefined; frame = ring.take()) take(frame);
    if (appends.length === 0) return false;
    void flush();
    return true;
  };

  let lastAppendMs = 0;
  /** In the event loop, from which a message wakes it, or the network. */
  let asleep = false;
  const sleep = (): boolean => (asleep = ring.sleep());

  /**
   * Serves appends until none has come for a while, and gives the event loop its turn in between. While other nodes are to
   * answer it does not wait here, where it would not hear them.
   */
  const serveAppends = (): void => {
    asleep = false;
    for (const startedMs = performance.now(); ;) {
      const appended = drain();
      const nowMs = performance.now();
      if (appended) lastAppendMs = nowMs;
      else if ((engine.awaitsPeers || nowMs - lastAppendMs >= LINGER_MS) && sleep()) return;
      if (nowMs - startedMs >= TURN_MAX_MS) break;
      if (!appended) ring.wait(TURN_MAX_MS);
    }
    setImmediate(serveAppends);
  };

  /** Whoever is answered may append again soon. */
  const linger = (): void => {
    lastAppendMs = performance.now();
    if (!asleep) return;
    asleep = false;
    setImmediate(serveAppends);
  };

  port.on('message', (message: EngineRequest | Uint8Array | null) => {
    if (message !== null) take(message);
    if (asleep && (message === null || appends.length > 0)) serveAppends();
  });
  if (!sleep()) serveAppends();
}

function run(engine: AnyEngine, method: EngineMethod, input: unknown): unknown {
  switch (method) {
    case 'readPage':
      return engine.readPage(input as EngineRequests['readPage'][0]);
    case 'locate': {
      const { tenant, lsn } = input as EngineRequests['locate'][0];
      return engine.locate(tenant, lsn);
    }
    case 'settle': {
      const { firstLsn, hashes, cause } = input as EngineRequests['settle'][0];
      return engine.settle({ firstLsn, hashes, cause: deserializeError(cause) });
    }
    case 'advance':
      return engine.advance((input as EngineRequests['advance'][0]).durable);
    case 'reserve':
      return engine.reserve((input as EngineRequests['reserve'][0]).from);
    case 'progress': {
      const { hold, lsn } = input as EngineRequests['progress'][0];
      return engine.progress(hold, lsn);
    }
    case 'release':
      return engine.release((input as EngineRequests['release'][0]).hold);
    case 'reserveForCopy':
      return engine.reserveForCopy((input as EngineRequests['reserveForCopy'][0]).bound);
    case 'reserveAll':
      return engine.reserveAll();
    case 'logFiles':
      return engine.logFiles((input as EngineRequests['logFiles'][0]).from);
    case 'outlook':
      return engine.outlook((input as EngineRequests['outlook'][0]).position);
    case 'steppedDown':
      return inGroup(engine).steppedDown();
    case 'drained':
      return inGroup(engine).drained();
    case 'rolledBack':
      return inGroup(engine).rolledBack((input as EngineRequests['rolledBack'][0]).ok);
    case 'settled':
      return inGroup(engine).settled();
    case 'cutTo':
      return inGroup(engine).cutTo((input as EngineRequests['cutTo'][0]).lsn);
    case 'logEnd':
      return inGroup(engine).logEnd();
    case 'readRun':
      return inGroup(engine).readRun(input as EngineRequests['readRun'][0]);
    case 'handover':
      return inGroup(engine).handover((input as EngineRequests['handover'][0]).to);
    case 'changeMembers':
      return inGroup(engine).changeMembers(input as EngineRequests['changeMembers'][0]);
    case 'groupReport':
      return inGroup(engine).groupReport();
    case 'found':
      return inGroup(engine).found(input as EngineRequests['found'][0]);
    case 'setEligible':
      return inGroup(engine).setEligible((input as EngineRequests['setEligible'][0]).eligible);
    case 'copiesAt':
      return inGroup(engine).copiesAt((input as EngineRequests['copiesAt'][0]).address);
    case 'status':
      return engine.status();
    case 'probe':
      return engine.probe((input as EngineRequests['probe'][0]).durationMs);
    case 'close':
      return engine.close();
    default:
      return method satisfies never;
  }
}

function inGroup(engine: AnyEngine): GroupEngine {
  if ('groupReport' in engine) return engine;
  throw new NostosError('INVALID_ARGUMENT', 'this node is in no group: open it with one');
}

/** What they answer with is given to the caller's thread instead of being copied. */
const MOVED: ReadonlySet<EngineMethod> = new Set(['readPage', 'readRun']);
type Moved = EngineRequests['readPage' | 'readRun'][1];

function buffersOf(answer: Moved): ArrayBuffer[] {
  return Object.values(answer).flatMap((value) => (ArrayBuffer.isView(value) ? [value.buffer as ArrayBuffer] : []));
}
