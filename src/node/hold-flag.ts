/**
 * Says across threads that what was held for a reader is held no more, and why. It is lowered before anything changes:
 * whoever finds it up after reading has read what was held.
 */
import { deserializeError, type NostosError } from '../base/errors.ts';

const FLAG = 0;
const MOVES = 1;
const PROGRESS_OFFSET = 8;
const TEXT_OFFSET = 16;
const MEMORY_BYTES = 4096;

export class HoldFlag {
  readonly memory: SharedArrayBuffer;
  readonly #flag: Int32Array;
  readonly #progress: BigInt64Array;

  constructor(memory = new SharedArrayBuffer(MEMORY_BYTES)) {
    this.memory = memory;
    this.#flag = new Int32Array(memory, 0, 2);
    this.#progress = new BigInt64Array(memory, PROGRESS_OFFSET, 1);
  }

  get isUp(): boolean {
    return Atomics.load(this.#flag, FLAG) === 0;
  }

  /** Bytes that the receiver has taken so far. */
  get progress(): number {
    return Number(Atomics.load(this.#progress, 0));
  }

  /** Changes with every call of `addProgress`, also where that names no bytes. */
  get moves(): number {
    return Atomics.load(this.#flag, MOVES);
  }

  addProgress(bytes: number): void {
    Atomics.add(this.#flag, MOVES, 1);
    Atomics.add(this.#progress, 0, BigInt(bytes));
  }

  /** The first reason counts. */
  lower(reason: NostosError): void {
    if (!this.isUp) return;
    const text = new Uint8Array(this.memory, TEXT_OFFSET);
    const { code, message, retry, details } = reason.toJSON();
    let bytes = Buffer.from(JSON.stringify({ code, message, retry, details }));
    if (bytes.length > text.length)
      bytes = Buffer.from(JSON.stringify({ code, message: message.slice(0, 500), retry }));
    text.set(bytes);
    Atomics.store(this.#flag, FLAG, bytes.length);
  }

  /** Throws the reason once it is lowered. */
  check(): void {
    const length = Atomics.load(this.#flag, FLAG);
    if (length === 0) return;
    const text = Buffer.from(new Uint8Array(this.memory, TEXT_OFFSET, length)).toString();
    throw deserializeError(JSON.parse(text));
  }
}
