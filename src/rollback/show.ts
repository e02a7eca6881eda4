/** A rollback file as people read it: a line per row, and one for whatever else was in the log. */
import type { Disk } from '../base/disk.ts';
import { hlcToMs } from '../base/clock.ts';
import { NostosError } from '../base/errors.ts';
import { RecordKind } from '../log/record.ts';
import type { ChangeOp } from '../store/changeset.ts';
import { RESULTS_TABLE } from '../store/own-tables.ts';
import { decodeChangesetPayload, decodeSchemaPayload, decodeTenantCreate } from '../store/payload.ts';
import { quoteName } from '../store/schema-catalog.ts';
import type { TailGap } from './file/format.ts';
import { readFileItems, type FileRecord } from './file/reader.ts';
import { isRawText, rowsOf, type Value, type Values } from './rows.ts';

interface ShownBase {
  readonly lsn: number;
  readonly term: number;
  readonly timeMs: number;
  /** The name, or `#id` where the file does not have it; empty for what belongs to no tenant. */
  readonly tenant: string;
  /** Somebody had been told that it was kept. */
  readonly acknowledged: boolean;
}

export interface ShownRow extends ShownBase {
  readonly kind: 'row';
  readonly table: string;
  readonly op: ChangeOp;
  readonly key: Values;
  readonly old?: Values;
  readonly new?: Values;
  /** By a trigger or a foreign key action. */
  readonly indirect: boolean;
}

export type Shown =
  | ShownRow
  | (ShownBase & { readonly kind: 'schema'; readonly version: number; readonly sql: readonly string[] })
  | (ShownBase & { readonly kind: 'tenant-create'; readonly name: string })
  | (ShownBase & { readonly kind: 'tenant-drop' | 'term-start' })
  /** The answer to a write with an id. */
  | (ShownBase & { readonly kind: 'answer'; readonly id: string })
  /** Records from `lsn` to `to` that could not be read when the file was made; `more`, where it is not known how many followed. */
  | (ShownBase & { readonly kind: 'missing'; readonly to: number; readonly more: boolean; readonly why: string })
  /** What is not shown, and why. */
  | (ShownBase & { readonly kind: 'other'; readonly why: string });

const KIND_NAMES = new Map<number, string>(Object.entries(RecordKind).map(([name, number]) => [number, name]));

export interface ShowOptions {
  /** `number`, as by default: INTEGERs are numbers where these hold them, like REALs. `bigint`: they always are bigints. */
  readonly int64?: 'number' | 'bigint';
}

export async function* showFile(
  disk: Disk,
  path: string,
  { signal, ...options }: ShowOptions & { readonly signal?: AbortSignal } = {},
): AsyncGenerator<Shown, void, undefined> {
  for await (const item of readFileItems(disk, path, signal))
    if ('record' in item) yield* showRecord(item, options);
    else yield showGap(item);
}

function showGap({ from, to, more, reason }: TailGap): Shown {
  const base = { lsn: from, term: 0, timeMs: 0, tenant: '', acknowledged: false };
  return { ...base, kind: 'missing', to, more, why: reason };
}

export function* showRecord(
  { record, acknowledged, tenantName, schema }: FileRecord,
  { int64 = 'number' }: ShowOptions = {},
): Generator<Shown, void, undefined> {
  const valuesOf = int64 === 'bigint' ? (values: Values): Values => values : withNumbers;
  const { lsn, term, tenant, kind, payload } = record;
  const named = tenantName !== '' ? tenantName : tenant === 0 ? '' : `#${tenant}`;
  const base = { lsn, term, timeMs: hlcToMs(record.hlc), tenant: named, acknowledged };
  try {
    switch (kind) {
      case RecordKind.changeset:
        for (const row of rowsOf(decodeChangesetPayload(payload).changeset, schema?.tables ?? [])) {
          const { table, op, key, old, indirect } = row;
          if (table === RESULTS_TABLE) {
            const [id] = Object.values(key);
            if (op === 'insert' && typeof id === 'string') yield { ...base, kind: 'answer', id };
          } else
            yield {
              ...base,
              kind: 'row',
              table,
              op,
              key: valuesOf(key),
              ...(old === undefined ? {} : { old: valuesOf(old) }),
              ...(row.new === undefined ? {} : { new: valuesOf(row.new) }),
              indirect,
            };
        }
        break;
      case RecordKind.schema: {
        const { schemaVersion, steps } = decodeSchemaPayload(payload);
        const sql = steps.map((step) => ('sql' in step ? step.sql : '-- changes of rows'));
        yield { ...base, kind: 'schema', version: schemaVersion, sql };
        break;
      }
      case RecordKind.tenantCreate:
        yield { ...base, kind: 'tenant-create', name: decodeTenantCreate(payload).name };
        break;
      case RecordKind.tenantDrop:
        yield { ...base, kind: 'tenant-drop' };
        break;
      case RecordKind.termStart:
        yield { ...base, kind: 'term-start' };
        break;
      default:
        yield { ...base, kind: 'other', why: `a record of the kind ${KIND_NAMES.get(kind) ?? kind}` };
        break;
    }
  } catch (error) {
    if (!(error instanceof NostosError)) throw error;
    yield { ...base, kind: 'other', why: error.message };
  }
}

function withNumbers(values: Values): Values {
  const plain = (value: Value): Value =>
    typeof value === 'bigint' && Number.isSafeInteger(Number(value)) ? Number(value) : value;
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, plain(value)]));
}

export interface ExportOptions {
  readonly format: 'jsonl' | 'sql';
  /** Of one item: JSON has neither bigint nor bytes. */
  readonly stringify: (item: Shown) => string;
  readonly signal?: AbortSignal;
}

/** A line per item, without its line feed. SQL is for reading, and for those who know what it does: it checks nothing. */
export async function* exportFile(
  disk: Disk,
  path: string,
  { format, stringify, ...options }: ExportOptions,
): AsyncGenerator<string, void, undefined> {
  const int64 = format === 'sql' ? 'bigint' : 'number';
  for await (const item of showFile(disk, path, { ...options, int64 }))
    yield format === 'jsonl' ? stringify(item) : sqlOf(item);
}

function sqlOf(item: Shown): string {
  if (item.kind === 'missing') return `-- LSN ${item.lsn} to ${item.to}: missing, ${oneLine(item.why)}`;
  if (item.kind !== 'row') return `-- LSN ${item.lsn}: ${item.kind} ${oneLine(item.tenant)}`;
  const where = `-- ${oneLine(item.tenant)}`;
  const table = quoteName(item.table);
  const pairs = (values: Values, between: string): string =>
    Object.entries(values)
      .map(([name, value]) => `${quoteName(name)} = ${literal(value)}`)
      .join(between);
  switch (item.op) {
    case 'insert': {
      const values = item.new ?? {};
      const names = Object.keys(values).map(quoteName).join(', ');
      return `insert into ${table} (${names}) values (${Object.values(values).map(literal).join(', ')}); ${where}`;
    }
    case 'update':
      return `update ${table} set ${pairs(item.new ?? {}, ', ')} where ${pairs(item.key, ' and ')}; ${where}`;
    case 'delete':
      return `delete from ${table} where ${pairs(item.key, ' and ')}; ${where}`;
    default:
      return item.op satisfies never;
  }
}

function oneLine(text: string): string {
  return text.replaceAll(/[\r\n]+/g, ' ');
}

function literal(value: Value): string {
  if (value === null) return 'null';
  if (typeof value === 'bigint') return String(value);
  if (typeof value === 'number') return realLiteral(value);
  if (value instanceof Uint8Array) return `x'${Buffer.from(value).toString('hex')}'`;
  if (isRawText(value)) return `cast(x'${Buffer.from(value.text).toString('hex')}' as text)`;
  // A NUL would end the statement for many readers, a line feed the line.
  if (/[\0\r\n]/.test(value)) return `cast(x'${Buffer.from(value).toString('hex')}' as text)`;
  return `'${value.replaceAll("'", "''")}'`;
}

function realLiteral(value: number): string {
  if (value === Infinity) return '9e999';
  if (value === -Infinity) return '-9e999';
  if (Object.is(value, -0)) return '-0.0';
  const text = String(value);
  return /^-?\d+$/.test(text) ? `${text}.0` : text;
}
