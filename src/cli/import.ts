import { resolve } from 'node:path';
import type { Command } from 'commander';
import type { ImportReport } from '../node/types.ts';
import type { Io } from './io.ts';
import { count, duration, table } from './render.ts';
import { answer, callWithProgress, tenantOption, verb, withNode, type TenantOptions } from './verb.ts';

function describe(io: Io, report: ImportReport): string {
  const tables = table(io, report.tables, [
    { title: 'table', value: (one) => one.name },
    { title: 'rows', value: (one) => count(one.rows), align: 'right' },
    { title: '', value: (one) => (one.addedKey === undefined ? '' : `key ${one.addedKey} added`) },
  ]);
  const total = `${count(report.rows)} rows in ${count(report.tables.length)} tables, ${duration(report.elapsedMs)}`;
  return report.dryRun ? `${tables}\n\nwould import ${total}` : `${tables}\n\nimported ${total} into ${report.tenant}`;
}

export function importVerb(io: Io): Command {
  return verb('import', {
    summary: 'Fill a tenant from an existing SQLite file.',
    description:
      'Takes schema and rows; the file itself is only read. Tables that cannot be replicated, such as those without a ' +
      'primary key, are refused by name with the remedy. Makes the tenant, and the data directory, where there is none.',
    examples: [
      ['nostos import shop.sqlite --tenant acme --dry-run', 'see what would happen'],
      ['nostos import shop.sqlite --tenant acme', 'do it'],
      ['nostos import old.sqlite --tenant acme --add-key', 'give tables without a key one'],
    ],
  })
    .argument('<file>', 'SQLite database')
    .addOption(tenantOption())
    .option('--add-key', 'give tables without a usable key a new INTEGER PRIMARY KEY')
    .option('--keep-violations', 'take rows whose foreign keys point nowhere')
    .option('--dry-run', 'check and report only')
    .action(async (file: string, options: TenantOptions & { addKey?: true; keepViolations?: true; dryRun?: true }) => {
      const { tenant, addKey = false, keepViolations = false, dryRun = false } = options;
      await withNode(io, { ...options, create: true }, async (node) => {
        const input = { tenant, file: resolve(io.cwd, file), addKey, keepViolations, dryRun };
        const report = await callWithProgress(io, node, { name: 'import', input });
        await answer(io, options, report, () => describe(io, report));
      });
    });
}
