/** One machine, its events written by hand; what whole groups do is in `testing/group-simulation.test.ts`. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BootId, Lsn, StoreId, Term } from '../base/brands.ts';
import type { GroupRecord, Versioned } from '../coordination/coordinator.ts';
import type { SimRecord } from '../testing/group-store.ts';
import { GENERATION, SimStore } from '../testing/group-store.ts';
import type { Effect, GroupEvent } from './effects.ts';
import { GroupMachine } from './group-machine.ts';
import { leaseHolds } from './lease.ts';
import type { ChannelId, Message } from './messages.ts';
import { checkGroupLimits, DEFAULT_GROUP_LIMITS } from './options.ts';

type Records = readonly SimRecord[];
type Kind = Effect<Records>['kind'];

const store = (digit: string): StoreId => digit.repeat(32) as StoreId;
const boot = (digit: string): BootId => digit.repeat(32) as BootId;
const [A, B, C] = [store('a'), store('b'), store('c')];
const LIMITS = DEFAULT_GROUP_LIMITS;

function record(change: Partial<GroupRecord> = {}): GroupRecord {
  return {
    generation: GENERATION,
    term: 1 as Term,
    primary: { store: B, boot: boot('b') },
    members: [A, B, C],
    inSync: [A, B, C],
    minInSync: 2,
    renewal: 1,
    committed: null,
    nonce: '0'.repeat(32),
    ...change,
  };
}

/** Store A, whose effects are kept for a look and performed where the machine counts on that. */
class Bench {
  readonly log = new SimStore(A);
  readonly machine: GroupMachine<Records>;
  nowMs = 1_000;
  effects: readonly Effect<Records>[] = [];
  #ids = 0;

  constructor(newest?: Versioned) {
    const self = { generation: GENERATION, store: A, boot: boot('1') };
    this.machine = new GroupMachine<Records>(self, this.log, LIMITS, newest);
  }

  step(event: GroupEvent<Records>): readonly Effect<Records>[] {
    this.effects = this.machine.step(event, { monotonicMs: this.nowMs, wallMs: this.nowMs });
    for (const effect of this.effects) {
      if (effect.kind === 'start-term') this.grow(effect.term, 'start');
      if (effect.kind === 'append') for (const one of effect.payload) this.log.append(one);
      if (effect.kind === 'watermark') this.log.watermark = this.log.applied = effect.lsn;
    }
    return this.effects;
  }

  grow(term: number, kind: SimRecord['kind']): void {
    this.log.append(this.log.make(term as Term, ++this.#ids, kind, this.log.watermark));
    this.log.durable = this.log.end.lsn;
  }

  the<K extends Kind>(kind: K): Extract<Effect<Records>, { kind: K }> {
    const found = this.effects.find((effect) => effect.kind === kind);
    assert.ok(found !== undefined, `no ${kind} among ${this.kinds.join()}`);
    return found as Extract<Effect<Records>, { kind: K }>;
  }

  get kinds(): readonly Kind[] {
    return this.effects.map(({ kind }) => kind);
  }

  /** Lets it read the record; the request is the one that it has made, or makes after a while. */
  reads(version: number, current: GroupRecord): void {
    if (!this.kinds.includes('read')) {
      this.nowMs += LIMITS.coordinatorPollMs;
      this.step({ kind: 'tick' });
    }
    this.step({ kind: 'read-answered', request: this.the('read').request, current: { version, record: current } });
  }

  hears(channel: string, message: Message<Records>): void {
    this.step({ kind: 'message', channel: channel as ChannelId, message });
  }

  /** It wins term 2 together with B, or alone, and has everything acknowledged. */
  leads(members: readonly StoreId[] = [A]): void {
    this.step({ kind: 'tick' });
    this.reads(1, record({ term: 1 as Term, primary: null, members, inSync: members, minInSync: 1 }));
    for (const effect of this.effects)
      if (effect.kind === 'send')
        this.hears(effect.channel, { kind: 'pong', generation: GENERATION, term: 1 as Term, store: B });
    this.step({ kind: 'cas-answered', request: this.the('cas').request, result: { ok: true, version: 2 } });
    if (members.includes(B)) this.opens('s', B, 2);
    if (members.includes(B)) this.acks('s', B, 2, this.log.end.lsn);
    this.step({ kind: 'progress' });
    this.step({ kind: 'progress' });
    assert.equal(this.machine.status.role, 'leading');
  }

  opens(channel: string, from: StoreId, term: number, change: object = {}): void {
    const fields = { generation: GENERATION, term: term as Term, store: from, boot: boot('d'), eligible: true };
    this.hears(channel, { kind: 'open', ...fields, point: this.log.end, ...change });
  }

  acks(channel: string, from: StoreId, term: number, lsn: number): void {
    const fields = { generation: GENERATION, term: term as Term, store: from, boot: boot('d') };
    this.hears(channel, { kind: 'ack', ...fields, lsn: lsn as Lsn });
  }
}

for (const [what, seen, found] of [
  ['an older one', 5, { version: 4, record: record() }],
  ['another one of the same version', 5, { version: 5, record: record({ nonce: '1'.repeat(32) }) }],
  ['none at all', 5, undefined],
] as const)
  test(`a coordinator that held a newer record and now shows ${what} stops the machine for good`, () => {
    const bench = new Bench({ version: seen, record: record() });
    bench.step({ kind: 'tick' });
    bench.step({ kind: 'read-answered', request: bench.the('read').request, current: found });
    assert.equal(bench.the('stop').reason, 'coordinator-regressed');
    bench.nowMs += 60_000;
    assert.deepEqual(bench.step({ kind: 'tick' }), []);
    assert.equal(bench.machine.status.stopped, 'coordinator-regressed');
  });

test('an answer to a request that was given up is not taken for one to the next', () => {
  const bench = new Bench({ version: 5, record: record() });
  bench.step({ kind: 'tick' });
  const late = bench.the('read').request;
  bench.step({ kind: 'request-failed', request: late });
  bench.step({ kind: 'read-answered', request: late, current: { version: 4, record: record() } });
  assert.ok(!bench.kinds.includes('stop'));
});

test('a record of another generation stops the machine, and says which', () => {
  const bench = new Bench();
  bench.step({ kind: 'tick' });
  bench.reads(1, record({ generation: '9'.repeat(32) as typeof GENERATION }));
  assert.equal(bench.the('stop').reason, 'generation');
});

test('a candidate waits for lease and drift since it read the record itself, not since somebody wrote it down', () => {
  const bench = new Bench({ version: 3, record: record() });
  bench.nowMs += 10 * LIMITS.leaseMs;
  bench.step({ kind: 'tick' });
  bench.reads(3, record());
  const readMs = bench.nowMs;
  const waitMs = LIMITS.leaseMs * (1 + LIMITS.clockDriftMax);
  for (let atMs = readMs + 1_000; atMs < readMs + waitMs; atMs += 1_000) {
    bench.nowMs = atMs;
    bench.step({ kind: 'tick' });
    bench.reads(3, record());
  }
  bench.nowMs = readMs + waitMs - 1;
  bench.step({ kind: 'tick' });
  assert.equal(bench.machine.status.role, 'follower');
  // Only a reply that is late enough shows that it stood still so long.
  bench.nowMs = readMs + waitMs;
  bench.reads(3, record());
  assert.equal(bench.machine.status.role, 'candidate');
  assert.equal(bench.effects.filter((effect) => effect.kind === 'send' && effect.message.kind === 'ping').length, 2);
});

for (const [what, change] of [
  ['not in sync', { inSync: [B, C] }],
  [
    'without what is committed',
    { committed: { generation: GENERATION, term: 1 as Term, lsn: 1 as Lsn }, inSync: [B, C] },
  ],
] as const)
  test(`a store that is ${what} never stands`, () => {
    const bench = new Bench();
    bench.step({ kind: 'tick' });
    bench.reads(3, record(change));
    for (let i = 0; i < 100; i++) {
      bench.nowMs += LIMITS.leaseMs;
      bench.step({ kind: 'tick' });
      assert.equal(bench.machine.status.role, 'follower');
      if (bench.kinds.includes('read')) bench.reads(3, record(change));
    }
  });

test('a CAS without an answer is looked into and repeated byte for byte; its lease counts from the first time', () => {
  const bench = new Bench();
  bench.leads([A, B]);
  bench.nowMs += LIMITS.renewIntervalMs;
  const sentMs = bench.nowMs;
  bench.step({ kind: 'tick' });
  const first = bench.the('cas');
  bench.step({ kind: 'request-failed', request: first.request });
  bench.nowMs += LIMITS.coordinatorRetryMs;
  bench.step({ kind: 'tick' });
  assert.ok(!bench.kinds.includes('cas'), 'it is read first');
  bench.step({ kind: 'request-failed', request: bench.the('read').request });
  bench.nowMs += LIMITS.coordinatorRetryMs;
  bench.step({ kind: 'tick' });
  const again = bench.the('cas');
  assert.deepEqual({ ...again, request: 0 }, { ...first, request: 0 });
  // The first one had been performed: this one is refused, and finds its own nonce.
  const current = { version: 3, record: first.record };
  bench.step({ kind: 'cas-answered', request: again.request, result: { ok: false, current } });
  assert.equal(bench.machine.status.role, 'leading');
  assert.equal(bench.machine.status.version, 3);
  const endMs = sentMs + LIMITS.leaseMs * (1 - LIMITS.clockDriftMax);
  assert.equal(bench.machine.holdsLease({ monotonicMs: endMs - 1, wallMs: endMs - 1 }), true);
  assert.equal(bench.machine.holdsLease({ monotonicMs: endMs, wallMs: endMs - 1 }), false);
});

test('an ack counts for its stream, term, store and boot only, and never beyond the log', () => {
  const bench = new Bench();
  bench.leads([A, B]);
  bench.grow(2, 'quorum');
  bench.step({ kind: 'progress' });
  const { lsn } = bench.log.end;
  assert.ok(bench.log.watermark < lsn);
  bench.acks('s', B, 1, lsn);
  bench.acks('other', B, 2, lsn);
  bench.acks('s', C, 2, lsn);
  bench.acks('s', B, 2, lsn + 1);
  bench.hears('s', { kind: 'ack', generation: GENERATION, term: 2 as Term, store: B, boot: boot('e'), lsn });
  assert.ok(bench.log.watermark < lsn);
  bench.acks('s', B, 2, lsn);
  assert.equal(bench.log.watermark, lsn);
});

test('a store that comes back with less than it acknowledged is refused, and its acks no longer count', () => {
  const bench = new Bench();
  bench.leads([A, B]);
  const old = bench.log.end;
  bench.grow(2, 'quorum');
  bench.step({ kind: 'progress' });
  bench.acks('s', B, 2, bench.log.end.lsn);
  bench.opens('t', B, 2, { boot: boot('e'), point: old });
  const { message } = bench.the('send');
  assert.equal(message.kind === 'refused' && message.reason, 'lost-acknowledged');
  bench.grow(2, 'quorum');
  bench.step({ kind: 'progress' });
  assert.ok(bench.log.watermark < bench.log.end.lsn);
  // The boot before it is another process with the same store, perhaps the one that has it all: it opens it anew.
  bench.opens('u', B, 2);
  const { message: answer } = bench.the('send');
  assert.equal(answer.kind === 'refused' && answer.reason, 'superseded');
});

test('lower terms are refused; a higher one ends the reign before anything else is done', () => {
  const bench = new Bench();
  const followed = (): StoreId | undefined => bench.machine.status.following?.store;
  bench.leads([A, B]);
  bench.opens('s', B, 1);
  const { message } = bench.the('send');
  assert.deepEqual([message.kind, message.term], ['refused', 2]);
  bench.opens('t', B, 3);
  assert.ok(bench.kinds.includes('step-down'));
  assert.equal(bench.machine.acceptsWrites, false);
  assert.equal(bench.machine.holdsLease({ monotonicMs: bench.nowMs, wallMs: bench.nowMs }), false);
  // It asks who leads, and begins nothing before its transactions are rolled back.
  assert.ok(bench.kinds.includes('read'));
  bench.step({
    kind: 'read-answered',
    request: bench.the('read').request,
    current: { version: 3, record: record({ term: 3 as Term, members: [A, B], inSync: [A, B] }) },
  });
  assert.equal(followed(), undefined);
  bench.step({ kind: 'stepped-down' });
  assert.equal(followed(), B);
});

test('a handover gives up the lease before its CAS is sent, and names the boot whose log is equal', () => {
  const bench = new Bench();
  bench.leads([A, B]);
  bench.grow(2, 'quorum');
  bench.step({ kind: 'handover' });
  bench.step({ kind: 'drained' });
  assert.ok(!bench.kinds.includes('cas'), 'its log is not equal yet');
  assert.equal(bench.machine.holdsLease({ monotonicMs: bench.nowMs, wallMs: bench.nowMs }), true);
  bench.acks('s', B, 2, bench.log.end.lsn);
  const { record: next, request } = bench.the('cas');
  assert.deepEqual([next.term, next.primary], [3, { store: B, boot: boot('d') }]);
  assert.equal(bench.machine.holdsLease({ monotonicMs: bench.nowMs, wallMs: bench.nowMs }), false);
  // While that is open it is not taken back, however long it takes.
  bench.nowMs += 10 * LIMITS.handoverTimeoutMs;
  bench.step({ kind: 'request-failed', request });
  assert.equal(bench.machine.status.role, 'draining');
});

test('a handover to nobody is given up in time, and writes go on', () => {
  const bench = new Bench();
  bench.leads([A]);
  bench.step({ kind: 'handover' });
  bench.step({ kind: 'drained' });
  bench.nowMs += LIMITS.handoverTimeoutMs;
  bench.step({ kind: 'tick' });
  assert.ok(bench.kinds.includes('resume'));
  assert.equal(bench.machine.acceptsWrites, true);
});

test('a reign that was won meanwhile begins when the rollback that is under way has ended', () => {
  const bench = new Bench();
  for (let i = 0; i < 3; i++) bench.grow(1, i === 0 ? 'start' : 'quorum');
  bench.step({ kind: 'tick' });
  bench.reads(3, record({ term: 2 as Term }));
  const { channel } = bench.effects.find((effect) => effect.kind === 'send' && effect.message.kind === 'open') as {
    readonly channel: ChannelId;
  };
  const fields = { generation: GENERATION, term: 2 as Term, watermark: 0 as Lsn };
  bench.hears(channel, {
    kind: 'point',
    ...fields,
    lsn: 3 as Lsn,
    answer: { held: 'below', term: 1 as Term, lsn: 1 as Lsn },
  });
  bench.hears(channel, { kind: 'point', ...fields, lsn: 1 as Lsn, answer: { held: 'held' } });
  assert.equal(bench.the('rollback').to.lsn, 1);
  bench.reads(4, record({ term: 3 as Term, primary: { store: A, boot: boot('1') } }));
  assert.equal(bench.machine.status.role, 'follower');
  bench.log.cut(1);
  bench.step({ kind: 'rolled-back', ok: true });
  assert.ok(bench.kinds.includes('start-term'));
  assert.equal(bench.log.end.lsn, 2);
});

test('a follower never drops what is at or below its own W, and says so', () => {
  const bench = new Bench();
  for (let i = 0; i < 3; i++) bench.grow(1, i === 0 ? 'start' : 'quorum');
  bench.log.watermark = 2 as Lsn;
  bench.step({ kind: 'tick' });
  bench.reads(3, record({ term: 2 as Term, inSync: [B, C] }));
  const { channel } = bench.the('send');
  const fields = { generation: GENERATION, term: 2 as Term, watermark: 9 as Lsn };
  bench.hears(channel, {
    kind: 'point',
    ...fields,
    lsn: 3 as Lsn,
    answer: { held: 'below', term: 1 as Term, lsn: 1 as Lsn },
  });
  assert.equal(bench.the('stop').reason, 'below-watermark');
  assert.ok(!bench.kinds.includes('rollback'));
});

test('a lease ends by whichever clock is first, and a wall clock that went back gives none', () => {
  const sent = { monotonicMs: 100, wallMs: 5_000 };
  const holds = (monotonicMs: number, wallMs: number): boolean =>
    leaseHolds(sent, { monotonicMs, wallMs }, 1_000, 0.01);
  assert.equal(holds(1_089, 5_989), true);
  assert.equal(holds(1_090, 5_100), false);
  assert.equal(holds(200, 5_990), false);
  assert.equal(holds(200, 4_999), false);
});

for (const [change, why] of [
  [{ add: A }, /is a member/],
  [{ remove: C }, /no member/],
  [{ remove: A }, /hand over first/],
  [{ remove: B, minInSync: 2 }, /cannot keep 2/],
  [{ add: C, minInSync: 0 }, /from 1/],
] as const)
  test(`a change of the members is refused: ${why.source}`, () => {
    const bench = new Bench();
    bench.leads([A, B]);
    bench.step({ kind: 'change-members', change });
    const { ok, why: said } = bench.the('members-changed');
    assert.equal(ok, false);
    assert.match(said ?? '', why);
  });

test('times that do not fit each other are refused, the defaults are not', () => {
  assert.equal(checkGroupLimits(LIMITS), LIMITS);
  for (const change of [
    { clockDriftMax: 0.5 },
    { renewIntervalMs: 3_000 },
    { leaseMs: 1_900 },
    { streamTimeoutMs: 900 },
  ])
    assert.throws(() => checkGroupLimits({ ...LIMITS, ...change }), /INVALID_ARGUMENT|at most|share/);
});

/** A follower of B that streams, its log at LSN 3. */
function streaming(): { readonly bench: Bench; readonly channel: ChannelId; readonly head: StreamHead } {
  const bench = new Bench();
  for (let i = 0; i < 3; i++) bench.grow(1, i === 0 ? 'start' : 'quorum');
  bench.step({ kind: 'tick' });
  bench.reads(3, record());
  const { channel } = bench.the('send');
  const head = { generation: GENERATION, term: 1 as Term, watermark: 1 as Lsn };
  bench.hears(channel, { kind: 'point', ...head, lsn: 3 as Lsn, answer: { held: 'held' } });
  assert.equal(bench.machine.status.following?.phase, 'streaming');
  return { bench, channel, head };
}

interface StreamHead {
  readonly generation: typeof GENERATION;
  readonly term: Term;
  readonly watermark: Lsn;
}

/** The next record of the primary's log, after what the bench holds. */
function nextRecord(bench: Bench): SimRecord {
  return bench.log.make(1 as Term, 99, 'quorum', 1 as Lsn);
}

test('records that follow are taken and acknowledged once they are fsynced; a repetition is acknowledged again', () => {
  const { bench, channel, head } = streaming();
  const [previous, last] = [bench.log.end, nextRecord(bench)];
  bench.hears(channel, { kind: 'records', ...head, previous, last, payload: [last] });
  assert.ok(!bench.kinds.includes('send'), 'nothing is acknowledged before the fsync');
  bench.log.durable = bench.log.end.lsn;
  bench.step({ kind: 'progress' });
  const { message } = bench.the('send');
  assert.deepEqual([message.kind, message.kind === 'ack' && message.lsn], ['ack', 4]);
  bench.hears(channel, { kind: 'records', ...head, previous, last, payload: [last] });
  assert.deepEqual(bench.kinds, ['send']);
});

test('after a gap the stream is opened anew; nothing is appended', () => {
  const { bench, channel, head } = streaming();
  const last = nextRecord(bench);
  const after = { ...last, lsn: 6 as Lsn };
  bench.hears(channel, {
    kind: 'records',
    ...head,
    previous: { ...last, lsn: 5 as Lsn },
    last: after,
    payload: [after],
  });
  assert.deepEqual(bench.kinds, ['close']);
  bench.nowMs += LIMITS.reopenMs;
  bench.step({ kind: 'tick' });
  assert.equal(bench.the('send').message.kind, 'open');
});

test('a record that comes between an append that failed and the news of that opens the stream anew', () => {
  const { bench, channel, head } = streaming();
  const [previous, last] = [bench.log.end, nextRecord(bench)];
  bench.hears(channel, { kind: 'records', ...head, previous, last, payload: [last] });
  bench.log.cut(previous.lsn);
  bench.hears(channel, { kind: 'records', ...head, previous, last, payload: [last] });
  assert.deepEqual(bench.kinds, ['close']);
});

test('a heartbeat that tells of records which never came opens the stream anew', () => {
  const { bench, channel, head } = streaming();
  bench.hears(channel, { kind: 'watermark', ...head, sent: 5 as Lsn });
  assert.deepEqual(bench.kinds, ['close']);
});

for (const [what, change] of [
  ['that follow another record at the end of the log', 'previous'],
  ['that repeat an LSN with another hash', 'last'],
] as const)
  test(`records ${what} stop the follower, which drops nothing`, () => {
    const { bench, channel, head } = streaming();
    const other = { ...bench.log.end, hash: new Uint8Array(32) as SimRecord['hash'] };
    const next = nextRecord(bench);
    const points =
      change === 'previous' ? { previous: other, last: next } : { previous: bench.log.pointAt(2 as Lsn), last: other };
    bench.hears(channel, { kind: 'records', ...head, ...points, payload: [next] });
    assert.equal(bench.the('stop').reason, 'diverged');
    assert.ok(!bench.kinds.includes('append') && !bench.kinds.includes('rollback'));
  });

test('W that is heard counts up to what was matched and fsynced', () => {
  const { bench, channel, head } = streaming();
  const [previous, last] = [bench.log.end, nextRecord(bench)];
  bench.hears(channel, { kind: 'records', ...head, watermark: 4 as Lsn, previous, last, payload: [last] });
  assert.equal(bench.log.watermark, 3);
  bench.log.durable = 4 as Lsn;
  bench.step({ kind: 'progress' });
  assert.equal(bench.log.watermark, 4);
});
