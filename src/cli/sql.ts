import { createInterface, type Interface } from 'node:readline/promises';
import type { Command } from 'commander';
import { parseJson } from '../node/json-values.ts';
import { readsOnly, type StatementResult } from '../node/sql-script.ts';
import type { SqlParameters } from '../store/values.ts';
import { Interrupted } from './exit-codes.ts';
import { print, readAll, type Io } from './io.ts';
import type { NodeAccess } from './node-access.ts';
import { count, rowTable, style } from './render.ts';
import { reportError } from './report-error.ts';
import { answer, tenantOption, verb, withNode, type TenantOptions } from './verb.ts';

interface SqlOptions extends TenantOptions {
  readonly id?: string;
  readonly params?: string;
}

interface Script {
  readonly tenant: string;
  readonly sql: string;
  readonly id?: string | undefined;
  readonly parameters?: SqlParameters | undefined;
}

/** Reads go to a reader process and disturb nobody; a script with a write is one transaction. */
async function run(node: NodeAccess, script: Script, signal: AbortSignal): Promise<readonly StatementResult[]> {
  const { id, ...query } = script;
  if (id === undefined && readsOnly(script.sql)) return node.call('sql.query', query, { signal });
  return node.call('sql.execute', script, { signal });
}

function describe(io: Io, results: readonly StatementResult[]): string {
  return results
    .map(({ verb: keyword, rows, changes }) =>
      rows === undefined ? style(io, 'dim', `${keyword}: ${count(changes ?? 0)} rows`) : rowTable(io, rows),
    )
    .join('\n\n');
}

const PROMPT_HELP = `Statements end with a semicolon and may take several lines.
.tables   what this tenant holds
.quit     leave (or Ctrl-D)
Ctrl-C    drop what is typed, or cancel what runs`;

const TABLES = `select name, type from sqlite_schema where type in ('table', 'view') and name not like 'sqlite%' order by 1`;

class Prompt {
  readonly #io: Io;
  readonly #node: NodeAccess;
  readonly #tenant: string;
  readonly #lines: Interface;
  #typed = '';
  #running: AbortController | undefined;

  constructor(io: Io, node: NodeAccess, tenant: string) {
    this.#io = io;
    this.#node = node;
    this.#tenant = tenant;
    this.#lines = createInterface({ input: io.stdin, output: io.stdout, historySize: 500 });
    this.#lines.on('SIGINT', () => this.#interrupt());
  }

  async run(): Promise<void> {
    await print(this.#io.stdout, `${style(this.#io, 'dim', `tenant ${this.#tenant}; .help shows what there is`)}\n`);
    this.#ask();
    for await (const line of this.#lines) {
      if (line.trim() === '.quit' && this.#typed === '') break;
      await this.#take(line);
      this.#ask();
    }
    this.#lines.close();
  }

  #ask(): void {
    this.#lines.setPrompt(this.#typed === '' ? `${this.#tenant}> ` : `${' '.repeat(this.#tenant.length)}… `);
    this.#lines.prompt();
  }

  #interrupt(): void {
    if (this.#running !== undefined) {
      this.#running.abort(new Interrupted('SIGINT'));
      return;
    }
    this.#typed = '';
    this.#io.stdout.write('\n');
    this.#ask();
  }

  async #take(line: string): Promise<void> {
    if (this.#typed === '' && line.trim() === '.help') return print(this.#io.stdout, `${PROMPT_HELP}\n`);
    if (this.#typed === '' && line.trim() === '.tables') return this.#execute(TABLES);
    this.#typed += `${line}\n`;
    if (this.#typed.trim() === '') this.#typed = '';
    if (!this.#typed.trimEnd().endsWith(';')) return undefined;
    const sql = this.#typed;
    this.#typed = '';
    return this.#execute(sql);
  }

  async #execute(sql: string): Promise<void> {
    this.#running = new AbortController();
    const signal = AbortSignal.any([this.#running.signal, this.#io.signal]);
    try {
      const results = await run(this.#node, { tenant: this.#tenant, sql }, signal);
      await print(this.#io.stdout, `${describe(this.#io, results)}\n`);
    } catch (error) {
      await reportError(this.#io, error, { json: false });
    } finally {
      this.#running = undefined;
    }
  }
}

export function sqlVerb(io: Io): Command {
  return verb('sql', {
    summary: 'Run SQL on a tenant.',
    description:
      'Takes the statement as an argument or from stdin; on a terminal without either it asks. Several statements are ' +
      'separated by semicolons; if one of them writes, all are one transaction. Tables are made by nostos migrate.',
    examples: [
      ["nostos sql 'select * from notes' --tenant acme", 'as a table; --json for programs'],
      ['nostos sql --tenant acme < changes.sql', 'all of it or nothing'],
      [
        `nostos sql 'insert into notes (body) values (?)' --params '["hi"]' --id n1 --tenant acme`,
        'at most once, by its id',
      ],
      ['nostos sql --tenant acme', 'a prompt'],
    ],
  })
    .argument('[statement]', 'SQL; - or none: from stdin')
    .addOption(tenantOption())
    .option('--params <json>', 'values for ? (an array) or :name (an object)')
    .option('--id <id>', 'makes a write idempotent: a second run with this id answers as the first did')
    .action(async (statement: string | undefined, options: SqlOptions) => {
      const { tenant, id } = options;
      await withNode(io, options, async (node) => {
        if (statement === undefined && io.stdinIsTty && !options.json) return new Prompt(io, node, tenant).run();
        const sql = statement === undefined || statement === '-' ? await readAll(io.stdin) : statement;
        const parameters = options.params === undefined ? undefined : (parseJson(options.params) as SqlParameters);
        const results = await run(node, { tenant, sql, id, parameters }, io.signal);
        await answer(io, options, results, () => describe(io, results));
      });
    });
}
