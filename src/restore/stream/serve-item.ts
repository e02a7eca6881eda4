/**
 * The source's side of one item: reads the file once, from start to end, and sends what the receiver's base does not
 * have. What is hashed is what was read, so the receiver ends with exactly that, or knows that it has not.
 */
import { Blake3Hasher } from '@napi-rs/blake-hash';
import type { SourceFile } from '../source.ts';
import { PREFIX_HASH_BYTES, parseHashes, protocolError, type Run } from './frames.ts';
import { HASHED_BYTES } from './limits.ts';
import { PAGE_BYTES, hashPage, pagesOf } from './pages.ts';

/** Beside a base only a few pages of what is read leave, so less is read at once. */
const COMPARED_BYTES = 128 * 1024;

export interface ItemSink {
  /** Bytes of files in one frame. */
  readonly patchBytes: number;
  /** Two buffers of at least so many bytes that take turns. */
  buffer(turn: number): Buffer;
  /** The next frame of hashes of the receiver's base. */
  nextHashes(): Promise<Uint8Array>;
  /** Resolves once the memory of the data may be used again. */
  send(patch: Outgoing): Promise<void>;
}

export interface Outgoing {
  readonly coveredTo: number;
  readonly prefixHash: Uint8Array;
  readonly runs: readonly Run[];
  readonly data: Uint8Array;
}

/** Sends `file` to a receiver that has a base of `baseBytes`; returns the BLAKE3 of all. */
export async function serveItem(file: SourceFile, baseBytes: number, sink: ItemSink): Promise<Uint8Array> {
  const pages = pagesOf(Math.min(file.bytes, baseBytes));
  const comparedBytes = Math.min(file.bytes, pages * PAGE_BYTES);
  const item: Item = { file, hasher: new Blake3Hasher() };
  await sendDifferences(item, comparedBytes, sink);
  await sendAll(item, comparedBytes, sink);
  return item.hasher.digestBuffer();
}

interface Item {
  readonly file: SourceFile;
  readonly hasher: Blake3Hasher;
}

const prefixHash = ({ hasher }: Item): Uint8Array => hasher.digestBuffer().subarray(0, PREFIX_HASH_BYTES);

/** What the receiver's base does not have of the first `end` bytes. */
async function sendDifferences(item: Item, end: number, sink: ItemSink): Promise<void> {
  const block = Buffer.allocUnsafeSlow(Math.min(COMPARED_BYTES, end));
  for (let at = 0; at < end;) {
    const hashedEnd = Math.min(end, at + HASHED_BYTES);
    const hashes = parseHashes(await sink.nextHashes());
    if (hashes.count !== pagesOf(hashedEnd - at))
      throw protocolError(`${hashes.count} hashes for the pages from ${at} to ${hashedEnd}`);
    const gathered = new Gathered(sink.buffer(0));
    for (let page = 0; at < hashedEnd;) {
      const part = block.subarray(0, Math.min(block.length, hashedEnd - at));
      if (gathered.bytes > 0 && gathered.bytes + part.length > sink.patchBytes)
        await sink.send({ coveredTo: at, prefixHash: prefixHash(item), ...gathered.take() });
      item.file.read(part, at);
      item.hasher.update(part);
      for (let offset = 0; offset < part.length; offset += PAGE_BYTES, page += 1) {
        const bytes = part.subarray(offset, offset + PAGE_BYTES);
        if (hashPage(bytes) !== hashes.at(page)) gathered.add(at + offset, bytes);
      }
      at += part.length;
    }
    await sink.send({ coveredTo: at, prefixHash: prefixHash(item), ...gathered.take() });
  }
}

/** Everything from `at` on; the next block is read and hashed while one leaves. */
async function sendAll(item: Item, from: number, sink: ItemSink): Promise<void> {
  let sending: Promise<void> | undefined;
  try {
    for (let [at, turn] = [from, 0]; at < item.file.bytes; turn += 1) {
      const data = sink.buffer(turn).subarray(0, Math.min(sink.patchBytes, item.file.bytes - at));
      item.file.read(data, at);
      item.hasher.update(data);
      const runs = [{ offset: at, length: data.length }];
      at += data.length;
      await sending;
      sending = sink.send({ coveredTo: at, prefixHash: prefixHash(item), runs, data });
      sending.catch(() => undefined);
    }
  } finally {
    await sending;
  }
}

/** Pages that differ, gathered for one frame; neighbours are one run. */
class Gathered {
  readonly #buffer: Buffer;
  bytes = 0;
  #runs: { offset: number; length: number }[] = [];

  constructor(buffer: Buffer) {
    this.#buffer = buffer;
  }

  add(offset: number, page: Uint8Array): void {
    this.#buffer.set(page, this.bytes);
    this.bytes += page.length;
    const last = this.#runs.at(-1);
    if (last !== undefined && last.offset + last.length === offset) last.length += page.length;
    else this.#runs.push({ offset, length: page.length });
  }

  take(): { readonly runs: readonly Run[]; readonly data: Uint8Array } {
    const taken = { runs: this.#runs, data: this.#buffer.subarray(0, this.bytes) };
    this.#runs = [];
    this.bytes = 0;
    return taken;
  }
}
