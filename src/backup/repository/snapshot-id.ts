/** UUIDv7 (RFC 9562): 48 bits of milliseconds, then random ones. */
import type { Clock } from '../../base/clock.ts';
import type { Random } from '../../base/random.ts';
import type { SnapshotId } from './manifest.ts';

export function newSnapshotId(clock: Clock, random: Random): SnapshotId {
  const bytes = Buffer.alloc(16);
  bytes.writeUIntBE(clock.nowMs(), 0, 6);
  bytes.set(random.bytes(10), 6);
  bytes[6] = 0x70 | (bytes[6]! & 0x0f);
  bytes[8] = 0x80 | (bytes[8]! & 0x3f);
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5') as SnapshotId;
}
