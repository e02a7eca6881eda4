/** Text for people: tables, figures, times. Nothing here is for programs: they read `--json`. */
import type { Io } from './io.ts';

export interface Column<Item> {
  readonly title: string;
  readonly value: (item: Item) => unknown;
  readonly align?: 'right' | undefined;
}

const ESCAPES = /\u001B\[\d+m/g;
const WIDE =
  /[\u1100-\u115F\u2E80-\uA4CF\uAC00-\uD7A3\uF900-\uFAFF\uFE30-\uFE6F\uFF00-\uFF60\uFFE0-\uFFE6]|\p{Emoji_Presentation}/u;
/** Made at its first use: ICU takes several MiB. */
let segmenter: Intl.Segmenter | undefined;

/** Columns that the text takes on a terminal. */
export function width(text: string): number {
  if (/^[\x20-\x7e]*$/.test(text)) return text.length;
  let columns = 0;
  segmenter ??= new Intl.Segmenter();
  for (const { segment } of segmenter.segment(text.replace(ESCAPES, ''))) columns += WIDE.test(segment) ? 2 : 1;
  return columns;
}

function pad(text: string, columns: number, align: 'left' | 'right'): string {
  const space = ' '.repeat(Math.max(0, columns - width(text)));
  return align === 'right' ? space + text : text + space;
}

const STYLES = {
  bold: [1, 22],
  dim: [2, 22],
  green: [32, 39],
  red: [31, 39],
  yellow: [33, 39],
  cyan: [36, 39],
} as const;

export function style(io: Io, name: keyof typeof STYLES, text: string): string {
  if (!io.color) return text;
  const [on, off] = STYLES[name];
  return `\u001B[${on}m${text}\u001B[${off}m`;
}

/** One line per item, columns aligned, a heading above. Ends without a line break. */
export function table<Item>(io: Io, items: readonly Item[], columns: readonly Column<Item>[]): string {
  const cells = items.map((item) => columns.map((column) => oneLine(column.value(item))));
  const widths = columns.map((column, index) =>
    cells.reduce((most, row) => Math.max(most, width(row[index]!)), width(column.title)),
  );
  const line = (row: readonly string[]): string =>
    row
      .map((cell, index) => pad(cell, widths[index]!, columns[index]!.align ?? 'left'))
      .join('  ')
      .trimEnd();
  const heading = line(columns.map((column) => column.title));
  return [style(io, 'bold', heading), ...cells.map(line)].join('\n');
}

/** Rows of SQL: columns by name, numbers to the right, long values cut on a terminal. */
export function rowTable(io: Io, rows: readonly Readonly<Record<string, unknown>>[]): string {
  if (rows.length === 0) return style(io, 'dim', '(no rows)');
  const names = Object.keys(rows[0]!);
  const isNumber = (value: unknown): boolean =>
    value === null || typeof value === 'number' || typeof value === 'bigint';
  const most = io.stdoutIsTty ? Math.max(12, Math.floor(io.columns / Math.min(names.length, 4))) : Infinity;
  return table(
    io,
    rows,
    names.map((name) => ({
      title: name,
      value: (row) => cut(sqlText(row[name]), most),
      align: rows.every((row) => isNumber(row[name])) ? ('right' as const) : undefined,
    })),
  );
}

/** On a terminal a long line says less than its beginning. */
export function cut(text: string, columns: number): string {
  return width(text) <= columns ? text : `${text.slice(0, columns - 1)}…`;
}

function sqlText(value: unknown): string {
  if (value === null) return 'NULL';
  if (value instanceof Uint8Array) {
    const hex = Buffer.from(value.buffer, value.byteOffset, Math.min(value.length, 16)).toString('hex');
    return `x'${hex}${value.length > 16 ? `…' (${count(value.length)} bytes)` : "'"}`;
  }
  return oneLine(value);
}

/** Control characters would let data move the cursor, so they are shown escaped. */
function oneLine(value: unknown): string {
  const text = value === undefined || value === null ? '' : stringOf(value);
  return text.replace(/\u001B(?!\[\d{1,2}m)|[\u0000-\u001A\u001C-\u001F\u007F-\u009F]/g, escapeCharacter);
}

export function escapeCharacter(character: string): string {
  if (character === '\n') return '\\n';
  if (character === '\t') return '\\t';
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
}

function stringOf(value: unknown): string {
  return typeof value === 'string' ? value : typeof value === 'object' ? JSON.stringify(value) : `${value as number}`;
}

/** `12,345`, of a whole number; without ICU, which takes several MiB. */
export function count(value: number | bigint): string {
  return String(value).replaceAll(/\B(?=(?:\d{3})+$)/g, ',');
}

/** `1.5 MiB` */
export function bytes(value: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let amount = value;
  let unit = 0;
  while (amount >= 1024 && unit < units.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? count(Math.round(amount)) : amount.toFixed(1)} ${units[unit]}`;
}

/** `340 ms`, `2.5 s`, `3 min 20 s` */
export function duration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} days`;
}

/** Name and value, one per line, values aligned. */
export function fields(io: Io, items: readonly (readonly [string, unknown])[]): string {
  const most = Math.max(...items.map(([name]) => width(name)));
  return items.map(([name, value]) => `${style(io, 'dim', pad(name, most, 'left'))}  ${oneLine(value)}`).join('\n');
}
