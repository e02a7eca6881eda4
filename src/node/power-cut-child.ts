/**
 * The process whose writes are recorded: it opens the node of a directory, writes on a few tenants, closes it and opens
 * it again, and reports each acknowledgement on its standard output, one JSON object a line. It ends without closing.
 *
 * Arguments: directory, seed, writes per opening, file to import.
 */
import { writeSync } from 'node:fs';
import { seededRandom } from '../base/random.ts';
import { openNode } from './open-node.ts';
import { CUT_IMPORT, CUT_LIMITS, CUT_MIGRATIONS, CUT_PARTS, bodyOf, type CutAck } from './power-cut-load.ts';
import type { Node } from './types.ts';

const [dir, seed, writesText, importFile] = process.argv.slice(2) as [string, string, string, string];
const random = seededRandom(Number(seed));
const writes = Number(writesText);
const TENANTS = ['a', 'b', 'c'];
const OPENINGS = 3;
/** Per opening; one alone appends to the log in its own thread. */
const WRITERS = [4, 1, 4];
let nextId = 1;

function report(ack: CutAck): void {
  writeSync(1, `${JSON.stringify(ack)}\n`);
}

async function write(node: Node, tenant: string, id: number): Promise<void> {
  await node.tenant(tenant).write((tx) => {
    for (let part = 0; part < CUT_PARTS; part += 1)
      tx.run('insert into parts (id, part, body) values (?, ?, ?)', [id, part, bodyOf(id, part)]);
    tx.run('update total set writes = writes + 1');
    // Old rows go, so that pages are freed and used again.
    tx.run('delete from scratch where id < ?', [id - 20]);
    tx.run('insert into scratch (id, filler) values (?, randomblob(1500))', [id]);
  });
  report({ kind: 'written', tenant, id });
}

async function opening(node: Node, number: number): Promise<void> {
  for (const tenant of TENANTS) {
    await node.tenants.create(tenant, { ifNotExists: true });
    await node.tenant(tenant).migrate(CUT_MIGRATIONS.slice(0, number + 1));
    report({ kind: 'migrated', tenant, version: number + 1 });
  }
  const last = nextId + writes;
  const writer = async (): Promise<void> => {
    while (nextId < last) {
      const id = nextId++;
      await write(node, TENANTS[random.below(TENANTS.length)]!, id);
    }
  };
  const importing = async (): Promise<void> => {
    if (number !== 1) return;
    await node.tenant(CUT_IMPORT.tenant).importFile(importFile);
    report({ kind: 'imported', tenant: CUT_IMPORT.tenant });
  };
  await Promise.all([importing(), ...Array.from({ length: WRITERS[number]! }, writer)]);
  const passing = `passing-${number}`;
  await node.tenants.create(passing);
  await node.tenant(passing).migrate(CUT_MIGRATIONS);
  await write(node, passing, nextId++);
  await node.tenants.drop(passing);
  report({ kind: 'dropped', tenant: passing });
}

for (let number = 0; number < OPENINGS; number += 1) {
  const node = await openNode({ dir, scrubIntervalMs: false, limits: CUT_LIMITS });
  await opening(node, number);
  if (number === OPENINGS - 1) process.kill(process.pid, 'SIGKILL');
  await node.close();
}
