import { resolve } from 'node:path';
import type { Command } from 'commander';
import type { Io } from './io.ts';
import { bytes } from './render.ts';
import { answer, callWithProgress, tenantOption, verb, withNode, type TenantOptions } from './verb.ts';

export function exportVerb(io: Io): Command {
  return verb('export', {
    summary: 'Write a tenant to a plain SQLite file.',
    description: 'The file is a consistent copy at one position; any SQLite opens it. The node goes on meanwhile.',
    examples: [['nostos export acme.sqlite --tenant acme', 'then: sqlite3 acme.sqlite']],
  })
    .argument('<file>', 'to write')
    .addOption(tenantOption())
    .option('--overwrite', 'replace the file where it exists')
    .action(async (file: string, options: TenantOptions & { overwrite?: true }) => {
      await withNode(io, options, async (node) => {
        const input = { tenant: options.tenant, file: resolve(io.cwd, file), overwrite: options.overwrite ?? false };
        const report = await callWithProgress(io, node, { name: 'export', input });
        await answer(io, options, report, () => `wrote ${report.file}, ${bytes(report.bytes)}, at ${report.position}`);
      });
    });
}
