/**
 * The property on which everything that brings state back stands, checked on random schemas and histories:
 *
 * - the changesets of a history, applied to a copy, give the database that the writer has, table by table;
 * - their inverses, in reverse, give back every earlier state exactly;
 * - joined into one buffer they give the same, or are refused as a whole (counted: the caller then goes one by one);
 * - the fingerprint that followed the changesets is the one of the rows, on the writer and on the copy;
 * - read and written again, the bytes are the same.
 *
 * A failing seed throws with the seed in its message; `runSchemaHistory(seed)` replays it.
 */
import { deepStrictEqual, ok } from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import { seededRandom } from '../base/random.ts';
import {
  concatByTable,
  concatChangesets,
  encodeChangeset,
  invertAll,
  invertChangeset,
  parseChangeset,
  stripTables,
} from '../store/changeset.ts';
import { fingerprintRows } from '../store/fingerprint/fingerprint-rows.ts';
import { Fingerprint } from '../store/fingerprint/fingerprint.ts';
import { Fingerprinter } from '../store/fingerprint/fingerprinter.ts';
import { checkSchema } from '../store/schema-check.ts';
import { readSchemaShape, type SchemaShape } from '../store/schema-shape.ts';
import { statementKeyword } from '../store/sql-tokens.ts';
import { guardTrigger } from '../store/trigger-guard.ts';
import { quoted, type RandomSchema, randomSchema, randomTransaction, type Step } from './random-schema.ts';

export interface SchemaHistoryCounts {
  histories: number;
  transactions: number;
  /** Transactions that were rolled back since a statement or a deferred key failed. */
  failedTransactions: number;
  changes: number;
  /** Histories whose joined changesets SQLite refused although one by one they apply: forward, by table, inverse. */
  joinedRefused: number;
  joinedByTableRefused: number;
  joinedInverseRefused: number;
}

export interface SchemaHistoriesOptions {
  readonly seeds: Iterable<number>;
  readonly transactions?: number;
  readonly onProgress?: (counts: Readonly<SchemaHistoryCounts>, seed: number) => void;
}

const KEY = new Uint8Array(16).fill(1);
const fingerprinter = new Fingerprinter(KEY);

export function runSchemaHistories(options: SchemaHistoriesOptions): SchemaHistoryCounts {
  const total: SchemaHistoryCounts = {
    histories: 0,
    transactions: 0,
    failedTransactions: 0,
    changes: 0,
    joinedRefused: 0,
    joinedByTableRefused: 0,
    joinedInverseRefused: 0,
  };
  for (const seed of options.seeds) {
    try {
      runSchemaHistory(seed, total, options.transactions);
    } catch (error) {
      throw new Error(`schema history of seed ${seed} failed: ${String(error)}`, { cause: error });
    }
    options.onProgress?.(total, seed);
  }
  return total;
}

/** One history; adds to `counts` what it did. */
export function runSchemaHistory(seed: number, counts: SchemaHistoryCounts, transactions = 12): void {
  const random = seededRandom(seed);
  const schema = randomSchema(random);
  using writer = open(schema, true);
  using copy = open(schema, false);
  deepStrictEqual(checkSchema(writer), [], 'the generator must stay within the rules');
  const shape = readSchemaShape(writer);
  const states = [dump(writer, shape)];
  const fingerprint = fingerprintRows(writer, fingerprinter);
  const start = fingerprint.clone();
  const changesets: Uint8Array[] = [];
  for (let count = 0; count < transactions; count += 1) {
    counts.transactions += 1;
    const changeset = runTransaction(writer, randomTransaction(random, schema));
    if (changeset === undefined) counts.failedTransactions += 1;
    if (changeset === undefined || changeset.length === 0) continue;
    deepStrictEqual(encodeChangeset(parseChangeset(changeset)), changeset);
    fingerprinter.delta(changeset, shape.columnNames, fingerprint);
    changesets.push(changeset);
    states.push(dump(writer, shape));
  }
  for (const group of changesets.flatMap(parseChangeset)) counts.changes += group.changes.length;
  const follower = { db: copy, shape, states, changesets };
  checkOneByOne(follower);
  ok(fingerprintRows(writer, fingerprinter).equals(fingerprint), 'fingerprint of the rows of the writer');
  ok(fingerprintRows(copy, fingerprinter).equals(fingerprint), 'fingerprint of the rows of the copy');
  checkTables(copy, shape);
  checkInverse(follower);
  ok(fingerprintRows(copy, fingerprinter).equals(start), 'fingerprint of the rows after the inverse');
  const inverse = new Fingerprint();
  fingerprinter.delta(invertAll(changesets), shape.columnNames, inverse);
  inverse.add(fingerprint);
  ok(inverse.equals(start), 'fingerprint of the inverse');
  checkJoined(follower, counts);
  counts.histories += 1;
}

interface Follower {
  readonly db: DatabaseSync;
  readonly shape: SchemaShape;
  /** Before the first changeset, then after each. */
  readonly states: readonly unknown[];
  readonly changesets: readonly Uint8Array[];
}

function checkOneByOne({ db, shape, states, changesets }: Follower): void {
  for (const [index, changeset] of changesets.entries()) {
    ok(db.applyChangeset(changeset), `changeset ${index} applies`);
    deepStrictEqual(dump(db, shape), states[index + 1], `state after changeset ${index}`);
  }
}

function checkInverse({ db, shape, states, changesets }: Follower): void {
  for (let index = changesets.length - 1; index >= 0; index -= 1) {
    ok(db.applyChangeset(invertChangeset(changesets[index]!)), `inverse ${index} applies`);
    deepStrictEqual(dump(db, shape), states[index], `state before changeset ${index}`);
  }
}

/** From the first state to the last in one step and back; refused, nothing may have changed. */
function checkJoined(follower: Follower, counts: SchemaHistoryCounts): void {
  const { db, shape, states, changesets } = follower;
  db.exec('BEGIN');
  const byTable = db.applyChangeset(concatByTable(changesets));
  deepStrictEqual(dump(db, shape), byTable ? states.at(-1) : states[0], 'state after all changesets in one, by table');
  if (!byTable) counts.joinedByTableRefused += 1;
  db.exec('ROLLBACK');
  const forward = db.applyChangeset(concatChangesets(changesets));
  deepStrictEqual(dump(db, shape), forward ? states.at(-1) : states[0], 'state after all changesets in one');
  if (!forward) {
    counts.joinedRefused += 1;
    checkOneByOne(follower);
  }
  const back = db.applyChangeset(invertAll(changesets));
  deepStrictEqual(dump(db, shape), back ? states[0] : states.at(-1), 'state after all inverses in one');
  if (!back) counts.joinedInverseRefused += 1;
}

/** As the runtime does it: the writer with foreign keys and live triggers, the copy with neither. */
function open(schema: RandomSchema, live: boolean): DatabaseSync {
  const db = new DatabaseSync(':memory:', { enableForeignKeyConstraints: live, defensive: live });
  db.function('nostos_live', () => (live ? 1n : 0n));
  for (const sql of schema.statements) db.exec(isTrigger(sql) ? guardTrigger(sql) : sql);
  return db;
}

function isTrigger(sql: string): boolean {
  return statementKeyword(sql) === 'CREATE' && sql.startsWith('CREATE TRIGGER');
}

/** The captured changeset; undefined if the transaction failed and was rolled back. */
function runTransaction(db: DatabaseSync, steps: readonly Step[]): Uint8Array | undefined {
  db.exec('BEGIN');
  try {
    using session = db.createSession();
    runSteps(db, steps);
    // Finds violated deferred keys before it is too late to fail.
    db.applyChangeset(new Uint8Array(0));
    const changeset = stripTables(session.changeset(), (table) => table.startsWith('sqlite_'));
    db.exec('COMMIT');
    return changeset;
  } catch (error) {
    if (!isSqliteError(error)) throw error;
    if (db.isTransaction) db.exec('ROLLBACK');
    return undefined;
  }
}

function runSteps(db: DatabaseSync, steps: readonly Step[]): void {
  for (const step of steps) {
    if (step.kind === 'run') db.exec(step.sql);
    else runSavepoint(db, step.steps, step.undo);
  }
}

function runSavepoint(db: DatabaseSync, steps: readonly Step[], undo: boolean): void {
  db.exec('SAVEPOINT inner');
  let failed = false;
  try {
    runSteps(db, steps);
  } catch (error) {
    // An exhausted AUTOINCREMENT takes the whole transaction with it.
    if (!isSqliteError(error) || !db.isTransaction) throw error;
    failed = true;
  }
  if (failed || undo) db.exec('ROLLBACK TO inner');
  db.exec('RELEASE inner');
}

/** Constraints and wrong types fail as they should; a syntax error (1) would be one of the generator. */
function isSqliteError(error: unknown): boolean {
  if (!(error instanceof Error) || !('errcode' in error)) return false;
  return error.errcode !== 1;
}

/** All rows of all tables, each cell with its type; text as bytes, since it need not be valid. */
function dump(db: DatabaseSync, shape: SchemaShape): unknown {
  const result: Record<string, unknown> = {};
  for (const table of shape.tables.values()) {
    const cells = table.columns
      .map(quoted)
      .flatMap((name) => [
        `typeof(${name})`,
        `CASE typeof(${name}) WHEN 'text' THEN CAST(${name} AS BLOB) ELSE ${name} END`,
      ]);
    const statement = db.prepare(
      `SELECT ${cells.join()} FROM ${quoted(table.name)} ORDER BY ${table.keyColumns.map(quoted).join()}`,
    );
    statement.setReadBigInts(true);
    statement.setReturnArrays(true);
    result[table.name] = statement.all();
  }
  return result;
}

/** Indexes agree with their tables. Full-text indexes are left out: their cache is stale where changesets are applied. */
function checkTables(db: DatabaseSync, shape: SchemaShape): void {
  for (const table of shape.tables.values())
    deepStrictEqual(
      db
        .prepare(`PRAGMA integrity_check(${quoted(table.name)})`)
        .all()
        .map((row) => row['integrity_check']),
      ['ok'],
      table.name,
    );
}
