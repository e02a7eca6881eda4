import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import type { Generation, Lsn, TenantId, Term } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import type { LogOptions } from './log.ts';
import { Log } from './log.ts';
import { RecordKind } from './record.ts';
import type { LogEntry } from './writer.ts';

const GENERATION = '0123456789abcdef0123456789abcdef' as Generation;
const NOTHING = new Uint8Array(0);
const term = (value: number): Term => value as Term;
const lsn = (value: number): Lsn => value as Lsn;
const code = (expected: string) => (error: unknown) => isNostosError(error) && error.code === expected;

function temporaryDir(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-log-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

function openLog(dir: string, options: Partial<LogOptions> = {}) {
  const deps = { disk: systemDisk, clock: new HybridClock(systemClock) };
  return Log.open(deps, { dir, generation: GENERATION, ...options });
}

const SMALL = { segmentBytesMax: 4096, recordBytesMax: 2048, preallocateBytes: 1024 };

function entries(count: number, bytes = 100, tenant = 1): LogEntry[] {
  return Array.from({ length: count }, (_, i) => ({
    tenant: tenant as TenantId,
    kind: RecordKind.changeset,
    payload: new Uint8Array(bytes).fill(i + 1),
  }));
}

const readAll = (log: Log, from = 1) => [...log.read({ from: lsn(from) })].flatMap((batch) => batch.records);

test('what was appended and synced is there after closing and opening', (t) => {
  const dir = temporaryDir(t);
  const first = openLog(dir);
  assert.equal(first.report.created, true);
  first.log.startTerm(term(1), Buffer.from('boot'));
  const appended = first.log.append(entries(10));
  assert.equal(appended.firstLsn, 2);
  assert.equal(appended.hashes.length, 320);
  assert.equal(first.log.durable.lsn, 0);
  first.log.sync();
  assert.equal(first.log.durable.lsn, 11);
  first.log.close();

  const second = openLog(dir, { knownWatermark: lsn(11) });
  assert.equal(second.report.created, false);
  assert.equal(second.report.end.lsn, 11);
  assert.equal(second.report.tornBytes, 0);
  const records = readAll(second.log);
  assert.deepEqual(
    records.map(({ record }) => record.lsn),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
  );
  assert.deepEqual(Buffer.from(records[3]!.record.payload), Buffer.alloc(100, 3));
  assert.deepEqual(Buffer.from(records[10]!.hash), Buffer.from(appended.hashes.subarray(288)));
  second.log.close();
});

test('a log is in no term until a higher one starts', (t) => {
  const dir = temporaryDir(t);
  const { log } = openLog(dir);
  assert.throws(() => log.append(entries(1)), code('TERM_ENDED'));
  log.startTerm(term(3), NOTHING);
  log.append(entries(1));
  log.sync();
  log.close();
  const again = openLog(dir).log;
  assert.throws(() => again.append(entries(1)), code('TERM_ENDED'));
  assert.throws(() => again.startTerm(term(3), NOTHING), code('INVALID_ARGUMENT'));
  again.startTerm(term(4), NOTHING);
  again.append(entries(1));
  again.close();
});

test('segments roll by content, and any range reads across them', (t) => {
  const dir = temporaryDir(t);
  const { log } = openLog(dir, SMALL);
  log.startTerm(term(1), NOTHING);
  for (let i = 0; i < 20; i++) log.append(entries(7, 90 + i, (i % 3) + 1));
  log.sync();
  assert.ok(log.sealed.length > 5);
  for (const row of log.sealed) assert.ok(row.sizeBytes <= SMALL.segmentBytesMax);
  assert.equal(readAll(log).length, 141);
  assert.equal(readAll(log, 77)[0]!.record.lsn, 77);
  const some = [...log.read({ from: lsn(30), to: lsn(95), tenant: 2 as TenantId, bytesMax: 600 })];
  assert.equal(some.at(-1)!.through, 95);
  assert.ok(some.flatMap((batch) => batch.records).every(({ record }) => record.tenant === 2));
  assert.equal(log.locate(lsn(1)).segment, '00000001.ndb');
  log.close();

  const again = openLog(dir, SMALL);
  assert.equal(again.report.end.lsn, 141);
  assert.ok(again.report.recordsScanned < 50, 'sealed segments are not read');
  assert.equal(readAll(again.log).length, 141);
  again.log.close();
});

test('pruning removes whole segments below everything that is needed', (t) => {
  const dir = temporaryDir(t);
  const { log } = openLog(dir, SMALL);
  log.startTerm(term(1), NOTHING);
  for (let i = 0; i < 20; i++) log.append(entries(7));
  log.sync();
  const all = { durableApplied: lsn(141), watermark: lsn(141), retainBytes: 0 };
  const held = log.reserve(lsn(60), { timeoutMs: 60_000 });
  const first = log.prune(all);
  assert.ok(first.segments > 0 && first.firstLsn <= 60);
  held.release();
  const second = log.prune({ ...all, archive: lsn(100) });
  assert.ok(second.firstLsn > 60 && second.firstLsn <= 101);
  assert.throws(() => readAll(log, 5), code('LOG_PRUNED'));
  assert.throws(() => log.reserve(lsn(5), { timeoutMs: 1 }), code('LOG_PRUNED'));
  assert.equal(readAll(log, second.firstLsn).length, 141 - second.firstLsn + 1);
  log.close();
  const again = openLog(dir, SMALL);
  assert.equal(again.report.firstLsn, second.firstLsn);
  assert.equal(again.log.terms.length, 1);
  again.log.close();
});

test('two logs that are given the same records have the same segments', (t) => {
  const dirs = [temporaryDir(t), temporaryDir(t)];
  for (const [i, dir] of dirs.entries()) {
    const clock = new HybridClock({ nowMs: () => 1_000, monotonicMs: () => 0 });
    const { log } = Log.open({ disk: systemDisk, clock }, { dir, generation: GENERATION, ...SMALL });
    log.startTerm(term(1), NOTHING);
    for (let group = 0; group < 40; group++) {
      log.append(entries(3));
      if (i === 0) log.sync();
    }
    log.sync();
    log.close();
  }
  const names = readdirSync(dirs[0]!);
  assert.deepEqual(names, readdirSync(dirs[1]!));
  for (const name of names.slice(0, -3))
    assert.deepEqual(readFileSync(join(dirs[0]!, name)), readFileSync(join(dirs[1]!, name)));
});
