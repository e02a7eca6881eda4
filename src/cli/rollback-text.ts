/** Rollback files and their re-application as people read them. */
import type { ReapplyReport, Conflict } from '../rollback/reapply/types.ts';
import { isRawText, type Value, type Values } from '../rollback/rows.ts';
import type { TailGap } from '../rollback/file/format.ts';
import type { FileDescription } from '../rollback/file/reader.ts';
import type { Shown, ShownRow } from '../rollback/show.ts';
import type { Io } from './io.ts';
import { bytes, count, cut, escapeCharacter, fields, style } from './render.ts';

const BYTES_SHOWN = 16;
const OP_COLORS = { insert: 'green', update: 'yellow', delete: 'red' } as const;

/** What came from a row: neither a line break of its own nor anything that a terminal would act on. */
function plain(text: string): string {
  return text.replaceAll(/[\u0000-\u001F\u007F-\u009F]/g, escapeCharacter);
}

/** As SQL writes it, so that `'1'` and `1` differ, and on one line. */
export function valueText(value: Value): string {
  if (value === null) return 'NULL';
  if (value instanceof Uint8Array) return bytesText(value);
  if (isRawText(value)) return `text ${bytesText(value.text)}`;
  return typeof value === 'string' ? `'${plain(value.replaceAll("'", "''"))}'` : String(value);
}

function bytesText(value: Uint8Array): string {
  const hex = Buffer.from(value.subarray(0, BYTES_SHOWN)).toString('hex');
  return value.length > BYTES_SHOWN ? `x'${hex}…' (${count(value.length)} bytes)` : `x'${hex}'`;
}

function pairs(values: Values, except: Values = {}): string {
  return Object.entries(values)
    .filter(([name]) => !Object.hasOwn(except, name))
    .map(([name, value]) => `${plain(name)}=${valueText(value)}`)
    .join(', ');
}

function changes(old: Values, now: Values): string {
  return Object.entries(now)
    .map(([name, value]) => `${plain(name)}: ${name in old ? valueText(old[name] ?? null) : '?'} → ${valueText(value)}`)
    .join(', ');
}

/** `update orders  id=3  total: 10 → 12` */
function rowText({ op, table, key, old = {}, new: now = {} }: Pick<ShownRow, 'op' | 'table' | 'key' | 'old' | 'new'>): {
  readonly what: string;
  readonly values: string;
} {
  const values = op === 'insert' ? pairs(now, key) : op === 'delete' ? pairs(old, key) : changes(old, now);
  return { what: `${plain(table)}  ${pairs(key)}`, values };
}

/** Records that could not be read when the file was made. */
export function gapText({ from, to, more, reason }: TailGap): string {
  const range = from === to ? `LSN ${from} is` : `LSN ${from} to ${to} are`;
  return `${range} missing${more ? ', and perhaps more behind' : ''}: ${plain(reason)}`;
}

export function describeFile(io: Io, name: string, { header, footer, missing, fileBytes }: FileDescription): string {
  const { id, node, oldTerm, newTerm, common, firstLsn, lastLsn, createdAtMs } = header;
  return fields(io, [
    ['file', name],
    ['rollback', `${id} of node ${node}, ${timeText(createdAtMs)}`],
    ['dropped', `LSN ${count(firstLsn)} to ${count(lastLsn)} of term ${oldTerm}, for the primary of term ${newTerm}`],
    ['common point', `(term ${common.term}, LSN ${count(common.lsn)})`],
    ['records', `${count(footer.records)}, of which ${count(footer.acknowledged)} had been acknowledged`],
    ...(header.complete ? [] : [['not complete', `${count(missing)} records are known to be missing`] as const]),
    ['size', bytes(fileBytes)],
  ]);
}

export function timeText(ms: number): string {
  return new Date(ms).toISOString();
}

/** A line above the items of each record. */
export function recordLine(io: Io, { lsn, term, timeMs, tenant, acknowledged }: Shown): string {
  const facts = [`term ${term}`, timeText(timeMs), plain(tenant)].filter((fact) => fact !== '').join('  ');
  const told = acknowledged ? `  ${style(io, 'yellow', 'acknowledged')}` : '';
  return `${style(io, 'bold', `LSN ${lsn}`)}  ${style(io, 'dim', facts)}${told}`;
}

export function itemLine(io: Io, item: Shown): string {
  // On a terminal one line each; elsewhere all of it.
  const room = io.stdoutIsTty ? Math.max(40, io.columns) : Infinity;
  switch (item.kind) {
    case 'row': {
      const { what, values } = rowText(item);
      const by = item.indirect ? ' (by a trigger or foreign key)' : '';
      const text = cut(`${what}  ${values}${by}`.trimEnd(), room - 10);
      return `  ${style(io, OP_COLORS[item.op], item.op)}  ${text}`;
    }
    case 'schema':
      return `  schema version ${item.version}: ${cut(plain(item.sql.join('; ')), room - 30)}`;
    case 'tenant-create':
      return `  tenant ${plain(item.name)} was created`;
    case 'tenant-drop':
      return '  the tenant was dropped';
    case 'term-start':
      return `  term ${item.term} began`;
    case 'answer':
      return `  answered the write with the id ${valueText(item.id)}`;
    case 'missing':
      return style(io, 'yellow', gapText({ ...item, from: item.lsn, reason: item.why }));
    case 'other':
      return `  not shown: ${plain(item.why)}`;
    default:
      return item satisfies never;
  }
}

const CONFLICT_TEXT: Readonly<Record<Conflict['kind'], string>> = {
  exists: 'there is another row with this key',
  changed: 'the row has changed since',
  missing: 'the row is not there any more',
  schema: 'the table has other columns, or is not there',
};

function conflictText(conflict: Conflict): string {
  const { lsn, tenant, op, kind, key, old, new: now, present, resolution } = conflict;
  const { what, values } = rowText(conflict);
  // Only what the tail touched: the rest says nothing about the conflict.
  const touched = Object.keys({ ...old, ...now }).filter((name) => !Object.hasOwn(key, name));
  const found = Object.fromEntries(
    touched.flatMap((name) => (present?.[name] === undefined ? [] : [[name, present[name]]])),
  );
  const seen = present === undefined ? '' : `; now ${pairs(found)}`;
  return `  LSN ${lsn}  ${plain(tenant)}  ${op} ${what}  ${values}\n      ${CONFLICT_TEXT[kind]}${seen}; ${resolution}`;
}

/** Whether something is to be looked at: what was left out, but not because it is done, or is to stay away. */
export function leftToDo({ leftOut, unlisted }: ReapplyReport): number {
  return leftOut.filter(({ kind }) => kind !== 'retried' && kind !== 'forgotten').length + unlisted;
}

export function reportText(io: Io, report: ReapplyReport): string {
  const { dryRun, policy, transactions, rows, records, conflicts, leftOut, unlisted } = report;
  const written = dryRun ? 'would be written' : 'written';
  const parts = [
    fields(io, [
      ['rollback', `${report.rollbackId}, ${count(records)} records; in conflict: ${policy}`],
      [
        'transactions',
        `${count(transactions.applied)} ${written}, ${count(transactions.present)} there already, ` +
          `${count(transactions.repeated)} by an earlier run, ${count(transactions.leftOut)} left out`,
      ],
      [
        'rows',
        `${count(rows.applied)} ${written}, ${count(rows.present)} there already, ${count(rows.conflicts)} in conflict, ` +
          `${count(rows.indirect)} left to triggers and foreign keys${rows.derived > 0 ? `, ${count(rows.derived)} of search indexes left out` : ''}` +
          (rows.forgotten > 0 ? `, ${count(rows.forgotten)} left out since they were forgotten` : ''),
      ],
    ]),
  ];
  if (conflicts.length > 0)
    parts.push(`${style(io, 'bold', 'in conflict')}\n${conflicts.map(conflictText).join('\n')}`);
  if (leftOut.length > 0) {
    const lines = leftOut.map(({ lsn, tenant, kind, why, missingRows }) => {
      const missing = missingRows === undefined ? '' : `; ${count(missingRows)} of its rows are not there`;
      return `  LSN ${lsn}  ${plain(tenant || '-')}  ${kind}: ${plain(why)}${missing}`;
    });
    parts.push(`${style(io, 'bold', 'left out')}\n${lines.join('\n')}`);
  }
  if (unlisted > 0) parts.push(`and ${count(unlisted)} more, which are not listed`);
  if (policy === 'skip' && conflicts.length > 0)
    parts.push(
      '→ --on-conflict theirs writes the other rows of these transactions; ours makes the rows in conflict what the file says',
    );
  return parts.join('\n\n');
}
