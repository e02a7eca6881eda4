import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { toClusterId, toGeneration } from '../base/brands.ts';
import { NostosError, isNostosError, type ErrorCode } from '../base/errors.ts';
import type { FetchReport, FetchTarget } from './feed.ts';
import { parseItemName, type ItemName } from './item-name.ts';
import { ProviderFeed, type ProviderDeps, type ProviderEvent, type ProviderSession } from './provider-feed.ts';
import { chooseProvider, type Asked, type ChoiceRules, type Member, type ProviderInfo } from './provider.ts';

const id = (digit: string): string => digit.repeat(32);
const history = { cluster: toClusterId(id('c')), generation: toGeneration(id('1')) };

function info(changes: Partial<ProviderInfo> = {}): ProviderInfo {
  return {
    role: 'replica',
    ...history,
    node: id('a'),
    store: id('b'),
    term: 3,
    watermark: 1_000,
    firstLsn: 1,
    sessions: 0,
    ...changes,
  };
}

const asked = (address: string, answer: Partial<ProviderInfo> | Error = {}): Asked => ({
  member: { address },
  answer: answer instanceof Error ? answer : info(answer),
});

interface Row {
  readonly name: string;
  readonly asked: readonly Asked[];
  readonly rules?: Partial<ChoiceRules>;
  readonly order: readonly string[];
  readonly dropped?: Readonly<Record<string, RegExp>>;
}

const TABLE: readonly Row[] = [
  { name: 'nobody', asked: [], order: [] },
  {
    name: 'replicas before the primary, however busy',
    asked: [asked('p:1', { role: 'primary' }), asked('r:1', { sessions: 5 })],
    order: ['r:1', 'p:1'],
  },
  {
    name: 'a copy after the primary, since it does not follow',
    asked: [asked('c:1', { role: 'copy' }), asked('p:1', { role: 'primary', sessions: 5 })],
    order: ['p:1', 'c:1'],
  },
  {
    name: 'a copy that is behind is not taken while somebody is ahead of it, by however little',
    asked: [
      asked('c:1', { role: 'copy', watermark: 999 }),
      asked('p:1', { role: 'primary' }),
      asked('x:1', { role: null, watermark: 999 }),
    ],
    order: ['p:1'],
    dropped: { 'c:1': /1 records behind another one, and a copy does not catch up/, 'x:1': /without a role/ },
  },
  { name: 'a copy alone will do', asked: [asked('c:1', { role: 'copy', watermark: 5 })], order: ['c:1'] },
  {
    name: 'the least busy first',
    asked: [asked('a:1', { sessions: 2 }), asked('b:1', { sessions: 0 }), asked('c:1', { sessions: 1 })],
    order: ['b:1', 'c:1', 'a:1'],
  },
  {
    name: 'of equally busy ones the newest',
    asked: [asked('a:1', { watermark: 900 }), asked('b:1', { watermark: 1_000 })],
    order: ['b:1', 'a:1'],
  },
  { name: 'of equal ones always the same', asked: [asked('b:1'), asked('a:1')], order: ['a:1', 'b:1'] },
  {
    name: 'who lags beyond the limit is dropped, at the limit not',
    asked: [
      asked('best:1', { watermark: 1_000, role: 'primary' }),
      asked('at:1', { watermark: 900 }),
      asked('beyond:1', { watermark: 899 }),
    ],
    order: ['at:1', 'best:1'],
    dropped: { 'beyond:1': /101 records behind, at most 100/ },
  },
  {
    name: 'lag is measured among those who can serve',
    asked: [asked('other:1', { watermark: 9_000, generation: id('2') }), asked('a:1', { watermark: 100 })],
    rules: { history },
    order: ['a:1'],
    dropped: { 'other:1': /serves generation 2{32}/ },
  },
  {
    name: 'never itself: by node, by store, by what was known before',
    asked: [
      asked('node:1', { node: id('5') }),
      asked('store:1', { store: id('6') }),
      { member: { address: 'known:1', node: id('5') }, answer: info({ node: null }) },
      asked('a:1'),
    ],
    rules: { self: { node: id('5'), store: id('6') } },
    order: ['a:1'],
    dropped: { 'node:1': /itself/, 'store:1': /itself/, 'known:1': /itself/ },
  },
  {
    name: 'who does not answer is dropped with its reason',
    asked: [asked('away:1', new Error('refused')), asked('a:1')],
    order: ['a:1'],
    dropped: { 'away:1': /refused/ },
  },
  {
    name: 'another cluster does not go on with a run',
    asked: [asked('foreign:1', { cluster: id('d') })],
    rules: { history },
    order: [],
    dropped: { 'foreign:1': /serves cluster d{32}/ },
  },
  {
    name: 'who serves another history than the directory has is no choice, however far it is, until that is given up',
    asked: [asked('foreign:1', { generation: id('2'), watermark: 900_000 }), asked('a:1')],
    rules: { history, replaceable: true },
    order: ['a:1'],
    dropped: { 'foreign:1': /belongs to generation 1{32}.*serves generation 2{32}.*--replace/ },
  },
  { name: 'without a run any history will do', asked: [asked('a:1', { cluster: id('d') })], order: ['a:1'] },
];

for (const row of TABLE)
  test(`choice: ${row.name}`, () => {
    const choice = chooseProvider(row.asked, { lagRecordsMax: 100, ...row.rules });
    assert.deepEqual(
      choice.order.map(({ member }) => member.address),
      row.order,
    );
    const dropped = Object.fromEntries(choice.dropped.map(({ member, why }) => [member.address, why]));
    assert.deepEqual(Object.keys(dropped).toSorted(), Object.keys(row.dropped ?? {}).toSorted());
    for (const [address, why] of Object.entries(row.dropped ?? {})) assert.match(dropped[address]!, why);
  });

test('choice: members of different histories are refused by name, not compared by position', () => {
  const both = [asked('new:1', { watermark: 100 }), asked('old:1', { watermark: 900, generation: id('2') })];
  assert.throws(
    () => chooseProvider(both, RULES),
    (error: unknown) =>
      isNostosError(error, 'DIRECTORY_FOREIGN') &&
      /new:1: cluster c{32}, generation 1{32}; old:1: cluster c{32}, generation 2{32}/.test(error.message),
  );
  assert.deepEqual(chooseProvider(both, { ...RULES, history }).order, [
    { member: { address: 'new:1' }, info: info({ watermark: 100 }), bestWatermark: 100 },
  ]);
});

/** A provider in memory that brings items until it fails. */
interface Scripted {
  readonly info?: Partial<ProviderInfo> | Error;
  readonly openFails?: ErrorCode;
  /** For each session: how many items it brings before it fails with this; without, all. */
  readonly sessions?: readonly { readonly brings: number; readonly fails?: ErrorCode; readonly local?: boolean }[];
  /** In each session it sends so much of an item that never gets whole. */
  readonly again?: number;
  readonly generation?: string;
}

const ITEMS = ['log/00000001.ndb', 'log/00000002.ndb', 'tenant/1', 'tenant/2', 'catalog'].map(parseItemName);
const BYTES = 100 * 1024;

function group(script: Readonly<Record<string, Scripted>>) {
  const log = {
    asked: [] as string[],
    opened: [] as string[],
    closed: 0,
    fetched: [] as ItemName[],
    waited: [] as number[],
  };
  const have = new Set<ItemName>();
  const counts = new Map<string, number>();
  const session = (address: string, number: number): ProviderSession => ({
    plan: {
      kind: 'node',
      ...history,
      generation: script[address]!.generation ?? history.generation,
      store: id('b'),
      node: id('a'),
      term: 1,
      watermark: 1,
      items: ITEMS.map((name) => ({ name, bytes: BYTES })),
    },
    async fetchAll(_target, options): Promise<FetchReport> {
      const plan = script[address]!.sessions?.[number] ?? { brings: ITEMS.length };
      let [brought, bytesOnWire, bytesWritten] = [0, 1_000, 0];
      const { again } = script[address]!;
      const tell = (): void =>
        options?.onProgress?.({
          phase: 'items',
          bytesDone: have.size * BYTES + (again ?? 0),
          bytesTotal: ITEMS.length * BYTES,
          itemsDone: have.size,
          itemsTotal: ITEMS.length,
          bytesOnWire,
          bytesWritten,
        });
      if (again !== undefined) {
        bytesOnWire += again;
        bytesWritten += again;
        tell();
        throw new NostosError('TRANSFER_DAMAGED', `${address} fails`);
      }
      for (const name of ITEMS) {
        options?.signal?.throwIfAborted();
        if (have.has(name)) continue;
        if (plan.fails !== undefined && brought === plan.brings) break;
        have.add(name);
        log.fetched.push(name);
        brought += 1;
        bytesOnWire += BYTES;
        bytesWritten += BYTES;
        tell();
      }
      if (plan.fails !== undefined)
        throw new NostosError(plan.fails, `${address} fails`, plan.local === true ? { cause: new Error('errno') } : {});
      return { items: ITEMS.map((name) => ({ name, bytes: BYTES })), bytesOnWire, bytesReused: 0, elapsedMs: 1 };
    },
    async close() {
      log.closed += 1;
    },
  });
  const deps: ProviderDeps = {
    timers: {
      monotonicMs: () => 0,
      after(ms, run) {
        log.waited.push(ms);
        queueMicrotask(run);
        return () => undefined;
      },
    },
    async ask({ address }) {
      log.asked.push(address);
      const answer = script[address]!.info;
      if (answer instanceof Error) throw answer;
      return info(answer);
    },
    async open({ address }) {
      log.opened.push(address);
      const fails = script[address]!.openFails;
      if (fails !== undefined) throw new NostosError(fails, `${address} does not open`);
      const number = counts.get(address) ?? 0;
      counts.set(address, number + 1);
      return session(address, number);
    },
  };
  const members: Member[] = Object.keys(script).map((address) => ({ address }));
  return { log, deps, members };
}

const TARGET: FetchTarget = { pathOf: (name) => name, baseOf: () => undefined };
const RULES = { attemptsMax: 3, sessionsMax: 5, lagRecordsMax: 100 };

async function fetchFrom(script: Readonly<Record<string, Scripted>>, changes: Partial<ProviderDeps> = {}) {
  const { log, deps, members } = group(script);
  const events: ProviderEvent[] = [];
  const result = await ProviderFeed.open(
    { ...deps, ...changes },
    { members, ...RULES, onEvent: (event) => events.push(event) },
  )
    .then(async (feed) => {
      try {
        return { report: await feed.fetchAll(TARGET), provider: feed.provider.member.address };
      } finally {
        await feed.close();
      }
    })
    .catch((error: unknown) => error as Error);
  assert.equal(
    log.closed,
    log.opened.length -
      Object.values(script).filter(
        (one) => one.openFails !== undefined && log.opened.some((address) => script[address] === one),
      ).length,
    'each session is closed once',
  );
  return {
    log,
    result,
    events,
    dropped: events.flatMap((event) => (event.kind === 'dropped' ? [event.dropped.member.address] : [])),
  };
}

function ended(result: unknown): { report: FetchReport; provider: string } {
  assert.ok(!(result instanceof Error), String(result));
  return result as { report: FetchReport; provider: string };
}

test('the first provider dies in the middle, the second goes on with what is there', async () => {
  const { log, result, dropped } = await fetchFrom({
    'a:1': { sessions: [{ brings: 2, fails: 'PROTOCOL_ERROR' }] },
    'b:1': { info: { sessions: 3 } },
  });
  const { report, provider } = ended(result);
  assert.equal(provider, 'b:1');
  assert.deepEqual(dropped, ['a:1']);
  assert.deepEqual(log.fetched, ITEMS);
  assert.equal(report.bytesOnWire, 5 * BYTES + 2_000, 'what both sent is counted');
  assert.deepEqual(log.asked, ['a:1', 'b:1', 'b:1'], 'a new round asks those who are left');
});

test('a lost connection is made again, as long as bytes come between', async () => {
  const lost = { brings: 1, fails: 'CHANNEL_CLOSED' } as const;
  const { log, result, dropped } = await fetchFrom({
    'a:1': { sessions: [lost, lost, lost, lost] },
    'b:1': { info: { sessions: 1 } },
  });
  assert.equal(ended(result).provider, 'a:1');
  assert.deepEqual(dropped, []);
  assert.equal(log.opened.length, 5);
});

test('a provider that brings nothing is given up after providerAttemptsMax, and not asked again', async () => {
  const lost = { brings: 0, fails: 'NETWORK_TIMEOUT' } as const;
  const { log, result, dropped } = await fetchFrom({
    'a:1': { sessions: [lost, lost, lost, lost, lost] },
    'b:1': { info: { sessions: 1 } },
  });
  assert.equal(ended(result).provider, 'b:1');
  assert.deepEqual(dropped, ['a:1']);
  assert.deepEqual(log.opened, ['a:1', 'a:1', 'a:1', 'b:1']);
  assert.deepEqual(log.waited, [200, 400], 'longer each time');
});

test('bytes that are sent again and again are no progress: of hashes, or of an item that never gets whole', async () => {
  const { log, result, dropped } = await fetchFrom({
    'a:1': { again: 50_000_000 },
    'b:1': { info: { sessions: 1 } },
  });
  assert.equal(ended(result).provider, 'b:1');
  assert.deepEqual(dropped, ['a:1']);
  assert.deepEqual(log.opened, ['a:1', 'a:1', 'a:1', 'a:1', 'b:1'], 'once it came further, three times it did not');
});

test('who loses each connection is given up after providerSessionsMax, however far it came', async () => {
  const lost = { brings: 1, fails: 'CHANNEL_CLOSED' } as const;
  const script = { 'a:1': { sessions: [lost, lost, lost, lost, lost] }, 'b:1': { info: { sessions: 1 } } };
  const { log, deps, members } = group(script);
  const feed = await ProviderFeed.open(deps, { members, ...RULES, sessionsMax: 4 });
  await feed.fetchAll(TARGET);
  await feed.close();
  assert.deepEqual(log.opened, ['a:1', 'a:1', 'a:1', 'a:1', 'b:1']);
});

test('who is full, or of another history than it said, is passed over', async () => {
  const { result, dropped } = await fetchFrom({
    'a:1': { openFails: 'QUEUE_FULL' },
    'b:1': { info: { sessions: 1 }, sessions: [{ brings: 1, fails: 'PROTOCOL_ERROR' }] },
    'c:1': { info: { sessions: 2 }, generation: id('2') },
    'd:1': { info: { sessions: 3 } },
  });
  assert.equal(ended(result).provider, 'd:1');
  assert.deepEqual(dropped, ['a:1', 'b:1', 'c:1']);
});

test('a member that the primary disowns is passed over', async () => {
  const { result, dropped } = await fetchFrom(
    { 'a:1': {}, 'b:1': { info: { sessions: 1 } } },
    {
      checkAnchor: async ({ member }) => {
        if (member.address === 'a:1') throw new NostosError('POSITION_LOST', 'its anchor is of another history');
      },
    },
  );
  assert.equal(ended(result).provider, 'b:1');
  assert.deepEqual(dropped, ['a:1']);
});

test('when nobody is left the error names each member and its reason', async () => {
  const { result } = await fetchFrom({
    'a:1': { info: new NostosError('NETWORK_FAILED', 'refused') },
    'b:1': { sessions: [{ brings: 1, fails: 'VERSION_MISMATCH' }] },
  });
  assert.ok(isNostosError(result, 'NO_PROVIDER'), inspect(result));
  assert.match(result.message, /a:1: refused.*b:1: b:1 fails/);
});

test('a single provider fails with its own error', async () => {
  const { result } = await fetchFrom({ 'a:1': { info: new NostosError('NETWORK_FAILED', 'refused') } });
  assert.ok(isNostosError(result, 'NETWORK_FAILED'), inspect(result));
});

test('a full disk here is nobody else’s fault: no other provider is tried', async () => {
  const { log, result } = await fetchFrom({
    'a:1': { sessions: [{ brings: 1, fails: 'DISK_FULL', local: true }] },
    'b:1': { info: { sessions: 1 } },
  });
  assert.ok(isNostosError(result, 'DISK_FULL'), inspect(result));
  assert.deepEqual(log.opened, ['a:1']);
});

test('a full disk there is: the next one is tried', async () => {
  const { result } = await fetchFrom({
    'a:1': {
      sessions: [
        { brings: 0, fails: 'DISK_FULL' },
        { brings: 0, fails: 'DISK_FULL' },
        { brings: 0, fails: 'DISK_FULL' },
      ],
    },
    'b:1': { info: { sessions: 1 } },
  });
  assert.equal(ended(result).provider, 'b:1');
});

test('cancelling is not taken for a failure of the provider', async () => {
  const { deps, members, log } = group({ 'a:1': {}, 'b:1': {} });
  const abort = new AbortController();
  const feed = await ProviderFeed.open(deps, { members, ...RULES });
  abort.abort(new Error('enough'));
  await assert.rejects(feed.fetchAll(TARGET, { signal: abort.signal }), /enough/);
  await feed.close();
  assert.deepEqual(log.opened, ['a:1']);
  assert.equal(log.closed, 1);
});
