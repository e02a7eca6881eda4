/**
 * Kills a real process under load, again and again on the same directory, and checks after each time that what was
 * acknowledged is there exactly once, with its content, and that nothing else is there in part.
 *
 * The choices of a run follow from its seed. The moment of the kill does too, as a delay; what the child has reached by
 * then depends on the machine.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { seededRandom, type SeededRandom } from '../base/random.ts';
import type { Position } from '../base/brands.ts';
import type { Row } from '../store/values.ts';
import {
  ACCOUNTS,
  BALANCE,
  IDS_PER_ROUND,
  KILL_LIMITS,
  ROUNDS_KEPT,
  contentOf,
  partsOf,
  type Ack,
} from './kill-load.ts';
import { openNode } from './open-node.ts';
import type { Node, Reader } from './types.ts';

export interface KillOptions {
  readonly rounds: number;
  readonly seed: number;
  /** Kept afterwards where it is given, or where a round failed. */
  readonly dir?: string;
  readonly onProgress?: (progress: KillProgress) => void;
  readonly signal?: AbortSignal;
}

export interface KillProgress {
  readonly round: number;
  readonly killed: 'opening' | 'writing';
  readonly acknowledged: number;
  readonly log: { readonly firstLsn: number; readonly lastLsn: number; readonly tornBytes: number };
}

export interface KillReport {
  readonly rounds: number;
  readonly killedOpening: number;
  readonly killedWriting: number;
  readonly acknowledged: number;
  /** Rounds after which the log no longer began at its first record. */
  readonly pruned: number;
}

/** Everything that a child has reported of one tenant. */
class Known {
  readonly singles = new Set<number>();
  readonly multis = new Set<number>();
  readonly docs = new Set<number>();
  readonly autos = new Set<number>();
  readonly onceBegun = new Set<number>();
  readonly once = new Map<number, number>();
  version = 0;
  state: 'there' | 'dropping' | 'dropped' = 'there';
  /** The rows of the tenant as its change feed tells them: by table, by key. */
  readonly fold = new Map<string, Map<string, Row>>();
  position: Position | undefined;
}

const OPENING_SHARE = 0.3;
const AFTER_OPENING_MS = 260;
const AFTER_READY_MS = 1_200;
const AGAIN_SHARE = 0.3;

export async function runKillRounds(options: KillOptions): Promise<KillReport> {
  const random = seededRandom(options.seed);
  const dir = options.dir ?? mkdtempSync(join(tmpdir(), 'nostos-kill-'));
  const known = new Map<string, Known>();
  const totals = { rounds: 0, killedOpening: 0, killedWriting: 0, acknowledged: 0, pruned: 0 };
  for (let round = 1; round <= options.rounds; round += 1) {
    options.signal?.throwIfAborted();
    try {
      const { killed, acks } = await killOnce(dir, { round, child: 0 }, random, known);
      // Recovery itself is killed too, before anybody looks.
      for (let child = 1; random.chance(AGAIN_SHARE); child += 1)
        await killOnce(dir, { round, child }, random, known, 'opening');
      const { log } = await check(dir, round, known);
      totals.rounds += 1;
      totals.acknowledged += acks;
      totals[killed === 'opening' ? 'killedOpening' : 'killedWriting'] += 1;
      if (log.firstLsn > 1) totals.pruned += 1;
      options.onProgress?.({ round, killed, acknowledged: acks, log });
    } catch (error) {
      throw new Error(`seed ${options.seed}, round ${round}, directory ${dir}: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }
  if (options.dir === undefined) rmSync(dir, { recursive: true, force: true });
  return totals;
}

async function killOnce(
  dir: string,
  { round, child: number }: { readonly round: number; readonly child: number },
  random: SeededRandom,
  known: Map<string, Known>,
  where?: 'opening',
): Promise<{ killed: 'opening' | 'writing'; acks: number }> {
  const killed = where ?? (random.chance(OPENING_SHARE) ? 'opening' : 'writing');
  const delayMs = random.below(killed === 'opening' ? AFTER_OPENING_MS : AFTER_READY_MS);
  const repeats = [...known].flatMap(([name, { onceBegun, state }]) =>
    state === 'there' ? [...onceBegun].slice(-4).map((id) => [name, id] as const) : [],
  );
  const script = fileURLToPath(new URL(`./kill-child${extname(import.meta.url)}`, import.meta.url));
  const args = [dir, String(random.below(2 ** 32)), String(round), String(number), JSON.stringify(repeats)];
  const child = spawn(process.execPath, [script, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let acks = 0;
  const errors: string[] = [];
  child.stderr.setEncoding('utf8').on('data', (text: string) => errors.push(text));
  const lines = createInterface({ input: child.stdout });
  lines.on('line', (line) => {
    let ack: Ack;
    try {
      ack = JSON.parse(line) as Ack;
    } catch {
      return; // the kill cut it short: then nobody was told
    }
    if (ack.k === (killed === 'opening' ? 'opening' : 'ready')) setTimeout(() => child.kill('SIGKILL'), delayMs);
    if ('t' in ack) {
      acks += 1;
      learn(known, ack);
    }
  });
  const drained = new Promise<void>((resolve) => lines.once('close', () => resolve()));
  const signal = await exited(child);
  await drained;
  if (signal !== 'SIGKILL') throw new Error(`the child ended by itself: ${errors.join('')}`);
  return { killed, acks };
}

function exited(child: ChildProcess): Promise<NodeJS.Signals | null> {
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (_code, signal) => resolve(signal));
  });
}

function learn(known: Map<string, Known>, ack: Extract<Ack, { t: string }>): void {
  let tenant = known.get(ack.t);
  if (tenant === undefined) known.set(ack.t, (tenant = new Known()));
  switch (ack.k) {
    case 'single':
      return void tenant.singles.add(ack.id);
    case 'multi':
      return void tenant.multis.add(ack.id);
    case 'doc':
      return void tenant.docs.add(ack.id);
    case 'auto':
      expect(!tenant.autos.has(ack.id), `${ack.t}: AUTOINCREMENT gave id ${ack.id} twice`);
      return void tenant.autos.add(ack.id);
    case 'once-begin':
      return void tenant.onceBegun.add(ack.id);
    case 'once': {
      const before = tenant.once.get(ack.id);
      expect(
        before === undefined || before === ack.n,
        `${ack.t}: write once-${ack.id} answered ${before}, now ${ack.n}`,
      );
      return void tenant.once.set(ack.id, ack.n);
    }
    case 'migrated':
      tenant.version = Math.max(tenant.version, ack.version);
      return;
    case 'created':
      return;
    case 'drop-begin':
      tenant.state = 'dropping';
      return;
    case 'dropped':
      tenant.state = 'dropped';
      return;
    default:
      ack satisfies never;
  }
}

async function check(dir: string, round: number, known: Map<string, Known>): Promise<{ log: KillProgress['log'] }> {
  const node = await openNode({ dir, limits: KILL_LIMITS, scrubIntervalMs: false });
  try {
    const names = new Set((await node.tenants.list()).map(({ name }) => name));
    for (const [name, tenant] of known) {
      if (tenant.state === 'dropped') expect(!names.has(name), `${name} was dropped and is there`);
      if (tenant.state === 'there') expect(names.has(name), `${name} was created and is gone`);
      if (!names.has(name)) known.delete(name); // names of one round are not used again
    }
    for (const name of names) {
      const tenant = known.get(name) ?? new Known();
      known.set(name, tenant);
      await checkTenant(node, name, tenant, round);
      // Of each round one tenant stays; those before it go, so that a long soak does not slow down.
      if (name.startsWith('d')) {
        await node.tenants.drop(name);
        known.delete(name);
      }
    }
    const report = await node.verify();
    expect(report.ok, `verify found ${JSON.stringify(report.problems)}`);
    const { log } = await node.status();
    return { log: { firstLsn: log.firstLsn, lastLsn: log.lastLsn, tornBytes: log.recovery.tornBytes } };
  } finally {
    await node.close();
  }
}

async function checkTenant(node: Node, name: string, known: Known, round: number): Promise<void> {
  const tenant = node.tenant(name);
  const { schemaVersion } = await tenant.status();
  expect(schemaVersion >= known.version, `${name}: schema ${schemaVersion}, ${known.version} was acknowledged`);
  const { generation, term, lastLsn } = (await node.status()).log;
  for await (const { rows } of tenant.changes({
    untilCaughtUp: true,
    int64: 'bigint',
    ...(known.position === undefined ? {} : { from: known.position }),
  }))
    for (const row of rows) foldChange(known.fold, row);
  // Not that of its own last record: a quiet tenant's would be pruned one day.
  known.position = { generation, term, lsn: lastLsn };
  if (schemaVersion === 0) return; // killed between creation and first migration
  await tenant.read((reader) => checkFeed(reader, name, known.fold), { int64: 'bigint' });
  await tenant.read((reader) => checkRows(reader, name, known, schemaVersion, (round - ROUNDS_KEPT) * IDS_PER_ROUND));
}

function foldChange(
  fold: Known['fold'],
  { table, op, key, new: values }: { table: string; op: string; key: Row; new?: Row },
): void {
  let rows = fold.get(table);
  if (rows === undefined) fold.set(table, (rows = new Map()));
  const id = keyOf(key);
  if (op === 'delete') rows.delete(id);
  else rows.set(id, { ...rows.get(id), ...key, ...values });
}

const keyOf = (key: Row): string => Object.values(key).map(String).join('|');

/** The rows that the feed tells must be the rows that are there, table by table. */
function checkFeed(reader: Reader, name: string, fold: Known['fold']): void {
  for (const table of [
    'items',
    'tally',
    'parts',
    'accounts',
    'once',
    'counter',
    'auto',
    'children',
    'extra1',
    'extra9',
  ]) {
    const keys = reader.all<{ name: string }>('select name from pragma_table_info(?) where pk > 0 order by pk', [
      table,
    ]);
    if (keys.length === 0) continue; // dropped by a migration meanwhile
    const told = fold.get(table) ?? new Map<string, Row>();
    let count = 0;
    for (const row of reader.iterate(`select * from ${table}`)) {
      count += 1;
      const key = keyOf(Object.fromEntries(keys.map(({ name: column }) => [column, row[column]!])));
      const expected = told.get(key);
      expect(
        expected !== undefined && isDeepStrictEqual(withoutNull(row), withoutNull(expected)),
        `${name}.${table}: the feed tells ${show(expected)}, there is ${show(row)}`,
      );
    }
    expect(count === told.size, `${name}.${table}: the feed tells ${told.size} rows, there are ${count}`);
  }
}

/** A column that a migration added is NULL in older rows without any change of theirs. */
const withoutNull = (row: Row): Row => Object.fromEntries(Object.entries(row).filter(([, value]) => value !== null));

function checkRows(reader: Reader, name: string, known: Known, version: number, oldest: number): void {
  const number = (query: string): number => reader.value<number>(query) as number;
  const items = new Map(
    reader.all<{ id: number; body: string }>('select id, body from items').map((row) => [row.id, row.body]),
  );
  for (const [id, body] of items) expect(id > 0 && body === contentOf(id), `${name}: item ${id} has other content`);
  for (const id of known.singles) {
    if (id < oldest) known.singles.delete(id); // it may be trimmed
    else expect(items.has(id), `${name}: acknowledged item ${id} is missing`);
  }
  expect(number('select n from tally') === items.size, `${name}: a trigger did not fire once for each item`);

  const parts = new Map<number, number>();
  for (const { tx, part, body } of reader.iterate<{ tx: number; part: number; body: string }>('select * from parts')) {
    expect(body === contentOf(tx + part), `${name}: part ${part} of ${tx} has other content`);
    parts.set(tx, (parts.get(tx) ?? 0) + 1);
  }
  for (const [tx, count] of parts)
    expect(count === partsOf(tx), `${name}: transaction ${tx} is there with ${count} of ${partsOf(tx)} parts`);
  for (const id of known.multis) {
    if (id < oldest) known.multis.delete(id);
    else expect(parts.has(id), `${name}: acknowledged transaction ${id} is missing`);
  }

  const once = new Map(reader.all<{ id: number; n: number }>('select id, n from once').map((row) => [row.id, row.n]));
  for (const [id, n] of known.once)
    expect(once.get(id) === n, `${name}: once-${id} answered ${n}, there is ${once.get(id)}`);
  expect(number('select n from counter') === once.size, `${name}: an idempotent write ran twice`);
  expect(number('select count(*) from children') === 0, `${name}: a violated deferred key was kept`);

  if (version < 3) return;
  expect(number('select sum(balance) from accounts') === ACCOUNTS * BALANCE, `${name}: half a transfer was kept`);
  const docs = new Set(reader.all<{ rowid: number }>('select rowid from docs').map(({ rowid }) => rowid));
  const found = new Set(
    reader.all<{ rowid: number }>("select rowid from docs where docs match 'all'").map(({ rowid }) => rowid),
  );
  expect(isDeepStrictEqual(docs, found), `${name}: of ${docs.size} documents the index finds ${found.size}`);
  const boxes = new Set(reader.all<{ id: number }>('select id from boxes where x0 >= 0').map(({ id }) => id));
  expect(isDeepStrictEqual(docs, boxes), `${name}: ${docs.size} documents, ${boxes.size} boxes`);
  for (const id of known.docs) expect(docs.has(id), `${name}: acknowledged document ${id} is missing`);
  const last = [...known.autos].reduce((a, b) => Math.max(a, b), 0);
  const sequence = reader.value<number>("select seq from sqlite_sequence where name = 'auto'") ?? 0;
  expect(sequence >= last, `${name}: id ${last} was given, the counter is at ${sequence}`);
}

function show(row: Row | undefined): string {
  return JSON.stringify(row, (_key, value: unknown) => (typeof value === 'bigint' ? String(value) : value));
}

function expect(condition: boolean, message: string): void {
  if (!condition) throw new Error(message);
}
