/** A tenant on plain SQLite: the old primary's, whose writes are recorded as a tail, and the one that takes them again. */
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import { encode } from '@msgpack/msgpack';
import { readSchemaShape } from '../../store/schema-shape.ts';
import { fromSqlite } from '../../store/sqlite-errors.ts';
import type { SqlInput } from '../../store/values.ts';
import type { TableNames, TenantSchema } from '../file/format.ts';
import { changesetRecord } from '../file/tail.fixture.ts';
import type { IsForgotten, ReapplyTarget, ReapplyTenant, RowReader, RowWriter } from './types.ts';

export const UUID = '04'.repeat(16);
const RESULTS =
  'create table nostos_results (id text primary key not null, result blob not null, at_ms integer not null) strict';

export class FixtureTenant implements ReapplyTenant {
  readonly database = new DatabaseSync(':memory:', { enableForeignKeyConstraints: true });
  readonly uuid: string = UUID;
  writes = 0;
  isForgotten: IsForgotten = () => false;

  constructor(schema: string) {
    this.database.exec(`${RESULTS}; ${schema}`);
  }

  get tables(): readonly TableNames[] {
    return [...readSchemaShape(this.database).tables.values()];
  }

  get schema(): TenantSchema {
    return { tenant: 1, schemaVersion: 1, uuid: this.uuid, name: 'acme', tables: this.tables };
  }

  exec(sql: string): this {
    this.database.exec(sql);
    return this;
  }

  rows(sql: string): unknown[] {
    return this.database
      .prepare(sql)
      .all()
      .map((row) => Object.values(row));
  }

  /** What a transaction with this SQL, and the ids of its clients, leaves in the log. */
  record(sql: string, ids: readonly string[] = []): Uint8Array {
    const session = this.database.createSession();
    this.database.exec('begin');
    this.database.exec(sql);
    for (const id of ids) this.#remember(id, encode({ result: `first ${id}`, absent: false }));
    this.database.exec('commit');
    const changeset = session.changeset();
    session.close();
    return changesetRecord(changeset);
  }

  async forgottenSince(): Promise<IsForgotten> {
    return this.isForgotten;
  }

  async read<T>(fn: (reader: RowReader) => T): Promise<T> {
    return fn(this.#writer());
  }

  async write(id: string, fn: (writer: RowWriter) => void): Promise<void> {
    const writer = this.#writer();
    if (writer.known(id)) return;
    this.database.exec('begin immediate');
    try {
      fn(writer);
      this.#remember(id, encode({ result: null, absent: true }));
      this.database.exec('commit');
      this.writes += 1;
    } catch (error) {
      if (this.database.isTransaction) this.database.exec('rollback');
      throw fromSqlite(error);
    }
  }

  #remember(id: string, result: Uint8Array): void {
    this.database.prepare('insert into nostos_results values (?, ?, 0)').run(id, result);
  }

  #writer(): RowWriter {
    const { database } = this;
    const prepare = (statement: string): StatementSync => {
      const prepared = database.prepare(statement);
      prepared.setReadBigInts(true);
      return prepared;
    };
    return {
      get: (statement, parameters) => {
        return prepare(statement).get(...bound(parameters));
      },
      known: (id) => database.prepare('select 1 from nostos_results where id = ?').get(id) !== undefined,
      run: (statement, parameters) => void prepare(statement).run(...bound(parameters)),
      savepoint: (fn) => {
        database.exec('savepoint one');
        try {
          const result = fn();
          database.exec('release one');
          return result;
        } catch (error) {
          database.exec('rollback to one; release one');
          throw fromSqlite(error);
        }
      },
      remember: (id, result) => this.#remember(id, result),
    };
  }
}

/** As a transaction of a tenant binds: whole numbers are INTEGER. */
function bound(parameters: readonly SqlInput[]): SQLInputValue[] {
  return parameters.map((value) =>
    typeof value === 'number' && Number.isSafeInteger(value)
      ? BigInt(value)
      : typeof value === 'boolean'
        ? Number(value)
        : value,
  );
}

export function targetOf(tenants: Readonly<Record<string, ReapplyTenant>>): ReapplyTarget {
  return { tenant: async (name) => tenants[name] };
}
