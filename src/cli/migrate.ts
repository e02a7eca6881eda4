import { readFile, readdir, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Option, type Command } from 'commander';
import { ExitError } from './exit-codes.ts';
import type { Io } from './io.ts';
import { count } from './render.ts';
import { callWithProgress, answer, verb, withNode, type VerbOptions } from './verb.ts';

const byName = new Intl.Collator('en', { numeric: true });

/** Files in the order given; the `.sql` files of a folder in order of name, where 2 comes before 10. */
async function migrationFiles(io: Io, paths: readonly string[]): Promise<string[]> {
  const files: string[] = [];
  for (const given of paths) {
    const path = resolve(io.cwd, given);
    const found = await stat(path).catch(() => undefined);
    if (found === undefined) throw new ExitError('notFound', `there is no file or folder ${path}`);
    if (!found.isDirectory()) {
      files.push(path);
      continue;
    }
    const names = (await readdir(path)).filter((name) => name.endsWith('.sql'));
    files.push(...names.toSorted(byName.compare).map((name) => join(path, name)));
  }
  if (files.length === 0) throw new ExitError('usage', `there is no .sql file in ${paths.join(', ')}`);
  return files;
}

async function migrateAll(io: Io, options: VerbOptions, migrations: readonly string[]): Promise<void> {
  await withNode(io, options, async (node) => {
    const input = { migrations: [...migrations] };
    const report = await callWithProgress(io, node, { name: 'migrate.all', input });
    await answer(io, options, report, () => {
      const failed = report.failed.map(({ tenant, error }) => `${tenant}: ${error.message} [${error.code}]`);
      const changed = report.migrated.filter(({ from, to }) => from !== to).length;
      const total = report.migrated.length;
      return [
        `${count(total)} tenants at version ${migrations.length}, ${count(changed)} of them changed`,
        ...failed,
      ].join('\n');
    });
    if (report.failed.length > 0)
      throw new ExitError(
        'failed',
        `${count(report.failed.length)} tenants were not migrated`,
        'Mend what their errors name and run the same command again; it goes on where it stopped.',
      );
  });
}

async function migrateOne(
  io: Io,
  options: VerbOptions,
  input: { tenant: string; migrations: string[] },
): Promise<void> {
  await withNode(io, options, async (node) => {
    const report = await callWithProgress(io, node, { name: 'migrate', input });
    await answer(io, options, report, () =>
      report.from === report.to
        ? `${report.tenant} is at version ${report.to} already`
        : `${report.tenant} went from version ${report.from} to ${report.to}`,
    );
  });
}

export function migrateVerb(io: Io): Command {
  return verb('migrate', {
    summary: 'Bring the schema of a tenant, or of all, to the last of these migrations.',
    description:
      'Each .sql file is one migration, in order of name; its number is the version of the schema. Those that a tenant ' +
      'has already are skipped, so never change or remove one that was applied: add the next.',
    examples: [
      ['nostos migrate migrations/ --tenant acme', 'applies 001-notes.sql, 002-tags.sql, … as far as they are new'],
      ['nostos migrate migrations/ --all', 'every tenant; one that fails does not stop the others'],
    ],
  })
    .argument('<paths...>', '.sql files, or folders of them')
    .addOption(new Option('--tenant <name>', 'tenant to migrate').env('NOSTOS_TENANT'))
    .option('--all', 'migrate every tenant')
    .action(async (paths: string[], options: VerbOptions & { tenant?: string; all?: true }) => {
      if (options.all === undefined && options.tenant === undefined)
        throw new ExitError('usage', 'say which tenant to migrate: --tenant <name> or --all');
      const files = await migrationFiles(io, paths);
      const migrations = await Promise.all(files.map((file) => readFile(file, 'utf8')));
      if (options.all) await migrateAll(io, options, migrations);
      else await migrateOne(io, options, { tenant: options.tenant!, migrations });
    });
}
