/**
 * Random schemas within what can be replicated, and random transactions over them, from a seed: much of what SQLite
 * offers, in combinations that nobody writes down. Values come from small domains, so that constraints do collide, and
 * hold what is easily lost on the way: integers beyond 2^53, -2^63, infinity, NUL in text, text that is not UTF-8.
 */
import type { SeededRandom } from '../base/random.ts';

export interface RandomSchema {
  /** Triggers as a user writes them, without a guard. */
  readonly statements: readonly string[];
  readonly tables: readonly RandomTable[];
}

export interface RandomTable {
  readonly name: string;
  readonly kind: 'ordinary' | 'fts5' | 'rtree';
  readonly columns: readonly RandomColumn[];
  readonly hasUnique: boolean;
}

interface RandomColumn {
  readonly name: string;
  readonly type: string;
  readonly key: boolean;
  /** In a STRICT table, where a value of another type is refused. */
  readonly strict: boolean;
}

export type Step =
  | { readonly kind: 'run'; readonly sql: string }
  | { readonly kind: 'savepoint'; readonly steps: readonly Step[]; readonly undo: boolean };

const NAMES = ['t', 'Order', 'größe "x"', 'a b', '表', 'select', "it's"];
const COLUMN_NAMES = ['a', 'B', 'c d', 'ключ', 'when', 'e"f', 'group'];

export function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

function pick<T>(random: SeededRandom, list: readonly T[]): T {
  return list[random.below(list.length)]!;
}

function shuffled<T>(random: SeededRandom, list: readonly T[]): T[] {
  const result = [...list];
  for (let at = result.length - 1; at > 0; at -= 1) {
    const other = random.below(at + 1);
    [result[at], result[other]] = [result[other]!, result[at]!];
  }
  return result;
}

const INTEGERS = ['9007199254740993', '-9223372036854775808', '9223372036854775807', '-1'];
const REALS = ['0.5', '1e308', '-0.0', '5.0', '9e999', '-9e999', '1e-300', '123456789.123'];
const TEXTS = [
  `''`,
  `'a'`,
  `'A'`,
  `'b'`,
  `'é表🙂'`,
  `char(0) || 'x'`,
  `CAST(x'ff0041' AS TEXT)`,
  `'12'`,
  `'1e3'`,
  `'a '`,
  `printf('%.*c', 300, 'z')`,
];
const BLOBS = [`x''`, `x'00ff'`, `zeroblob(200)`, `x'61'`];

function integer(random: SeededRandom): string {
  return random.chance(0.9) ? String(random.below(10)) : pick(random, INTEGERS);
}

function anyValue(random: SeededRandom): string {
  switch (random.below(5)) {
    case 0:
      return 'NULL';
    case 1:
      return integer(random);
    case 2:
      return pick(random, REALS);
    case 3:
      return pick(random, TEXTS);
    default:
      return pick(random, BLOBS);
  }
}

function valueFor(random: SeededRandom, column: RandomColumn): string {
  if (!column.key && random.chance(0.1)) return 'NULL';
  if (!column.strict && random.chance(0.05)) return anyValue(random);
  if (column.strict && random.chance(0.02)) return anyValue(random);
  switch (column.type) {
    case 'INT':
    case 'INTEGER':
      return integer(random);
    case 'REAL':
      return random.chance(0.3) ? integer(random) : pick(random, REALS);
    case 'TEXT':
      return pick(random, TEXTS);
    case 'BLOB':
      return random.chance(0.8) || column.strict ? pick(random, BLOBS) : anyValue(random);
    default:
      return anyValue(random);
  }
}

class SchemaBuilder {
  readonly #random: SeededRandom;
  readonly #statements: string[] = [];
  readonly #tables: RandomTable[] = [];

  constructor(random: SeededRandom) {
    this.#random = random;
  }

  build(): RandomSchema {
    const random = this.#random;
    const names = shuffled(random, NAMES);
    const count = 1 + random.below(4);
    for (let index = 0; index < count; index += 1) this.#ordinary(names[index]!);
    if (random.chance(0.5)) this.#triggers();
    if (random.chance(0.25)) this.#fullText();
    if (random.chance(0.2)) this.#rtree();
    return { statements: this.#statements, tables: this.#tables };
  }

  #ordinary(name: string): void {
    const random = this.#random;
    const strict = random.chance(0.25);
    const rowidKey = random.chance(0.45);
    const keyCount = rowidKey ? 1 : 1 + random.below(3);
    const valueCount = (rowidKey ? 1 : 0) + random.below(4);
    const names = shuffled(random, COLUMN_NAMES).slice(0, keyCount + valueCount);
    const keyTypes = strict ? ['INT', 'INTEGER', 'TEXT', 'BLOB'] : ['INTEGER', 'TEXT'];
    const valueTypes = strict
      ? ['INT', 'INTEGER', 'REAL', 'TEXT', 'BLOB', 'ANY']
      : ['INTEGER', 'REAL', 'TEXT', 'BLOB', '', 'NUMERIC'];
    const columns = names.map((column, index): RandomColumn => {
      const key = index < keyCount;
      const type = key ? (rowidKey ? 'INTEGER' : pick(random, keyTypes)) : pick(random, valueTypes);
      return { name: column, type, key, strict: strict && type !== 'ANY' };
    });
    const inOrder = shuffled(random, columns);
    const unique = random.chance(0.5);
    const parts = [
      ...inOrder.map((column) => this.#column(column, rowidKey, unique)),
      ...this.#generated(inOrder, strict),
      ...(rowidKey
        ? []
        : [`PRIMARY KEY (${shuffled(random, columns.slice(0, keyCount)).map(keyPart(random)).join()})`]),
      ...this.#tableConstraints(columns, unique),
    ];
    const options = [...(!rowidKey && random.chance(0.5) ? ['WITHOUT ROWID'] : []), ...(strict ? ['STRICT'] : [])];
    this.#statements.push(`CREATE TABLE ${quoted(name)}(${parts.join(', ')}) ${options.join(', ')}`);
    this.#tables.push({ name, kind: 'ordinary', columns: inOrder, hasUnique: unique });
    if (unique) this.#uniqueIndexes(name, columns.slice(keyCount));
  }

  #column(column: RandomColumn, rowidKey: boolean, unique: boolean): string {
    const random = this.#random;
    const name = `${quoted(column.name)} ${column.type}`;
    if (column.key) {
      if (!rowidKey) return `${name} NOT NULL`;
      return `${name} PRIMARY KEY${random.chance(0.3) ? ' AUTOINCREMENT' : ''}`;
    }
    const notNull = random.chance(0.15)
      ? ` NOT NULL${random.chance(0.3) ? ' ON CONFLICT REPLACE' : ''} DEFAULT ''`
      : '';
    const text = column.type === 'TEXT' && random.chance(0.3) ? ' COLLATE NOCASE' : '';
    const check = random.chance(0.15)
      ? ` CHECK (${quoted(column.name)} IS NULL OR ${quoted(column.name)} IS NOT 3)`
      : '';
    return name + notNull + text + (unique && random.chance(0.4) ? ' UNIQUE' : '') + check;
  }

  #generated(columns: readonly RandomColumn[], strict: boolean): string[] {
    if (!this.#random.chance(0.25)) return [];
    const of = quoted(pick(this.#random, columns).name);
    const type = strict ? 'ANY' : '';
    const stored = this.#random.chance(0.5) ? 'STORED' : 'VIRTUAL';
    return [`gen ${type} AS (typeof(${of}) || coalesce(length(${of}), 0)) ${stored}`];
  }

  #tableConstraints(columns: readonly RandomColumn[], unique: boolean): string[] {
    const random = this.#random;
    const constraints: string[] = [];
    const values = columns.filter((column) => !column.key);
    if (unique && values.length > 1 && random.chance(0.3))
      constraints.push(`UNIQUE (${quoted(values[0]!.name)}, ${quoted(values[1]!.name)})`);
    const parents = this.#tables.filter((table) => table.columns.filter((column) => column.key).length === 1);
    if (parents.length > 0 && values.length > 0 && random.chance(0.5)) {
      const parent = pick(random, parents);
      const action = (): string => pick(random, ['CASCADE', 'SET NULL', 'NO ACTION', 'RESTRICT', 'SET DEFAULT']);
      const deferred = random.chance(0.4) ? ' DEFERRABLE INITIALLY DEFERRED' : '';
      const key = parent.columns.find((column) => column.key)!;
      constraints.push(
        `FOREIGN KEY (${quoted(pick(random, values).name)}) REFERENCES ${quoted(parent.name)}(${quoted(key.name)})` +
          ` ON DELETE ${action()} ON UPDATE ${action()}${deferred}`,
      );
    }
    return constraints;
  }

  #uniqueIndexes(table: string, values: readonly RandomColumn[]): void {
    const random = this.#random;
    if (values.length === 0) return;
    const column = (): string => quoted(pick(random, values).name);
    const on = `INDEX ${quoted(`index of ${table}`)} ON ${quoted(table)}`;
    const partial = `CREATE UNIQUE ${on}(${column()}) WHERE ${column()} > 2`;
    const expression = `CREATE UNIQUE ${on}(coalesce(${column()}, 'n') || 'x')`;
    const plain = `CREATE ${on}(${column()} COLLATE NOCASE DESC)`;
    if (random.chance(0.7)) this.#statements.push(pick(random, [partial, expression, plain]));
  }

  /** Triggers that count in a table of their own and, at times, change the row again. */
  #triggers(): void {
    const random = this.#random;
    this.#statements.push(
      'CREATE TABLE audit(id INTEGER PRIMARY KEY, what TEXT, at TEXT)',
      'CREATE TABLE counter(what TEXT PRIMARY KEY NOT NULL, n INTEGER) WITHOUT ROWID',
    );
    for (const [index, table] of this.#tables.entries()) {
      const column = quoted(pick(random, table.columns).name);
      for (const event of ['INSERT', 'UPDATE', 'DELETE']) {
        if (!random.chance(0.5)) continue;
        const row = event === 'DELETE' ? 'old' : 'new';
        const when = random.chance(0.4) ? ` WHEN ${row}.${column} IS NOT 'a' OR ${row}.${column} > 4` : '';
        const time = pick(random, ['BEFORE', 'AFTER']);
        const body = random.chance(0.5)
          ? `INSERT INTO audit(what, at) VALUES ('${event}', CAST(${row}.${column} AS TEXT))`
          : `INSERT INTO counter VALUES ('${event}', 1) ON CONFLICT DO UPDATE SET n = n + 1`;
        const on = `${time} ${event} ON ${quoted(table.name)}`;
        this.#statements.push(`CREATE TRIGGER trigger_${index}_${event} ${on}${when} BEGIN ${body}; END`);
      }
    }
  }

  #fullText(): void {
    const columns = [{ name: 'body', type: 'TEXT', key: false, strict: false }];
    if (this.#random.chance(0.5)) {
      this.#statements.push('CREATE VIRTUAL TABLE search USING fts5(body)');
      this.#tables.push({ name: 'search', kind: 'fts5', columns, hasUnique: false });
      return;
    }
    this.#statements.push(
      'CREATE TABLE doc(id INTEGER PRIMARY KEY, body TEXT)',
      `CREATE VIRTUAL TABLE doc_search USING fts5(body, content='doc', content_rowid='id')`,
      'CREATE TRIGGER doc_i AFTER INSERT ON doc BEGIN INSERT INTO doc_search(rowid, body) VALUES (new.id, new.body); END',
      `CREATE TRIGGER doc_d AFTER DELETE ON doc BEGIN
         INSERT INTO doc_search(doc_search, rowid, body) VALUES ('delete', old.id, old.body); END`,
      `CREATE TRIGGER doc_u AFTER UPDATE ON doc BEGIN
         INSERT INTO doc_search(doc_search, rowid, body) VALUES ('delete', old.id, old.body);
         INSERT INTO doc_search(rowid, body) VALUES (new.id, new.body); END`,
    );
    const key = { name: 'id', type: 'INTEGER', key: true, strict: false };
    this.#tables.push({ name: 'doc', kind: 'ordinary', columns: [key, ...columns], hasUnique: false });
  }

  #rtree(): void {
    this.#statements.push('CREATE VIRTUAL TABLE geo USING rtree(id, x0, x1)');
    const columns = ['id', 'x0', 'x1'].map((name) => ({ name, type: 'INTEGER', key: name === 'id', strict: false }));
    this.#tables.push({ name: 'geo', kind: 'rtree', columns, hasUnique: false });
  }
}

const keyPart =
  (random: SeededRandom) =>
  (column: RandomColumn): string =>
    quoted(column.name) + (random.chance(0.2) ? ' DESC' : '');

export function randomSchema(random: SeededRandom): RandomSchema {
  return new SchemaBuilder(random).build();
}

/** The steps of one transaction; a step that fails fails the savepoint around it, or else the transaction. */
export function randomTransaction(random: SeededRandom, schema: RandomSchema, depth = 0): Step[] {
  const steps: Step[] = [];
  for (let count = 1 + random.below(depth === 0 ? 6 : 3); count > 0; count -= 1) {
    if (depth < 3 && random.chance(0.35))
      steps.push({ kind: 'savepoint', steps: randomTransaction(random, schema, depth + 1), undo: random.chance(0.3) });
    else steps.push({ kind: 'run', sql: randomStatement(random, pick(random, schema.tables)) });
  }
  return steps;
}

const WORDS = ['home', 'sea', 'wind', 'oar', 'island', 'return', 'ship', 'night'];

function randomStatement(random: SeededRandom, table: RandomTable): string {
  switch (table.kind) {
    case 'fts5':
      return fullTextStatement(random, table);
    case 'rtree':
      return rtreeStatement(random, table);
    case 'ordinary':
    default:
      return ordinaryStatement(random, table);
  }
}

function fullTextStatement(random: SeededRandom, table: RandomTable): string {
  const words = Array.from({ length: 1 + random.below(8) }, () => pick(random, WORDS)).join(' ');
  const row = random.below(8);
  switch (random.below(4)) {
    case 0:
      return `DELETE FROM ${quoted(table.name)} WHERE rowid = ${row}`;
    case 1:
      return `UPDATE ${quoted(table.name)} SET body = '${words}' WHERE rowid = ${row}`;
    case 2:
      return `INSERT INTO ${quoted(table.name)}(body) SELECT '${words}' || value FROM json_each('[1,2,3]')`;
    default:
      return `INSERT OR REPLACE INTO ${quoted(table.name)}(rowid, body) VALUES (${row}, '${words}')`;
  }
}

function rtreeStatement(random: SeededRandom, table: RandomTable): string {
  const [row, x] = [random.below(60), random.below(100)];
  switch (random.below(4)) {
    case 0:
      return `DELETE FROM ${quoted(table.name)} WHERE id = ${row}`;
    case 1:
      return `UPDATE ${quoted(table.name)} SET x0 = ${x}, x1 = ${x + 2} WHERE id BETWEEN ${row} AND ${row + 4}`;
    case 2:
      return `INSERT OR REPLACE INTO ${quoted(table.name)}
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) SELECT ${row} + i, ${x}, ${x} + i FROM n`;
    default:
      return `INSERT OR REPLACE INTO ${quoted(table.name)} VALUES (${row}, ${x}, ${x + 1})`;
  }
}

function ordinaryStatement(random: SeededRandom, table: RandomTable): string {
  const share = random.below(10);
  if (share < 5) return insert(random, table);
  if (share < 9) return update(random, table);
  return random.chance(0.15)
    ? `DELETE FROM ${quoted(table.name)}`
    : `DELETE FROM ${quoted(table.name)} ${where(random, table)}`;
}

function insert(random: SeededRandom, table: RandomTable): string {
  const columns = table.columns.filter((column) => column.key || random.chance(0.85));
  const rows = Array.from({ length: 1 + random.below(3) }, () => {
    const values = columns.map((column) => valueFor(random, column));
    return `(${values.join()})`;
  });
  const conflict = pick(random, [
    '',
    '',
    ' OR REPLACE',
    ' OR REPLACE',
    ' OR IGNORE',
    ' OR IGNORE',
    ' OR ABORT',
    ' OR FAIL',
  ]);
  const others = columns.filter((column) => !column.key);
  const upsert =
    conflict === '' && random.chance(0.7)
      ? others.length > 0 && random.chance(0.7)
        ? ` ON CONFLICT DO UPDATE SET ${quoted(others[0]!.name)} = excluded.${quoted(others[0]!.name)}`
        : ' ON CONFLICT DO NOTHING'
      : '';
  const names = columns.map((column) => quoted(column.name)).join();
  return `INSERT${conflict} INTO ${quoted(table.name)}(${names}) VALUES ${rows.join()}${upsert}`;
}

function update(random: SeededRandom, table: RandomTable): string {
  const conflict = pick(random, ['', '', ' OR REPLACE', ' OR IGNORE']);
  const columns = table.columns.filter((column) => (column.key ? random.chance(0.25) : random.chance(0.6)));
  const changed = columns.length > 0 ? columns : [table.columns[0]!];
  const assignments = changed.map((column) => `${quoted(column.name)} = ${newValue(random, column)}`);
  return `UPDATE${conflict} ${quoted(table.name)} SET ${assignments.join()} ${where(random, table)}`;
}

/** Often computed from the old one, so that one statement moves many unique values about. */
function newValue(random: SeededRandom, column: RandomColumn): string {
  const name = quoted(column.name);
  if (column.type.startsWith('INT') && random.chance(0.4)) return `(${name} + ${1 + random.below(3)}) % 10`;
  if (column.type === 'TEXT' && random.chance(0.2))
    return `CASE ${name} WHEN 'a' THEN 'b' WHEN 'b' THEN 'a' ELSE ${name} END`;
  return valueFor(random, column);
}

function where(random: SeededRandom, table: RandomTable): string {
  if (random.chance(0.15)) return '';
  const column = pick(random, table.columns);
  const operator = pick(random, ['=', '=', '<', '>', 'IS', 'IS NOT']);
  return `WHERE ${quoted(column.name)} ${operator} ${valueFor(random, column)}`;
}
