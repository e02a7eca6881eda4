/**
 * The process that the kill harness kills: opens the node of a directory, writes under load, and reports each
 * acknowledged write on its standard output, one JSON object a line, written before anything else happens.
 *
 * Arguments: directory, seed, round, which child of that round it is, JSON list of [tenant, id] whose idempotent writes are to be repeated.
 */
import { writeSync } from 'node:fs';
import { isNostosError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { sql } from '../store/values.ts';
import {
  ACCOUNTS,
  IDS_PER_CHILD,
  IDS_PER_ROUND,
  KILL_LIMITS,
  ROUNDS_KEPT,
  STABLE_TENANTS,
  contentOf,
  migrationsOf,
  partsOf,
  type Ack,
} from './kill-load.ts';
import { openNode } from './open-node.ts';
import type { Tenant } from './types.ts';

const [dir, seed, roundText, childText, repeatText] = process.argv.slice(2) as [string, string, string, string, string];
const round = Number(roundText);
const child = Number(childText);
const repeats = JSON.parse(repeatText) as [string, number][];
const { below: choose } = seededRandom(Number(seed));
/** One alone appends to the log in its own thread. */
const WRITERS = round % 2 === 0 ? 10 : 1;
let lastId = round * IDS_PER_ROUND + child * IDS_PER_CHILD;

function report(ack: Ack): void {
  const line = Buffer.from(`${JSON.stringify(ack)}\n`);
  for (let at = 0; at < line.length;) {
    try {
      at += writeSync(1, line, at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
  }
}

class Refused extends Error {}

/** What a write that is meant to fail must fail with. */
async function refused(write: Promise<unknown>): Promise<void> {
  try {
    await write;
  } catch (error) {
    if (error instanceof Refused || isNostosError(error, 'CONSTRAINT_FAILED')) return;
    throw error;
  }
  throw new Error('a write that must fail has succeeded');
}

async function once(tenant: Tenant, id: number): Promise<void> {
  report({ k: 'once-begin', t: tenant.name, id });
  const n = await tenant.write(
    (tx) => {
      tx.run('update counter set n = n + 1 where id = 1');
      const next = tx.value<number>('select n from counter') as number;
      tx.run(sql`insert into once values (${id}, ${next})`);
      return next;
    },
    { id: `once-${id}` },
  );
  report({ k: 'once', t: tenant.name, id, n });
}

async function step(tenant: Tenant): Promise<void> {
  const t = tenant.name;
  const id = (lastId += 1);
  switch (choose(14)) {
    case 0:
      await tenant.write((tx) => {
        for (let part = 0; part < partsOf(id); part += 1)
          tx.run(sql`insert into parts values (${id}, ${part}, ${contentOf(id + part)})`);
      });
      return report({ k: 'multi', t, id });
    case 1:
      await tenant.transaction(async (tx) => {
        for (let part = 0; part < partsOf(id); part += 1) {
          tx.run(sql`insert into parts values (${id}, ${part}, ${contentOf(id + part)})`);
          if (part === 1) await new Promise(setImmediate);
        }
      });
      return report({ k: 'multi', t, id });
    case 2:
      return once(tenant, id);
    case 3:
      await tenant.write((tx) => {
        const [from, to] = [1 + choose(ACCOUNTS), 1 + choose(ACCOUNTS)];
        const amount = Math.min(choose(20), tx.value<number>(sql`select balance from accounts where id = ${from}`)!);
        tx.run(sql`update accounts set balance = balance - ${amount} where id = ${from}`);
        tx.run(sql`update accounts set balance = balance + ${amount} where id = ${to}`);
      });
      return;
    case 4: {
      const { lastInsertRowid } = await tenant.write((tx) => {
        const inserted = tx.run(sql`insert into auto (body) values (${contentOf(id)})`);
        if (choose(3) === 0) tx.run(sql`delete from auto where id = ${inserted.lastInsertRowid}`);
        return inserted;
      });
      return report({ k: 'auto', t, id: Number(lastInsertRowid) });
    }
    case 5:
      await tenant.write((tx) => {
        tx.run(sql`insert into docs (rowid, body) values (${id}, ${`all w${id} ${contentOf(id)}`})`);
        tx.run(sql`insert into boxes values (${id}, ${id % 1000}, ${(id % 1000) + 1})`);
      });
      return report({ k: 'doc', t, id });
    case 6:
      return refused(
        tenant.write((tx) => {
          tx.run(sql`insert into items (id, body) values (${-id}, 'never')`);
          throw new Refused();
        }),
      );
    case 7:
      return refused(tenant.write((tx) => tx.run(sql`insert into children values (${id}, ${-id})`)));
    case 8: {
      const old = (round - ROUNDS_KEPT) * IDS_PER_ROUND;
      await tenant.write((tx) => {
        tx.run(sql`delete from items where id in (select id from items where id < ${old} limit 60)`);
        tx.run(sql`delete from parts where tx in (select distinct tx from parts where tx < ${old} limit 15)`);
      });
      return;
    }
    default:
      await tenant.write((tx) => {
        tx.run(sql`insert into items (id, body) values (${id}, ${contentOf(id)})`);
        if (choose(4) === 0)
          try {
            tx.savepoint(() => tx.run(sql`insert into items (id, body) values (${id}, 'again')`));
          } catch {
            // healed
          }
      });
      return report({ k: 'single', t, id });
  }
}

report({ k: 'opening' });
const node = await openNode({ dir, limits: KILL_LIMITS, scrubIntervalMs: 20 });
const tenants: Tenant[] = [];
for (const name of STABLE_TENANTS) tenants.push(await node.tenants.create(name, { ifNotExists: true }));
await Promise.all(
  tenants.map((tenant) =>
    tenant.migrate(migrationsOf(round - 1)).catch((error: unknown) => {
      // An earlier child of this round, killed as well, had gone further already.
      if (!isNostosError(error, 'SCHEMA_MISMATCH')) throw error;
    }),
  ),
);
report({ k: 'ready' });

async function churn(): Promise<void> {
  for (let n = 0; ; n += 1) {
    const name = `d${round}_${child}_${n}`;
    const tenant = await node.tenants.create(name);
    report({ k: 'created', t: name });
    await tenant.migrate(migrationsOf(0));
    report({ k: 'migrated', t: name, version: migrationsOf(0).length });
    await Promise.all([step(tenant), step(tenant), step(tenant)]);
    if (n % 3 === 0) continue;
    report({ k: 'drop-begin', t: name });
    await node.tenants.drop(name);
    report({ k: 'dropped', t: name });
  }
}

async function migrateInBetween(): Promise<void> {
  for (const tenant of tenants) {
    await new Promise((resolve) => setTimeout(resolve, choose(60)));
    const { to } = await tenant.migrate(migrationsOf(round));
    report({ k: 'migrated', t: tenant.name, version: to });
  }
}

async function writer(): Promise<void> {
  for (;;) {
    const tenant = tenants[choose(tenants.length)]!;
    if (choose(4) === 0) await Promise.all(Array.from({ length: 6 }, () => step(tenant)));
    else await step(tenant);
  }
}

const again = repeats.map(([t, id]) => once(node.tenant(t), id));
await Promise.all([...again, churn(), migrateInBetween(), ...Array.from({ length: WRITERS }, writer)]);
