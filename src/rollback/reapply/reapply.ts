/**
 * Turns the tail in a rollback file into new writes: a transaction for each changeset, compared with the rows as they are
 * inside that very transaction, under an id of its own, so that a second run writes nothing again. A file that turns out to
 * be damaged stops it there; what was written before is whole transactions.
 */
import type { Disk } from '../../base/disk.ts';
import { NostosError, isNostosError } from '../../base/errors.ts';
import { RecordKind } from '../../log/record.ts';
import type { KeyValue } from '../../store/forget.ts';
import { decodeChangesetPayload } from '../../store/payload.ts';
import { describeFile, readFileItems, verifyFile, type FileRecord } from '../file/reader.ts';
import { rowsOf, type TailRow, type Values } from '../rows.ts';
import { showRecord } from '../show.ts';
import { ROLLBACK_LIMITS, type CommonPoint, type RollbackLimits } from '../types.ts';
import { answersOf, planTransaction, type Answer, type Present, type RowWrite, type TransactionPlan } from './plan.ts';
import { rowOf, selectRow, writeRow } from './sql.ts';
import {
  POLICIES,
  type Conflict,
  type IsForgotten,
  type LeftOut,
  type Policy,
  type ReapplyReport,
  type ReapplyTarget,
  type ReapplyTenant,
  type RowReader,
  type RowWriter,
} from './types.ts';

export interface ReapplyOptions {
  readonly policy?: Policy;
  readonly dryRun?: boolean;
  /** `apply`: also what a client has tried again, which may then come twice. */
  readonly retried?: 'leave-out' | 'apply';
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly unit: 'records' }) => void;
  readonly limits?: Partial<RollbackLimits>;
}

export interface ReapplyDeps {
  readonly disk: Disk;
  readonly target: ReapplyTarget;
}

export async function reapplyFile(
  deps: ReapplyDeps,
  path: string,
  options: ReapplyOptions = {},
): Promise<ReapplyReport> {
  const { disk, target } = deps;
  const { policy = 'skip', dryRun = false, retried = 'leave-out', signal, onProgress } = options;
  const limits = { ...ROLLBACK_LIMITS, ...options.limits };
  // Before the first write: a damaged file is not applied by half.
  const { header, footer } = dryRun ? describeFile(disk, path) : await verifyFile(disk, path, signal);
  const report = new ReportBuilder(limits);
  const overlay = dryRun ? new Overlay(limits.dryRunRowsMax) : undefined;
  const tenants = new TenantCache(target, header.common);
  for await (const found of readFileItems(disk, path, signal)) {
    signal?.throwIfAborted();
    if (!('record' in found)) {
      const { from: lsn, to, more, reason } = found;
      const why = more ? `${reason}; it is not known how many records followed` : reason;
      report.leaveOut({ lsn, to, tenant: '', kind: 'missing', why });
      continue;
    }
    report.records += 1;
    const { lsn } = found.record;
    const job = await jobOf(found, tenants, report);
    if (job !== undefined) {
      const context = { ...job, lsn, policy, applyRetried: retried === 'apply', id: `rollback:${header.id}:${lsn}` };
      if (overlay === undefined) await apply(context, report);
      else await rehearse(context, report, overlay);
    }
    onProgress?.({ done: report.records, total: footer.records, unit: 'records' });
  }
  return report.build({ rollbackId: header.id, policy, dryRun });
}

interface Job {
  readonly name: string;
  readonly tenant: ReapplyTenant;
  readonly rows: readonly TailRow[];
  readonly answers: readonly Answer[];
}

interface Context extends Job {
  readonly id: string;
  readonly lsn: number;
  readonly policy: Policy;
  readonly applyRetried: boolean;
}

/** The changes of a record and where they go; undefined, and reported, where there is nothing to be written. */
async function jobOf(found: FileRecord, tenants: TenantCache, report: ReportBuilder): Promise<Job | undefined> {
  const { record, schema, tenantName: name } = found;
  const { lsn, kind, payload } = record;
  const leaveOut = (why: LeftOut['kind'], text: string): undefined => {
    report.leaveOut({ lsn, tenant: name, kind: why, why: text });
    return undefined;
  };
  if (kind === RecordKind.termStart || kind === RecordKind.noop) return undefined;
  if (kind !== RecordKind.changeset) {
    const [shown] = showRecord(found);
    return leaveOut('record', shown?.kind === 'other' ? shown.why : `${shown?.kind ?? 'record'}; repeat it yourself`);
  }
  if (schema === undefined) return leaveOut('unreadable', 'the file does not have the names of its columns');
  let rows: TailRow[];
  try {
    rows = [...rowsOf(decodeChangesetPayload(payload).changeset, schema.tables)];
  } catch (error) {
    if (!(error instanceof NostosError)) throw error;
    return leaveOut('unreadable', error.message);
  }
  const { tenant, isForgotten } = await tenants.get(name);
  if (tenant === undefined) return leaveOut('tenant', `there is no tenant ${JSON.stringify(name)}`);
  if (tenant.uuid !== schema.uuid) return leaveOut('tenant', `tenant ${JSON.stringify(name)} is another one now`);
  const kept = rows.filter((row) => !isForgotten(row.table, keyOf(row)));
  report.forgotten(rows.length - kept.length);
  // What triggers made of a row goes with it.
  if (kept.length < rows.length && kept.every(({ indirect }) => indirect))
    return leaveOut('forgotten', 'its rows were forgotten for good');
  return { name, tenant, rows: kept, answers: answersOf(kept) };
}

/** Of a table that the file does not know, whose key columns it cannot tell apart, none. */
function keyOf({ names, key }: TailRow): KeyValue[] {
  const values = names?.keyColumns.map((column) => key[column] ?? null) ?? [];
  return values.filter((value) => value !== null);
}

async function apply(context: Context, report: ReportBuilder): Promise<void> {
  const { tenant, rows, answers, policy } = context;
  let outcome: Outcome = { kind: 'repeated' };
  try {
    await tenant.write(idOf(context, policy), (writer) => {
      outcome = outcomeOf(context, writer, () => planTransaction(rows, presentIn(tenant, writer), policy));
      if (outcome.kind !== 'apply') throw new NothingWritten();
      writeAll(writer, outcome.plan.writes);
      for (const { id, result } of answers) if (!writer.known(id)) writer.remember(id, result);
    });
  } catch (error) {
    if (isNostosError(error, 'CONSTRAINT_FAILED') || isNostosError(error, 'TRANSACTION_TOO_LARGE'))
      return report.leaveOut({ ...placeOf(context), kind: 'refused', why: error.message });
    if (!(error instanceof NothingWritten)) throw error;
  }
  report.add(context, outcome);
}

/** Undoes a transaction, so that its id is not taken by one that did nothing. */
class NothingWritten extends Error {
  override readonly name = 'NothingWritten';
}

async function rehearse(context: Context, report: ReportBuilder, overlay: Overlay): Promise<void> {
  const { tenant, name, rows, answers, policy } = context;
  const outcome = await tenant.read((reader): Outcome => {
    const known = (id: string): boolean => reader.known(id) || overlay.answered(name, id);
    const present = overlay.over(name, presentIn(tenant, reader));
    return outcomeOf(context, { known }, () => planTransaction(rows, present, policy));
  });
  if (outcome.kind === 'apply') overlay.write(name, [...outcome.plan.writes, ...outcome.plan.indirect], answers);
  report.add(context, outcome);
}

type Outcome =
  | { readonly kind: 'apply'; readonly plan: TransactionPlan }
  | { readonly kind: 'conflict'; readonly plan: TransactionPlan }
  | { readonly kind: 'retried'; readonly ids: readonly string[]; readonly missingRows: number }
  | { readonly kind: 'repeated' };

const idOf = ({ id }: Context, policy: Policy): string => `${id}:${policy}`;

function outcomeOf(context: Context, { known }: Pick<RowReader, 'known'>, plan: () => TransactionPlan): Outcome {
  const { answers, applyRetried, policy } = context;
  const earlier = POLICIES.filter((one) => known(idOf(context, one)));
  // Only `theirs` may have left rows that `ours` writes.
  if (earlier.some((one) => one !== 'theirs' || policy !== 'ours')) return { kind: 'repeated' };
  const planned = plan();
  const ids = answers.filter(({ id }) => known(id)).map(({ id }) => id);
  if (ids.length > 0 && earlier.length === 0 && !applyRetried)
    return { kind: 'retried', ids, missingRows: planned.writes.length + planned.conflicts.length };
  return { kind: planned.skipped ? 'conflict' : 'apply', plan: planned };
}

/**
 * A changeset has its rows in no order that foreign keys and unique columns allow one by one: what is refused is tried
 * again behind the others, as long as each pass gets at least one more row in.
 */
function writeAll(writer: RowWriter, writes: readonly RowWrite[]): void {
  let left = writes;
  let refusal: unknown;
  while (left.length > 0) {
    const refused: RowWrite[] = [];
    for (const write of left)
      try {
        const { text, parameters } = writeRow(write);
        writer.savepoint(() => writer.run(text, parameters));
      } catch (error) {
        if (!isNostosError(error, 'CONSTRAINT_FAILED')) throw error;
        refusal = error;
        refused.push(write);
      }
    if (refused.length === left.length) throw refusal;
    left = refused;
  }
}

function presentIn({ tables }: ReapplyTenant, reader: RowReader): Present {
  return {
    table: (name) => tables.find((table) => table.name === name),
    row: (names, key) => {
      const { text, parameters } = selectRow(names, key);
      const found = reader.get(text, parameters);
      return found === undefined ? undefined : rowOf(names, found);
    },
  };
}

/** What a dry run would have written so far. */
class Overlay {
  readonly #rowsMax: number;
  /** Undefined: deleted. */
  readonly #rows = new Map<string, Values | undefined>();
  readonly #answered = new Set<string>();

  constructor(rowsMax: number) {
    this.#rowsMax = rowsMax;
  }

  over(tenant: string, present: Present): Present {
    return {
      ...present,
      row: (names, key) => {
        const at = placeIn(tenant, names.name, key);
        if (!this.#rows.has(at)) return present.row(names, key);
        const written = this.#rows.get(at);
        // What was updated has only its changed columns here.
        return written === undefined ? undefined : { ...present.row(names, key), ...written };
      },
    };
  }

  answered(tenant: string, id: string): boolean {
    return this.#answered.has(JSON.stringify([tenant, id]));
  }

  write(tenant: string, writes: readonly RowWrite[], answers: readonly Answer[]): void {
    for (const { table, op, key, set } of writes) {
      const at = placeIn(tenant, table, key);
      this.#rows.set(at, op === 'delete' ? undefined : op === 'insert' ? set : { ...this.#rows.get(at), ...set });
    }
    for (const { id } of answers) this.#answered.add(JSON.stringify([tenant, id]));
    if (this.#rows.size + this.#answered.size > this.#rowsMax)
      throw new NostosError(
        'ROLLBACK_TOO_LARGE',
        `a dry run of this file touches more than dryRunRowsMax = ${this.#rowsMax} rows; show lists them without comparing`,
        { details: { limit: 'dryRunRowsMax', max: this.#rowsMax } },
      );
  }
}

function placeIn(tenant: string, table: string, key: Values): string {
  const parts = Object.values(key).map((value) =>
    typeof value === 'object' && value !== null
      ? Buffer.from(value instanceof Uint8Array ? value : value.text).toString('hex')
      : String(value),
  );
  const types = Object.values(key).map((value) => (value instanceof Uint8Array ? 'bytes' : typeof value));
  return JSON.stringify([tenant, table, types, parts]);
}

interface FoundTenant {
  readonly tenant: ReapplyTenant | undefined;
  readonly isForgotten: IsForgotten;
}

/** Tails change few tenants at a time. */
class TenantCache {
  readonly #target: ReapplyTarget;
  readonly #common: CommonPoint;
  #name: string | undefined;
  #found: FoundTenant = { tenant: undefined, isForgotten: () => false };

  constructor(target: ReapplyTarget, common: CommonPoint) {
    this.#target = target;
    this.#common = common;
  }

  async get(name: string): Promise<FoundTenant> {
    if (name !== this.#name) {
      const tenant = await this.#target.tenant(name);
      this.#found = { tenant, isForgotten: (await tenant?.forgottenSince(this.#common)) ?? (() => false) };
      this.#name = name;
    }
    return this.#found;
  }
}

const placeOf = ({ lsn, name }: Context): { lsn: number; tenant: string } => ({ lsn, tenant: name });

class ReportBuilder {
  readonly #listedMax: number;
  readonly #transactions = { applied: 0, present: 0, repeated: 0, leftOut: 0 };
  readonly #rows = { applied: 0, present: 0, conflicts: 0, indirect: 0, derived: 0, forgotten: 0 };
  readonly #conflicts: Conflict[] = [];
  readonly #leftOut: LeftOut[] = [];
  #unlisted = 0;
  records = 0;

  constructor({ conflictsListedMax }: RollbackLimits) {
    this.#listedMax = conflictsListedMax;
  }

  leaveOut(item: LeftOut): void {
    if (item.kind !== 'record') this.#transactions.leftOut += 1;
    this.#list(this.#leftOut, item);
  }

  forgotten(rows: number): void {
    this.#rows.forgotten += rows;
  }

  add(context: Context, outcome: Outcome): void {
    const place = placeOf(context);
    switch (outcome.kind) {
      case 'repeated':
        this.#transactions.repeated += 1;
        return;
      case 'retried': {
        const { ids, missingRows } = outcome;
        const why = `a client has tried ${ids.map((id) => JSON.stringify(id)).join(', ')} again`;
        return this.leaveOut({ ...place, kind: 'retried', why, missingRows });
      }
      case 'apply':
      case 'conflict': {
        const { writes, conflicts, present, indirect, derived } = outcome.plan;
        for (const conflict of conflicts) this.#list(this.#conflicts, { ...place, ...conflict });
        this.#rows.conflicts += conflicts.length;
        this.#rows.applied += writes.length;
        this.#rows.present += present;
        this.#rows.indirect += indirect.length;
        this.#rows.derived += derived;
        if (outcome.kind === 'conflict')
          return this.leaveOut({
            ...place,
            kind: 'conflict',
            why: `${conflicts.length} of its rows have changed since`,
          });
        this.#transactions[writes.length > 0 ? 'applied' : 'present'] += 1;
        return;
      }
      default:
        outcome satisfies never;
    }
  }

  build(run: Pick<ReapplyReport, 'rollbackId' | 'policy' | 'dryRun'>): ReapplyReport {
    return {
      ...run,
      records: this.records,
      transactions: this.#transactions,
      rows: this.#rows,
      conflicts: this.#conflicts,
      leftOut: this.#leftOut,
      unlisted: this.#unlisted,
    };
  }

  #list<T>(list: T[], item: T): void {
    if (list.length < this.#listedMax) list.push(item);
    else this.#unlisted += 1;
  }
}
