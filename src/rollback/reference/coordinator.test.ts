import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../../base/random.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { RollbackCoordinator, RollbackError, RollbackPlan, TailRecord } from '../index.ts';
import type { DivergentTail, RollbackErrorKind, RollbackNotice, RollbackRequest, RollbackTransport } from '../index.ts';

const REQUEST: RollbackRequest = {
  localFrontier: 230,
  commonPoint: 200,
  commitWatermark: 180,
  newPrimaryAddr: 'b:7000',
  newTerm: 8,
};
const FILE = '/data/rollback/term7-lsn200-230.rbk';
const EVENT = {
  commonPointLsn: 200,
  tailToLsn: 230,
  tailLsns: 30,
  commitWatermark: 180,
  rollbackFile: FILE,
  newPrimaryAddr: 'b:7000',
  newTerm: 8,
};

const tailOf = (...lsns: number[]): TailRecord[] => lsns.map((lsn) => new TailRecord(lsn, 7, `payload ${lsn}`));

class FakeTransport implements RollbackTransport {
  readonly calls: unknown[][] = [];
  tail: readonly TailRecord[] | AsyncIterable<TailRecord> = tailOf(210, 220, 230);
  kept: TailRecord[] = [];
  readonly fail = new Set<string>();

  #call(name: string, ...args: unknown[]): void {
    this.calls.push([name, ...args]);
    if (this.fail.has(name)) throw new Error(`${name} failed`);
  }

  async readDivergentTail(from: number, to: number): Promise<readonly TailRecord[] | AsyncIterable<TailRecord>> {
    this.#call('read', from, to);
    return this.tail;
  }

  async persistRollbackFile(tail: DivergentTail): Promise<string> {
    this.#call('persist', tail.commonPointLsn, tail.toLsn, tail.spanLsns());
    this.kept = [];
    for await (const record of tail.records) this.kept.push(record);
    return FILE;
  }

  async recoverToLsn(lsn: number): Promise<void> {
    this.#call('recover', lsn);
  }

  async emitRollbackEvent(event: object): Promise<void> {
    this.#call('emit', event);
  }

  async rejoinAsReplica(addr: string, term: number, from: object): Promise<void> {
    this.#call('rejoin', addr, term, from);
  }

  get names(): unknown[] {
    return this.calls.map(([name]) => name);
  }
}

async function kindOf(run: Promise<unknown>): Promise<RollbackErrorKind> {
  const error = await run.then(
    () => assert.fail('it resolved'),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof RollbackError, String(error));
  return error.kind;
}

const REJOIN = ['rejoin', 'b:7000', 8, { term: undefined, lsn: 200 }];

test('a tail is read, kept, dropped, announced, and the primary followed, in this order', async () => {
  const transport = new FakeTransport();
  const outcome = await RollbackCoordinator.run(REQUEST, transport);
  assert.deepEqual(transport.calls, [
    ['read', 200, 230],
    ['persist', 200, 230, 30],
    ['recover', 200],
    ['emit', EVENT],
    REJOIN,
  ]);
  assert.deepEqual(transport.kept, tailOf(210, 220, 230));
  assert.deepEqual(structuredClone(outcome), {
    recoveredToLsn: 200,
    tailLsns: 30,
    rollbackFile: FILE,
    eventFired: true,
    role: { kind: 'Replica', primaryAddr: 'b:7000', term: 8 },
    rejoined: true,
    rejoinError: undefined,
  });
  assert.ok(outcome.rolledBackTail());
});

for (const [name, change, refused] of [
  ['G1: a common point below the watermark is refused', { commonPoint: 179 }, true],
  ['G1: one at the watermark is allowed', { commonPoint: 180 }, false],
  ['G4: also with nothing to roll back', { commonPoint: 170, localFrontier: 170 }, true],
  ['G5: a watermark of 0 never refuses', { commonPoint: 0, commitWatermark: 0 }, false],
] as const)
  test(name, async () => {
    const transport = new FakeTransport();
    const request = { ...REQUEST, ...change };
    const run = RollbackCoordinator.run(request, transport);
    if (!refused) return assert.equal((await run).recoveredToLsn, change.commonPoint);
    assert.equal(await kindOf(run), 'WatermarkViolation');
    assert.deepEqual(transport.calls, []);
    const { commonPoint, commitWatermark } = request;
    assert.throws(() => RollbackPlan.compute(request), { kind: 'WatermarkViolation', commonPoint, commitWatermark });
  });

test('G2, G3: the plan targets the common point, and its tail is what lies above', () => {
  const plan = RollbackPlan.compute(REQUEST);
  assert.deepEqual(structuredClone(plan), {
    recoverToLsn: 200,
    localFrontier: 230,
    commitWatermark: 180,
    tailLsns: 30,
  });
  assert.ok(plan.hasDivergentTail());
  const none = RollbackPlan.compute({ ...REQUEST, localFrontier: 190 });
  assert.equal(none.tailLsns, 0);
  assert.ok(!none.hasDivergentTail());
});

test('without a tail the primary is just followed', async () => {
  for (const localFrontier of [200, 190]) {
    const transport = new FakeTransport();
    const outcome = await RollbackCoordinator.run({ ...REQUEST, localFrontier }, transport);
    assert.deepEqual(transport.calls, [REJOIN]);
    assert.equal(outcome.rollbackFile, undefined);
    assert.deepEqual(
      [outcome.recoveredToLsn, outcome.tailLsns, outcome.eventFired, outcome.rolledBackTail(), outcome.role.kind],
      [200, 0, false, false, 'Replica'],
    );
  }
});

for (const [name, kind, calls] of [
  ['read', 'TailReadFailed', ['read']],
  ['persist', 'TailPersistFailed', ['read', 'persist']],
  ['recover', 'RecoverFailed', ['read', 'persist', 'recover']],
] as const)
  test(`${name} fails: ${kind}, and nothing after it is called; the retry resumes with the same file`, async () => {
    const transport = new FakeTransport();
    const coordinator = new RollbackCoordinator();
    transport.fail.add(name);
    assert.equal(await kindOf(coordinator.run(REQUEST, transport)), kind);
    assert.deepEqual(transport.names, calls);
    transport.fail.clear();
    transport.calls.length = 0;
    // After a failed recovery a part of the tail may be gone.
    if (name === 'recover') transport.tail = tailOf(210);
    const outcome = await coordinator.run({ ...REQUEST, localFrontier: name === 'recover' ? 210 : 230 }, transport);
    assert.deepEqual([outcome.rollbackFile, outcome.tailLsns, outcome.eventFired], [FILE, 30, true]);
    const all = ['read', 'persist', 'recover', 'emit', 'rejoin'];
    assert.deepEqual(transport.names, name === 'recover' ? all.slice(2) : all);
    assert.deepEqual(transport.kept, tailOf(210, 220, 230));
  });

async function* stream(records: readonly TailRecord[], then?: Error): AsyncGenerator<TailRecord> {
  yield* records;
  if (then !== undefined) throw then;
}

const BAD_TAILS: readonly (readonly [string, readonly TailRecord[]])[] = [
  ['empty', []],
  ['short of the frontier', tailOf(210, 220)],
  ['beyond the frontier', tailOf(210, 231)],
  ['at the common point', tailOf(200, 230)],
  ['out of order', tailOf(220, 210, 230)],
  ['twice', tailOf(210, 210, 230)],
  ['of the new term', [...tailOf(210), new TailRecord(230, 8, [])]],
  ['of falling terms', [...tailOf(210), new TailRecord(230, 6, [])]],
  ['of no safe integer', [new TailRecord(2 ** 53, 7, []), ...tailOf(230)]],
];
for (const [name, records] of BAD_TAILS)
  test(`a tail that is ${name} drops nothing, as an array and as a stream`, async () => {
    for (const tail of [records, stream(records)]) {
      const transport = new FakeTransport();
      transport.tail = tail;
      assert.equal(await kindOf(RollbackCoordinator.run(REQUEST, transport)), 'TailReadFailed');
      assert.ok(!transport.names.includes('recover'));
      if (Array.isArray(tail)) assert.deepEqual(transport.names, ['read']);
    }
  });

test('a stream that breaks off, and one that is not read to its end', async () => {
  const transport = new FakeTransport();
  transport.tail = stream(tailOf(210), new Error('disk'));
  assert.equal(await kindOf(RollbackCoordinator.run(REQUEST, transport)), 'TailReadFailed');
  const lazy = new FakeTransport();
  lazy.tail = stream(tailOf(210, 230));
  lazy.persistRollbackFile = async () => FILE;
  assert.equal(await kindOf(RollbackCoordinator.run(REQUEST, lazy)), 'TailPersistFailed');
  assert.ok(!lazy.names.includes('recover') && !transport.names.includes('recover'));
});

test('dense tails can be demanded', async () => {
  const transport = new FakeTransport();
  const coordinator = new RollbackCoordinator({ tail: 'dense' });
  assert.equal(await kindOf(coordinator.run(REQUEST, transport)), 'TailReadFailed');
  transport.tail = tailOf(...Array.from({ length: 30 }, (_, i) => 201 + i));
  assert.equal((await coordinator.run(REQUEST, transport)).tailLsns, 30);
});

test('an event that was not taken waits, and rejoining is not held up', async () => {
  const transport = new FakeTransport();
  const coordinator = new RollbackCoordinator();
  transport.fail.add('emit');
  const outcome = await coordinator.run(REQUEST, transport);
  assert.deepEqual([outcome.eventFired, outcome.rejoined], [false, true]);
  transport.fail.clear();
  assert.equal((await coordinator.deliverEvents(transport)).delivered.length, 1);
  assert.deepEqual(transport.calls.at(-1), ['emit', EVENT]);
});

test('rolled back, not rejoined: the next run repeats just that, whatever frontier it still names', async () => {
  for (const localFrontier of [230, 200]) {
    const transport = new FakeTransport();
    const coordinator = new RollbackCoordinator();
    transport.fail.add('rejoin');
    const first = await coordinator.run(REQUEST, transport);
    assert.deepEqual([first.rejoined, first.rolledBackTail(), first.eventFired], [false, true, true]);
    assert.match(String(first.rejoinError), /rejoin failed/);
    transport.fail.clear();
    transport.calls.length = 0;
    const second = await coordinator.run({ ...REQUEST, localFrontier }, transport);
    assert.deepEqual(transport.calls, [REJOIN]);
    assert.deepEqual([second.rejoined, second.rollbackFile], [true, FILE]);
  }
});

test('what is unfinished belongs to its transport', async () => {
  const coordinator = new RollbackCoordinator();
  const [one, other] = [new FakeTransport(), new FakeTransport()];
  one.fail.add('recover');
  assert.equal(await kindOf(coordinator.run(REQUEST, one)), 'RecoverFailed');
  await coordinator.run(REQUEST, other);
  assert.deepEqual(other.names, ['read', 'persist', 'recover', 'emit', 'rejoin']);
});

test('freeze says the frontier, and comes after the guard', async () => {
  const transport = Object.assign(new FakeTransport(), {
    freeze(term: number) {
      transport.calls.push(['freeze', term]);
      return 240;
    },
  });
  transport.tail = tailOf(210, 240);
  const outcome = await RollbackCoordinator.run(REQUEST, transport);
  assert.deepEqual(transport.calls.slice(0, 2), [
    ['freeze', 8],
    ['read', 200, 240],
  ]);
  assert.equal(outcome.tailLsns, 40);
  transport.calls.length = 0;
  assert.equal(
    await kindOf(RollbackCoordinator.run({ ...REQUEST, commitWatermark: 201 }, transport)),
    'WatermarkViolation',
  );
  assert.deepEqual(transport.calls, []);
});

test('refused: a term that is not above, an address that is our own, a span above the limit, numbers that are none', async () => {
  const notices: RollbackNotice[] = [];
  const onNotice = async (notice: RollbackNotice): Promise<void> => void notices.push(notice);
  const transport = new FakeTransport();
  for (const [options, request, kind] of [
    [{ localTerm: 8 }, REQUEST, 'InvalidRequest'],
    [{ selfAddr: 'b:7000', onNotice }, REQUEST, 'Refused'],
    [{ tailLsnsMax: 29, onNotice }, REQUEST, 'TooLarge'],
    [{}, { ...REQUEST, localFrontier: 2 ** 53 }, 'InvalidRequest'],
    [{}, { ...REQUEST, commonPoint: -1 }, 'InvalidRequest'],
    [{}, { ...REQUEST, newTerm: 1.5 }, 'InvalidRequest'],
    [{}, { ...REQUEST, newPrimaryAddr: '' }, 'InvalidRequest'],
  ] as const)
    assert.equal(await kindOf(new RollbackCoordinator(options).run(request, transport)), kind);
  assert.deepEqual(transport.calls, []);
  assert.deepEqual(
    notices.map((notice) => notice.kind === 'refused' && notice.code),
    ['ROLLBACK_REFUSED', 'ROLLBACK_TOO_LARGE'],
  );
});

test('with a directory a run resumes in another process, and its event is not lost', async () => {
  const disk = new FaultyDisk();
  const journal = { dir: '/node/rollback', disk };
  const transport = new FakeTransport();
  transport.fail.add('emit').add('rejoin');
  await new RollbackCoordinator({ journal }).run(REQUEST, transport);
  const later = new FakeTransport();
  const restarted = { journal: { ...journal, disk: disk.crash(seededRandom(1)) } };
  const outcome = await new RollbackCoordinator(restarted).run({ ...REQUEST, localFrontier: 200 }, later);
  assert.deepEqual(later.calls, [['emit', EVENT], REJOIN]);
  assert.deepEqual([outcome.rollbackFile, outcome.eventFired], [FILE, true]);
});
