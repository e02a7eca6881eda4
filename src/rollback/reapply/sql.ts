/** Rows as statements. A value is written with the type that SQLite had for it, whatever binding makes of it. */
import { quoteName } from '../../store/schema-catalog.ts';
import type { SqlInput, SqlValue } from '../../store/values.ts';
import type { TableNames } from '../file/format.ts';
import { isRawText, type Value, type Values } from '../rows.ts';
import type { RowWrite } from './plan.ts';

export interface Statement {
  readonly text: string;
  readonly parameters: readonly SqlInput[];
}

/** All columns that the tail knows, named `v0`, `v1`, … since the names of columns may collide with anything. */
export function selectRow({ name, columns }: TableNames, key: Values): Statement {
  const list = columns.map((column, i) => `${quoteName(column)} as v${i}`).join(', ');
  const where = conditions(key);
  return { text: `select ${list} from ${quoteName(name)} where ${where.text}`, parameters: where.parameters };
}

export function rowOf({ columns }: TableNames, found: Readonly<Record<string, SqlValue>>): Values {
  return Object.fromEntries(columns.map((column, i) => [column, found[`v${i}`] ?? null]));
}

export function writeRow({ table, op, key, set }: RowWrite): Statement {
  const name = quoteName(table);
  const where = conditions(key);
  const columns = Object.keys(set).map(quoteName);
  const values = Object.values(set).map(bound);
  const parameters = values.flatMap((value) => value.parameters);
  switch (op) {
    case 'insert': {
      const places = values.map(({ text }) => text).join(', ');
      return { text: `insert into ${name} (${columns.join(', ')}) values (${places})`, parameters };
    }
    case 'update': {
      const pairs = columns.map((column, i) => `${column} = ${values[i]!.text}`).join(', ');
      return {
        text: `update ${name} set ${pairs} where ${where.text}`,
        parameters: [...parameters, ...where.parameters],
      };
    }
    case 'delete':
      return { text: `delete from ${name} where ${where.text}`, parameters: where.parameters };
    default:
      return op satisfies never;
  }
}

function conditions(key: Values): Statement {
  const values = Object.values(key).map(bound);
  const names = Object.keys(key).map(quoteName);
  return {
    text: names.map((name, i) => `${name} = ${values[i]!.text}`).join(' and '),
    parameters: values.flatMap(({ parameters }) => parameters),
  };
}

function bound(value: Value): Statement {
  // Binding stores whole numbers as INTEGER.
  if (typeof value === 'number') return { text: 'cast(? as real)', parameters: [value] };
  if (isRawText(value)) return { text: 'cast(? as text)', parameters: [value.text] };
  return { text: '?', parameters: [value] };
}
