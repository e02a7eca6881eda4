/** Backups of a directory that nobody has open, made with the writer of the repository alone. */
import { closeSync, existsSync, openSync, readSync, statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { Lsn, TenantId, TenantUuid } from '../base/brands.ts';
import { HybridClock, systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { writeForgets } from '../backup/repository/forgets.ts';
import type { ContentSource } from '../backup/repository/content.ts';
import type { Snapshot } from '../backup/repository/manifest.ts';
import type { Repository } from '../backup/repository/repository.ts';
import { pointOf, genesis, type ChainPoint } from '../log/chain.ts';
import { readableEntries } from '../log/ledger.ts';
import { Log } from '../log/log.ts';
import type { ReadRecord } from '../log/reader.ts';
import { RecordKind } from '../log/record.ts';
import { Catalog } from '../store/catalog.ts';
import { Connection } from '../store/connection.ts';
import { decodeTenantCreate } from '../store/payload.ts';
import { readTenantMeta } from '../store/tenant-file.ts';
import { entriesOf } from './backup-feed-tenants.ts';
import { loadNode } from './node-file.ts';
import { openNode } from './open-node.ts';
import { tenantPath } from './paths.ts';
import type { Node, NodeOptions } from './types.ts';

export async function scratch(t: TestContext): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'nostos-backup-restore-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  return root;
}

export const open = (dir: string, options: Partial<NodeOptions> = {}): Promise<Node> =>
  openNode({
    dir,
    migrations: ['create table item (id integer primary key not null, body text not null)'],
    scrubIntervalMs: false,
    ...options,
  });

export async function insert(node: Node, tenant: string, ids: readonly number[], body = 'x'): Promise<void> {
  await node
    .tenant(tenant)
    .write((tx) => ids.forEach((id) => tx.run('insert into item values (?, ?)', [id, `${body} ${id}`])));
}

export const idsOf = (node: Node, tenant: string): Promise<number[]> =>
  node.tenant(tenant).read((tx) => tx.all<{ id: number }>('select id from item order by id').map(({ id }) => id));

export interface BackUpOptions {
  /** Takes the files of the snapshot before, which the archived log carries on. */
  readonly reuse?: boolean;
  /** Archive records from here on only, or none. */
  readonly archiveFrom?: number;
  readonly archive?: boolean;
  readonly forgets?: boolean;
  readonly only?: readonly string[];
}

export async function backUp(repository: Repository, dir: string, options: BackUpOptions = {}): Promise<Snapshot> {
  const { node, store, cluster, generation } = loadNode(dir, undefined);
  using log = Log.open(
    { disk: systemDisk, clock: new HybridClock(systemClock) },
    { dir: join(dir, 'log'), generation },
  ).log;
  const catalog = Catalog.open(join(dir, 'catalog.sqlite'));
  const entries = [...entriesOf(catalog)];
  const catalogLsn = catalog.applied;
  catalog.close();
  const records: ReadRecord[] = [];
  for (const batch of log.read({ from: log.firstLsn })) records.push(...batch.records);
  const at = (lsn: Lsn): ChainPoint => {
    const found = records.find(({ record }) => record.lsn === lsn);
    return found === undefined ? (lsn === 0 ? genesis(generation) : log.anchor) : pointOf(found.record, found.hash);
  };
  if (options.forgets !== false) await writeForgets(repository, [...readableEntries(systemDisk, join(dir, 'log'))]);
  const uuids = new Map<TenantId, TenantUuid>(entries.map(({ id, uuid }) => [id, uuid]));
  for (const { record } of records)
    if (record.kind === RecordKind.tenantCreate) uuids.set(record.tenant, decodeTenantCreate(record.payload).uuid);
  const from = options.archiveFrom ?? log.firstLsn;
  if (options.archive !== false)
    await repository.archive.write([records.filter(({ record }) => record.lsn >= from)], {
      uuidOf: (id) => uuids.get(id),
    });
  await using writer = await repository.createSnapshot({ cluster, store, node });
  let lowest: Lsn = log.end.lsn;
  if (options.reuse === true) {
    for (const item of writer.previous!.items) {
      writer.reuse(item);
      lowest = Math.min(lowest, item.applied.lsn) as Lsn;
    }
  } else {
    const applied = at(catalogLsn);
    if (options.only === undefined)
      await addFile(join(dir, 'catalog.sqlite'), (source) => writer.addFile({ kind: 'catalog', applied }, source));
    for (const { id, uuid, name } of entries) {
      const path = tenantPath(dir, id);
      if (!existsSync(path) || options.only?.includes(name) === false) continue;
      const meta = metaOf(path);
      const description = {
        kind: 'tenant',
        id,
        uuid,
        name,
        schemaVersion: meta.schemaVersion,
        applied: at(meta.lsn),
      } as const;
      lowest = Math.min(lowest, meta.lsn) as Lsn;
      await addFile(path, (source) => writer.addFile(description, source));
    }
    lowest = Math.min(lowest, catalogLsn) as Lsn;
  }
  const last = records.at(-1)!;
  const after = at(lowest);
  const archive = lowest === log.end.lsn || options.archive === false ? undefined : { after, through: log.end };
  const position = archive === undefined && options.archive === false ? at(log.end.lsn) : log.end;
  return await writer.commit({
    position,
    time: last.record.hlc,
    terms: log.terms,
    ...(archive === undefined ? {} : { archive }),
  });
}

function metaOf(path: string) {
  using connection = new Connection(path, { role: 'reader', statementCacheMax: 1 });
  return readTenantMeta(connection)!;
}

async function addFile<T>(path: string, add: (source: ContentSource) => Promise<T>): Promise<T> {
  const fd = openSync(path, 'r');
  const read = async (target: Uint8Array, offset: number): Promise<void> => {
    for (let done = 0; done < target.length;) {
      const count = readSync(fd, target, done, target.length - done, offset + done);
      if (count === 0) throw new Error(`${path} is shorter than it was`);
      done += count;
    }
  };
  try {
    return await add({ bytes: statSync(path).size, read });
  } finally {
    closeSync(fd);
  }
}
