import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BootId, Generation, Hash, Lsn, StoreId, Term } from '../base/brands.ts';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { WireMessage } from './codec.ts';
import { encodeFrame, parseFrame } from './codec.ts';

const generation = 'a'.repeat(32) as Generation;
const store = 'b'.repeat(32) as StoreId;
const boot = 'c'.repeat(32) as BootId;
const [term, lsn] = [7 as Term, (2 ** 40) as Lsn];
const head = { generation, term };
const hash = new Uint8Array(32).fill(9) as Hash;
const point = { generation, term, lsn, hash };
const last = { ...point, lsn: (lsn + 3) as Lsn };

const MESSAGES: readonly WireMessage[] = [
  { kind: 'open', ...head, store, boot, eligible: true, point },
  { kind: 'probe', ...head, point },
  { kind: 'point', ...head, lsn, answer: { held: 'held' }, watermark: lsn },
  { kind: 'point', ...head, lsn, answer: { held: 'diverged' }, watermark: lsn },
  { kind: 'point', ...head, lsn, answer: { held: 'pruned' }, watermark: lsn },
  { kind: 'point', ...head, lsn, answer: { held: 'below', term, lsn }, watermark: lsn },
  { kind: 'refused', ...head, reason: 'lost-acknowledged' },
  { kind: 'records', ...head, watermark: lsn, previous: point, last, payload: new Uint8Array([1, 2, 3]) },
  { kind: 'watermark', ...head, watermark: lsn, sent: lsn },
  { kind: 'ack', ...head, store, boot, lsn },
  { kind: 'ping', ...head, store },
  { kind: 'pong', ...head, store },
  { kind: 'lead', ...head },
];

const frameOf = (message: WireMessage): Uint8Array => new Uint8Array(Buffer.concat(encodeFrame(message)));
const isRefused = (error: unknown): boolean => isNostosError(error, 'PROTOCOL_ERROR');

test('every message comes back as it was sent', () => {
  for (const message of MESSAGES) assert.deepEqual(parseFrame(frameOf(message)), { ...message });
});

test('what is kept of a frame does not change with its memory', () => {
  const frame = Buffer.concat(encodeFrame(MESSAGES[1]!));
  const parsed = parseFrame(frame);
  frame.fill(0);
  assert.deepEqual(parsed, { ...MESSAGES[1] });
});

test('a frame that is cut, prolonged, or of the wrong kind is refused', () => {
  for (const message of MESSAGES) {
    const frame = frameOf(message);
    const headerEnd = encodeFrame(message)[0].length;
    for (let length = 0; length < headerEnd; length++)
      assert.throws(() => parseFrame(frame.subarray(0, length)), isRefused);
    if (message.kind === 'records') assert.throws(() => parseFrame(frame.subarray(0, headerEnd)), isRefused);
    else assert.throws(() => parseFrame(Buffer.concat([frame, new Uint8Array(1)])), isRefused);
  }
  for (const change of [
    { term: -1 },
    { term: 1.5 },
    { lsn: 2 ** 60 },
    { store: 'x' },
    { boot: undefined },
    { extra: 1 },
  ]) {
    const message = { ...MESSAGES[9], ...change } as WireMessage;
    assert.throws(() => parseFrame(frameOf(message)), isRefused, JSON.stringify(change));
  }
});

test('random bytes, and frames with random bytes changed, are refused or mean something, and nothing else', () => {
  const random = seededRandom(1);
  let refused = 0;
  for (let round = 0; round < 20_000; round++) {
    const frame = Buffer.from(frameOf(MESSAGES[random.below(MESSAGES.length)]!));
    for (let change = 0; change <= random.below(4); change++) frame[random.below(frame.length)] = random.below(256);
    try {
      assert.ok(parseFrame(random.chance(0.1) ? random.bytes(random.below(200)) : frame).kind.length > 0);
    } catch (error) {
      assert.ok(isRefused(error), String(error));
      refused += 1;
    }
  }
  assert.ok(refused > 5_000);
});
