/**
 * The tenants of an open node as `rollback/reapply/` writes to them: each transaction of the tail is one idempotent write,
 * and the answers that it had given are kept with the bytes that they had. On a replica only a dry run works.
 */
import { toLsn } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { TableNames } from '../rollback/file/format.ts';
import { reapplyFile, type ReapplyOptions } from '../rollback/reapply/reapply.ts';
import type {
  IsForgotten,
  ReapplyReport,
  ReapplyTarget,
  ReapplyTenant,
  RowReader,
  RowWriter,
} from '../rollback/reapply/types.ts';
import type { Connection } from '../store/connection.ts';
import { Statements } from '../store/statements.ts';
import { rememberEncoded, rememberResult } from '../store/tenant.ts';
import type { TenantStore } from '../store/tenant-store.ts';
import { TenantHandle } from './tenant-handle.ts';
import type { LongCallOptions, Node } from './types.ts';

/** Each number in SQLite's own type, so that it is compared and written as it was. */
const INT64 = 'bigint';

export function reapplyInto(
  node: Node,
  path: string,
  { onProgress, ...options }: Omit<ReapplyOptions, 'onProgress'> & LongCallOptions,
): Promise<ReapplyReport> {
  const phase = options.dryRun === true ? 'comparing' : 'writing again';
  return reapplyFile({ disk: systemDisk, target: new NodeReapplyTarget(node) }, path, {
    ...options,
    onProgress: (progress) => onProgress?.({ phase, ...progress }),
  });
}

export class NodeReapplyTarget implements ReapplyTarget {
  readonly #node: Node;

  constructor(node: Node) {
    this.#node = node;
  }

  async tenant(name: string): Promise<ReapplyTenant | undefined> {
    try {
      const info = await this.#node.tenants.get(name);
      if (info === undefined) return undefined;
      const handle = this.#node.tenant(name);
      if (!(handle instanceof TenantHandle)) throw new NostosError('INTERNAL', 'a tenant of another kind of node');
      const tables = await handle.internal(async (store) => tablesOf(store), { writes: false });
      return new NodeReapplyTenant(handle, info.uuid, tables);
    } catch (error) {
      // A name that no tenant can have: the file is from outside.
      if (isNostosError(error, 'INVALID_ARGUMENT') || isNostosError(error, 'TENANT_NOT_FOUND')) return undefined;
      throw error;
    }
  }
}

class NodeReapplyTenant implements ReapplyTenant {
  readonly uuid: string;
  readonly #handle: TenantHandle;
  #tables: readonly TableNames[];

  constructor(handle: TenantHandle, uuid: string, tables: readonly TableNames[]) {
    this.#handle = handle;
    this.uuid = uuid;
    this.#tables = tables;
  }

  /** As they were at the last call: a migration may come between two. */
  get tables(): readonly TableNames[] {
    return this.#tables;
  }

  async forgottenSince(common: { readonly lsn: number }): Promise<IsForgotten> {
    const filter = await this.#handle.forgottenSince(toLsn(common.lsn));
    return (table, key) => filter.isForgotten(table, key);
  }

  read<T>(fn: (reader: RowReader) => T): Promise<T> {
    return this.#handle.internal(
      (store) => {
        this.#tables = tablesOf(store);
        return store.read((connection) => inSnapshot(connection, () => fn(readerOf(connection))));
      },
      { writes: false },
    );
  }

  write(id: string, fn: (writer: RowWriter) => void): Promise<void> {
    return this.#handle.internal(
      (store, deps) =>
        store.write<void>(
          (tx, connection) => {
            if (isKnown(connection, id)) return;
            this.#tables = tablesOf(store);
            fn({
              known: (other) => isKnown(connection, other),
              get: (statement, parameters) => tx.get(statement, parameters),
              run: (statement, parameters) => void tx.run(statement, parameters),
              savepoint: (inner) => tx.savepoint(inner),
              remember: (other, result) => rememberEncoded(connection, other, result, deps),
            });
            rememberResult(connection, id, undefined, deps);
          },
          { int64: INT64 },
        ),
      { writes: true },
    );
  }
}

function tablesOf({ shape }: TenantStore): readonly TableNames[] {
  return [...shape.tables.values()];
}

function isKnown(connection: Connection, id: string): boolean {
  return connection.internal('select 1 from nostos_results where id = ?').get(id) !== undefined;
}

function readerOf(connection: Connection): RowReader {
  const statements = new Statements(connection, INT64);
  return {
    known: (id) => isKnown(connection, id),
    get: (statement, parameters) => statements.get(statement, parameters),
  };
}

function inSnapshot<T>(connection: Connection, fn: () => T): T {
  connection.internal('begin').run();
  try {
    return fn();
  } finally {
    if (connection.inTransaction) connection.internal('rollback').run();
  }
}
