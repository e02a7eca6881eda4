/**
 * How far the log of a copy must reach, as the source says: W of its plan, W with each item of its tail, and the position
 * of each tenant's file. A tail that says less than the rest is not the whole tail.
 */
import { NostosError } from '../../base/errors.ts';
import type { RestorePlan } from '../source.ts';
import type { FetchedItem } from './fetch-item.ts';
import { protocolError } from './frames.ts';

export class Reach {
  readonly #isNode: boolean;
  #watermark: number;
  /** The least that an item of the log says; undefined while none says anything. */
  #tailSays: number | undefined;
  #segments = 0;

  constructor({ kind, watermark }: Pick<RestorePlan, 'kind' | 'watermark'>) {
    this.#isNode = kind === 'node';
    this.#watermark = this.#isNode ? watermark : 0;
  }

  get watermark(): number {
    return this.#watermark;
  }

  add({ name, attributes }: Pick<FetchedItem, 'name' | 'attributes'>): void {
    if (!this.#isNode) return;
    if (name.startsWith('tenant/')) this.#raise(lsnOf(name, attributes, 'lsn') ?? 0);
    if (!name.startsWith('log/')) return;
    if (name.endsWith('.ndb')) this.#segments += 1;
    const says = lsnOf(name, attributes, 'watermark');
    if (says === undefined) return;
    this.#tailSays = Math.min(says, this.#tailSays ?? says);
    this.#raise(says);
  }

  /** Once everything was fetched. */
  check(): void {
    const tailReaches = this.#segments === 0 ? 0 : (this.#tailSays ?? this.#watermark);
    if (tailReaches >= this.#watermark) return;
    throw new NostosError(
      'TRANSFER_DAMAGED',
      `The log that came reaches record ${tailReaches}, the copy must reach ${this.#watermark}; run the restore again`,
      { details: { tailReaches, watermark: this.#watermark, segments: this.#segments } },
    );
  }

  #raise(lsn: number): void {
    this.#watermark = Math.max(this.#watermark, lsn);
  }
}

function lsnOf(name: string, attributes: FetchedItem['attributes'], key: string): number | undefined {
  const value = attributes[key];
  if (value === undefined) return undefined;
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
  throw protocolError(`${name} with "${key}" ${value}`);
}
