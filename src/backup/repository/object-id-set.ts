/**
 * A set of ids that may say yes to one that it does not hold (once in 10^10, with a million in it), never no to one that
 * it does: for what is to be kept, at a third of the memory of a set of texts.
 */
import type { ObjectId } from './object-format.ts';

export class ObjectIdSet {
  readonly #beginnings = new Set<number>();

  add(id: ObjectId): void {
    this.#beginnings.add(beginning(id));
  }

  has(id: ObjectId): boolean {
    return this.#beginnings.has(beginning(id));
  }

  get size(): number {
    return this.#beginnings.size;
  }
}

function beginning(id: ObjectId): number {
  return Number.parseInt(id.slice(0, 13), 16);
}
