/** The script of the page, run on a document that is no more than what it touches. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createContext, runInContext } from 'node:vm';
import type { NodeStatus } from '../types.ts';
import { renderStatusPage } from './status-page.ts';

class FakeElement {
  text = '';
  hidden = false;
  className = '';
  value = '';
  readonly dataset: Record<string, string> = {};
  children: FakeElement[] = [];

  get textContent(): string {
    return this.text + this.children.map(({ textContent }) => textContent).join(' ');
  }

  set textContent(value: unknown) {
    this.text = String(value);
  }

  append(...children: FakeElement[]): void {
    this.children.push(...children);
  }

  replaceChildren(...children: FakeElement[]): void {
    this.children = children;
  }

  setAttribute(): void {}
  addEventListener(): void {}
}

/** What stands where, after the page has fetched this status. */
async function shown(status: unknown): Promise<(id: string) => FakeElement> {
  const elements = new Map<string, FakeElement>();
  const byId = (id: string): FakeElement => {
    const element = elements.get(id) ?? new FakeElement();
    elements.set(id, element);
    return element;
  };
  const { html } = renderStatusPage();
  const ids = new Set([...html.matchAll(/ id="([a-z]+)"/g)].map(([, id]) => id));
  const answer = (path: string): unknown => (path === '/v1/status' ? status : { total: 0, tenants: [] });
  const context = createContext({
    document: { getElementById: byId, createElement: () => new FakeElement() },
    sessionStorage: { getItem: () => 'token', setItem: () => {} },
    location: { hash: '', pathname: '/' },
    history: { replaceState: () => {} },
    addEventListener: () => {},
    setTimeout: () => 0,
    fetch: async (path: string) => ({ ok: true, json: async () => answer(path) }),
    URLSearchParams,
    performance,
  });
  runInContext(/<script>([\s\S]*)<\/script>/.exec(html)![1]!, context);
  for (let tries = 0; byId('content').hidden || byId('more').text === ''; tries += 1) {
    assert.ok(tries < 100, `the page shows: ${byId('state').text}`);
    await sleep(5);
  }
  for (const id of elements.keys()) assert.ok(ids.has(id), `there is an element ${id}`);
  return byId;
}

const [own, other] = ['1'.repeat(32), '2'.repeat(32)];
const lone = {
  dir: '/data',
  node: own,
  role: 'replica',
  version: '1',
  pid: 1,
  boot: own,
  startedAtMs: 0,
  residentBytes: 1,
  openFiles: 1,
  log: {
    term: 3,
    firstLsn: 1,
    lastLsn: 9,
    watermark: 8,
    bytes: 10,
    segments: 1,
    recovery: { recordsScanned: 0, elapsedMs: 0, tornBytes: 0 },
  },
  tenants: { total: 0, open: 0 },
  writes: { committed: 0, failed: 0 },
  rollbackFiles: { count: 2, bytes: 4096 },
  scrub: { tenants: 1, rows: 1, damaged: [] },
};
const decision = {
  row: 'damage',
  action: 'leave-and-restore',
  reason: 'tenant acme is damaged',
  keeps: '',
  drops: '',
  next: ['operator'],
};
const group = {
  name: 'main',
  role: 'leading',
  term: 3,
  inSync: true,
  watermark: 8,
  lastLsn: 9,
  replicas: [{ store: other, phase: 'streaming', acked: 4, inSync: true }],
  record: { members: [own, other], inSync: [own, other], primary: { store: own, boot: own } },
  stopped: null,
  peerErrors: { count: 3, last: 'another <b>cluster</b>' },
  rejoin: decision,
  events: [{ atMs: 1_000, kind: 'role', text: 'leading in term 3' }],
  progress: {
    decision,
    current: 'leave-and-restore',
    attempt: 2,
    attemptsTotal: 1,
    attemptsEver: 5,
    sinceMs: 0,
    history: [{ action: 'leave-and-restore', row: 'damage', outcome: 'failed', why: 'no <b>copy</b>', atMs: 2_000 }],
  },
} satisfies Partial<Record<keyof NonNullable<NodeStatus['group']>, unknown>>;

test('the page of a lone node has no group', async () => {
  const byId = await shown(lone);
  assert.match(byId('node').textContent, /Rollback files 2, 4/);
  assert.ok(byId('group').hidden);
  assert.match(byId('state').text, /^healthy/);
});

test('the page of a member shows its place, its members and how far behind they are, and what is tried', async () => {
  const byId = await shown({ ...lone, group });
  assert.ok(!byId('group').hidden);
  const facts = byId('groupfacts').textContent;
  for (const text of [
    'leading, term 3',
    'In sync yes',
    'leave-and-restore (attempt 2): tenant acme is damaged',
    '1 since it was last in place, 5 in all',
    '3, the last one: another <b>cluster</b>',
  ])
    assert.ok(facts.includes(text), `${text} in ${facts}`);
  assert.deepEqual(
    byId('members').children.map(({ textContent }) => textContent),
    [`${own} primary 0`, `${other} in sync 5`],
  );
  const [newest, before] = byId('events').children.map(({ textContent }) => textContent);
  assert.match(newest!, /leave-and-restore failed: no <b>copy<\/b>$/);
  assert.match(before!, /leading in term 3$/);
  assert.deepEqual([byId('state').text, byId('state').dataset['kind']], ['leave-and-restore', 'bad']);
});

test('who has given up says that it waits for a person', async () => {
  const progress = { ...group.progress, current: 'operator' };
  const byId = await shown({ ...lone, group: { ...group, progress } });
  assert.equal(byId('state').text, 'waits for a person');
});
