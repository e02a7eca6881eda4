/**
 * What a restore has fetched, opened as the node that it will be: everything is brought up to the log, checked, and in the
 * files when this ends. The directory is not one that anybody else opens: it needs no lock, and serves nobody.
 */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { systemDisk } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { ForgetLedger, readableEntries } from '../log/ledger.ts';
import { loadNode, writeNode } from './node-file.ts';
import { openStaged } from './open-node.ts';
import type { LongCallOptions, NodeOptions } from './types.ts';

export interface VerifiedCopy {
  readonly tenants: number;
  readonly rows: number;
  readonly records: number;
  /** The last record of its log. */
  readonly lsn: number;
}

/** Problems that an error names; of many the first ones say enough. */
const PROBLEMS_MAX = 10;

export interface VerifyStagedOptions extends LongCallOptions, Pick<NodeOptions, 'limits'> {
  /** The directory that the copy takes the place of. What was forgotten there, and the source does not know, is kept. */
  readonly former?: string;
}

export async function verifyStaged(dir: string, options: VerifyStagedOptions = {}): Promise<VerifiedCopy> {
  const { limits, former, ...call } = options;
  if (former !== undefined)
    ForgetLedger.open(systemDisk, join(dir, 'log')).add([...readableEntries(systemDisk, join(former, 'log'))]);
  const node = await openStaged({ dir, ...(limits === undefined ? {} : { limits }) });
  let verified: VerifiedCopy;
  try {
    const report = await node.verify(call);
    if (!report.ok) {
      const problems = report.problems.slice(0, PROBLEMS_MAX).map(({ where, what }) => `${where}: ${what}`);
      throw new NostosError(
        'VERIFY_FAILED',
        `what was fetched does not check out (${report.problems.length} problems): ${problems.join('; ')}. Restore from another provider, or verify this one first (nostos verify)`,
        { details: { problems: report.problems.length, first: problems[0] } },
      );
    }
    const { watermark: lsn, term } = (await node.status()).log;
    const rows = report.tenants.reduce((sum, tenant) => sum + tenant.rows, 0);
    verified = { tenants: report.tenants.length, rows, records: report.log.records, lsn };
    const identity = loadNode(dir, undefined);
    // From now on a log that ends before this has lost something.
    writeNode(dir, { ...identity, copy: { source: identity.copy?.source ?? null, reaches: { term, lsn } } });
  } finally {
    await node.close();
  }
  assertWhole(dir);
  return verified;
}

/** Closing moves everything into the files; where it could not, the disk has failed. */
function assertWhole(dir: string): void {
  const left = filesOf(dir).find((path) => (statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0) > 0);
  if (left !== undefined)
    throw new NostosError('IO_FAILED', `${left} could not be closed whole; see that the disk works and has room`, {
      details: { path: left },
    });
}

function filesOf(dir: string): string[] {
  const files = [join(dir, 'catalog.sqlite')];
  try {
    for (const name of readdirSync(join(dir, 'tenants'))) files.push(join(dir, 'tenants', name, 'data.sqlite'));
  } catch {
    // There is no tenant that was ever open.
  }
  return files;
}
