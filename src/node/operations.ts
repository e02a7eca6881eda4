/**
 * What can be asked of a node from outside of its process, each by name: one table for the CLI, the admin socket and
 * `/v1`. An input is `unknown` until its schema has read it; a result is what `toJsonValue` takes.
 *
 * An operation whose input names a tenant needs a right on that tenant, any other a right on all of them.
 */
import { setTimeout as delay } from 'node:timers/promises';
import * as v from 'valibot';
import { formatPosition, parsePosition, toLsn, toStoreId, toTenantUuid, type Position } from '../base/brands.ts';
import { NostosError, serializeError } from '../base/errors.ts';
import { finiteNumber, plainRecord, readInput, wholeNumber } from '../base/input-schema.ts';
import type { SqlParameters } from '../store/values.ts';
import { memberChange } from './member-change.ts';
import { renderMetrics } from './metrics.ts';
import { executeScript, queryScript, readsOnly } from './sql-script.ts';
import type { Change, LongCallOptions, Node, NodeGroup, Progress, RecordSummary } from './types.ts';

export type Access = 'read' | 'write' | 'admin';

export interface OperationContext {
  readonly signal: AbortSignal;
  readonly onProgress: (progress: Progress) => void;
  /** One item of a stream; resolves when the receiver has room for the next. */
  readonly emit: (item: unknown) => Promise<void>;
}

interface Operation<Schema extends v.GenericSchema, Result> {
  readonly summary: string;
  readonly access: Access;
  /** Takes paths of this machine, so it is offered to the user of this machine only, never over HTTP. */
  readonly localOnly?: true;
  /** Answers with items before its result. */
  readonly streams?: true;
  readonly input: Schema;
  run(node: Node, input: v.InferOutput<Schema>, context: OperationContext): Promise<Result>;
}

function operation<Schema extends v.GenericSchema, Result>(
  definition: Operation<Schema, Result>,
): Operation<Schema, Result> {
  return definition;
}

const name = v.pipe(v.string(), v.minLength(1), v.maxLength(200));
const tenant = name;
const lsn = v.pipe(
  wholeNumber(),
  v.transform((value: number) => toLsn(value)),
);
const storeId = v.pipe(
  v.string(),
  v.regex(/^[0-9a-f]{32}$/, 'expected the id of a store, 32 hex digits'),
  v.transform((value: string) => toStoreId(value)),
);
const file = v.pipe(v.string(), v.minLength(1));
const flag = v.optional(v.boolean(), false);
const migrations = v.pipe(v.array(v.string()), v.minLength(1));
const sqlInput = v.union(
  [
    v.null(),
    finiteNumber,
    v.bigint(),
    v.string(),
    v.boolean(),
    v.custom<Uint8Array>((value) => value instanceof Uint8Array),
  ],
  'expected null, a number, text, a boolean or bytes',
);
const positional = v.array(sqlInput);
const named = plainRecord(sqlInput);
const parameters = v.optional(
  v.lazy((input): v.GenericSchema<SqlParameters> => (Array.isArray(input) ? positional : named)),
);

const FOLLOW_POLL_MS = 250;

function longCall({ signal, onProgress }: OperationContext): Required<LongCallOptions> {
  return { signal, onProgress };
}

/** Leaves out what was not given: the API tells absent from undefined. */
function given<T extends object>(options: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never;
}

function parseFrom(text: string): Position | 'now' {
  return text === 'now' ? text : parsePosition(text);
}

function groupOf(node: Node): NodeGroup {
  if (node.group !== undefined) return node.group;
  throw new NostosError('INVALID_ARGUMENT', 'this node is in no group; nostos group init begins one with its data');
}

function changeItem(change: Change): unknown {
  return { ...change, position: formatPosition(change.position) };
}

function recordItem(record: RecordSummary): unknown {
  return { ...record, position: formatPosition(record.position) };
}

export const OPERATIONS = {
  status: operation({
    summary: 'What the node is and how it does.',
    access: 'read',
    input: v.strictObject({}),
    run: async (node) => node.status(),
  }),
  'tenant.create': operation({
    summary: 'Creates a tenant.',
    access: 'admin',
    input: v.strictObject({ tenant, ifNotExists: flag }),
    run: async (node, input) => {
      await node.tenants.create(input.tenant, { ifNotExists: input.ifNotExists });
      return node.tenants.get(input.tenant);
    },
  }),
  'tenant.list': operation({
    summary: 'Tenants in order of name.',
    access: 'read',
    input: v.strictObject({
      after: v.optional(v.string()),
      limit: v.optional(v.pipe(wholeNumber(1), v.maxValue(10_000)), 1_000),
    }),
    run: async (node, input) => ({
      total: await node.tenants.count(),
      tenants: await node.tenants.list(given({ after: input.after, limit: input.limit })),
    }),
  }),
  'tenant.drop': operation({
    summary: 'Drops a tenant and its data.',
    access: 'admin',
    input: v.strictObject({ tenant }),
    run: async (node, input) => {
      await node.tenants.drop(input.tenant);
      return { dropped: input.tenant };
    },
  }),
  'tenant.replace': operation({
    summary: 'Replaces the content of a tenant by that of a file of this machine, which may be one of a tenant.',
    access: 'admin',
    localOnly: true,
    input: v.strictObject({
      tenant,
      file,
      at: v.optional(v.string()),
      schemaVersion: v.optional(wholeNumber(1)),
      uuid: v.optional(v.string()),
      keepViolations: v.optional(v.boolean()),
    }),
    run: async (node, { tenant: name, file, at, uuid, ...options }, context) => {
      const report = await node.tenants.replace(name, file, {
        ...given(options),
        ...(at === undefined ? {} : { at: parsePosition(at) }),
        ...(uuid === undefined ? {} : { uuid: toTenantUuid(uuid) }),
        ...longCall(context),
      });
      return { ...report, position: formatPosition(report.position) };
    },
  }),
  'tenant.status': operation({
    summary: 'Size, tables and position of a tenant.',
    access: 'read',
    input: v.strictObject({ tenant }),
    run: async (node, input) => node.tenant(input.tenant).status(),
  }),
  import: operation({
    summary: 'Fills a tenant from a SQLite file of this machine; makes the tenant where there is none.',
    access: 'admin',
    localOnly: true,
    input: v.strictObject({
      tenant,
      file,
      addKey: flag,
      keepViolations: flag,
      dryRun: flag,
    }),
    run: async (node, { tenant: name, file, ...options }, context) =>
      node.tenant(name).importFile(file, { ...options, ...longCall(context) }),
  }),
  export: operation({
    summary: 'Writes a tenant to a plain SQLite file of this machine.',
    access: 'read',
    localOnly: true,
    input: v.strictObject({ tenant, file, overwrite: flag }),
    run: async (node, { tenant: name, file, overwrite }, context) => {
      const report = await node.tenant(name).exportFile(file, { overwrite, ...longCall(context) });
      return { ...report, position: formatPosition(report.position) };
    },
  }),
  'sql.query': operation({
    summary: 'Runs statements that read.',
    access: 'read',
    input: v.strictObject({ tenant, sql: v.string(), parameters, timeoutMs: v.optional(wholeNumber(1)) }),
    run: async (node, input, { signal }) => queryScript(node.tenant(input.tenant), input, signal),
  }),
  'sql.execute': operation({
    summary: 'Runs statements in one transaction.',
    access: 'write',
    input: v.strictObject({ tenant, sql: v.string(), parameters, id: v.optional(name) }),
    // What only reads runs where it can be ended; what writes runs in the thread of the node, so a token that may write
    // is trusted with its time.
    run: async (node, input, { signal }) =>
      input.id === undefined && readsOnly(input.sql)
        ? queryScript(node.tenant(input.tenant), input, signal)
        : executeScript(node.tenant(input.tenant), input, signal),
  }),
  migrate: operation({
    summary: 'Brings the schema of a tenant to the last of these migrations.',
    access: 'admin',
    input: v.strictObject({ tenant, migrations }),
    run: async (node, input, context) => node.tenant(input.tenant).migrate(input.migrations, longCall(context)),
  }),
  'migrate.all': operation({
    summary: 'Brings the schema of every tenant to the last of these migrations.',
    access: 'admin',
    input: v.strictObject({ migrations }),
    run: async (node, input, context) => {
      const { migrated, failed } = await node.migrateAll({ migrations: input.migrations, ...longCall(context) });
      return { migrated, failed: failed.map((one) => ({ tenant: one.tenant, error: serializeError(one.error) })) };
    },
  }),
  log: operation({
    summary: 'Summaries of the records of the log, oldest first.',
    access: 'read',
    streams: true,
    input: v.strictObject({
      from: v.optional(lsn),
      to: v.optional(lsn),
      tenant: v.optional(tenant),
      limit: v.optional(wholeNumber(1)),
      follow: flag,
    }),
    run: async (node, input, { signal, emit }) => {
      let count = 0;
      let { from } = input;
      for (;;) {
        for await (const record of node.log(given({ from, to: input.to, tenant: input.tenant, signal }))) {
          await emit(recordItem(record));
          count += 1;
          from = toLsn(record.position.lsn + 1);
          if (count === input.limit) return { count };
        }
        if (!input.follow || (input.to !== undefined && from !== undefined && from > input.to)) return { count };
        await delay(FOLLOW_POLL_MS, undefined, { signal });
      }
    },
  }),
  changes: operation({
    summary: 'Committed row changes of a tenant, oldest first.',
    access: 'read',
    streams: true,
    input: v.strictObject({ tenant, from: v.optional(v.string()), follow: flag }),
    run: async (node, input, { signal, emit }) => {
      const from = input.from === undefined ? undefined : parseFrom(input.from);
      let count = 0;
      const options = given({ from, untilCaughtUp: !input.follow, int64: 'bigint' as const, signal });
      for await (const change of node.tenant(input.tenant).changes(options)) {
        await emit(changeItem(change));
        count += 1;
      }
      return { count };
    },
  }),
  'group.change': operation({
    summary: 'Adds a member once it has caught up, removes one, or changes minInSync.',
    access: 'admin',
    input: v.strictObject({
      add: v.optional(storeId),
      remove: v.optional(storeId),
      minInSync: v.optional(wholeNumber(1)),
    }),
    run: async (node, input) => {
      const group = groupOf(node);
      const { record } = await group.report();
      const change = record === null ? given(input) : memberChange(record, given(input));
      await group.changeMembers(change);
      const { members, inSync, minInSync } = (await group.report()).record ?? {};
      return { members, inSync, minInSync };
    },
  }),
  'group.handover': operation({
    summary: 'Hands the lead to another member.',
    access: 'admin',
    input: v.strictObject({ to: v.optional(storeId) }),
    run: async (node, input) => {
      await groupOf(node).handover(input.to);
      return { handedOver: true };
    },
  }),
  verify: operation({
    summary: 'Checks log, database files and fingerprints, of one tenant or of all.',
    access: 'read',
    input: v.strictObject({ tenant: v.optional(tenant) }),
    run: async (node, input, context) => node.verify({ ...given({ tenant: input.tenant }), ...longCall(context) }),
  }),
  'rollback.reapply': operation({
    summary: 'Turns the tail in a rollback file of this machine into new writes.',
    access: 'admin',
    localOnly: true,
    input: v.strictObject({
      file,
      policy: v.optional(v.picklist(['skip', 'theirs', 'ours']), 'skip'),
      retried: v.optional(v.picklist(['leave-out', 'apply']), 'leave-out'),
      dryRun: flag,
    }),
    // Loaded when it is asked for, which is hardly ever.
    run: async (node, { file, ...options }, { signal, onProgress }) => {
      const { reapplyInto } = await import('./reapply-target.ts');
      return reapplyInto(node, file, { ...options, signal, onProgress });
    },
  }),
  'backup.create': operation({
    summary: 'Makes a backup of this node, or of some of its tenants, at one position.',
    access: 'admin',
    localOnly: true,
    input: v.strictObject({
      to: v.pipe(v.string(), v.minLength(1)),
      keys: v.optional(file),
      tenants: v.optional(v.pipe(v.array(name), v.minLength(1))),
      label: v.optional(v.pipe(v.string(), v.maxLength(200))),
      full: flag,
      dryRun: flag,
    }),
    run: (node, { keys, tenants, label, ...input }, context) =>
      node.backup({ ...input, ...given({ keys, tenants, label }), ...longCall(context) }),
  }),
  metrics: operation({
    summary: 'Metrics in the text format of Prometheus.',
    access: 'read',
    input: v.strictObject({}),
    run: async (node) => renderMetrics(await node.status()),
  }),
} as const;

export type OperationName = keyof typeof OPERATIONS;
export type OperationInput<Name extends OperationName> = v.InferInput<(typeof OPERATIONS)[Name]['input']>;
export type OperationResult<Name extends OperationName> = Awaited<ReturnType<(typeof OPERATIONS)[Name]['run']>>;

export function isOperationName(name: string): name is OperationName {
  return Object.hasOwn(OPERATIONS, name);
}

/** Checks `input` against the operation's schema and runs it. */
export async function runOperation<Name extends OperationName>(
  node: Node,
  call: { readonly name: Name; readonly input: unknown },
  context: OperationContext,
): Promise<OperationResult<Name>> {
  const definition = OPERATIONS[call.name] as unknown as Operation<v.GenericSchema, OperationResult<Name>>;
  const refusal = (problem: string): NostosError => new NostosError('INVALID_ARGUMENT', `${call.name}: ${problem}`);
  // An empty array would pass for an object without fields.
  if (Array.isArray(call.input)) throw refusal('expected an object, got an array');
  const input = readInput(definition.input, call.input);
  if (!input.ok) throw refusal(input.problem);
  context.signal.throwIfAborted();
  return definition.run(node, input.value, context);
}
