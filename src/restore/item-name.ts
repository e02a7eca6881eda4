/**
 * What an item is called on the wire, and where it lies in a directory. Both sides make paths from the parsed parts;
 * received text is never a path.
 */
import { NostosError } from '../base/errors.ts';
import type { Brand } from '../base/brands.ts';

/** `log/0000002a.ndb`, `log/terms`, `log/ledger`, `tenant/7`, `catalog`, or `file/<name>` of a plain directory. */
export type ItemName = Brand<string, 'ItemName'>;

const SEGMENT = /^log\/[0-9a-f]{8}\.ndb$/;
const LOG_TABLES: ReadonlySet<string> = new Set(['log/terms', 'log/ledger']);
const TENANT = /^tenant\/([1-9][0-9]{0,15})$/;
const FILE = /^file\/(?!\.)[A-Za-z0-9._-]{1,200}$/;

export function parseItemName(text: unknown): ItemName {
  if (typeof text === 'string') {
    if (text === 'catalog' || LOG_TABLES.has(text)) return text as ItemName;
    if (SEGMENT.test(text) || FILE.test(text)) return text as ItemName;
    const tenant = TENANT.exec(text);
    if (tenant !== null && Number.isSafeInteger(Number(tenant[1]))) return text as ItemName;
  }
  throw new NostosError(
    'INVALID_ARGUMENT',
    `a peer named an item ${JSON.stringify(text)?.slice(0, 100)}, which is none`,
  );
}

/** Where the item lies, relative to the directory, in parts. */
export function itemPath(name: ItemName): readonly string[] {
  if (name === 'catalog') return ['catalog.sqlite'];
  if (name.startsWith('log/')) return ['log', name.slice(4)];
  if (name.startsWith('file/')) return [name.slice(5)];
  return ['tenants', `tenant_${name.slice(7)}`, 'data.sqlite'];
}
