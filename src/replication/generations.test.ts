/** What a log that has begun a generation says of positions on both sides of the fork. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Generation, Lsn, Position, TenantId, Term } from '../base/brands.ts';
import { HybridClock } from '../base/clock.ts';
import { beginGeneration } from '../log/generation.ts';
import { Log } from '../log/log.ts';
import { RecordKind } from '../log/record.ts';
import { FaultyDisk } from '../testing/faulty-disk.ts';
import { VirtualClock } from '../testing/virtual-clock.ts';
import { outlookOf } from './store-view.ts';

const [FIRST, SECOND, THIRD] = ['1', '2', '3'].map((digit) => digit.repeat(32)) as [Generation, Generation, Generation];

function write(log: Log, term: number, records: number): Position {
  log.startTerm(term as Term, Buffer.from('start'));
  for (let i = 0; i < records; i++)
    log.append([{ tenant: 1 as TenantId, kind: RecordKind.changeset, payload: new Uint8Array(150) }]);
  log.sync();
  return log.end;
}

test('positions: those of the parent are good up to the fork, and lost above it, whichever term they name', () => {
  const deps = { disk: new FaultyDisk(), clock: new HybridClock(new VirtualClock()) };
  const parent = Log.open(deps, { dir: '/log', generation: FIRST }).log;
  write(parent, 1, 9);
  const end = write(parent, 4, 9);
  parent.close();
  const { start } = beginGeneration(deps, { dir: '/log', parent: FIRST, generation: SECOND, term: 9 as Term });
  const { log } = Log.open(deps, { dir: '/log', generation: SECOND });
  const last = write(log, 10, 3);
  log.setWatermark(last.lsn);
  const view = { terms: log.history, end: log.end, watermark: log.watermark };
  const at = (generation: Generation, term: number, lsn: number): Position => ({
    generation,
    term: term as Term,
    lsn: lsn as Lsn,
  });
  const lost = (fork: Position): object => ({ kind: 'lost', fork });
  const [one, four] = [at(FIRST, 1, 10), at(FIRST, 4, end.lsn)];
  assert.deepEqual(
    [at(FIRST, 1, 5), four, at(SECOND, 9, start.lsn), at(SECOND, 10, last.lsn), at(SECOND, 10, last.lsn + 1)].map(
      (position) => outlookOf(view, position).kind,
    ),
    ['reached', 'reached', 'reached', 'reached', 'ahead'],
  );
  for (const [position, fork] of [
    [at(FIRST, 4, end.lsn + 1), four],
    [at(FIRST, 4, last.lsn + 50), four],
    [at(FIRST, 5, end.lsn + 1), four],
    [at(FIRST, 9, start.lsn), four],
    [at(FIRST, 30, last.lsn + 1), four],
    [at(FIRST, 1, 11), one],
    [at(FIRST, 2, 30), one],
    [at(SECOND, 4, end.lsn), four],
    [at(SECOND, 9, start.lsn + 1), at(SECOND, 9, start.lsn)],
    [at(THIRD, 10, last.lsn), at(SECOND, 0, 0)],
  ] as const)
    assert.deepEqual(outlookOf(view, position), lost(fork), JSON.stringify(position));
  assert.equal(outlookOf(view, at(THIRD, 11, 4)).kind, 'ahead', 'of a generation that this node has not heard of yet');
  log.close();
});
