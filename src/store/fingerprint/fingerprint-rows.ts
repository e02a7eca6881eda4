/**
 * The fingerprint of what is really stored, from the rows. It equals the one that followed all changes, or the copy is
 * damaged.
 *
 * Rows become changeset bytes without passing through JavaScript: they are copied in batches into a TEMP table under a
 * session, whose changeset goes to the kernel. So every value has the very form that it has in captured changes, and a
 * million rows take about two seconds. The TEMP table has the columns without types, which keeps SQLite from converting
 * anything on the way. Works on a read-only connection; not while statements run on the caller's own TEMP tables.
 *
 * All batches see one snapshot: that of the caller's transaction, or of one that is opened here.
 */
import type { DatabaseSync, SQLInputValue } from 'node:sqlite';
import { releaseBuffer } from '../../base/release.ts';
import { ChangesetCursor } from '../changeset-cursor.ts';
import { concatChangesets } from '../changeset.ts';
import { catalogRows, quoteName } from '../schema-catalog.ts';
import { readSchemaShape, type TableShape } from '../schema-shape.ts';
import { Fingerprint } from './fingerprint.ts';
import type { Fingerprinter } from './fingerprinter.ts';

export interface RowScanOptions {
  /** Names of the tables to scan; all replicated ones by default. */
  readonly tables?: readonly string[];
  readonly batchRows?: number;
  /** A batch that would hold more bytes of values than this is made smaller, down to one row. */
  readonly batchBytesMax?: number;
}

export interface RowScanProgress {
  readonly table: string;
  readonly rows: number;
  readonly bytes: number;
}

export interface FingerprintRowsOptions extends RowScanOptions {
  readonly onBatch?: (progress: RowScanProgress) => void;
  readonly signal?: AbortSignal;
}

const BATCH_ROWS = 500;
const BATCH_BYTES_MAX = 1024 * 1024;
const SCRATCH = 'temp.nostos_scan';
const LAST_KEY = 'temp.nostos_scan_last';

/** The fingerprint of the rows of a database. */
export function fingerprintRows(
  db: DatabaseSync,
  fingerprinter: Fingerprinter,
  options: FingerprintRowsOptions = {},
): Fingerprint {
  const result = new Fingerprint();
  options.signal?.throwIfAborted();
  for (const progress of scanRows(db, fingerprinter, result, options)) {
    options.onBatch?.(progress);
    options.signal?.throwIfAborted();
  }
  return result;
}

/** The same, batch by batch, for a caller who paces or ends it; `into` is complete when the generator is. */
export function* scanRows(
  db: DatabaseSync,
  fingerprinter: Fingerprinter,
  into: Fingerprint,
  options: RowScanOptions = {},
): Generator<RowScanProgress, void, undefined> {
  const ownTransaction = !db.isTransaction;
  if (ownTransaction) db.exec('BEGIN');
  try {
    const shape = readSchemaShape(db);
    for (const name of options.tables ?? shape.tables.keys()) {
      const table = shape.tables.get(name);
      if (table === undefined || table.keyColumns.length === 0) continue;
      yield* scanTable(db, table, options, (changeset) => fingerprinter.delta(changeset, shape.columnNames, into));
    }
  } finally {
    if (ownTransaction && db.isTransaction) db.exec('COMMIT');
  }
}

function* scanTable(
  db: DatabaseSync,
  table: TableShape,
  options: RowScanOptions,
  consume: (changeset: Uint8Array) => void,
): Generator<RowScanProgress, void, undefined> {
  const batchBytesMax = options.batchBytesMax ?? BATCH_BYTES_MAX;
  const steps = new TableSteps(db, table);
  try {
    let rowsMax = options.batchRows ?? BATCH_ROWS;
    for (;;) {
      let bytes = steps.measure(rowsMax);
      for (; bytes > batchBytesMax && rowsMax > 1; bytes = steps.measure(rowsMax)) rowsMax = Math.ceil(rowsMax / 4);
      const { rows, changeset } = steps.copy(rowsMax);
      if (rows === 0) return;
      const changesetBytes = changeset.length;
      consume(changeset);
      releaseBuffer(changeset);
      yield { table: table.name, rows, bytes: changesetBytes };
      if (bytes * 2 < batchBytesMax) rowsMax = Math.min(rowsMax * 2, options.batchRows ?? BATCH_ROWS);
    }
  } finally {
    steps.close();
  }
}

/** The statements that copy one table, a batch at a time, in the order of its rowid or key. */
class TableSteps {
  readonly #db: DatabaseSync;
  readonly #header: Uint8Array;
  readonly #measure: (rowsMax: number) => number;
  readonly #copy: (rowsMax: number) => number;
  readonly #advance: () => void;

  constructor(db: DatabaseSync, table: TableShape) {
    this.#db = db;
    this.#header = tableHeader(table);
    const source = `main.${quoteName(table.name)}`;
    const columns = table.columns.map(quoteName);
    const rowid = rowidName(db, table);
    const scratchColumns = table.columns.map((_, index) => `c${index}`);
    const keys = table.keyColumns.map((key) => `c${table.columns.indexOf(key)}`);
    const order = rowid === undefined ? table.keyColumns.map(quoteName) : [rowid];
    const lastColumns = order.map((_, index) => `k${index}`);
    db.exec(`DROP TABLE IF EXISTS ${SCRATCH}; DROP TABLE IF EXISTS ${LAST_KEY};
      CREATE TABLE ${SCRATCH}(${scratchColumns.join()}, PRIMARY KEY (${keys.join()})) WITHOUT ROWID;
      CREATE TABLE ${LAST_KEY}(id INTEGER PRIMARY KEY, ${lastColumns.join()})`);
    // The unary plus takes the affinity away from the right side. With it, SQLite would search by the first key column
    // only, and a table with few values in that would take quadratic time.
    const lastKey = lastColumns.map((column) => `+${column}`).join();
    const after = `(${order.join()}) > (SELECT ${lastKey} FROM ${LAST_KEY})`;
    const from = (condition: string): string => `FROM ${source} ${condition} ORDER BY ${order.join()} LIMIT ?`;
    const size = sum(columns.map((column) => `ifnull(octet_length(${column}), 0)`));
    const both = (sql: (condition: string) => string): ((...params: SQLInputValue[]) => StatementResult) => {
      const [first, later] = [db.prepare(sql('')), db.prepare(sql(`WHERE ${after}`))];
      return (...params) => {
        const statement = this.#started ? later : first;
        // With numbers, run() throws when the last inserted rowid of the connection, whosever it was, is beyond 2^53.
        statement.setReadBigInts(true);
        return { all: () => statement.all(...params), run: () => Number(statement.run(...params).changes) };
      };
    };
    const measure = both((condition) => `SELECT sum(size) AS bytes FROM (SELECT ${size} AS size ${from(condition)})`);
    const copy = both((condition) => `INSERT INTO ${SCRATCH} SELECT ${columns.join()} ${from(condition)}`);
    const advance = both(
      (condition) =>
        `INSERT OR REPLACE INTO ${LAST_KEY} SELECT 1, * FROM (SELECT ${order.join()} ${from(condition)} OFFSET ?)`,
    );
    this.#measure = (rowsMax) => Number((measure(rowsMax).all()[0] as { bytes: bigint | null }).bytes ?? 0);
    this.#copy = (rowsMax) => copy(rowsMax).run();
    this.#advance = () => void advance(1, this.#copied - 1).run();
  }

  #started = false;
  #copied = 0;

  measure(rowsMax: number): number {
    return this.#measure(rowsMax);
  }

  /** The next rows as a changeset of the table that they came from. */
  copy(rowsMax: number): { readonly rows: number; readonly changeset: Uint8Array } {
    const captured = this.#capture(rowsMax);
    if (this.#copied === 0) return { rows: 0, changeset: captured };
    this.#advance();
    this.#started = true;
    this.#db.exec(`DELETE FROM ${SCRATCH}`);
    const cursor = new ChangesetCursor(captured);
    const changeset = concatChangesets([this.#header, captured.subarray(cursor.readTable(0))]);
    releaseBuffer(captured);
    return { rows: this.#copied, changeset };
  }

  /** The session is closed before the rows are deleted again, which it would have to record. */
  #capture(rowsMax: number): Uint8Array {
    using session = this.#db.createSession({ db: 'temp', table: 'nostos_scan' });
    this.#copied = this.#copy(rowsMax);
    return session.changeset();
  }

  close(): void {
    this.#db.exec(`DROP TABLE IF EXISTS ${SCRATCH}; DROP TABLE IF EXISTS ${LAST_KEY}`);
  }
}

interface StatementResult {
  all(): unknown[];
  run(): number;
}

/** A name by which the rowid can be read; undefined for WITHOUT ROWID, or where columns take all of its names. */
function rowidName(db: DatabaseSync, table: TableShape): string | undefined {
  const [info] = catalogRows<{ wr: number }>(
    db,
    `SELECT wr FROM pragma_table_list(?1) WHERE schema = 'main' AND name = ?1`,
    table.name,
  );
  if (info?.wr !== 0) return undefined;
  const all = catalogRows<{ name: string }>(db, `SELECT name FROM pragma_table_xinfo(?, 'main')`, table.name);
  const taken = new Set(all.map((column) => column.name.toLowerCase()));
  return ['rowid', '_rowid_', 'oid'].find((name) => !taken.has(name));
}

/** A balanced sum: SQLite refuses expressions that are a thousand terms deep. */
function sum(terms: readonly string[]): string {
  if (terms.length === 1) return terms[0]!;
  const half = terms.length >> 1;
  return `(${sum(terms.slice(0, half))} + ${sum(terms.slice(half))})`;
}

function tableHeader(table: TableShape): Uint8Array {
  const count = table.columns.length;
  const varint = count < 128 ? [count] : count < 16_384 ? [(count >> 7) | 0x80, count & 0x7f] : wide(count);
  const flags = table.columns.map((column) => (table.keyColumns.includes(column) ? 1 : 0));
  return Uint8Array.from([0x54, ...varint, ...flags, ...new TextEncoder().encode(table.name), 0]);
}

function wide(count: number): number[] {
  return [(count >> 14) | 0x80, ((count >> 7) & 0x7f) | 0x80, count & 0x7f];
}
