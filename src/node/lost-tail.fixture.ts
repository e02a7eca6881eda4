/**
 * Two directories with one past: a node that is to be opened, and a deposed primary that has rolled its own writes back
 * into a file.
 */
import assert from 'node:assert/strict';
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import type { WriterTransaction } from '../store/writer-transaction.ts';
import { commonPoint, once, requestFor } from './divergent.fixture.ts';
import { NodeParts } from './node-parts.fixture.ts';
import { openNode } from './open-node.ts';
import type { Transaction } from './types.ts';

export interface LostTail {
  /** The data directory of the node that goes on. */
  readonly dir: string;
  /** That of the deposed primary. */
  readonly old: string;
  /** The rollback file. */
  readonly file: string;
}

export interface Writes {
  readonly migrations: readonly string[];
  /** What both have. */
  readonly before: (tx: Transaction) => void;
  /** What only the deposed primary has: a record each, or the id of a write with one. */
  readonly lost: readonly (((tx: WriterTransaction) => void) | string)[];
}

export async function makeLostTail(root: string, { migrations, before, lost }: Writes): Promise<LostTail> {
  const [dir, old] = [join(root, 'present'), join(root, 'old')];
  const node = await openNode({ dir, scrubIntervalMs: false });
  const acme = await node.tenants.create('acme');
  await acme.migrate(migrations);
  await acme.write(before);
  const { generation, term } = (await node.status()).log;
  await node.close();
  cpSync(dir, old, { recursive: true });
  const primary = new NodeParts(old, { role: 'primary', generation });
  const common = commonPoint(primary.log.end);
  primary.direct.commitTo(common.lsn as typeof primary.log.end.lsn);
  primary.startTerm(term + 1);
  for (const write of lost)
    if (typeof write === 'string') await once(primary, 'acme', write);
    else await primary.write('acme', 'local', write);
  await primary.close();
  const replica = new NodeParts(old, { role: 'replica', generation });
  const { file } = await replica.runner().run(requestFor(common, term + 2));
  await replica.close();
  assert.equal(file?.acknowledged, lost.length);
  return { dir, old, file: file.path };
}
