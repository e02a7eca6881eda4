import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Hlc } from './brands.ts';
import { HybridClock, hlcToMs } from './clock.ts';
import { isNostosError } from './errors.ts';
import { randomHex128, seededRandom, systemRandom } from './random.ts';

test('hybrid time only rises, whatever the wall clock does', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(50), { minLength: 1, maxLength: 200 }), (walls) => {
      let wall = 0;
      const clock = new HybridClock({ nowMs: () => wall, monotonicMs: () => 0 });
      let last = -1n;
      for (wall of walls) {
        const next = clock.next();
        assert.ok(next > last && hlcToMs(next) >= wall);
        last = next;
      }
    }),
  );
});

test('the counter overflows into the milliseconds', () => {
  const clock = new HybridClock({ nowMs: () => 5, monotonicMs: () => 0 });
  let last = clock.next();
  for (let i = 0; i < 70_000; i++) {
    const next = clock.next();
    assert.ok(next > last);
    last = next;
  }
  assert.equal(hlcToMs(last), 6);
});

test('a time from too far ahead is refused, one of our own history is not', () => {
  const clock = new HybridClock({ nowMs: () => 1_000, monotonicMs: () => 0 }, { aheadMaxMs: 500 });
  const at = (ms: number): Hlc => (BigInt(ms) << 16n) as Hlc;
  clock.observe(at(1_500));
  assert.ok(clock.next() > at(1_500));
  assert.throws(
    () => clock.observe(at(1_501)),
    (error: unknown) => isNostosError(error, 'CLOCK_DRIFT'),
  );
  clock.resume(at(9_000));
  assert.ok(clock.next() > at(9_000));
  clock.observe(at(3));
  assert.ok(clock.next() > at(9_000));
});

test('a seed gives one sequence, another seed another', () => {
  const draw = (seed: number) => Buffer.from(seededRandom(seed).bytes(64)).toString('hex');
  assert.equal(draw(7), draw(7));
  assert.equal(new Set(Array.from({ length: 500 }, (_, seed) => draw(seed))).size, 500);
  const random = seededRandom(1);
  const counts = [0, 0, 0, 0];
  for (let i = 0; i < 4_000; i++) counts[random.below(4)]! += 1;
  assert.ok(
    counts.every((count) => count > 850),
    counts.join(),
  );
  assert.match(randomHex128(systemRandom), /^[0-9a-f]{32}$/);
});
