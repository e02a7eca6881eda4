/** The engine as the caller's thread sees it: requests over a port, and the committed log. */
import { once } from 'node:events';
import { extname, join } from 'node:path';
import { MessageChannel, Worker, receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import type { Generation, Hash, Lsn, Position, TenantId } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, deserializeError, serializeError } from '../base/errors.ts';
import { releaseBuffer } from '../base/release.ts';
import type {
  Appended,
  CommitLog,
  CommittedRecord,
  Durability,
  LogEntry,
  LogHold,
  LogPage,
  PageRequest,
  TenantLocation,
} from '../log/commit-log.ts';
import { DirectAppendFailed, DirectAppender } from '../log/direct-append.ts';
import type { RecordKind } from '../log/record.ts';
import { SharedTail } from '../log/shared-tail.ts';
import { decodeAnswer, encodeAppend } from './append-frame.ts';
import type { PositionOutlook } from '../replication/store-view.ts';
import { AppendRing } from './append-ring.ts';
import type {
  EngineMethod,
  EngineOpened,
  EngineOptions,
  EngineReply,
  EngineRequests,
  EngineStart,
  GroupMethod,
  GroupNotice,
  LogFiles,
  PackedPage,
  ProbeReport,
} from './engine-protocol.ts';
import type { EngineServing } from './engine-server.ts';
import { notPrimary } from './not-primary.ts';
import type { PageThrough } from './tail-by-tenant.ts';
import { THREAD_LIMITS } from './threads.ts';
import type { LogStatus } from './types.ts';

interface Append {
  readonly entries: readonly LogEntry[];
  readonly durability: Durability;
  resolve(appended: Appended): void;
  reject(error: unknown): void;
}

interface Waiting {
  readonly method: EngineMethod | 'append';
  resolve(output: unknown): void;
  reject(error: unknown): void;
}

/** Taken here once: tests that replace timers would have writes wait for them. */
const endOfTurn = setImmediate;

/** A larger group is the engine's, beside which this thread goes on. */
const DIRECT_BYTES_MAX = 64 * 1024;

interface EnginePort {
  readonly port: MessagePort;
  readonly ring: AppendRing;
  readonly tail: SharedTail;
  /** When nobody answers at the port any more. */
  readonly ended: Promise<void>;
  /** The answers that were not heard before that. */
  readonly unheard: () => Iterable<EngineReply>;
}

export class EngineClient implements CommitLog {
  readonly #ended: EnginePort['ended'];
  readonly #unheard: EnginePort['unheard'];
  readonly #port: MessagePort;
  readonly #ring: AppendRing;
  readonly #generation: Generation;
  readonly #tail: SharedTail;
  readonly #direct: DirectAppender;
  readonly #directSyncMaxMs: number;
  readonly #copy: boolean;
  #settling = false;
  /** While a handover waits for the last append: those that came since. */
  #drained: Append[] | undefined;
  /** What was said before anybody listened. */
  readonly #unheardNotices: GroupNotice[] = [];
  #onNotice: (notice: GroupNotice) => void = (notice) => void this.#unheardNotices.push(notice);
  /** Appends of this turn of the event loop that may be a group of their own. */
  #gathered: Append[] = [];
  /** Appends that the engine has not answered. */
  #sent = 0;
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<() => void>();
  #nextId = 1;
  #watermark: Lsn;
  #gone: NostosError | undefined;
  /** Whoever has read a part of the log already answers for that. */
  pagesThrough: PageThrough | undefined;
  readonly opened: EngineOpened;

  private constructor({ port, ring, tail, ended, unheard }: EnginePort, options: EngineOptions, opened: EngineOpened) {
    this.#ended = ended;
    this.#unheard = unheard;
    this.#port = port;
    this.#ring = ring;
    this.#tail = tail;
    this.#direct = new DirectAppender(
      { disk: systemDisk, clock: new HybridClock(systemClock), tail },
      { dir: join(options.dir, 'log'), generation: options.generation, bytesMax: DIRECT_BYTES_MAX },
    );
    this.#directSyncMaxMs = options.limits.directSyncMicros / 1_000;
    this.#generation = options.generation;
    this.#copy = options.copy !== undefined && options.group === undefined;
    this.#watermark = opened.watermark;
    this.opened = opened;
    port.on('message', (reply: EngineReply) => this.#take(reply));
    void ended.then(
      () => this.#lose(new NostosError('CLOSED', 'the node is closed')),
      (error: Error) =>
        this.#lose(new NostosError('INTERNAL', `the engine thread failed: ${error.message}`, { cause: error })),
    );
  }

  /** An engine with a thread of its own, which user code cannot hold up. */
  static async start(options: EngineOptions): Promise<EngineClient> {
    const url = new URL(`./engine-thread${extname(import.meta.url)}`, import.meta.url);
    const { ends, served } = portPair();
    const worker = new Worker(url, {
      workerData: { options, ...served } satisfies EngineServing,
      transferList: [served.port],
      name: 'nostos-engine',
      resourceLimits: THREAD_LIMITS,
    });
    const ended = new Promise<void>((resolve, reject) => {
      worker.once('error', reject);
      worker.once('exit', () => resolve());
    });
    const opened = await new Promise<EngineOpened>((resolve, reject) => {
      ended.catch(reject);
      worker.once('message', (start: EngineStart) => {
        if ('opened' in start) resolve(start.opened);
        else reject(deserializeError(start.failed));
      });
    });
    const unheard = (): Iterable<EngineReply> => leftAt(ends.port); // the end of a thread may be heard first
    return new EngineClient({ ...ends, ended, unheard }, options, opened);
  }

  /** An engine in the caller's thread, where nobody writes: a thread would take 24 MiB. */
  static async startHere(options: EngineOptions): Promise<EngineClient> {
    const { serveEngine } = await import('./engine-server.ts');
    const { ends, served } = portPair();
    const ended = once(ends.port, 'close').then(() => undefined);
    try {
      const opened = await serveEngine({ options, ...served });
      return new EngineClient({ ...ends, ended, unheard: () => [] }, options, opened);
    } catch (error) {
      served.port.close();
      throw error;
    }
  }

  get watermark(): Lsn {
    return this.#watermark;
  }

  onWatermark(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  append(
    entries: readonly LogEntry[],
    { durability }: { readonly durability: Durability } = { durability: 'quorum' },
  ): Promise<Appended> {
    if (this.#copy) return Promise.reject(notPrimary());
    if (this.#gone !== undefined) return Promise.reject(this.#gone);
    return new Promise((resolve, reject) => {
      const append = { entries, durability, resolve, reject };
      if (this.#settling) return void this.#gathered.push(append); // nobody overtakes it
      if (!this.#directly) return this.#send(append);
      // Whoever else appends in this turn of the event loop shares the sync, which is the engine's then.
      if (this.#gathered.push(append) === 1) endOfTurn(() => this.#appendGathered());
    });
  }

  /** Whether a sync here takes less than to have the engine do it, and nothing is on its way there. */
  get #directly(): boolean {
    const idle = this.#gone === undefined && this.#sent === 0;
    return idle && this.#tail.syncMs < this.#directSyncMaxMs && this.#tail.status === 'lent';
  }

  #appendGathered(): void {
    if (this.#settling) return;
    const appends = this.#gathered;
    this.#gathered = [];
    const [first] = appends;
    if (appends.length === 1 && first !== undefined && this.#directly && this.#appendHere(first)) return;
    for (const append of appends) this.#send(append);
  }

  /** False where the engine has to do it. */
  #appendHere({ entries, resolve, reject }: Append): boolean {
    try {
      const appended = this.#direct.append(entries);
      if (appended === undefined) return false;
      resolve({ generation: this.#generation, ...appended });
      this.#raise((appended.firstLsn + entries.length - 1) as Lsn);
    } catch (error) {
      if (error instanceof DirectAppendFailed) void this.#settle(error).then(resolve, reject);
      else reject(error);
    }
    return true;
  }

  /** Asks what became of an append that failed here; what is appended meanwhile waits for the answer. */
  async #settle({ firstLsn, hashes, cause }: DirectAppendFailed): Promise<Appended> {
    this.#settling = true;
    try {
      const { watermark, ...appended } = await this.#call('settle', { firstLsn, hashes, cause: serializeError(cause) });
      this.#raise(watermark);
      return appended;
    } finally {
      this.#settling = false;
      this.#appendGathered();
    }
  }

  #send({ entries, durability, resolve, reject }: Append): void {
    if (this.#gone !== undefined) return reject(this.#gone);
    if (this.#drained !== undefined) return void this.#drained.push({ entries, durability, resolve, reject });
    const id = this.#nextId++;
    this.#sent += 1;
    this.#waiting.set(id, { method: 'append', resolve, reject });
    const frame = encodeAppend(id, entries, durability);
    const put = this.#ring.put(frame);
    if (put === 'full') {
      this.#port.postMessage(frame);
      this.#ring.poke();
    } else if (put === 'asleep') this.#port.postMessage(null);
    releaseBuffer(frame);
  }

  readPage(request: PageRequest): Promise<LogPage> {
    const read = async (asked: PageRequest): Promise<LogPage> => unpack(await this.#call('readPage', asked));
    return this.pagesThrough === undefined ? read(request) : this.pagesThrough(request, read);
  }

  locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation> {
    return this.#call('locate', { tenant, lsn });
  }

  async reserve(from: Lsn): Promise<LogHold> {
    return this.#holding(await this.#call('reserve', { from }));
  }

  /** Also answers with the first record that is held; see `EngineRequests`. */
  async reserveForCopy(bound: Lsn): Promise<LogHold & { readonly from: Lsn }> {
    const { hold, from } = await this.#call('reserveForCopy', { bound });
    return { ...this.#holding(hold), from };
  }

  async reserveAll(): Promise<LogHold & { readonly from: Lsn }> {
    const { hold, from } = await this.#call('reserveAll', undefined);
    return { ...this.#holding(hold), from };
  }

  logFiles(from: Lsn): Promise<LogFiles> {
    return this.#call('logFiles', { from });
  }

  #holding(hold: number): LogHold {
    const tell = (told: Promise<unknown>): void => void told.catch(() => {}); // a hold that is lost expires
    return {
      progress: (lsn) => tell(this.#call('progress', { hold, lsn })),
      release: () => tell(this.#call('release', { hold })),
    };
  }

  advance(durable: Lsn): Promise<undefined> {
    this.#direct.close(); // it may be a segment that goes now
    return this.#call('advance', { durable });
  }

  /** Of a node in a group: what its engine says from now on, in order. */
  set onNotice(listener: (notice: GroupNotice) => void) {
    this.#onNotice = listener;
    for (const notice of this.#unheardNotices.splice(0)) listener(notice);
  }

  /** What only the engine of a group does. */
  inGroup<M extends GroupMethod>(method: M, input: EngineRequests[M][0]): Promise<EngineRequests[M][1]> {
    return this.#call(method, input);
  }

  outlook(position: Position): Promise<PositionOutlook> {
    return this.#call('outlook', { position });
  }

  status(): Promise<LogStatus> {
    return this.#call('status', undefined);
  }

  probe(durationMs: number): Promise<ProbeReport> {
    return this.#call('probe', { durationMs });
  }

  async close(): Promise<void> {
    if (this.#gone !== undefined) return;
    await this.#call('close', undefined);
    await this.#ended;
    this.#direct.close();
  }

  #call<M extends EngineMethod>(method: M, input: EngineRequests[M][0]): Promise<EngineRequests[M][1]> {
    if (this.#gone !== undefined) return Promise.reject(this.#gone);
    return new Promise((resolve, reject) => {
      const id = this.#nextId++;
      this.#waiting.set(id, { method, resolve, reject });
      this.#port.postMessage({ id, method, input });
      this.#ring.poke();
    });
  }

  #take(reply: EngineReply): void {
    if (reply instanceof Uint8Array) return this.#appended(reply);
    if ('notice' in reply) return this.#heard(reply.notice);
    const waiting = this.#answered(reply.id);
    if (reply.ok) waiting?.resolve(reply.output);
    else waiting?.reject(deserializeError(reply.error));
  }

  #appended(frame: Uint8Array): void {
    const { id, answer } = decodeAnswer(frame);
    const waiting = this.#answered(id);
    const { term, firstLsn, hashes, watermark } = answer;
    waiting?.resolve({ generation: this.#generation, term, firstLsn, hashes } satisfies Appended);
    this.#raise(watermark);
  }

  #heard(notice: GroupNotice): void {
    if (notice.kind === 'watermark') this.#raise(notice.lsn);
    else if (notice.kind === 'drain') this.#drain();
    else if (notice.kind === 'resume' || notice.kind === 'step-down') this.#undrain();
    this.#onNotice(notice);
  }

  /** Holds what is appended from now on until the handover has succeeded, where it is refused, or was given up. */
  #drain(): void {
    this.#drained = [];
    this.#tellDrained();
  }

  #tellDrained(): void {
    if (this.#drained === undefined || this.#sent > 0) return;
    this.#call('drained', undefined).catch(() => {}); // the thread has ended, which its appends hear
  }

  #undrain(): void {
    const held = this.#drained ?? [];
    this.#drained = undefined;
    for (const append of held) this.#send(append);
  }

  #answered(id: number): Waiting | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (waiting?.method === 'append') {
      this.#sent -= 1;
      if (this.#drained !== undefined) this.#tellDrained();
    }
    return waiting;
  }

  #raise(watermark: Lsn): void {
    if (watermark <= this.#watermark) return;
    this.#watermark = watermark;
    for (const listener of this.#listeners) listener();
  }

  #lose(error: NostosError): void {
    for (const reply of this.#unheard()) this.#take(reply);
    this.#gone ??= error;
    this.#direct.close();
    this.#port.close();
    for (const { method, reject } of this.#waiting.values())
      reject(
        method === 'append' || method === 'settle'
          ? new NostosError('OUTCOME_UNKNOWN', `it is not known whether the write was kept: ${error.message}`, {
              cause: error,
            })
          : this.#gone,
      );
    this.#waiting.clear();
  }
}

/** Both ends of the way to an engine, and the memory that they share. */
function portPair(): {
  readonly ends: Pick<EnginePort, 'port' | 'ring' | 'tail'>;
  readonly served: Omit<EngineServing, 'options'>;
} {
  const { port1, port2 } = new MessageChannel();
  const [ring, tail] = [new AppendRing(), new SharedTail()];
  return {
    ends: { port: port1, ring, tail },
    served: { port: port2, memory: { ring: ring.memory, tail: tail.memory } },
  };
}

function* leftAt(port: MessagePort): Generator<EngineReply> {
  for (let left = receiveMessageOnPort(port); left !== undefined; left = receiveMessageOnPort(port))
    yield left.message as EngineReply;
}

function unpack(page: PackedPage): LogPage {
  const records: CommittedRecord[] = [];
  let start = 0;
  for (let index = 0; index < page.count; index += 1) {
    const end = page.ends[index]!;
    records.push({
      generation: page.generation,
      term: page.term[index] as CommittedRecord['term'],
      lsn: page.lsn[index] as Lsn,
      hlc: page.hlc[index] as CommittedRecord['hlc'],
      tenant: page.tenant[index] as TenantId,
      kind: page.kind[index] as RecordKind,
      watermark: page.watermark[index] as Lsn,
      hash: page.hashes.subarray(index * 32, index * 32 + 32) as Hash,
      payload: page.payloads.subarray(start, end),
    });
    start = end;
  }
  return { records, next: page.next, end: page.end, release: () => releaseBuffer(page.payloads) };
}
