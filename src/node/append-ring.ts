/**
 * The way of appends into the engine: a ring of shared memory with one producer (the caller's thread) and one consumer
 * (the engine's). A message between threads costs each side about as much as running a small transaction; a frame in the
 * ring costs a copy.
 *
 * `head` and `tail` count bytes for ever, modulo 2^32. The consumer says how it rests before it looks a last time; the
 * producer puts its frame before it looks whether to wake the consumer. Both use sequentially consistent operations, so
 * at least one of them sees the other: a frame never waits for a consumer whom nobody wakes.
 *
 * It rests in one of two ways: it waits on the ring for a while, from which a frame wakes it cheaply, and after that it
 * sleeps in its event loop, from which only a message wakes it.
 */
const HEAD = 0;
const TAIL = 1;
const REST = 2;
const AWAKE = 0;
const ASLEEP = 1;
const WAITING = 2;
const CONTROL_BYTES = 64;
const LENGTH_BYTES = 4;
/** A power of two; a frame that does not fit goes as a message. */
const RING_BYTES = 4 * 1024 * 1024;

export class AppendRing {
  readonly memory: SharedArrayBuffer;
  readonly #control: Int32Array;
  readonly #ring: Uint8Array;
  readonly #length = new Uint32Array(1);
  readonly #lengthBytes = new Uint8Array(this.#length.buffer);

  constructor(memory: SharedArrayBuffer = new SharedArrayBuffer(CONTROL_BYTES + RING_BYTES)) {
    this.memory = memory;
    this.#control = new Int32Array(memory, 0, CONTROL_BYTES / 4);
    this.#ring = new Uint8Array(memory, CONTROL_BYTES);
  }

  /** For the producer. `full`: nothing was put. `asleep`: the consumer must be woken. */
  put(frame: Uint8Array): 'put' | 'asleep' | 'full' {
    const head = Atomics.load(this.#control, HEAD);
    const used = (head - Atomics.load(this.#control, TAIL)) >>> 0;
    if (used + LENGTH_BYTES + frame.length > RING_BYTES) return 'full';
    this.#length[0] = frame.length;
    this.#write(head, this.#lengthBytes);
    this.#write(head + LENGTH_BYTES, frame);
    Atomics.store(this.#control, HEAD, (head + LENGTH_BYTES + frame.length) | 0);
    const rest = Atomics.load(this.#control, REST);
    if (rest === WAITING) Atomics.notify(this.#control, HEAD);
    if (rest !== ASLEEP) return 'put';
    // Whoever takes the flag wakes, so that several frames cost one message.
    return Atomics.compareExchange(this.#control, REST, ASLEEP, AWAKE) === ASLEEP ? 'asleep' : 'put';
  }

  /** For the producer, when it has sent a message: a consumer that waits here does not see it otherwise. */
  poke(): void {
    Atomics.notify(this.#control, HEAD);
  }

  /** For the consumer: a copy of the next frame. */
  take(): Uint8Array | undefined {
    const tail = Atomics.load(this.#control, TAIL);
    if (tail === Atomics.load(this.#control, HEAD)) return undefined;
    this.#read(tail, this.#lengthBytes);
    const frame = new Uint8Array(this.#length[0]!);
    this.#read(tail + LENGTH_BYTES, frame);
    Atomics.store(this.#control, TAIL, (tail + LENGTH_BYTES + frame.length) | 0);
    return frame;
  }

  /** For the consumer, before it stops looking; false where a frame came meanwhile, so that it must look again. */
  sleep(): boolean {
    Atomics.store(this.#control, REST, ASLEEP);
    if (Atomics.load(this.#control, TAIL) === Atomics.load(this.#control, HEAD)) return true;
    Atomics.store(this.#control, REST, AWAKE);
    return false;
  }

  /** For the consumer: waits for a frame, or until it is poked or the time is up. */
  wait(timeoutMs: number): void {
    Atomics.store(this.#control, REST, WAITING);
    Atomics.wait(this.#control, HEAD, Atomics.load(this.#control, TAIL), timeoutMs);
    Atomics.store(this.#control, REST, AWAKE);
  }

  #write(position: number, bytes: Uint8Array): void {
    const at = position & (RING_BYTES - 1);
    const first = Math.min(bytes.length, RING_BYTES - at);
    this.#ring.set(first === bytes.length ? bytes : bytes.subarray(0, first), at);
    if (first < bytes.length) this.#ring.set(bytes.subarray(first), 0);
  }

  #read(position: number, into: Uint8Array): void {
    const at = position & (RING_BYTES - 1);
    const first = Math.min(into.length, RING_BYTES - at);
    into.set(this.#ring.subarray(at, at + first), 0);
    if (first < into.length) into.set(this.#ring.subarray(0, into.length - first), first);
  }
}
