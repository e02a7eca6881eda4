/** A receiver on another machine, as far as this one notices: takes a whole copy, again and again, and keeps nothing. */
import { constants, setPriority } from 'node:os';
import type { ItemName } from '../src/restore/item-name.ts';
import { FrameKind } from '../src/restore/stream/frames.ts';
import { STREAM_LIMITS } from '../src/restore/stream/limits.ts';
import { STREAM_SERVICE_NAME, VERSIONS, parseAnswer, type Answer } from '../src/restore/stream/messages.ts';
import { Peer } from '../src/restore/stream/peer.ts';
import { systemTimers } from '../src/restore/stream/timers.ts';
import { connectToService } from '../src/wire/connect.ts';
import { negotiateClient } from '../src/wire/negotiate.ts';
import type { Channel } from '../src/wire/channel.ts';
import { note } from './child.ts';

export interface SinkInput {
  readonly address: string;
  readonly durationMs: number;
  readonly rateBytesPerSecond: number | null;
}

export interface Sunk {
  readonly bytes: number;
  readonly copies: number;
  readonly elapsedMs: number;
}

const deps = { timers: systemTimers, limits: STREAM_LIMITS };

/** Notes `fetching` when the first file has begun. */
export async function sink({ address, durationMs, rateBytesPerSecond }: SinkInput): Promise<Sunk> {
  setPriority(constants.priority.PRIORITY_LOW); // its work is not what is measured, and would be done elsewhere
  const { signal } = new AbortController();
  let [bytes, copies] = [0, 0];
  const startedMs = performance.now();
  const untilMs = startedMs + durationMs;
  const connect = async (): Promise<Peer> => {
    const channel: Channel = await connectToService(address, STREAM_SERVICE_NAME);
    await negotiateClient(channel, VERSIONS, { timeoutMs: 5_000, signal });
    return new Peer(channel, deps);
  };
  const into = Buffer.allocUnsafeSlow(2 * 1024 * 1024);
  while (performance.now() < untilMs) {
    const control = await connect();
    await control.send({ kind: 'begin', rateBytesPerSecond, compression: 'auto' });
    const { session, plan } = await control.expect('session', signal);
    const names: ItemName[] = [];
    while (names.length < plan.itemCount)
      for (const [name] of (await control.expect('items', signal)).items) names.push(name);
    const data = await connect();
    await data.send({ kind: 'attach', session });
    await data.expect('attached', signal);
    for (const name of names) {
      await data.send({ kind: 'fetch', name, base: 0 });
      await data.expect('opened', signal);
      note('fetching');
      for (let answer: Answer['kind'] | undefined; answer !== 'done' && performance.now() < untilMs;) {
        const frame = await data.receive(signal, { into });
        bytes += frame.length;
        if (frame[0] === FrameKind.message) answer = parseAnswer(frame).kind;
      }
      if (performance.now() >= untilMs) break;
    }
    data.channel.close();
    control.channel.close();
    copies += 1;
  }
  return { bytes, copies, elapsedMs: performance.now() - startedMs };
}
