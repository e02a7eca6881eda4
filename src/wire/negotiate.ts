/**
 * Which version of a service both sides speak. Each sends one frame, `"NSTV" | u16 least | u16 greatest`, little-endian,
 * and both take the greatest version that both have; what follows in the frame is for later. The services of the
 * reference have no versions and do not use this.
 */
import { NostosError } from '../base/errors.ts';
import type { Channel, ReceiveOptions } from './channel.ts';

const MAGIC = [0x4e, 0x53, 0x54, 0x56];
const FRAME_BYTES = 8;

export interface Versions {
  /** For messages. */
  readonly service: string;
  readonly least: number;
  readonly greatest: number;
}

export interface NegotiateOptions extends ReceiveOptions {
  readonly timeoutMs?: number | undefined;
}

/** Sends the range, and resolves with the version to speak. A dispatcher without the service closes: `CHANNEL_CLOSED`. */
export async function negotiateClient(
  channel: Channel,
  ours: Versions,
  options: NegotiateOptions = {},
): Promise<number> {
  await channel.send(encode(ours));
  return choose(channel, ours, await answer(channel, ours, options));
}

/** Answers also a peer that it cannot speak with, so that both sides can name both ranges. */
export async function negotiateServer(
  channel: Channel,
  ours: Versions,
  options: NegotiateOptions = {},
): Promise<number> {
  const theirs = await answer(channel, ours, options);
  await channel.send(encode(ours));
  return choose(channel, ours, theirs);
}

async function answer(channel: Channel, ours: Versions, options: NegotiateOptions): Promise<Uint8Array> {
  const { timeoutMs = 30_000, signal } = options;
  const frame = await channel.receive(timeoutMs, { signal });
  if (frame === null)
    throw new NostosError(
      'NETWORK_TIMEOUT',
      `${channel.peer} named no version of ${ours.service} within ${timeoutMs} ms`,
    );
  return frame;
}

function encode({ least, greatest }: Versions): Uint8Array {
  if (!(Number.isInteger(least) && least >= 1 && least <= greatest && greatest <= 0xffff))
    throw new NostosError('INVALID_ARGUMENT', `versions go from 1 to 65535, got ${least} to ${greatest}`);
  const frame = new Uint8Array(FRAME_BYTES);
  frame.set(MAGIC);
  const view = new DataView(frame.buffer);
  view.setUint16(4, least, true);
  view.setUint16(6, greatest, true);
  return frame;
}

function choose(channel: Channel, ours: Versions, frame: Uint8Array): number {
  const known = frame.length >= FRAME_BYTES && MAGIC.every((byte, index) => frame[index] === byte);
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const theirs = known ? { least: view.getUint16(4, true), greatest: view.getUint16(6, true) } : undefined;
  const version = Math.min(ours.greatest, theirs?.greatest ?? 0);
  if (theirs !== undefined && version >= Math.max(ours.least, theirs.least)) return version;
  const range = ({ least, greatest }: Omit<Versions, 'service'>): string =>
    least === greatest ? `version ${least}` : `versions ${least} to ${greatest}`;
  const said = theirs === undefined ? 'something that names no version' : range(theirs);
  throw new NostosError(
    'VERSION_MISMATCH',
    `${ours.service}: this side speaks ${range(ours)}, ${channel.peer} ${theirs === undefined ? 'answered' : 'speaks'} ${said}; update the older one`,
    {
      details: { service: ours.service, ours: { least: ours.least, greatest: ours.greatest }, theirs: theirs ?? null },
    },
  );
}
