/**
 * Everything that a plain SQLite file says, for comparing two of them: schema text, rows with their types byte for byte,
 * counters and settings. Full-text and R-tree tables are compared through their shadow tables.
 */
import { DatabaseSync } from 'node:sqlite';
import { quoteName, readObjects, readTables } from '../store/schema-catalog.ts';

export interface DatabaseDump {
  /** In the order in which they were made, within their type: it decides which trigger fires first. */
  readonly schema: Readonly<Record<string, readonly string[]>>;
  /** Each row as text; in the order of the key. */
  readonly rows: Readonly<Record<string, readonly string[]>>;
  readonly settings: Readonly<Record<string, unknown>>;
}

export function dumpDatabase(path: string): DatabaseDump {
  using db = new DatabaseSync(path, { readOnly: true });
  const objects = readObjects(db).filter(({ sql, name }) => sql !== '' && name !== 'sqlite_sequence');
  const kinds = new Map(readTables(db).map(({ name, type }) => [name, type]));
  const of = (type: string): string[] =>
    objects.filter((object) => type === (kinds.get(object.name) ?? object.type)).map(({ sql }) => sql);
  const tables = readTables(db).filter(({ type }) => type === 'table' || type === 'shadow');
  const rows: Record<string, string[]> = {};
  for (const { name, columns } of tables) {
    const cells = columns.map((column) => quoteName(column.name));
    // As hex: quote() of text would stop at a NUL.
    const texts = cells.map(
      (cell) =>
        `case when typeof(${cell}) in ('integer', 'real') then typeof(${cell}) || ' ' || quote(${cell}) else typeof(${cell}) || ' ' || hex(${cell}) end`,
    );
    const found = db.prepare(`select ${texts.join(', ')} from ${quoteName(name)}`);
    found.setReturnArrays(true);
    rows[name] = (found.all() as unknown as string[][]).map((row) => row.join('|')).toSorted();
  }
  if (objects.some(({ sql }) => /autoincrement/i.test(sql))) {
    const counters = db.prepare('select name, seq from sqlite_sequence order by name');
    counters.setReadBigInts(true);
    rows['sqlite_sequence'] = counters
      .all()
      .filter((row) => tables.some(({ name }) => name === row['name']))
      .map((row) => `${String(row['name'])} ${String(row['seq'])}`);
  }
  const pragma = (name: string): unknown => Object.values(db.prepare(`pragma ${name}`).get() ?? {})[0];
  return {
    schema: {
      tables: of('table'),
      virtual: of('virtual'),
      views: of('view'),
      indexes: of('index'),
      triggers: of('trigger'),
    },
    rows,
    settings: {
      userVersion: pragma('user_version'),
      applicationId: pragma('application_id'),
      integrity: pragma('integrity_check'),
    },
  };
}
