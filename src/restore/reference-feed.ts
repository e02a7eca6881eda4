/**
 * A node from a peer that has only the reference's RESTORE service. That brings segments and nothing else, in one frame,
 * so it is enough only where the log goes back to its first record: then tenants and catalog are made again from it. The
 * service does not say whose log it is: the generation is read from the log, the cluster is that of the directory, or new.
 *
 * The one frame is held in memory, 64 MiB at most by the protocol: nothing may be written before the marker is there, and
 * the marker names the generation.
 */
import type { ClusterId, Generation } from '../base/brands.ts';
import type { Disk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { RecordDecoder } from '../log/record.ts';
import { SEGMENT_HEADER_BYTES, decodeSegmentHeader, segmentName } from '../log/segment-header.ts';
import type { Channel } from '../wire/channel.ts';
import type { FetchOptions, FetchReport, FetchTarget, RestoreFeed } from './feed.ts';
import { parseItemName } from './item-name.ts';
import { BodyParser, encodeMagic } from './reference/body.ts';
import { RESTORE_LIMITS } from './reference/types.ts';
import type { RestorePlan } from './source.ts';

/** The reference's client waits so long for the frame, too. */
const ANSWER_TIMEOUT_MS = 120_000;

export interface ReferenceFeedDeps {
  readonly disk: Disk;
  /** A channel to the service RESTORE at this address. */
  readonly connect: (address: string, signal: AbortSignal) => Promise<Channel>;
  readonly monotonicMs: () => number;
}

interface Segment {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** How a source says that it is to be asked for this service; nobody is asked for it unsaid. */
export const REFERENCE_PREFIX = 'reference:';

export async function openReferenceFeed(
  deps: ReferenceFeedDeps,
  { address, cluster }: { readonly address: string; readonly cluster: ClusterId },
  signal: AbortSignal,
): Promise<RestoreFeed> {
  const body = await requestBody(await deps.connect(address, signal), signal);
  const segments = segmentsOf(body);
  const plan: RestorePlan = {
    kind: 'node',
    cluster,
    generation: wholeLogOf(address, segments),
    store: null,
    node: null,
    term: 0,
    watermark: 0,
    items: segments.map(({ name, bytes }) => ({ name: parseItemName(`log/${name}`), bytes: bytes.length })),
  };
  return {
    sources: [`${REFERENCE_PREFIX}${address}`],
    plan,
    fetchAll: async (target, options) => {
      const startedMs = deps.monotonicMs();
      for (const segment of segments) store(deps.disk, target, segment, options);
      const elapsedMs = deps.monotonicMs() - startedMs;
      return { items: plan.items, bytesOnWire: body.length, bytesReused: 0, elapsedMs } satisfies FetchReport;
    },
    close: async () => {},
  };
}

async function requestBody(channel: Channel, signal: AbortSignal): Promise<Uint8Array> {
  try {
    await channel.send(encodeMagic());
    const body = await channel.receive(ANSWER_TIMEOUT_MS, { signal });
    if (body !== null) return body;
    throw new NostosError('NETWORK_TIMEOUT', `${channel.peer} sent nothing in ${ANSWER_TIMEOUT_MS} ms`);
  } finally {
    channel.close();
  }
}

function segmentsOf(body: Uint8Array): Segment[] {
  const parser = new BodyParser({ ...RESTORE_LIMITS, trailer: 'crc32', names: 'strict', bodyBytes: body.length });
  const segments: { name: string; bytes: Uint8Array }[] = [];
  for (const event of parser.push(body)) {
    if (event.kind === 'file') segments.push({ name: event.name, bytes: new Uint8Array(0) });
    // All of it was pushed at once, so a file comes in one piece.
    else if (event.kind === 'data') segments.at(-1)!.bytes = event.bytes;
  }
  parser.finish('the source');
  return segments.toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

/** The generation of a log that is there from its first record to its last; says why not where it is not. */
function wholeLogOf(address: string, segments: readonly Segment[]): Generation {
  const refuse = (why: string): NostosError =>
    new NostosError(
      'NO_PROVIDER',
      `${address} has only the service RESTORE, which sends segments of a log and no tenants, and ${why}. Restore from a node that serves copies (nostos serve --listen)`,
      { details: { address, segments: segments.length } },
    );
  const first = segments[0];
  if (first === undefined) throw refuse('it has none');
  for (const [index, { name, bytes }] of segments.entries()) {
    const header = decodeSegmentHeader(bytes);
    if (header === undefined) throw refuse(`${name} is no segment of Nostos`);
    if (index === 0 && header.anchor.lsn !== 0)
      throw refuse(`its log begins after record ${header.anchor.lsn}: what was before cannot be made again`);
    if (name !== segmentName(header.number) || header.number !== index + decodeSegmentHeader(first.bytes)!.number)
      throw refuse(`${name} is not the one that comes there`);
  }
  const generation = segments
    .toReversed()
    .values()
    .map(({ bytes }) => generationAtEnd(bytes))
    .find((one) => one !== undefined);
  if (generation === undefined) throw refuse(`${first.name} has no first record`);
  return generation;
}

/** That of the last record of a segment: a log may have gone on in another one than it began in. */
function generationAtEnd(bytes: Uint8Array): Generation | undefined {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const decoder = new RecordDecoder();
  let generation: Generation | undefined;
  for (let at = SEGMENT_HEADER_BYTES; ;) {
    const record = decoder.decode(buffer, view, at, bytes.length);
    if (typeof record === 'string') return generation;
    generation = record.generation;
    at += record.bytes.length;
  }
}

function store(disk: Disk, target: FetchTarget, { name, bytes }: Segment, options: FetchOptions = {}): void {
  options.signal?.throwIfAborted();
  const file = disk.open(target.pathOf(parseItemName(`log/${name}`)), 'create');
  try {
    file.write(bytes, 0);
    file.sync();
  } finally {
    file.close();
  }
}
