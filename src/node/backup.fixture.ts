/** Nodes to back up, and what a backup brings back, by the reader of the repository alone: files, then records. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { TestContext } from 'node:test';
import type { Lsn } from '../base/brands.ts';
import { rangesOf } from '../backup/repository/archive-ranges.ts';
import type { KeyProvider } from '../backup/repository/keys.ts';
import type { Snapshot, SnapshotItem, TenantItem } from '../backup/repository/manifest.ts';
import { openRepository, type Repository } from '../backup/repository/repository.ts';
import { RecordKind } from '../log/record.ts';
import { decodeChangesetPayload } from '../store/payload.ts';
import type { NostosNode } from './node.ts';
import { openNode } from './open-node.ts';
import type { Node, NodeOptions, Tenant } from './types.ts';

/** The log rolls and is pruned, and tenants are checkpointed, as often as can be. */
export const SMALL = {
  segmentBytesMax: 128 * 1024,
  recordBytesMax: 100 * 1024,
  logRetainBytes: 0,
  checkpointBytes: 64 * 1024,
  checkpointHoldBytes: 128 * 1024,
};

export function scratch(t: TestContext): (name: string) => string {
  const root = mkdtempSync(join(tmpdir(), 'nostos-node-backup-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  return (name) => join(root, name);
}

export async function openFor(dir: string, options: Partial<NodeOptions> = {}): Promise<NostosNode> {
  return (await openNode({ dir, scrubIntervalMs: false, ...options })) as NostosNode;
}

export async function newTenant(node: Node, name: string): Promise<Tenant> {
  const tenant = await node.tenants.create(name);
  await tenant.migrate(['create table rows (id integer primary key, body text)']);
  return tenant;
}

export const add = (tenant: Tenant, body = 'x'.repeat(2_000)): Promise<unknown> =>
  tenant.write((tx) => tx.run('insert into rows (body) values (?)', [body]));

/** Writes to one tenant after the other, round and round, so that at any position their counts differ by one at most. */
export function writeMeanwhile(tenants: readonly Tenant[]): () => Promise<number> {
  const stop = new AbortController();
  let count = 0;
  const run = async (): Promise<void> => {
    while (!stop.signal.aborted)
      for (const tenant of tenants) {
        await add(tenant);
        count += 1;
      }
  };
  const running = run();
  return async () => {
    stop.abort();
    await running;
    return count;
  };
}

/** The file of an item, as it was stored. */
export async function fileOf(repository: Repository, item: SnapshotItem, path: string): Promise<void> {
  const file = await open(path, 'w');
  try {
    await repository.readFile(item, {
      write: async (bytes, offset) => void (await file.write(bytes, 0, bytes.length, offset)),
    });
  } finally {
    await file.close();
  }
}

/** Ids of the rows that a tenant has at the position of the snapshot, or at an earlier one that its files allow. */
export async function rowsAt(
  repository: Repository,
  snapshot: Snapshot,
  { name, path, to = snapshot.position.lsn }: { name: string; path: string; to?: Lsn },
): Promise<number[]> {
  const item = snapshot.items.find((one): one is TenantItem => one.kind === 'tenant' && one.name === name);
  assert.ok(item, `the snapshot has no tenant ${name}`);
  await fileOf(repository, item, path);
  using database = new DatabaseSync(path);
  for (const range of rangesOf(snapshot.terms, snapshot.archive))
    for await (const page of repository.archive.records(range, { after: rangeStart(snapshot, range.from) }))
      for (const { header, record } of page)
        if (header.tenant === item.id && header.lsn > item.applied.lsn && header.lsn <= to) {
          assert.ok(record, `the payload of LSN ${header.lsn} is there`);
          if (record.kind !== RecordKind.changeset) continue;
          const { changeset } = decodeChangesetPayload(record.payload);
          assert.ok(database.applyChangeset(changeset), `LSN ${header.lsn} applies`);
        }
  assert.equal(database.prepare('pragma integrity_check').get()!['integrity_check'], 'ok');
  return database
    .prepare('select id from rows order by id')
    .all()
    .map(({ id }) => id as number);
}

const rangeStart = ({ archive }: Snapshot, from: Lsn) => (archive?.after.lsn === from - 1 ? archive.after : undefined);

export async function snapshotsOf(
  url: string,
  keys?: KeyProvider,
): Promise<{ repository: Repository; all: Snapshot[] }> {
  const repository = await openRepository(url, keys === undefined ? {} : { keys });
  return { repository, all: await Array.fromAsync(repository.snapshots()) };
}
