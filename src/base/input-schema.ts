/**
 * What the schemas of received data share. A refusal names the field and what was due there; text that was received is not
 * repeated, since it may be long, or secret.
 */
import * as v from 'valibot';

const PROBLEMS_MAX = 5;

/** Exact, and not less than `least`: a count, a size, an LSN. */
export function wholeNumber(least = 0): v.GenericSchema<number> {
  return v.pipe(v.number(), v.safeInteger('expected a whole number'), v.minValue(least));
}

export const finiteNumber: v.GenericSchema<number> = v.pipe(v.number(), v.finite('expected a finite number'));

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
      const entries: [string, Value][] = [];
      for (const [key, item] of Object.entries(dataset.value)) {
        if (key === '__proto__') continue;
        if (key.length > nameCharsMax) addIssue({ message: `a name in it is longer than ${nameCharsMax} characters` });
        const read = v.safeParse(value, item, { message: why });
        if (read.success) entries.push([key, read.output]);
        else {
          const [{ message, path }] = read.issues;
          const at = {
            type: 'object',
            origin: 'value',
            input: dataset.value as Record<string, unknown>,
            key,
            value: item,
          } as const;
          addIssue({ message, path: [at, ...(path ?? [])] });
        }
      }
      if (entries.length > entriesMax) addIssue({ message: `more than ${entriesMax} entries` });
      return Object.fromEntries(entries);
    }),
  );
}

export type InputRead<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly problem: string };

export function readInput<Schema extends v.GenericSchema>(
  schema: Schema,
  input: unknown,
): InputRead<v.InferOutput<Schema>> {
  const read = v.safeParse(schema, input, { message: why });
  if (read.success) return { ok: true, value: read.output };
  const told = read.issues.slice(0, PROBLEMS_MAX).map((issue) => {
    const path = v.getDotPath(issue);
    return path === null ? issue.message : `${path}: ${issue.message}`;
  });
  const more = read.issues.length - told.length;
  return { ok: false, problem: `${told.join('; ')}${more > 0 ? `; and ${more} more` : ''}` };
}

function why({ type, expected, received, path }: v.BaseIssue<unknown>): string {
  if (path?.at(-1)?.origin === 'key') return expected === 'never' ? 'there is no such field' : 'it is missing';
  const due = `${type.endsWith('_length') ? 'a length ' : ''}${expected ?? 'something else'}`;
  return `expected ${due}, got ${received.startsWith('"') ? 'text' : received}`;
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}
