/**
 * What the schemas of received data share. A refusal names the first field that is wrong and what was due there; text that
 * was received is not repeated, since it may be long, or secret. Nothing is looked at behind the first: of a request of
 * 1 MB, problems of all of its elements would take half a gigabyte.
 */
import * as v from 'valibot';

/** Exact, and not less than `least`: a count, a size, an LSN. */
export function wholeNumber(least = 0): v.GenericSchema<number> {
  return v.pipe(v.number(), v.safeInteger('expected a whole number'), v.minValue(least));
}

export const finiteNumber: v.GenericSchema<number> = v.pipe(v.number(), v.finite('expected a finite number'));

/** What a parser of its own makes of a value, such as an id; the parser throws where it is none. */
export function branded<T>(parse: (value: unknown) => T): v.GenericSchema<unknown, T> {
  return v.pipe(
    v.unknown(),
    v.rawTransform(({ dataset, addIssue, NEVER }) => {
      try {
        return parse(dataset.value);
      } catch {
        addIssue({ message: 'expected an id or number of Nostos' });
        return NEVER;
      }
    }),
  );
}

/**
 * Text to value. Unlike `v.record` it takes plain objects only, and leaves out no name but `__proto__`: that one could
 * pass for a property that nobody sent.
 */
export function plainRecord<Value>(
  value: v.GenericSchema<unknown, Value>,
  { nameCharsMax = Infinity, entriesMax = Infinity } = {},
): v.GenericSchema<Readonly<Record<string, Value>>, Record<string, Value>> {
  return v.pipe(
    v.custom<Readonly<Record<string, Value>>>(isPlainObject, 'expected a map'),
    v.rawTransform(({ dataset, addIssue }) => {
      const given = Object.entries(dataset.value).filter(([key]) => key !== '__proto__');
      const entries: [string, Value][] = [];
      const refuse = (...issue: Parameters<typeof addIssue>): Record<string, Value> => {
        addIssue(...issue);
        return {};
      };
      if (given.length > entriesMax) return refuse({ message: `more than ${entriesMax} entries` });
      for (const [key, item] of given) {
        if (key.length > nameCharsMax)
          return refuse({ message: `a name in it is longer than ${nameCharsMax} characters` });
        const read = v.safeParse(value, item, OPTIONS);
        if (!read.success) {
          const [{ message, path }] = read.issues;
          const input = dataset.value as Record<string, unknown>;
          const at = { type: 'object', origin: 'value', input, key, value: item } as const;
          return refuse({ message, path: [at, ...(path ?? [])] });
        }
        entries.push([key, read.output]);
      }
      return Object.fromEntries(entries);
    }),
  );
}

export type InputRead<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly problem: string };

export function readInput<Schema extends v.GenericSchema>(
  schema: Schema,
  input: unknown,
): InputRead<v.InferOutput<Schema>> {
  const read = v.safeParse(schema, input, OPTIONS);
  if (read.success) return { ok: true, value: read.output };
  const [issue] = read.issues;
  const path = v.getDotPath(issue);
  return { ok: false, problem: path === null ? issue.message : `${path}: ${issue.message}` };
}

function why({ type, expected, received, path }: v.BaseIssue<unknown>): string {
  if (path?.at(-1)?.origin === 'key') return expected === 'never' ? 'there is no such field' : 'it is missing';
  const due = `${type.endsWith('_length') ? 'a length ' : ''}${expected ?? 'something else'}`;
  return `expected ${due}, got ${received.startsWith('"') ? 'text' : received}`;
}

const OPTIONS = { message: why, abortEarly: true } as const;

function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}
