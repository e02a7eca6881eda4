/**
 * Runs migrations on the writer and replays them from the log.
 *
 * DDL travels as SQL, row changes as the changeset that they made: `random()` or `datetime('now')` would give a
 * replica other rows. Foreign keys are off meanwhile, on both sides: with them on, DROP TABLE deletes rows of other
 * tables as a side effect, which no changeset carries. Violations that the migration made are found at its end.
 */
import { NostosError } from '../base/errors.ts';
import { concatChangesets, stripTables } from './changeset.ts';
import type { Connection } from './connection.ts';
import type { ExpectedFingerprint } from './expected-fingerprint.ts';
import type { SchemaPayload, SchemaStep } from './payload.ts';
import { checkMigrationStatement, checkSchema, type SchemaProblem } from './schema-check.ts';
import { readSchemaShape, withFormerNames, type SchemaShape } from './schema-shape.ts';
import { significantTokens, splitStatements, statementKeyword } from './sql-tokens.ts';
import { fromSqlite } from './sqlite-errors.ts';
import { isUnreplicated } from './own-tables.ts';
import { readSequences, writeSequences } from './tenant-file.ts';
import { guardTrigger } from './trigger-guard.ts';
import { WriterTransaction, isThenable } from './writer-transaction.ts';

/** One step of a schema: SQL (one or more statements), or a function that changes rows. */
export type Migration = string | ((tx: WriterTransaction) => void);

const ROW_KEYWORDS: ReadonlySet<string> = new Set([
  'INSERT',
  'UPDATE',
  'DELETE',
  'REPLACE',
  'WITH',
  'SELECT',
  'VALUES',
]);

/** Runs one migration inside the open transaction of the writer, whose foreign keys are off; answers with its steps. */
export function runMigration(connection: Connection, migration: Migration): SchemaStep[] {
  const steps: SchemaStep[] = [];
  const capture = (change: () => void): void => {
    const session = connection.database.createSession();
    try {
      change();
      const changeset = stripTables(session.changeset(), isUnreplicated);
      if (changeset.length > 0) steps.push({ changeset: Uint8Array.from(changeset) });
    } finally {
      session.close();
    }
  };
  if (typeof migration === 'function') {
    capture(() => {
      const tx = new WriterTransaction(connection, 'number');
      try {
        if (isThenable(migration(tx)))
          throw new NostosError('INVALID_ARGUMENT', 'a migration function must be synchronous, it returned a promise');
        tx.finish();
      } finally {
        tx.abandon();
      }
    });
    return steps;
  }
  for (const statement of splitStatements(migration)) {
    const problem = checkMigrationStatement(statement);
    if (problem !== undefined) throw schemaRefused([problem]);
    if (ROW_KEYWORDS.has(statementKeyword(statement) ?? '')) {
      capture(() => connection.migrationStatement(statement));
      continue;
    }
    const sql = isCreateTrigger(statement) ? guardTrigger(statement) : statement;
    connection.migrationStatement(sql);
    steps.push({ sql });
  }
  return steps;
}

/** Applies the steps of a schema record inside the open transaction of an applier. */
export function replaySteps(connection: Connection, steps: readonly SchemaStep[]): void {
  for (const step of steps) {
    if ('sql' in step) connection.migrationStatement(step.sql);
    else if (!connection.database.applyChangeset(step.changeset))
      throw new NostosError('TENANT_DAMAGED', 'the row changes of a migration do not fit the rows of this tenant');
  }
}

/** Brings the expected fingerprint over a migration; the same rule runs where it is made and where it is replayed. */
export function advanceFingerprint(
  connection: Connection,
  steps: readonly SchemaStep[],
  shape: SchemaShape,
  expected: ExpectedFingerprint,
): void {
  if (steps.some((step) => 'sql' in step && changesCells(step.sql))) {
    expected.recompute(connection.database, shape);
    return;
  }
  const changesets = steps.flatMap((step) => ('changeset' in step ? [step.changeset] : []));
  if (changesets.length > 0) expected.apply(concatChangesets(changesets), shape);
}

export interface MigrationResult {
  readonly payload: SchemaPayload;
  readonly shape: SchemaShape;
}

/** What is common to the end of a migration: checks, and the payload of its record. */
export function finishMigration(
  connection: Connection,
  steps: readonly SchemaStep[],
  schemaVersion: number,
  { expected, before }: { readonly expected: ExpectedFingerprint; readonly before: SchemaShape },
): MigrationResult {
  const problems = checkSchema(connection.database);
  if (problems.length > 0) throw schemaRefused(problems);
  const shape = shapeAfter(connection, steps, before);
  advanceFingerprint(connection, steps, shape, expected);
  return {
    shape,
    payload: {
      schemaVersion,
      steps,
      userVersion: userVersion(connection),
      sequences: readSequences(connection, autoincrementTables(shape)),
      fingerprint: expected.total(),
    },
  };
}

/** The shape to which the steps have led; the same where they are made and where they are replayed. */
export function shapeAfter({ database }: Connection, steps: readonly SchemaStep[], before: SchemaShape): SchemaShape {
  const statements = steps.flatMap((step) => ('sql' in step ? [step.sql] : []));
  return withFormerNames(before, readSchemaShape(database), statements);
}

export function autoincrementTables(shape: SchemaShape): string[] {
  return [...shape.tables.values()].filter((table) => table.hasAutoincrement).map((table) => table.name);
}

export function applySchemaCounters(connection: Connection, payload: SchemaPayload): void {
  connection.database.exec(`pragma user_version = ${payload.userVersion}`);
  writeSequences(connection, payload.sequences);
}

/** How many rows have foreign keys that point nowhere. */
export function countViolations(connection: Connection): number {
  try {
    const row = connection.database.prepare('select count(*) as n from pragma_foreign_key_check').get();
    return (row as { n: number }).n;
  } catch (error) {
    throw fromSqlite(error);
  }
}

export function schemaRefused(problems: readonly SchemaProblem[]): NostosError {
  const list = problems.map((problem) => `${problem.object}: ${problem.why}; ${problem.remedy}`).join('\n  ');
  return new NostosError('SCHEMA_REFUSED', `the schema cannot be replicated:\n  ${list}`, { details: { problems } });
}

function userVersion(connection: Connection): number {
  return (connection.database.prepare('pragma user_version').get() as { user_version: number }).user_version;
}

/** Whether a DDL statement may change cells without a changeset: all but plain CREATE of empty or derived things. */
function changesCells(sql: string): boolean {
  const words = significantTokens(sql)
    .slice(0, 3)
    .map((token) => sql.slice(token.start, token.end).toUpperCase());
  if (words[0] === 'PRAGMA' || words[0] === 'ANALYZE' || words[0] === 'REINDEX') return false;
  if (words[0] !== 'CREATE') return !(words[0] === 'DROP' && ['INDEX', 'VIEW', 'TRIGGER'].includes(words[1] ?? ''));
  return words[1] === 'VIRTUAL';
}

function isCreateTrigger(statement: string): boolean {
  const words = significantTokens(statement)
    .slice(0, 2)
    .map((token) => statement.slice(token.start, token.end).toUpperCase());
  return words[0] === 'CREATE' && words[1] === 'TRIGGER';
}
