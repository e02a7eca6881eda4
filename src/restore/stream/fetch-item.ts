/**
 * The receiver's side of one item on one data channel: from the base to a file that is verified. Making it durable does not
 * need the channel, so the next item may be asked for meanwhile.
 */
import { NostosError } from '../../base/errors.ts';
import { yieldToEventLoop } from '../../base/event-loop.ts';
import type { ItemName } from '../item-name.ts';
import { decompressTo } from './compression.ts';
import { FrameKind, hashesFrame, parsePatch, protocolError, type Patch } from './frames.ts';
import { HASHED_BYTES } from './limits.ts';
import { errorOf, parseAnswer } from './messages.ts';
import { PAGE_BYTES, hashPages, pagesOf } from './pages.ts';
import { Patcher } from './patcher.ts';
import type { Peer, PeerDeps } from './peer.ts';
import { StagedFile } from './staged-file.ts';
import { beating } from './timers.ts';

const READ_BYTES = 512 * 1024;

export interface FetchedItem {
  readonly name: ItemName;
  readonly bytes: number;
  readonly attributes: Readonly<Record<string, string | number>>;
}

export interface ArrivedItem {
  readonly fetched: FetchedItem;
  readonly receivedBytes: number;
  /** Fsyncs and closes the file. To be called, whatever else happens. */
  readonly finish: () => Promise<void>;
}

export interface ItemRequest {
  readonly name: ItemName;
  readonly path: string;
  /** Where nothing is at `path` yet. */
  readonly base: string | undefined;
  /** False: what is there is not believed. */
  readonly useBase: boolean;
}

export interface ItemOptions {
  readonly signal: AbortSignal;
  readonly onProgress: (coveredTo: number, bytes: number, writtenBytes?: number) => void;
}

export interface ItemDeps extends PeerDeps {
  readonly peer: Peer;
}

export async function fetchItem(
  deps: ItemDeps,
  { name, path, base, useBase }: ItemRequest,
  options: ItemOptions,
): Promise<ArrivedItem> {
  const { peer } = deps;
  const file = await StagedFile.open(path, useBase ? base : undefined, (copied, at) => whileCopying(deps, copied, at));
  try {
    const baseBytes = useBase ? file.bytes : 0;
    await peer.send({ kind: 'fetch', name, base: baseBytes });
    const { bytes, attributes } = await peer.expect('opened', options.signal);
    await file.reserve(bytes - file.bytes);
    const patcher = new Patcher(name, file, { bytes, baseBytes });
    const digest = await whileHashing(file, Math.min(baseBytes, bytes), deps, options.signal, (signal) =>
      receivePatches(deps, name, { file, patcher, bytes }, { ...options, signal }),
    );
    patcher.finish(digest);
    const finish = async (): Promise<void> => {
      try {
        await file.finish(bytes);
      } finally {
        await file.close();
      }
    };
    return { fetched: { name, bytes, attributes }, receivedBytes: patcher.receivedBytes, finish };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** A copy that is no clone may take longer than the source waits: it hears of it as long as it grows. */
export function whileCopying(
  { peer, timers, limits }: PeerDeps & { readonly peer: Pick<Peer, 'send'> },
  copied: Promise<void>,
  copiedBytes: () => number,
): Promise<void> {
  let told = 0;
  return beating(timers, copied, limits.heartbeatMs, async () => {
    const bytes = copiedBytes();
    if (bytes <= told) return;
    told = bytes;
    // Whether the channel is lost shows when the item is asked for: the copy is not left alone meanwhile.
    await peer.send({ kind: 'copying', bytes }).catch(() => undefined);
  });
}

/** Sends the hashes of the base while `receive` runs; the one that fails ends the other. */
async function whileHashing<T>(
  file: StagedFile,
  baseBytes: number,
  { peer }: ItemDeps,
  outer: AbortSignal,
  receive: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  if (baseBytes === 0) return await receive(outer);
  const over = new AbortController();
  const signal = AbortSignal.any([outer, over.signal]);
  const received = receive(signal);
  const hashed = sendHashes(file, baseBytes, peer, signal);
  hashed.catch((error: unknown) => over.abort(error));
  received.catch((error: unknown) => over.abort(error));
  await Promise.allSettled([received, hashed]);
  if (over.signal.aborted) throw over.signal.reason;
  return await received;
}

/** Runs ahead of what is written: the source sends a page only after its hash has arrived. */
async function sendHashes(file: StagedFile, baseBytes: number, peer: Peer, signal: AbortSignal): Promise<void> {
  const buffer = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, pagesOf(baseBytes) * PAGE_BYTES));
  // One byte beyond what the item needs of its last page would change its hash, and cost a page: harmless.
  const end = Math.min(file.bytes, pagesOf(baseBytes) * PAGE_BYTES);
  for (let at = 0; at < end;) {
    const frame = hashesFrame();
    const frameEnd = Math.min(end, at + HASHED_BYTES);
    let length = frame.start;
    while (at < frameEnd) {
      const part = buffer.subarray(0, Math.min(buffer.length, frameEnd - at));
      file.read(part, at);
      length = hashPages(part, frame.bytes, length);
      at += part.length;
    }
    await peer.sendFrame(frame.bytes.subarray(0, length));
    await yieldToEventLoop();
    signal.throwIfAborted();
  }
}

/** While one frame arrives, the one before it is checked, and the one before that goes to the disk. */
async function receivePatches(
  { peer, timers }: ItemDeps,
  name: ItemName,
  { patcher, file, bytes }: Patched,
  { signal, onProgress }: ItemOptions,
): Promise<Uint8Array> {
  let progressAtMs = timers.monotonicMs();
  let writing: Promise<void> | undefined;
  let turn = 0;
  const next = (): Promise<Uint8Array> => {
    const frame = peer.receive(signal, { into: peer.buffer(turn++) });
    frame.catch(() => undefined);
    return frame;
  };
  onProgress(0, bytes);
  try {
    for (let arriving = next(); ;) {
      const frame = await arriving;
      if (frame[0] !== FrameKind.patch) {
        const answer = parseAnswer(frame);
        if (answer.kind === 'done') return answer.digest;
        if (answer.kind === 'error') throw errorOf(answer);
        if (answer.kind !== 'wait') throw protocolError(`"${answer.kind}" in the middle of ${name}`);
        peer.checkProgress(progressAtMs, ` with ${name}`);
        arriving = next();
        continue;
      }
      arriving = next();
      const patch = parsePatch(frame);
      const data = await dataOf(patch, name);
      patcher.check(patch, data);
      await writing;
      progressAtMs = timers.monotonicMs();
      const { coveredTo } = patcher;
      writing = file.writeRuns(patch.runs, data).then(() => onProgress(coveredTo, bytes, data.length));
      writing.catch(() => undefined);
    }
  } finally {
    await writing;
  }
}

interface Patched {
  readonly file: StagedFile;
  readonly patcher: Patcher;
  readonly bytes: number;
}

async function dataOf(patch: Patch, name: ItemName): Promise<Uint8Array> {
  if (!patch.compressed) return patch.data;
  try {
    return await decompressTo(patch.data, patch.dataBytes);
  } catch (cause) {
    throw new NostosError(
      'TRANSFER_DAMAGED',
      `${name}: a frame up to ${patch.coveredTo} does not decompress; run the restore again`,
      {
        details: { item: name, to: patch.coveredTo },
        cause,
      },
    );
  }
}
