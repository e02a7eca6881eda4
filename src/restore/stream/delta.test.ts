/** Source and receiver of one item against each other, without a network: whatever the base is, the file arrives. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { blake3 } from '@napi-rs/blake-hash';
import { seededRandom, type SeededRandom } from '../../base/random.ts';
import type { ItemName } from '../item-name.ts';
import { encodePatch, hashesFrame, parsePatch } from './frames.ts';
import { HASHED_BYTES } from './limits.ts';
import { PAGE_BYTES, hashPages, pagesOf } from './pages.ts';
import { Patcher } from './patcher.ts';
import { serveItem, type Outgoing } from './serve-item.ts';

const NAME = 'file/a' as ItemName;
const PATCH_BYTES = 64 * 1024;

interface Transfer {
  readonly result: Uint8Array;
  readonly digest: string;
  readonly sentBytes: number;
  readonly frames: number;
}

/** Runs an item from a source that has `content` to a receiver that has `base`; `tamper` changes frames on the way. */
async function transfer(
  content: Uint8Array,
  base: Uint8Array,
  tamper?: (frame: Buffer, index: number) => void,
): Promise<Transfer> {
  const staged = Buffer.alloc(Math.max(content.length, base.length));
  staged.set(base);
  const patcher = new Patcher(
    NAME,
    { read: (target, offset) => target.set(staged.subarray(offset, offset + target.length)) },
    { bytes: content.length, baseBytes: base.length },
  );
  let [sentBytes, frames, hashedTo] = [0, 0, 0];
  const comparedTo = Math.min(base.length, pagesOf(Math.min(base.length, content.length)) * PAGE_BYTES);
  const buffers = [0, 1, 2].map(() => Buffer.alloc(256 * 1024));
  const digest = await serveItem(
    {
      bytes: content.length,
      attributes: {},
      read: (target, offset) => target.set(content.subarray(offset, offset + target.length)),
      close: () => Promise.resolve(),
    },
    base.length,
    {
      patchBytes: PATCH_BYTES,
      buffer: (turn) => buffers[turn % 3]!,
      nextHashes: () => {
        const { bytes, start } = hashesFrame();
        const end = Math.min(comparedTo, hashedTo + HASHED_BYTES);
        const length = hashPages(staged.subarray(hashedTo, end), bytes, start);
        hashedTo = end;
        return Promise.resolve(bytes.subarray(0, length));
      },
      send: (outgoing: Outgoing) => {
        const frame = Buffer.concat(encodePatch({ ...outgoing, dataBytes: outgoing.data.length, compressed: false }));
        tamper?.(frame, frames);
        frames += 1;
        sentBytes += outgoing.data.length;
        const patch = parsePatch(frame);
        patcher.check(patch, patch.data);
        let taken = 0;
        for (const { offset, length } of patch.runs) {
          staged.set(patch.data.subarray(taken, taken + length), offset);
          taken += length;
        }
        return Promise.resolve();
      },
    },
  );
  return { result: staged.subarray(0, content.length), digest: patcher.finish(digest), sentBytes, frames };
}

/** Sizes around the borders of pages, blocks and frames of hashes. */
function anySize(random: SeededRandom): number {
  const around = [0, PAGE_BYTES, 2 * PAGE_BYTES, PATCH_BYTES, 128 * 1024, 300_000];
  return Math.max(0, around[random.below(around.length)]! + random.below(7) - 3);
}

function edited(content: Uint8Array, random: SeededRandom): Uint8Array {
  const base = content.slice(0, random.chance(0.3) ? random.below(content.length + 1) : content.length);
  for (let edits = random.below(6); edits > 0 && base.length > 0; edits -= 1) {
    const at = random.below(base.length);
    base.set(random.bytes(Math.min(base.length - at, 1 + random.below(3 * PAGE_BYTES))), at);
  }
  return random.chance(0.3) ? Buffer.concat([base, random.bytes(random.below(3 * PAGE_BYTES))]) : base;
}

test('any file arrives over any base, and only pages that differ are sent', async () => {
  const random = seededRandom(5);
  for (let round = 0; round < 400; round += 1) {
    const content = random.bytes(anySize(random));
    const base = random.chance(0.2) ? random.bytes(anySize(random)) : edited(content, random);
    const { result, digest, sentBytes } = await transfer(content, base);
    assert.ok(Buffer.from(result).equals(content), `round ${round}`);
    assert.equal(digest, blake3(content).toString('hex'));
    let different = 0;
    for (let at = 0; at < content.length; at += PAGE_BYTES) {
      const page = Buffer.from(content.subarray(at, at + PAGE_BYTES));
      if (!page.equals(base.subarray(at, at + PAGE_BYTES))) different += page.length;
    }
    assert.equal(sentBytes, different, `round ${round}: ${content.length} over ${base.length} bytes`);
  }
});

test('so it is across frames of hashes', async () => {
  const random = seededRandom(6);
  const content = random.bytes(2 * HASHED_BYTES + 5_000);
  const longer = Buffer.concat([content, random.bytes(9_000)]);
  const shorter = content.slice(0, HASHED_BYTES + 100);
  const changed = content.slice();
  changed.fill(0, HASHED_BYTES - 10, HASHED_BYTES + 10);
  for (const [base, sentBytes] of [
    [content, 0],
    [longer, 5_000 - PAGE_BYTES],
    [shorter, HASHED_BYTES + 5_000],
    [changed, 2 * PAGE_BYTES],
  ] as const) {
    const sent = await transfer(content, base);
    assert.ok(Buffer.from(sent.result).equals(content));
    assert.equal(sent.sentBytes, sentBytes);
  }
});

test('a wrong bit in the first, a middle or the last frame is found in that frame', async () => {
  const content = seededRandom(7).bytes(5 * PATCH_BYTES);
  for (const wrong of [0, 2, 4]) {
    const flip = (frame: Buffer, index: number): void => {
      if (index === wrong) frame[frame.length - 1]! ^= 1;
    };
    await assert.rejects(transfer(content, new Uint8Array(0), flip), {
      code: 'TRANSFER_DAMAGED',
      details: {
        item: NAME,
        from: wrong * PATCH_BYTES,
        to: (wrong + 1) * PATCH_BYTES,
        bytes: content.length,
        pages: 16,
      },
    });
  }
});
