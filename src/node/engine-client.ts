/** The engine as the caller's thread sees it: requests over a port, and the committed log. */
import { extname } from 'node:path';
import { MessageChannel, Worker, receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import type { Generation, Hash, Lsn, TenantId } from '../base/brands.ts';
import { NostosError, deserializeError } from '../base/errors.ts';
import type {
  Appended,
  CommitLog,
  CommittedRecord,
  LogEntry,
  LogHold,
  LogPage,
  PageRequest,
  TenantLocation,
} from '../log/commit-log.ts';
import type { RecordKind } from '../log/record.ts';
import { decodeAnswer, encodeAppend } from './append-frame.ts';
import { AppendRing } from './append-ring.ts';
import type {
  EngineMethod,
  EngineOpened,
  EngineOptions,
  EngineReply,
  EngineRequests,
  EngineStart,
  PackedPage,
  ProbeReport,
} from './engine-protocol.ts';
import type { LogStatus } from './types.ts';

interface Waiting {
  readonly method: EngineMethod | 'append';
  resolve(output: unknown): void;
  reject(error: unknown): void;
}

export class EngineClient implements CommitLog {
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #ring: AppendRing;
  readonly #generation: Generation;
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<() => void>();
  #nextId = 1;
  #watermark: Lsn;
  #gone: NostosError | undefined;
  readonly opened: EngineOpened;

  private constructor(
    { worker, port, ring }: { worker: Worker; port: MessagePort; ring: AppendRing },
    options: EngineOptions,
    opened: EngineOpened,
  ) {
    this.#worker = worker;
    this.#port = port;
    this.#ring = ring;
    this.#generation = options.generation;
    this.#watermark = opened.watermark;
    this.opened = opened;
    port.on('message', (reply: EngineReply) => this.#take(reply));
    worker.on('error', (error: Error) =>
      this.#lose(new NostosError('INTERNAL', `the engine thread failed: ${error.message}`, { cause: error })),
    );
    worker.on('exit', () => this.#lose(new NostosError('CLOSED', 'the node is closed')));
  }

  static async start(options: EngineOptions): Promise<EngineClient> {
    const url = new URL(`./engine-thread${extname(import.meta.url)}`, import.meta.url);
    const { port1, port2 } = new MessageChannel();
    const ring = new AppendRing();
    const worker = new Worker(url, {
      workerData: { options, port: port2, memory: ring.memory },
      transferList: [port2],
      name: 'nostos-engine',
    });
    const opened = await new Promise<EngineOpened>((resolve, reject) => {
      const failed = (error: unknown): void => reject(error);
      worker.once('error', failed);
      worker.once('message', (start: EngineStart) => {
        worker.off('error', failed);
        if ('opened' in start) resolve(start.opened);
        else reject(deserializeError(start.failed));
      });
    });
    return new EngineClient({ worker, port: port1, ring }, options, opened);
  }

  get watermark(): Lsn {
    return this.#watermark;
  }

  onWatermark(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  append(entries: readonly LogEntry[]): Promise<Appended> {
    if (this.#gone !== undefined) return Promise.reject(this.#gone);
    return new Promise((resolve, reject) => {
      const id = this.#nextId++;
      this.#waiting.set(id, { method: 'append', resolve, reject });
      const frame = encodeAppend(id, entries);
      const put = this.#ring.put(frame);
      if (put === 'full') {
        this.#port.postMessage(frame);
        this.#ring.poke();
      } else if (put === 'asleep') this.#port.postMessage(null);
    });
  }

  async readPage(request: PageRequest): Promise<LogPage> {
    return unpack(await this.#call('readPage', request));
  }

  locate(tenant: TenantId, lsn: Lsn): Promise<TenantLocation> {
    return this.#call('locate', { tenant, lsn });
  }

  async reserve(from: Lsn): Promise<LogHold> {
    const hold = await this.#call('reserve', { from });
    const tell = (told: Promise<unknown>): void => void told.catch(() => {}); // a hold that is lost expires
    return {
      progress: (lsn) => tell(this.#call('progress', { hold, lsn })),
      release: () => tell(this.#call('release', { hold })),
    };
  }

  advance(durable: Lsn): Promise<undefined> {
    return this.#call('advance', { durable });
  }

  status(): Promise<LogStatus> {
    return this.#call('status', undefined);
  }

  probe(durationMs: number): Promise<ProbeReport> {
    return this.#call('probe', { durationMs });
  }

  async close(): Promise<void> {
    if (this.#gone !== undefined) return;
    const exited = new Promise<void>((resolve) => this.#worker.once('exit', () => resolve()));
    await this.#call('close', undefined);
    await exited;
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
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    if (reply.ok) waiting?.resolve(reply.output);
    else waiting?.reject(deserializeError(reply.error));
  }

  #appended(frame: Uint8Array): void {
    const { id, answer } = decodeAnswer(frame);
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    const { term, firstLsn, hashes, watermark } = answer;
    waiting?.resolve({ generation: this.#generation, term, firstLsn, hashes } satisfies Appended);
    if (watermark <= this.#watermark) return;
    this.#watermark = watermark;
    for (const listener of this.#listeners) listener();
  }

  #lose(error: NostosError): void {
    // The end of the thread may be heard before the last answers that it gave.
    for (let last = receiveMessageOnPort(this.#port); last !== undefined; last = receiveMessageOnPort(this.#port))
      this.#take(last.message as EngineReply);
    this.#gone ??= error;
    this.#port.close();
    for (const { method, reject } of this.#waiting.values())
      reject(
        method === 'append'
          ? new NostosError('OUTCOME_UNKNOWN', `it is not known whether the write was kept: ${error.message}`, {
              cause: error,
            })
          : this.#gone,
      );
    this.#waiting.clear();
  }
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
  return { records, next: page.next, end: page.end };
}
