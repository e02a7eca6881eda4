import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { listRollbackFiles } from '../file/list.ts';
import { COMMON, DIR, GENERATION } from '../file/tail.fixture.ts';
import { ROLLBACK_LIMITS } from '../types.ts';
import { FileJournal, JOURNAL_FILE, parseJournal } from './journal.ts';
import { FileOutbox } from './outbox.ts';
import { isUnderWay, type RollbackRequest } from './runner.ts';
import {
  REQUEST,
  TAIL,
  World,
  assertRolledBack,
  formatNode,
  openRunner,
  readFrontier,
  writeFrontier,
} from './simulated-node.fixture.ts';

function newNode(): { disk: FaultyDisk; world: World } {
  const disk = new FaultyDisk();
  formatNode(disk);
  return { disk, world: new World() };
}

const REFUSALS: readonly {
  readonly name: string;
  readonly code: string;
  readonly request?: Partial<RollbackRequest>;
  readonly options?: Parameters<typeof openRunner>[2];
}[] = [
  { name: 'a common point below the own watermark', code: 'WATERMARK_VIOLATION', options: { watermark: 101 } },
  { name: 'the own address', code: 'ROLLBACK_REFUSED', request: { selfAddress: 'b:7000' } },
  {
    name: 'a term that is not above that of the tail',
    code: 'ROLLBACK_REFUSED',
    request: { primary: { address: 'b:7000', term: COMMON.term } },
  },
  { name: 'more records than allowed', code: 'ROLLBACK_TOO_LARGE', options: { limits: { tailRecordsMax: 5 } } },
];
for (const { name, code, request, options } of REFUSALS)
  test(`refused: ${name}; nothing is stopped or written, and it is told once however often it is asked`, async () => {
    const { disk, world } = newNode();
    const runner = openRunner(disk, world, options);
    for (const attempt of [1, 2]) {
      await assert.rejects(runner.run({ ...REQUEST, ...request }), { code });
      assert.equal(world.told.filter((notice) => notice.kind === 'refused' && notice.code === code).length, attempt);
    }
    assert.equal(new Set(world.told.map(({ key }) => key)).size, 1);
    assert.ok(!world.calls.includes('freeze'));
    assert.equal(readFrontier(disk), COMMON.lsn + TAIL);
    assert.equal(runner.journal().counter, 0);
    assert.deepEqual(await listRollbackFiles(disk, DIR), []);
  });

test('a watermark that is the common point is no obstacle, and one that fell is', async () => {
  const { disk, world } = newNode();
  await openRunner(disk, world, { watermark: 100 }).run(REQUEST);
  await assertRolledBack(disk, world);
  writeFrontier(disk, COMMON.lsn + TAIL);
  const later = { ...REQUEST, primary: { address: 'c:7000', term: 8 } };
  await assert.rejects(openRunner(disk, world, { watermark: 99 }).run(later), {
    code: 'ROLLBACK_REFUSED',
    message: /fell from 100 to 99/,
  });
  const { counter, watermark } = new FileJournal(disk, DIR).load();
  assert.deepEqual([counter, watermark], [1, { generation: GENERATION, lsn: 100, store: '0a'.repeat(16) }]);
  // A copy that took the place of the store has a W of its own.
  await openRunner(disk, world, { watermark: 99, store: '0b'.repeat(16) }).run(later);
  assert.equal(new FileJournal(disk, DIR).load().counter, 2);
});

test('a copy took the place of a store that was being rolled back: the file is told of, and nothing of the copy is dropped', async () => {
  for (const [number, step] of [
    [3, 'recover'],
    [5, 'rejoin'],
  ] as const)
    for (const end of [COMMON.lsn - 10, COMMON.lsn, COMMON.lsn + 2]) {
      const { disk, world } = newNode();
      world.failCall = { number, when: 'before' };
      await openRunner(disk, world)
        .run(REQUEST)
        .catch(() => {});
      assert.deepEqual([world.calls.at(number), world.fired], [step, 1]);
      world.failCall = undefined;
      assert.ok(isUnderWay(new FileJournal(disk, DIR).load().intent), 'it had begun');
      writeFrontier(disk, end);
      await openRunner(disk, world, { watermark: end, store: '0b'.repeat(16) }).settle();
      assert.equal(readFrontier(disk), end);
      const { intent } = new FileJournal(disk, DIR).load();
      assert.equal(intent?.state, 'rejoined', `${step}, ${end}`);
      const keys = world.told.filter(({ kind }) => kind === 'rolled-back').map(({ key }) => key);
      assert.deepEqual([...new Set(keys)], [intent.plan.id]);
    }
});

test('plan decides and does nothing; override passes a limit', async () => {
  const { disk, world } = newNode();
  const steps = disk.trace.length;
  const runner = openRunner(disk, world, { limits: { tailRecordsMax: 5 } });
  const refused = await runner.plan(REQUEST);
  assert.ok(refused.decision.kind === 'refuse' && refused.decision.error.code === 'ROLLBACK_TOO_LARGE');
  const { decision } = await runner.plan(REQUEST, { override: true });
  assert.deepEqual(decision, { kind: 'roll-back', target: COMMON, tailLsns: TAIL });
  assert.deepEqual(world.calls, ['look', 'look']);
  assert.equal(disk.trace.length, steps);
  await runner.run(REQUEST, { override: true });
  await assertRolledBack(disk, world);
});

test('without a tail the primary is followed, and there is nothing to tell', async () => {
  const { disk, world } = newNode();
  writeFrontier(disk, COMMON.lsn);
  const result = await openRunner(disk, world).run(REQUEST);
  assert.deepEqual(result, { kind: 'rejoined', rejoined: true, announced: true, counter: 0 });
  assert.deepEqual(world.told, []);
  assert.deepEqual(world.following?.primary, REQUEST.primary);
});

test('a later primary with another common point: the earlier run is finished and told, then the new one made', async () => {
  const { disk, world } = newNode();
  world.failCall = { number: 3, when: 'before' };
  const first = openRunner(disk, world);
  await assert.rejects(first.run(REQUEST), /recover failed/);
  const earlier = first.journal().intent!.plan;
  const next = {
    ...REQUEST,
    common: { ...COMMON, lsn: 99 },
    primary: { address: 'c:7000', term: 7 },
    selfAddress: 'a',
  };
  // The tail of the second one, (99, 100], is in no log of this simulation.
  await assert.rejects(openRunner(disk, world, { seed: 3 }).run(next), { code: 'TAIL_READ_FAILED' });
  assert.equal(readFrontier(disk), COMMON.lsn);
  assert.ok(world.told.some(({ kind, key }) => kind === 'rolled-back' && key === earlier.id));
  const { intent, counter } = new FileJournal(disk, DIR).load();
  assert.deepEqual([intent?.state, intent?.plan.common.lsn, counter], ['planned', 99, 1]);
  assert.notEqual(intent?.plan.id, earlier.id);
});

test('records that were appended to a half-dropped tail are never dropped unseen', async () => {
  const { disk, world } = newNode();
  world.failCall = { number: 3, when: 'before' };
  await assert.rejects(openRunner(disk, world).run(REQUEST), /recover failed/);
  writeFrontier(disk, COMMON.lsn + TAIL + 1);
  await assert.rejects(openRunner(disk, world).run(REQUEST), { code: 'ROLLBACK_REFUSED', message: /were appended/ });
  assert.equal(readFrontier(disk), COMMON.lsn + TAIL + 1);
});

test('a crash right behind the cut: whether the next start settles it or a later rollback comes first, it is told once', async () => {
  for (const settled of ['at the common point', 'after it has followed', 'never'] as const) {
    const { disk, world } = newNode();
    world.failCall = { number: 3, when: 'after' };
    const first = openRunner(disk, world);
    await assert.rejects(first.run(REQUEST), /the answer of recover was lost/);
    const { id } = first.journal().intent!.plan;
    if (settled === 'at the common point') await openRunner(disk, world).settle();
    writeFrontier(disk, COMMON.lsn + 3);
    world.term = REQUEST.primary.term;
    if (settled === 'after it has followed') await openRunner(disk, world).settle();
    const told = world.told.filter(({ kind }) => kind === 'rolled-back');
    assert.deepEqual(
      told.map(({ key }) => key),
      settled === 'never' ? [] : [id],
    );
    // The third primary lacks what it has followed with, whose records are not in this simulation.
    const next = { ...REQUEST, primary: { address: 'c:7000', term: 9 } };
    await assert.rejects(openRunner(disk, world, { seed: 3 }).run(next), { code: 'TAIL_READ_FAILED' });
    const { intent, counter } = new FileJournal(disk, DIR).load();
    assert.deepEqual([intent?.state, intent?.plan.frontier, counter], ['planned', { term: 5, lsn: 103 }, 1], settled);
    const keys = world.told.filter(({ kind }) => kind === 'rolled-back').map(({ key }) => key);
    assert.deepEqual(keys, [id], settled);
  }
});

test('a start ends what has begun to drop, before anybody stands on the rest; what has not begun waits for a request', async () => {
  for (const left of [TAIL, 2]) {
    const { disk, world } = newNode();
    world.failCall = { number: 3, when: 'before' };
    await assert.rejects(openRunner(disk, world).run(REQUEST), /recover failed/);
    writeFrontier(disk, COMMON.lsn + left);
    await openRunner(disk, world).settle();
    assert.equal(new FileJournal(disk, DIR).load().intent?.state, 'rejoined');
    assert.equal(readFrontier(disk), COMMON.lsn);
    assert.equal(world.told.filter(({ kind }) => kind === 'rolled-back').length, 1);
    await openRunner(disk, world).run(REQUEST);
    await assertRolledBack(disk, world);
  }
  const { disk, world } = newNode();
  world.failCall = { number: 2, when: 'before' };
  await assert.rejects(openRunner(disk, world).run(REQUEST), /preserve failed/);
  await openRunner(disk, world).settle();
  assert.equal(new FileJournal(disk, DIR).load().intent?.state, 'planned');
  assert.equal(readFrontier(disk), COMMON.lsn + TAIL);
});

test('a start drops nothing that has become committed meanwhile, whatever the journal says', async () => {
  const { disk, world } = newNode();
  world.failCall = { number: 3, when: 'before' };
  await assert.rejects(openRunner(disk, world).run(REQUEST), /recover failed/);
  await openRunner(disk, world, { watermark: COMMON.lsn + 1 }).settle();
  assert.equal(readFrontier(disk), COMMON.lsn + TAIL);
});

test('two runs at once: the second one is refused', async () => {
  const { disk, world } = newNode();
  const runner = openRunner(disk, world);
  const first = runner.run(REQUEST);
  await assert.rejects(runner.run(REQUEST), { code: 'ROLLBACK_REFUSED' });
  await first;
  await assertRolledBack(disk, world);
});

test('an aborted run drops nothing', async () => {
  const { disk, world } = newNode();
  const reason = new Error('not now');
  await assert.rejects(openRunner(disk, world).run(REQUEST, { signal: AbortSignal.abort(reason) }), reason);
  assert.deepEqual(world.calls, []);
});

test('each rollback counts one', async () => {
  const { disk, world } = newNode();
  for (const term of [5, 6, 7]) {
    writeFrontier(disk, COMMON.lsn + TAIL);
    await openRunner(disk, world, { seed: term }).run({ ...REQUEST, primary: { address: 'b:7000', term } });
  }
  assert.equal(new FileJournal(disk, DIR).load().counter, 3);
  assert.equal((await listRollbackFiles(disk, DIR)).length, 3);
});

test('a journal that cannot be read stops everything, whatever is wrong with it', async () => {
  const { disk, world } = newNode();
  const path = `${DIR}/${JOURNAL_FILE}`;
  await openRunner(disk, world).run(REQUEST);
  const whole = Buffer.from(disk.bytes(path)).toString();
  assert.equal(parseJournal(path, Buffer.from(whole)).counter, 1);
  for (const text of [
    '',
    '{',
    'null',
    whole.replace('"format": 1', '"format": 2'),
    whole.replace('"counter": 1', '"counter": -1'),
    whole.replace('"rejoined"', '"resting"'),
    whole.replace('"path"', '"route"'),
    whole.replace('"lsn": 100', '"lsn": "100"'),
  ]) {
    assert.notEqual(text, whole);
    disk.overwrite(path, () => Buffer.from(text));
    await assert.rejects(openRunner(disk, world).run(REQUEST), { code: 'UNSUPPORTED_FORMAT' });
  }
});

test('the outbox: a foreign file is left alone, a damaged notice is named and holds up nobody, refusals are bounded', async () => {
  const { disk, world } = newNode();
  const dir = `${DIR}/outbox`;
  const outbox = new FileOutbox(disk, dir);
  for (const [name, text] of [
    ['README', 'hello'],
    ['0000.json', '{'],
  ] as const) {
    const file = disk.open(`${dir}/${name}`, 'create');
    file.write(Buffer.from(text), 0);
    file.close();
  }
  const runner = openRunner(disk, world);
  await runner.run(REQUEST);
  await assertRolledBack(disk, world);
  const { failed } = await runner.deliver();
  assert.deepEqual(
    failed.map(({ key, error }) => [key, isNostosError(error, 'UNSUPPORTED_FORMAT')]),
    [['0000', true]],
  );
  const [told] = world.told;
  assert.equal(told?.kind, 'rolled-back');
  const { common, frontier, primary } = told.plan;
  const refusal = { kind: 'refused', common, frontier, primary, watermark: 0, code: 'X', reason: 'y' } as const;
  for (let i = 0; i < 150; i++) outbox.put({ ...refusal, key: `refused-${i}` });
  assert.equal(outbox.keys().length, ROLLBACK_LIMITS.outboxEventsMax);
  outbox.put(told);
  assert.ok(outbox.keys().includes(told.key), 'what was rolled back is always told');
});
