import { Option, type Command } from 'commander';
import type { VerifyReport } from '../node/types.ts';
import { ExitError } from './exit-codes.ts';
import type { Io } from './io.ts';
import { bytes, count, duration, style, table } from './render.ts';
import { answer, callWithProgress, verb, withNode, type VerbOptions } from './verb.ts';

function describe(io: Io, report: VerifyReport): string {
  const { log } = report;
  const mark = (good: boolean, text: string): string => style(io, good ? 'green' : 'red', text);
  const parts = [`log: ${count(log.records)} records in ${count(log.segments)} segments, ${bytes(log.bytes)}`];
  if (report.tenants.length > 0)
    parts.push(
      table(io, report.tenants, [
        { title: 'tenant', value: (tenant) => tenant.name },
        { title: 'rows', value: (tenant) => count(tenant.rows), align: 'right' },
        { title: 'file', value: (tenant) => mark(tenant.integrity === 'ok', tenant.integrity) },
        { title: 'fingerprint', value: (tenant) => mark(tenant.fingerprint === 'equal', tenant.fingerprint) },
      ]),
    );
  for (const { where, what, remedy } of report.problems)
    parts.push(`${style(io, 'red', `${where}: ${what}`)}\n  → ${remedy}`);
  const verdict = report.ok ? mark(true, 'all good') : mark(false, `${count(report.problems.length)} problems`);
  return `${parts.join('\n\n')}\n\n${verdict}, checked in ${duration(report.elapsedMs)}`;
}

export function verifyVerb(io: Io): Command {
  return verb('verify', {
    summary: 'Check everything on disk, and say what to do about what is wrong.',
    description:
      'Reads the whole log (checksum of each record, chain of hashes), each database file (SQLite’s integrity check) and ' +
      'each row (the fingerprint of the rows against the one that the log leads to). Exit code 1 when it finds damage.',
    examples: [
      ['nostos verify', 'the whole node'],
      ['nostos verify --tenant acme --json', 'the log and one tenant, for a program'],
    ],
  })
    .addOption(new Option('--tenant <name>', 'only this tenant').env('NOSTOS_TENANT'))
    .action(async (options: VerbOptions & { tenant?: string }) => {
      await withNode(io, options, async (node) => {
        const report = await callWithProgress(io, node, { name: 'verify', input: { tenant: options.tenant } });
        await answer(io, options, report, () => describe(io, report));
        if (!report.ok) throw new ExitError('failed', `${count(report.problems.length)} problems found`);
      });
    });
}
