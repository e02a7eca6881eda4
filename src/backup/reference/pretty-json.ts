/**
 * JSON as serde_json's pretty printer writes it: two spaces, no newline at the end, nothing inside of an empty array or map.
 * Unlike with `JSON.stringify` bigints are numbers, and the keys of a `Map` keep their order, also those that look like one.
 */
export type PrettyJson =
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly PrettyJson[]
  | ReadonlyMap<string, PrettyJson>
  | { readonly [key: string]: PrettyJson };

export function toPrettyJson(value: PrettyJson, indent = ''): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (typeof value !== 'object' || value === null) return String(value);
  const inner = `${indent}  `;
  const isList = Array.isArray(value);
  const lines = isList
    ? (value as readonly PrettyJson[]).map((item) => toPrettyJson(item, inner))
    : entriesOf(value).map(([key, item]) => `${JSON.stringify(key)}: ${toPrettyJson(item, inner)}`);
  const [open, close] = isList ? '[]' : '{}';
  return lines.length === 0
    ? `${open}${close}`
    : `${open}\n${lines.map((line) => inner + line).join(',\n')}\n${indent}${close}`;
}

function entriesOf(value: object): (readonly [string, PrettyJson])[] {
  return [...(value instanceof Map ? (value as ReadonlyMap<string, PrettyJson>) : Object.entries(value))];
}
