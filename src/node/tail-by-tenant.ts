/**
 * A divergent tail tenant by tenant, as undoing wants it: one pass over the log for as many tenants as fit the memory,
 * instead of one for each. What does not fit comes with a later pass, and a tenant whose records alone are too large comes
 * without them, to read the log for itself. Each pass is done with the tenant that it meets first, at least.
 */
import { toLsn, type Lsn, type TenantId } from '../base/brands.ts';
import { releaseBuffer } from '../base/release.ts';
import type { CommittedRecord, LogPage, PageRequest } from '../log/commit-log.ts';
import type { ReadRecord } from '../log/reader.ts';
import { RecordKind } from '../log/record.ts';

/** Beside its payload. */
const RECORD_BYTES = 300;

export interface TenantTail {
  readonly tenant: TenantId;
  /** All its changesets in the tail, in order; absent where they are too many to be held. */
  readonly records?: readonly CommittedRecord[];
}

interface Gathered {
  readonly records: CommittedRecord[];
  /** What the payloads lie in, back to back. */
  readonly slabs: Uint8Array<ArrayBuffer>[];
  slabUsed: number;
  bytes: number;
  tooLarge: boolean;
}

/** Slabs double the memory of a tenant, up to here: a payload each would be as many small buffers for the collector, which is in no hurry. */
const SLAB_BYTES_MAX = 1024 * 1024;

/** `read` is called once for each pass, which ends with its tenants; their records are valid until the next ones are asked for. */
export async function* tailByTenant(
  read: () => AsyncIterable<readonly ReadRecord[]>,
  { bytesMax }: { readonly bytesMax: number },
): AsyncGenerator<readonly TenantTail[], void, undefined> {
  const done = new Set<TenantId>();
  for (;;) {
    const pass = new Pass(bytesMax);
    for await (const batch of read()) for (const found of batch) if (!done.has(found.record.tenant)) pass.add(found);
    for (const tenant of pass.gathered.keys()) done.add(tenant);
    yield [...pass.gathered].map(([tenant, { records, tooLarge }]) => (tooLarge ? { tenant } : { tenant, records }));
    for (const gathered of pass.gathered.values()) letGo(gathered);
    if (!pass.hasMore) return;
  }
}

class Pass {
  readonly #bytesMax: number;
  #bytes = 0;
  /** In the order in which they were met. */
  readonly gathered = new Map<TenantId, Gathered>();
  /** Those that hold anything. */
  readonly #holding: TenantId[] = [];
  readonly #later = new Set<TenantId>();

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get hasMore(): boolean {
    return this.#later.size > 0;
  }

  add({ record, hash }: ReadRecord): void {
    const { generation, term, lsn, hlc, tenant, kind, watermark, payload } = record;
    if (kind !== RecordKind.changeset || this.#later.has(tenant)) return;
    let own = this.gathered.get(tenant);
    if (own === undefined) {
      own = { records: [], slabs: [], slabUsed: 0, bytes: 0, tooLarge: false };
      this.gathered.set(tenant, own);
      this.#holding.push(tenant);
    }
    if (own.tooLarge) return;
    // Copied: the next batch has the same memory.
    const kept = { hash: new Uint8Array(hash) as typeof hash, payload: keep(own, payload) };
    own.records.push({ generation, term, lsn, hlc, tenant, kind, watermark, ...kept });
    own.bytes += payload.length + RECORD_BYTES;
    this.#bytes += payload.length + RECORD_BYTES;
    while (this.#bytes > this.#bytesMax) this.#letGo();
  }

  /** The one met last waits for the next pass; one that has all the memory to itself is too large. */
  #letGo(): void {
    const tenant = this.#holding.pop();
    const own = tenant === undefined ? undefined : this.gathered.get(tenant);
    if (tenant === undefined || own === undefined) return;
    this.#bytes -= own.bytes;
    letGo(own);
    if (this.#holding.length > 0) {
      this.gathered.delete(tenant);
      this.#later.add(tenant);
    } else own.tooLarge = true;
  }
}

function keep(own: Gathered, payload: Uint8Array): Uint8Array {
  let slab = own.slabs.at(-1);
  if (slab === undefined || slab.length - own.slabUsed < payload.length) {
    slab = new Uint8Array(Math.max(payload.length, Math.min(SLAB_BYTES_MAX, own.bytes)));
    own.slabs.push(slab);
    own.slabUsed = 0;
  }
  const kept = slab.subarray(own.slabUsed, own.slabUsed + payload.length);
  kept.set(payload);
  own.slabUsed += payload.length;
  return kept;
}

function letGo(own: Gathered): void {
  own.records.length = 0;
  for (const slab of own.slabs.splice(0)) releaseBuffer(slab);
  own.bytes = 0;
}

/** The records of one tenant as the log would show them. */
export function pagesOf(records: readonly CommittedRecord[]): { readPage(request: PageRequest): Promise<LogPage> } {
  return {
    readPage: async ({ from, to = records.at(-1)?.lsn ?? from, bytesMax }) => {
      const first = firstAtOrAbove(records, from);
      let [end, bytes] = [first, 0];
      for (; end < records.length && records[end]!.lsn <= to && (end === first || bytes < bytesMax); end += 1)
        bytes += records[end]!.payload.length + RECORD_BYTES;
      const rest = records[end];
      const next = rest === undefined || rest.lsn > to ? toLsn(to + 1) : rest.lsn;
      return { records: records.slice(first, end), next, end: to };
    },
  };
}

/** Reads a page, or has it read. */
export type PageThrough = (request: PageRequest, read: (request: PageRequest) => Promise<LogPage>) => Promise<LogPage>;

/**
 * Answers from the records of a tail, which begins at `from`, what is asked of its tenants: each of them reads on from where
 * its file was last whole, and one after another they would read all of the tail as often as there are tenants in it.
 */
export function throughTail(tails: readonly TenantTail[], from: Lsn): PageThrough {
  const held = new Map(tails.map(({ tenant, records }) => [tenant, records]));
  return async (request, read) => {
    const { tenant, to, kinds, uncommitted } = request;
    const records = tenant === undefined || kinds !== undefined || uncommitted !== true ? undefined : held.get(tenant);
    if (records === undefined || to === undefined || to < from) return read(request);
    if (request.from >= from) return pagesOf(records).readPage(request);
    const page = await read({ ...request, to: toLsn(from - 1) });
    return { ...page, end: to };
  };
}

function firstAtOrAbove(records: readonly CommittedRecord[], lsn: Lsn): number {
  let [low, high] = [0, records.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (records[middle]!.lsn < lsn) low = middle + 1;
    else high = middle;
  }
  return low;
}
