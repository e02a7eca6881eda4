/**
 * etcd as a coordinator: one key for each record, replaced by a transaction whose condition is the whole value that the
 * writer read. The value has a nonce, so it never comes twice, while etcd's own numbers (`mod_revision`) do: a cluster
 * that is brought back from a snapshot counts on from there, and a request that was under way would meet its number
 * again at another record. Reads are linearizable: etcd's default, and never switched off.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { isNostosError, NostosError } from '../base/errors.ts';
import type { Coordination } from './coordination.ts';
import type { ConditionalStore, PutResult, Stored } from './conditional-store.ts';
import { conditionalCoordination } from './conditional-store.ts';
import type { EtcdClientOptions, Json } from './etcd-client.ts';
import { EtcdClient } from './etcd-client.ts';

export interface EtcdOptions extends EtcdClientOptions {
  /** What all keys begin with; empty, or it ends with a slash. */
  readonly prefix?: string;
  /** How often a watch reads even where nothing was announced. */
  readonly pollMs?: number;
}

export const ETCD_POLL_MS = 1_000;
const LEAST_VERSION = [3, 4] as const;
const WATCH_RETRY_MS = 500;

export function etcdCoordination({ prefix = '', pollMs = ETCD_POLL_MS, ...client }: EtcdOptions): Coordination {
  return conditionalCoordination(new EtcdStore(new EtcdClient(client)), { prefix, pollMs });
}

class EtcdStore implements ConditionalStore {
  readonly #client: EtcdClient;
  #checked = false;

  constructor(client: EtcdClient) {
    this.#client = client;
  }

  nameOf(key: string): string {
    return `${this.#client.name}, key ${key}`;
  }

  async get(key: string): Promise<Stored | undefined> {
    return valueOf(answered(await this.#client.ask('/v3/kv/range', { key: toBase64(key) })));
  }

  async putIf(key: string, bytes: Uint8Array, tag: string | undefined): Promise<PutResult> {
    const name = toBase64(key);
    const value = Buffer.from(bytes).toString('base64');
    const absent = { key: name, target: 'VERSION', result: 'EQUAL', version: '0' };
    const answer = await this.#client.send('/v3/kv/txn', {
      compare: [tag === undefined ? absent : { key: name, target: 'VALUE', result: 'EQUAL', value: tag }],
      success: [{ request_put: { key: name, value } }],
      failure: [{ request_range: { key: name } }],
    });
    if (answered(answer).succeeded === true) return { written: true, tag: value };
    return { written: false, current: valueOf(object(object(list(answer.responses)[0]).response_range)) };
  }

  async list(prefix: string, after: string | undefined, limit: number): Promise<(Stored & { key: string })[]> {
    const answer = await this.#client.ask('/v3/kv/range', {
      key: toBase64(after === undefined ? prefix : `${after}\0`),
      range_end: toBase64(prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1)),
      limit: String(limit),
    });
    return list(answered(answer).kvs).map((kv) => ({ key: fromBase64(object(kv).key).toString(), ...storedOf(kv) }));
  }

  async check(): Promise<void> {
    if (this.#checked) return;
    const { etcdserver } = await this.#client.ask('/version');
    const [major = 0, minor = 0] = String(etcdserver).split('.').map(Number);
    if (!(major > LEAST_VERSION[0] || (major === LEAST_VERSION[0] && minor >= LEAST_VERSION[1])))
      throw new NostosError(
        'COORDINATOR_UNSUITABLE',
        `${this.#client.name} is version ${String(etcdserver)}; it must be ${LEAST_VERSION.join('.')} or newer`,
        { details: { version: String(etcdserver) } },
      );
    this.#checked = true;
  }

  hints(key: string, changed: () => void, { signal }: { signal: AbortSignal }): void {
    const follow = async (): Promise<void> => {
      while (!signal.aborted) {
        try {
          // The first message says that the watch stands: what came before it, the read that it brings about sees.
          const create_request = { key: toBase64(key) };
          await this.#client.stream('/v3/watch', { create_request }, { signal, onMessage: changed });
        } catch (error) {
          // Without a watch there is still the poll, whose caller meets the error.
          if (isNostosError(error, 'COORDINATOR_UNSUITABLE')) return;
        }
        if (this.#client.closed) return;
        await sleep(WATCH_RETRY_MS, undefined, { ref: false, signal }).catch(() => undefined);
      }
    };
    void follow();
  }

  async close(): Promise<void> {
    this.#client.close();
  }
}

/** The gateway leaves out what is empty, but never this: without it, an empty object would pass for "no record". */
function answered(answer: Json): Json {
  if (typeof object(answer.header).revision !== 'string') throw unexpected('an answer has no revision');
  return answer;
}

/** The one value of a range over one key. The bytes come from etcd as base64, which also serves as their tag. */
function valueOf(range: Json): Stored | undefined {
  const [kv] = list(range.kvs);
  return kv === undefined ? undefined : storedOf(kv);
}

function storedOf(kv: unknown): Stored {
  const { value = '' } = object(kv);
  const bytes = fromBase64(value);
  return { bytes, tag: bytes.toString('base64') };
}

function toBase64(key: string): string {
  return Buffer.from(key).toString('base64');
}

function fromBase64(value: unknown): Buffer {
  if (typeof value !== 'string') throw unexpected('a key or value is no text');
  return Buffer.from(value, 'base64');
}

function list(value: unknown): readonly unknown[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw unexpected('a list is none');
  return value;
}

function object(value: unknown): Json {
  if (typeof value !== 'object' || value === null) throw unexpected('an object is none');
  return value as Json;
}

function unexpected(reason: string): NostosError {
  return new NostosError('PROTOCOL_ERROR', `etcd answered otherwise than its API says: ${reason}`);
}
