/** The answers of idempotent writes go with a tenant's content: a retry gets the answer that it had where that was. */
import { Connection } from './connection.ts';
import { begin } from './group.ts';
import { fromSqlite } from './sqlite-errors.ts';
import type { TenantStore } from './tenant-store.ts';

const BATCH_ROWS = 200;
const BATCH_BYTES = 1024 * 1024;

interface Result {
  readonly id: string;
  readonly result: Uint8Array;
  readonly at_ms: bigint;
}

/** `path` is the file of another tenant that nobody writes to. */
export async function copyResults(path: string, store: TenantStore, signal?: AbortSignal): Promise<void> {
  using source = new Connection(path, { role: 'reader', statementCacheMax: 1 });
  const select = source.internal('select id, result, at_ms from nostos_results where id > ? order by id limit ?');
  await store.exclusive(async () => {
    for (let after = ''; ;) {
      signal?.throwIfAborted();
      const rows = page(select.all(after, BATCH_ROWS) as unknown as readonly Result[]);
      if (rows.length === 0) return;
      after = rows.at(-1)!.id;
      await insert(store, rows);
    }
  });
}

/** At least one, where there is one. */
function page(rows: readonly Result[]): readonly Result[] {
  let bytes = 0;
  const end = rows.findIndex(({ id, result }) => (bytes += id.length + result.length) > BATCH_BYTES);
  return end === -1 ? rows : rows.slice(0, Math.max(end, 1));
}

async function insert(store: TenantStore, rows: readonly Result[]): Promise<void> {
  const { writer } = store;
  begin(writer);
  const session = writer.database.createSession();
  let changeset: Uint8Array;
  try {
    const into = writer.internal('insert into nostos_results (id, result, at_ms) values (?, ?, ?)');
    for (const { id, result, at_ms } of rows) into.run(id, result, at_ms);
    changeset = session.changeset();
  } catch (error) {
    store.rollback();
    throw fromSqlite(error);
  } finally {
    session.close();
  }
  const captured = { changeset, forgotten: [] };
  store.assertFits(captured);
  await store.commit([captured]);
  await store.recovered();
}
