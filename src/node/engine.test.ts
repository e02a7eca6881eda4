/** The engine on a disk that fails: what each caller is told must be what a new opening of that disk finds. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toBootId, toClusterId, toGeneration, toStoreId, toTenantId, type Lsn } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { isNostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { seededRandom } from '../base/random.ts';
import type { Coordinator } from '../coordination/coordinator.ts';
import type { Appended } from '../log/commit-log.ts';
import { DirectAppendFailed, DirectAppender } from '../log/direct-append.ts';
import { RecordKind } from '../log/record.ts';
import { SharedTail } from '../log/shared-tail.ts';
import { FaultyDisk, type InjectedFault } from '../testing/faulty-disk.ts';
import type { EngineOptions } from './engine-protocol.ts';
import { Engine } from './engine.ts';

const OPTIONS: EngineOptions = {
  dir: '/node',
  generation: toGeneration('1'.repeat(32)),
  store: toStoreId('2'.repeat(32)),
  boot: toBootId('3'.repeat(32)),
  cluster: toClusterId('4'.repeat(32)),
  limits: { ...DEFAULT_LIMITS, segmentBytesMax: 4096, recordBytesMax: 2048, logRetainBytes: 2 ** 40 },
};

function memoryCoordinator(): Coordinator {
  let held: Awaited<ReturnType<Coordinator['read']>>;
  const coordinator: Pick<Coordinator, 'read' | 'compareAndSet'> = {
    read: async () => held,
    compareAndSet: async (version, record) => {
      assert.equal(version, held?.version ?? 0, 'nobody else writes here');
      held = { version: version + 1, record };
      return { ok: true, version: version + 1 };
    },
  };
  return coordinator as Coordinator;
}

const open = (disk: FaultyDisk, coordinator: Coordinator, tail = new SharedTail()): Promise<Engine> =>
  Engine.open({ coordinator, disk, highestApplied: () => 0 as Lsn, tail }, OPTIONS);

interface Told {
  readonly tenant: number;
  readonly payload: string;
  readonly outcome: 'kept' | 'refused' | 'unknown';
  readonly lsn?: Lsn;
}

/** One group of three callers, two records each. */
async function appendGroup(engine: Engine, group: number): Promise<Told[]> {
  const told: Told[] = [];
  const calls = [1, 2, 3].map((tenant) => {
    const payloads = [0, 1].map((n) => `group ${group} tenant ${tenant} record ${n} ${'x'.repeat(300)}`);
    return {
      durability: 'quorum' as const,
      entries: payloads.map((payload) => ({
        tenant: toTenantId(tenant),
        kind: RecordKind.changeset,
        payload: new Uint8Array(Buffer.from(payload)),
      })),
      resolve: ({ firstLsn }: Appended) => {
        for (const [n, payload] of payloads.entries())
          told.push({ tenant, payload, outcome: 'kept', lsn: (firstLsn + n) as Lsn });
      },
      reject: (error: unknown) => {
        assert.ok(isNostosError(error), String(error));
        const outcome = error.code === 'OUTCOME_UNKNOWN' ? 'unknown' : 'refused';
        for (const payload of payloads) told.push({ tenant, payload, outcome });
      },
    };
  });
  await engine.append(calls);
  assert.equal(told.length, 6, 'every caller is answered');
  return told;
}

/** Two records of one caller, in its own thread; left to the engine where they do not fit. */
async function appendDirectly(engine: Engine, appender: DirectAppender, group: number): Promise<Told[]> {
  const payloads = [0, 1].map((n) => `direct group ${group} record ${n} ${'x'.repeat(300)}`);
  const entries = payloads.map((payload) => ({
    tenant: toTenantId(1),
    kind: RecordKind.changeset,
    payload: new Uint8Array(Buffer.from(payload)),
  }));
  const told = (outcome: Told['outcome'], firstLsn?: number): Told[] =>
    payloads.map((payload, n) =>
      firstLsn === undefined
        ? { tenant: 1, payload, outcome }
        : { tenant: 1, payload, outcome, lsn: (firstLsn + n) as Lsn },
    );
  try {
    const appended = appender.append(entries);
    if (appended === undefined) return []; // nothing has happened
    return told('kept', appended.firstLsn);
  } catch (failure) {
    assert.ok(failure instanceof DirectAppendFailed, String(failure));
    const { firstLsn, hashes, cause } = failure;
    return engine.settle({ firstLsn, hashes, cause }).then(
      (appended) => told('kept', appended.firstLsn),
      (error: unknown) => {
        assert.ok(isNostosError(error), String(error));
        return told(error.code === 'OUTCOME_UNKNOWN' ? 'unknown' : 'refused');
      },
    );
  }
}

async function recordsOf(engine: Engine): Promise<Map<string, { tenant: number; lsn: number }>> {
  const found = new Map<string, { tenant: number; lsn: number }>();
  for (let next = 1 as Lsn; ;) {
    const page = await engine.readPage({ from: next, bytesMax: 1024 * 1024 });
    let start = 0;
    for (let index = 0; index < page.count; index += 1) {
      const payload = Buffer.from(page.payloads.subarray(start, page.ends[index])).toString();
      start = page.ends[index]!;
      if (page.kind[index] !== RecordKind.changeset) continue;
      assert.ok(!found.has(payload), `${payload.slice(0, 30)} is there twice`);
      found.set(payload, { tenant: page.tenant[index]!, lsn: page.lsn[index]! });
    }
    if (page.next > page.end) return found;
    next = page.next;
  }
}

async function checkAgainst(engine: Engine, told: readonly Told[]): Promise<void> {
  const lasts = await lastRecords(engine);
  const found = await recordsOf(engine);
  for (const { payload, outcome, lsn } of told) {
    const at = found.get(payload);
    if (outcome === 'kept') assert.equal(at?.lsn, lsn, `kept at ${lsn}: ${payload.slice(0, 30)}`);
    if (outcome === 'refused') assert.equal(at, undefined, `refused: ${payload.slice(0, 30)}`);
  }
  for (const [tenant, last] of lasts)
    assert.equal(last, lastBefore(found, tenant, []), `last record of tenant ${tenant}`);
}

async function lastRecords(engine: Engine): Promise<Map<number, number>> {
  const lasts = new Map<number, number>();
  for (const tenant of [1, 2, 3]) lasts.set(tenant, (await engine.locate(toTenantId(tenant), 0 as Lsn)).last);
  return lasts;
}

/** The last record of a tenant besides those of one group. */
function lastBefore(
  found: ReadonlyMap<string, { tenant: number; lsn: number }>,
  tenant: number,
  group: readonly Told[],
): number {
  const own = new Set(group.map(({ payload }) => payload));
  return Math.max(
    0,
    ...[...found].filter(([payload, one]) => one.tenant === tenant && !own.has(payload)).map(([, { lsn }]) => lsn),
  );
}

/** The fault-free run tells how many steps there are. */
async function stepsOfRun(): Promise<{ first: number; last: number }> {
  const disk = new FaultyDisk();
  const engine = await open(disk, memoryCoordinator());
  await appendGroup(engine, 1);
  const first = disk.trace.length;
  for (let group = 2; group <= 5; group += 1) await appendGroup(engine, group);
  return { first, last: disk.trace.length };
}

for (const kind of ['EIO', 'ENOSPC'] as const)
  for (const repeat of [1, 2, 6])
    test(`${kind} at each step of a run, ${repeat} in a row: each answer is true, and the next writes succeed`, async () => {
      const { first, last } = await stepsOfRun();
      assert.ok(last - first > 8, 'there are steps');
      let fired = 0;
      const seen = { kept: 0, refused: 0, unknown: 0 };
      for (let atStep = first; atStep < last; atStep += 1) {
        const disk = new FaultyDisk();
        const coordinator = memoryCoordinator();
        const engine = await open(disk, coordinator);
        const told = await appendGroup(engine, 1);
        const fault: InjectedFault = { atStep, kind, repeat };
        disk.inject(fault);
        for (let group = 2; group <= 5; group += 1) {
          const before = await lastRecords(engine).catch((error: unknown) =>
            assert.ok(isNostosError(error), String(error)),
          );
          const [answers] = await Promise.all([
            appendGroup(engine, group),
            lastRecords(engine).catch(() => {}), // whoever asks at the same time does not get in the way
          ]);
          told.push(...answers);
          // What a tenant was told to catch up with is all that came before its next record.
          const found = await recordsOf(engine).catch((error: unknown) =>
            assert.ok(isNostosError(error, 'IO_FAILED'), String(error)),
          );
          for (const { tenant, lsn } of answers)
            if (before !== undefined && found !== undefined && lsn !== undefined)
              assert.equal(lastBefore(found, tenant, answers), before.get(tenant), `step ${atStep}`);
        }
        if (disk.fired.length > 0) fired += 1;
        else assert.equal(kind, 'ENOSPC', `step ${atStep} failed, unless it needs no space`);
        disk.inject(undefined);
        // With room and a working disk again, it goes on. One attempt may be needed to find out how things are.
        for (let group = 6; told.at(-1)!.outcome !== 'kept'; group += 1) {
          assert.ok(group < 12, `step ${atStep}: it never recovers`);
          told.push(...(await appendGroup(engine, group)));
        }
        for (const { outcome } of told) seen[outcome] += 1;
        await checkAgainst(engine, told);
        await engine.close();
        const again = await open(disk.crash(seededRandom(atStep)), coordinator);
        await checkAgainst(again, told);
        await again.close();
      }
      assert.ok(fired > 8, `${fired} faults fired`);
      assert.ok(seen.kept > 0 && seen.refused + seen.unknown > 0, JSON.stringify(seen));
    });

for (const kind of ['EIO', 'ENOSPC'] as const)
  for (const repeat of [1, 2, 6])
    test(`${kind} at each step of direct appends beside the engine's, ${repeat} in a row: each answer is true`, async () => {
      const run = async (fault: InjectedFault | undefined) => {
        const disk = new FaultyDisk();
        const coordinator = memoryCoordinator();
        const tail = new SharedTail();
        const engine = await open(disk, coordinator, tail);
        using appender = new DirectAppender(
          { disk, clock: new HybridClock(systemClock), tail },
          { dir: '/node/log', generation: OPTIONS.generation, bytesMax: 2048 },
        );
        const told = await appendGroup(engine, 1);
        const first = disk.trace.length;
        disk.inject(fault);
        const direct = { kept: 0, refused: 0, unknown: 0 };
        for (let group = 2; group <= 12; group += 1) {
          if (group % 4 === 0) told.push(...(await appendGroup(engine, group)));
          else {
            const answers = await appendDirectly(engine, appender, group);
            for (const { outcome } of answers) direct[outcome] += 1;
            told.push(...answers);
          }
        }
        const last = disk.trace.length;
        disk.inject(undefined);
        for (let group = 13; told.at(-1)!.outcome !== 'kept'; group += 1) {
          assert.ok(group < 20, `${JSON.stringify(fault)}: it never recovers`);
          told.push(...(await appendGroup(engine, group)));
        }
        await checkAgainst(engine, told);
        const after = await appendDirectly(engine, appender, 99);
        assert.equal(after[0]?.outcome ?? 'kept', 'kept', 'the tail is lent again, or too full');
        await engine.close();
        const again = await open(disk.crash(seededRandom(fault?.atStep ?? 0)), coordinator);
        await checkAgainst(again, [...told, ...after]);
        await again.close();
        return { first, last, fired: disk.fired.length, direct };
      };
      const { first, last, direct } = await run(undefined);
      assert.ok(direct.kept >= 8 && direct.refused + direct.unknown === 0, JSON.stringify(direct));
      let fired = 0;
      const seen = { kept: 0, refused: 0, unknown: 0 };
      for (let atStep = first; atStep < last; atStep += 1) {
        const result = await run({ atStep, kind, repeat });
        fired += result.fired > 0 ? 1 : 0;
        for (const outcome of ['kept', 'refused', 'unknown'] as const) seen[outcome] += result.direct[outcome];
      }
      assert.ok(fired > 8, `${fired} faults fired`);
      assert.ok(seen.kept > 0 && seen.refused + seen.unknown > 0, JSON.stringify(seen));
    });

for (const who of ['the engine', 'a direct append'] as const)
  test(`a sync of ${who} fails, and then a read: nothing is there twice, and each answer is true`, async () => {
    const seen = { kept: 0, refused: 0, unknown: 0, readFailed: 0 };
    for (let after = 0; after < 16; after += 1) {
      const disk = new FaultyDisk();
      const tail = new SharedTail();
      const limits = { ...OPTIONS.limits, segmentBytesMax: 64 * 1024 };
      const engine = await Engine.open(
        { coordinator: memoryCoordinator(), disk, highestApplied: () => 0 as Lsn, tail },
        { ...OPTIONS, limits },
      );
      using appender = new DirectAppender(
        { disk, clock: new HybridClock(systemClock), tail },
        { dir: '/node/log', generation: OPTIONS.generation, bytesMax: 2048 },
      );
      const told = await appendGroup(engine, 1);
      told.push(...(await appendDirectly(engine, appender, 2)));
      if (who === 'the engine') await lastRecords(engine); // it takes that one in
      disk.inject({ atStep: disk.trace.length + 1, kind: 'EIO' });
      disk.failRead(after);
      if (who === 'the engine') told.push(...(await appendGroup(engine, 3)));
      else {
        // What the engine does before it hears of the failure begins a new term.
        const settled = appendDirectly(engine, appender, 3);
        told.push(...(await appendGroup(engine, 4)), ...(await settled));
      }
      assert.equal(disk.fired[0]?.kind, 'sync');
      if (disk.readFailed) seen.readFailed += 1;
      disk.failRead(Infinity);
      told.push(...(await appendGroup(engine, 5)));
      assert.equal(told.at(-1)!.outcome, 'kept', 'it goes on');
      await checkAgainst(engine, told);
      for (const { outcome } of told) seen[outcome] += 1;
      await engine.close();
    }
    assert.ok(seen.readFailed > 2 && seen.unknown > 0, JSON.stringify(seen));
  });

test('a direct append that is kept is answered with the term in which it was written', async () => {
  const disk = new FaultyDisk();
  const tail = new SharedTail();
  const engine = await open(disk, memoryCoordinator(), tail);
  using appender = new DirectAppender(
    { disk, clock: new HybridClock(systemClock), tail },
    { dir: '/node/log', generation: OPTIONS.generation, bytesMax: 2048 },
  );
  await appendGroup(engine, 1);
  const { term } = engine.status();
  disk.inject({ atStep: disk.trace.length + 1, kind: 'EIO' });
  const entries = [{ tenant: toTenantId(1), kind: RecordKind.changeset, payload: new Uint8Array(10) }];
  let failure: unknown;
  try {
    appender.append(entries);
  } catch (error) {
    failure = error;
  }
  assert.ok(failure instanceof DirectAppendFailed);
  await appendGroup(engine, 2); // heard first
  assert.equal(engine.status().term, term + 1);
  const { firstLsn, hashes, cause } = failure;
  const settled = await engine.settle({ firstLsn, hashes, cause });
  assert.deepEqual([settled.term, settled.firstLsn], [term, firstLsn]);
  await engine.close();
});

/** The files that `logFiles` names, on a disk of their own, as a restore would bring them. */
function copyLog(
  disk: FaultyDisk,
  files: { readonly segments: readonly { name: string; bytes: number }[] },
): FaultyDisk {
  const copy = new FaultyDisk();
  copy.makeDirectory('/node/log');
  const put = (name: string, bytes: Uint8Array): void => {
    const file = copy.open(`/node/log/${name}`, 'create');
    file.write(bytes, 0);
    file.sync();
    file.close();
  };
  for (const { name, bytes } of files.segments) put(name, disk.bytes(`/node/log/${name}`).subarray(0, bytes));
  if (disk.exists('/node/log/terms')) put('terms', disk.bytes('/node/log/terms'));
  copy.syncDirectory('/node/log');
  return copy;
}

const NO_COORDINATOR = {
  read: () => assert.fail('a copy asks no coordinator'),
  compareAndSet: () => assert.fail('a copy starts no term'),
} as unknown as Coordinator;

test('all of the log is held from the record on that comes first as it is asked for', async () => {
  const limits = { ...OPTIONS.limits, logRetainBytes: 0 };
  const engine = await Engine.open(
    {
      coordinator: memoryCoordinator(),
      disk: new FaultyDisk(),
      highestApplied: () => 0 as Lsn,
      tail: new SharedTail(),
    },
    { ...OPTIONS, limits },
  );
  for (let group = 0; group < 40; group += 1) await appendGroup(engine, group);
  const before = engine.status();
  await engine.advance(60 as Lsn);
  assert.ok(engine.status().firstLsn > before.firstLsn, 'who asks for the status first may be too late');
  assert.throws(() => engine.reserve(before.firstLsn), { code: 'LOG_PRUNED' });
  const { hold, from } = engine.reserveAll();
  assert.equal(from, engine.status().firstLsn);
  await engine.advance(200 as Lsn);
  assert.equal(engine.status().firstLsn, from);
  engine.release(hold);
  await engine.advance(201 as Lsn);
  assert.ok(engine.status().firstLsn > from);
});

test('the log that a copy needs is held, and opened it starts no term, appends nothing, and ends where it must', async () => {
  const disk = new FaultyDisk();
  const limits = { ...OPTIONS.limits, logRetainBytes: 0 };
  const engine = await Engine.open(
    { coordinator: memoryCoordinator(), disk, highestApplied: () => 0 as Lsn, tail: new SharedTail() },
    { ...OPTIONS, limits },
  );
  for (let group = 0; group < 20; group += 1) await appendGroup(engine, group);
  await engine.advance(60 as Lsn);
  const { firstLsn } = engine.status();
  assert.ok(firstLsn > 1 && firstLsn <= 61, 'the log begins in the middle of history');
  const { hold, from } = engine.reserveForCopy(70 as Lsn);
  assert.equal(from, 71);
  for (let group = 20; group < 40; group += 1) await appendGroup(engine, group);
  await engine.advance(200 as Lsn);
  assert.ok(engine.status().firstLsn <= 71, 'it is held');
  const files = engine.logFiles(from);
  assert.equal(files.watermark, engine.status().lastLsn);
  const written = await engine.readPage({ from, bytesMax: 2 ** 30 });

  const open = (copied: FaultyDisk): Promise<Engine> =>
    Engine.open(
      { coordinator: NO_COORDINATOR, disk: copied, highestApplied: () => 0 as Lsn, tail: new SharedTail() },
      { ...OPTIONS, limits, copy: { lsn: files.watermark } },
    );
  const copied = copyLog(disk, files);
  for (let opening = 0; opening < 3; opening += 1) {
    const copy = await open(copied);
    assert.equal(copy.opened.durable, copy.status().firstLsn - 1, 'what is below is in all files');
    assert.deepEqual([copy.status().lastLsn, copy.status().watermark], [files.watermark, files.watermark]);
    assert.equal(copy.opened.term, engine.status().term);
    assert.ok((await appendGroup(copy, 99)).every(({ outcome }) => outcome === 'refused'));
    await assert.rejects(
      new Promise((resolve, reject) => void copy.append([{ entries: [], durability: 'quorum', resolve, reject }])),
      (error) => isNostosError(error, 'NOT_PRIMARY'),
    );
    const read = await copy.readPage({ from, bytesMax: 2 ** 30 });
    assert.deepEqual([read.count, read.hashes], [written.count, written.hashes]);
    await copy.close();
  }
  const short = copyLog(disk, { segments: files.segments.slice(0, -1) });
  await assert.rejects(open(short), (error) => isNostosError(error, 'LOG_DAMAGED'), 'a log that ends too early');

  engine.release(hold);
  await engine.advance(201 as Lsn);
  assert.ok(engine.status().firstLsn > 71, 'and held no longer');
  assert.throws(
    () => engine.logFiles(from),
    (error) => isNostosError(error, 'LOG_PRUNED'),
  );
  await engine.close();
});
