/** Checks everything that a node holds: the chain and CRCs of the log, each tenant's file, rows against the log. */
import { join } from 'node:path';
import type { Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import type { ForgetLedger } from '../log/ledger.ts';
import type { LogVerification } from '../log/verify.ts';
import { HIDDEN_END, type Catalog, type CatalogEntry } from '../store/catalog.ts';
import type { ScrubReport } from '../store/maintenance.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import type { TenantStore } from '../store/tenant-store.ts';
import type { EngineClient } from './engine-client.ts';
import type { ThreadMaintenance } from './maintenance.ts';
import type { LongCallOptions, VerifyProblem, VerifyReport } from './types.ts';

export interface VerifyDeps {
  readonly dir: string;
  readonly catalog: Catalog;
  readonly engine: EngineClient;
  readonly maintenance: ThreadMaintenance;
  readonly tenants: OpenTenants;
  readonly ledger: ForgetLedger;
}

type TenantResult = VerifyReport['tenants'][number];

export async function verifyNode(
  deps: VerifyDeps,
  options: LongCallOptions & { readonly tenant?: string },
): Promise<VerifyReport> {
  const startedMs = performance.now();
  const problems: VerifyProblem[] = [];
  const log = await verifyTheLog(deps, options, problems);
  verifyLedger(deps.ledger, problems);
  const tenants: TenantResult[] = [];
  const total = options.tenant === undefined ? deps.catalog.count() : 1;
  for (const entry of entries(deps.catalog, options.tenant)) {
    options.signal?.throwIfAborted();
    tenants.push(await verifyTenant(deps, entry, options, problems));
    options.onProgress?.({ phase: `verified tenant ${entry.name}`, done: tenants.length, total, unit: 'tenants' });
  }
  return { ok: problems.length === 0, log, tenants, problems, elapsedMs: Math.round(performance.now() - startedMs) };
}

/** As it is on disk now; it was read when it was opened. */
function verifyLedger(ledger: ForgetLedger, problems: VerifyProblem[]): void {
  try {
    for (const _ of ledger.entries());
  } catch (error) {
    const remedy = 'restore this node from a peer; a backup has it, too';
    problems.push({ where: 'log/ledger', what: (error as Error).message, remedy });
  }
}

/** Only the log: what is damaged, in words. */
export async function verifyLog(deps: VerifyDeps, options: LongCallOptions): Promise<readonly string[]> {
  const problems: VerifyProblem[] = [];
  await verifyTheLog(deps, options, problems);
  return problems.map(({ where, what }) => `${where}: ${what}`);
}

async function verifyTheLog(
  deps: VerifyDeps,
  options: LongCallOptions,
  problems: VerifyProblem[],
): Promise<VerifyReport['log']> {
  const hold = await deps.engine.reserveAll(); // no segment goes while it is about to be read
  const { report, watermark } = await verifyHeld(deps, options).finally(() => hold.release());
  const remedy = 'restore this node from a backup or a peer; the log is not repaired in place';
  for (const damage of report.damages)
    problems.push({
      where: `log segment ${damage.segment}, offset ${damage.offset}, LSN ${damage.lsn}`,
      what: damage.reason,
      remedy,
    });
  if (report.lastLsn < watermark)
    problems.push({
      where: 'log',
      what: `it ends at LSN ${report.lastLsn}, below the committed LSN ${watermark}`,
      remedy,
    });
  return { segments: report.segments, records: report.records, bytes: report.bytes };
}

async function verifyHeld(
  { dir, engine, maintenance }: VerifyDeps,
  options: LongCallOptions,
): Promise<{ readonly report: LogVerification; readonly watermark: Lsn }> {
  const { watermark } = await engine.status();
  const report = await maintenance.verifyLog(join(dir, 'log'), (watermark + 1) as Lsn, {
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    onProgress: ({ bytesDone, bytesTotal }) =>
      options.onProgress?.({ phase: 'verifying the log', done: bytesDone, total: bytesTotal, unit: 'bytes' }),
  });
  return { report, watermark };
}

async function verifyTenant(
  deps: VerifyDeps,
  entry: CatalogEntry,
  options: LongCallOptions,
  problems: VerifyProblem[],
): Promise<TenantResult> {
  const where = `tenant ${entry.name}`;
  const remedy = 'restore this tenant from a backup or a peer';
  try {
    const scrub = async (store: TenantStore): Promise<ScrubReport> => {
      await store.reader(); // brings a file that lags behind up to date
      return deps.maintenance.scrub(
        { path: store.path, integrity: true },
        {
          ...(options.signal === undefined ? {} : { signal: options.signal }),
          onProgress: (rows) =>
            options.onProgress?.({ phase: `reading rows of ${entry.name}`, done: rows, unit: 'rows' }),
        },
      );
    };
    const report = await deps.tenants.with(entry, scrub, { keep: false });
    for (const what of report.integrity) problems.push({ where, what: `SQLite: ${what}`, remedy });
    const equal = report.actual === report.expected;
    if (!equal)
      problems.push({
        where,
        what: `the rows differ from what the log says: fingerprint ${report.actual} instead of ${report.expected}`,
        remedy,
      });
    return {
      name: entry.name,
      rows: report.rows,
      integrity: report.integrity.length === 0 ? 'ok' : 'damaged',
      fingerprint: equal ? 'equal' : 'different',
    };
  } catch (error) {
    options.signal?.throwIfAborted();
    problems.push({ where, what: (error as Error).message, remedy });
    return { name: entry.name, rows: 0, integrity: 'damaged', fingerprint: 'different' };
  }
}

function* entries(catalog: Catalog, tenant: string | undefined): Iterable<CatalogEntry> {
  if (tenant !== undefined) {
    const entry = catalog.get(tenant);
    if (entry === undefined)
      throw new NostosError('TENANT_NOT_FOUND', `there is no tenant ${JSON.stringify(tenant)}`, {
        details: { tenant },
      });
    yield entry;
    return;
  }
  // What is yet to replace a tenant is not looked at.
  for (let after = HIDDEN_END; ;) {
    const page = catalog.list(after, 1_000);
    yield* page;
    if (page.length < 1_000) return;
    after = page[page.length - 1]!.name;
  }
}
