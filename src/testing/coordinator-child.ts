/**
 * A process of the coordinator compliance suite: adds one to `renewal` so many times by compare-and-set, prints each
 * version that it won, and may live with a wall clock that is years off, or jumps.
 */
import type { CoordinationFactory } from './coordinator-compliance.ts';
import { groupRecord } from './coordinator-compliance.ts';

const YEAR_MS = 365 * 24 * 60 * 60 * 1_000;
const [, , module = '', args = 'null', times = '0', clock = '0'] = process.argv;

let offsetMs = clock === 'jump' ? 0 : Number(clock) * YEAR_MS;
const RealDate = Date;
globalThis.Date = class extends RealDate {
  constructor(...given: [] | [number | string | Date]) {
    if (given.length === 0) super(RealDate.now() + offsetMs);
    else super(...given);
  }

  static override now(): number {
    return RealDate.now() + offsetMs;
  }
} as DateConstructor;

const { openCoordinator } = (await import(module)) as { openCoordinator: CoordinationFactory };
const coordination = await openCoordinator(JSON.parse(args));
const group = coordination.group();
process.stdout.write('ready\n');
for (let done = 0; done < Number(times);) {
  const current = await group.read();
  const next = groupRecord({ renewal: (current?.record.renewal ?? 0) + 1 });
  if (clock === 'jump') offsetMs = (done % 2 === 0 ? 1 : -1) * 10 * YEAR_MS;
  const result = await group.compareAndSet(current?.version ?? 0, next);
  if (!result.ok) continue;
  done += 1;
  process.stdout.write(`${result.version}\n`);
}
await coordination.close();
