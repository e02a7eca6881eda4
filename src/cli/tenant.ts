import { createInterface } from 'node:readline/promises';
import { Command } from 'commander';
import type { TenantStatus } from '../node/types.ts';
import { ExitError } from './exit-codes.ts';
import type { Io } from './io.ts';
import { bytes, count, fields, table } from './render.ts';
import { answer, verb, wholeNumber, withNode, type VerbOptions } from './verb.ts';

function createVerb(io: Io): Command {
  return verb('create', {
    summary: 'Create a tenant: an empty SQLite database of its own.',
    description: 'Makes the data directory too, where there is none.',
    examples: [['nostos tenant create acme', 'a tenant named acme in ./nostos-data']],
  })
    .argument('<name>', 'of the tenant')
    .option('--if-not-exists', 'be content when it exists already')
    .action(async (name: string, options: VerbOptions & { ifNotExists?: true }) => {
      await withNode(io, { ...options, create: true }, async (node) => {
        const info = await node.call('tenant.create', { tenant: name, ifNotExists: options.ifNotExists ?? false });
        await answer(io, options, info, () => `${name} is there; give it tables with nostos migrate or nostos import`);
      });
    });
}

function listVerb(io: Io): Command {
  return verb('list', {
    summary: 'List tenants in order of name.',
    examples: [
      ['nostos tenant list', 'the first thousand'],
      ['nostos tenant list --after acme --limit 20 --json', 'the next twenty after acme'],
    ],
  })
    .option('--after <name>', 'only those after this name')
    .option('--limit <count>', 'at most so many', wholeNumber('--limit'), 1000)
    .action(async (options: VerbOptions & { after?: string; limit: number }) => {
      await withNode(io, options, async (node) => {
        const page = await node.call('tenant.list', { after: options.after, limit: options.limit });
        await answer(io, options, page, () => {
          if (page.tenants.length === 0) return 'no tenants; make one with nostos tenant create <name>';
          const rest = page.total - page.tenants.length;
          const list = table(io, page.tenants, [
            { title: 'name', value: (tenant) => tenant.name },
            { title: 'id', value: (tenant) => tenant.id, align: 'right' },
            { title: 'schema', value: (tenant) => tenant.schemaVersion, align: 'right' },
            { title: 'uuid', value: (tenant) => tenant.uuid },
          ]);
          return rest > 0 ? `${list}\n${count(page.tenants.length)} of ${count(page.total)} tenants` : list;
        });
      });
    });
}

async function confirmDrop(io: Io, name: string, yes: boolean): Promise<void> {
  if (yes) return;
  if (!io.stdinIsTty)
    throw new ExitError('usage', `dropping ${name} deletes its data`, 'Say --yes when that is what you want.');
  const prompt = createInterface({ input: io.stdin, output: io.stderr });
  try {
    const typed = await prompt.question(`This deletes all data of ${name}. Type its name to go on: `, {
      signal: io.signal,
    });
    if (typed !== name) throw new ExitError('usage', `${JSON.stringify(typed)} is not ${name}; nothing was dropped`);
  } finally {
    prompt.close();
  }
}

function dropVerb(io: Io): Command {
  return verb('drop', {
    summary: 'Drop a tenant and all of its data.',
    description: 'Asks for the name once more on a terminal; elsewhere it needs --yes.',
    examples: [['nostos tenant drop acme --yes', 'for good']],
  })
    .argument('<name>', 'of the tenant')
    .option('--yes', 'do not ask')
    .action(async (name: string, options: VerbOptions & { yes?: true }) => {
      await withNode(io, options, async (node) => {
        await node.call('tenant.status', { tenant: name });
        await confirmDrop(io, name, options.yes ?? false);
        const result = await node.call('tenant.drop', { tenant: name });
        await answer(io, options, result, () => `${name} is dropped`);
      });
    });
}

function describe(io: Io, status: TenantStatus): string {
  const rows = status.tables.reduce((sum, one) => sum + one.rows, 0);
  const about = fields(io, [
    ['tenant', `${status.name} (id ${status.id}, uuid ${status.uuid})`],
    ['schema', `version ${status.schemaVersion}`],
    ['applied', `record ${count(status.applied.lsn)} of term ${status.applied.term}`],
    ['on disk', `up to record ${count(status.durableApplied)}; the log holds the rest`],
    ['file', `${bytes(status.fileBytes)}, and ${bytes(status.walBytes)} of WAL`],
    ['fingerprint', status.fingerprint],
    ['rows', `${count(rows)} in ${count(status.tables.length)} tables`],
  ]);
  if (status.tables.length === 0) return about;
  const tables = table(io, status.tables, [
    { title: 'table', value: (one) => one.name },
    { title: 'rows', value: (one) => count(one.rows), align: 'right' },
  ]);
  return `${about}\n\n${tables}`;
}

function tenantStatusVerb(io: Io): Command {
  return verb('status', {
    summary: 'Show size, tables and position of a tenant.',
    examples: [['nostos tenant status acme', 'for people; --json for programs']],
  })
    .argument('<name>', 'of the tenant')
    .action(async (name: string, options: VerbOptions) => {
      await withNode(io, options, async (node) => {
        const status = await node.call('tenant.status', { tenant: name });
        await answer(io, options, status, () => describe(io, status));
      });
    });
}

export function tenantVerb(io: Io): Command {
  return new Command('tenant')
    .summary('Create, list, drop and look at tenants.')
    .description('A tenant is one SQLite database of a node. A node holds thousands of them.')
    .addCommand(createVerb(io))
    .addCommand(listVerb(io))
    .addCommand(dropVerb(io))
    .addCommand(tenantStatusVerb(io));
}
