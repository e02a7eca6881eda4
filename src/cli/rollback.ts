import { open, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { Command, Option } from 'commander';
import { systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError, serializeError } from '../base/errors.ts';
import { stringifyJson } from '../node/json-values.ts';
import { idOfName as idOf, isFileName } from '../rollback/file/file-name.ts';
import { deleteFile, keepsFile, noteHandled, readHandled } from '../rollback/file/handled.ts';
import { listRollbackFiles, type ListedFile } from '../rollback/file/list.ts';
import { describeFile } from '../rollback/file/reader.ts';
import { POLICIES, type Policy } from '../rollback/reapply/types.ts';
import { FileJournal, type Journal } from '../rollback/run/journal.ts';
import { exportFile, showFile, type Shown } from '../rollback/show.ts';
import { ExitError } from './exit-codes.ts';
import { print, type Io } from './io.ts';
import { isDataDirectory } from './node-access.ts';
import { callWithDisplay } from './progress.ts';
import { bytes, count, style, table } from './render.ts';
import {
  describeFile as fileText,
  gapText,
  itemLine,
  leftToDo,
  recordLine,
  reportText,
  timeText,
} from './rollback-text.ts';
import { answer, callWithProgress, verb, wholeNumber, withNode, type VerbOptions } from './verb.ts';

const LINES_AT_ONCE = 256;

const NO_NODE =
  'The files are read as they lie in the directory, so this works whether a node runs there or not, or cannot run.';

function rollbackDir(io: Io, { dir }: VerbOptions): string {
  return join(resolve(io.cwd, dir), 'rollback');
}

/** A path, the name of a file in `rollback/`, or the beginning of the id of a rollback. */
async function findFile(io: Io, options: VerbOptions, wanted: string | undefined): Promise<string> {
  if (wanted !== undefined && (wanted.includes(sep) || (await isFile(resolve(io.cwd, wanted)))))
    return assertFile(resolve(io.cwd, wanted));
  const dir = rollbackDir(io, options);
  const files = (await listRollbackFiles(systemDisk, dir, { verify: 'ends' })).filter(
    ({ state }) => state !== 'unfinished',
  );
  const found =
    wanted === undefined
      ? files.toSorted((a, b) => timeOf(b) - timeOf(a)).slice(0, 1)
      : files.filter(({ name }) => name === wanted || idOf(name).startsWith(wanted));
  const [only, ...others] = found;
  if (only === undefined)
    throw new ExitError(
      'notFound',
      wanted === undefined ? `there are no rollback files in ${dir}` : `no rollback file in ${dir} is called ${wanted}`,
      'nostos rollback list shows those that there are.',
    );
  if (others.length > 0)
    throw new ExitError('usage', `${wanted} is the beginning of ${count(found.length)} ids`, 'Give more of it.');
  return only.path;
}

function timeOf(file: ListedFile): number {
  return file.state === 'whole' ? file.header.createdAtMs : 0;
}

async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  );
}

async function assertFile(path: string): Promise<string> {
  if (await isFile(path)) return path;
  throw new ExitError('notFound', `there is no file ${path}`, 'nostos rollback list shows those of a data directory.');
}

function listText(io: Io, dir: string, files: readonly ListedFile[], journal: Journal | undefined): string {
  const parts: string[] = [];
  if (files.length === 0) parts.push(`no rollback files in ${dir}`);
  else
    parts.push(
      dir,
      table(io, files, [
        { title: 'id', value: (file) => idOf(file.name).slice(0, 8) },
        { title: 'rolled back', value: (file) => (file.state === 'whole' ? timeText(file.header.createdAtMs) : '-') },
        { title: 'terms', value: ({ name }) => name.replace(/^term(\d+)-to-(\d+)-.*$/, '$1 → $2') },
        { title: 'LSNs', value: ({ name }) => name.replace(/^.*-lsn-(\d+)-(\d+)-.*$/, '$1 to $2') },
        column('records', (file) => count(file.footer.records)),
        column('acknowledged', (file) => count(file.footer.acknowledged)),
        column('size', (file) => bytes(file.fileBytes)),
        {
          title: 'state',
          value: (file) => style(io, STATE_COLORS[stateOf(file)], stateOf(file)),
        },
      ]),
    );
  for (const file of files)
    if (file.state === 'damaged')
      parts.push(
        `${style(io, 'red', file.error.message)}\n  → nostos rollback show ${idOf(file.name).slice(0, 8)} shows what stands before the damage`,
      );
  for (const file of files) if (file.state === 'whole' && !file.header.complete) parts.push(missingText(io, file));
  if (journal !== undefined) parts.push(...journalText(io, journal));
  return parts.join('\n\n');
}

function* journalText(io: Io, { counter, intent, attempts, lastError }: Journal): Generator<string> {
  if (intent !== undefined && intent.state !== 'rejoined') {
    const failed =
      lastError === undefined ? '' : `; attempts that failed: ${count(attempts)}, the last one with ${lastError}`;
    yield style(io, 'yellow', `rollback ${intent.plan.id} is ${intent.state}; the node goes on with it${failed}`);
  }
  yield style(io, 'dim', `rollbacks of this node so far: ${count(counter)}`);
}

const STATE_COLORS = { whole: 'green', incomplete: 'yellow', unfinished: 'yellow', damaged: 'red' } as const;

function stateOf(file: ListedFile): keyof typeof STATE_COLORS {
  return file.state === 'whole' && !file.header.complete ? 'incomplete' : file.state;
}

const GAPS_SHOWN = 10;

function missingText(io: Io, { name, missing, gaps = [] }: WholeFile): string {
  const head = `${idOf(name).slice(0, 8)} is of a damaged log: ${count(missing)} records of its range are known to be missing`;
  const lines = gaps.slice(0, GAPS_SHOWN).map((gap) => `  ${gapText(gap)}`);
  if (gaps.length > GAPS_SHOWN) lines.push(`  and ${count(gaps.length - GAPS_SHOWN)} more such places`);
  return [style(io, 'yellow', head), ...lines].join('\n');
}

type WholeFile = Extract<ListedFile, { state: 'whole' }>;

function column(
  title: string,
  value: (file: WholeFile) => string,
): { title: string; value: (file: ListedFile) => string; align: 'right' } {
  return { title, value: (file) => (file.state === 'whole' ? value(file) : '-'), align: 'right' };
}

/** The files are shown whatever has become of it. */
function readJournal(
  dir: string,
):
  | { readonly journal: Journal; readonly problem?: undefined }
  | { readonly journal?: undefined; readonly problem: NostosError } {
  try {
    return { journal: new FileJournal(systemDisk, dir).load() };
  } catch (error) {
    if (!isNostosError(error)) throw error;
    return { problem: error };
  }
}

function listVerb(io: Io): Command {
  return verb('list', {
    summary: 'List what rollbacks of this node have dropped and kept.',
    description:
      `A primary that was deposed keeps what only it had in a file before it drops it. Each file is read and checked whole. ${NO_NODE} ` +
      'Exit code 1 where one is damaged.',
    examples: [
      ['nostos rollback list', 'the files, with how many records somebody had been told were kept'],
      ['nostos rollback list --quick --json', 'beginning and end of each file only, for a program'],
    ],
  })
    .option('--quick', 'look at beginning and end of each file only')
    .action(async (options: VerbOptions & { quick?: true }) => {
      const dir = rollbackDir(io, options);
      if (!(await isDataDirectory(resolve(io.cwd, options.dir))))
        throw new ExitError('notFound', `there is no Nostos data directory at ${resolve(io.cwd, options.dir)}`);
      const verify = options.quick ? 'ends' : 'all';
      const files = await listRollbackFiles(systemDisk, dir, { verify, signal: io.signal });
      const { journal, problem } = readJournal(dir);
      const shown = files.map((file) =>
        file.state === 'damaged' ? { ...file, error: serializeError(file.error) } : file,
      );
      await answer(io, options, { dir, files: shown, journal }, () => listText(io, dir, files, journal));
      if (problem !== undefined) throw problem;
      const damaged = files.filter(({ state }) => state === 'damaged').length;
      if (damaged > 0) throw new ExitError('failed', `damaged: ${count(damaged)} of ${count(files.length)} files`);
    });
}

interface ShowVerbOptions extends VerbOptions {
  readonly tenant?: string;
  readonly table?: string;
  readonly acknowledged?: true;
  readonly limit?: number;
}

function isWanted(item: Shown, { tenant, table: name, acknowledged }: ShowVerbOptions): boolean {
  // What is missing may have been any tenant's.
  return (
    item.kind === 'missing' ||
    ((tenant === undefined || item.tenant === tenant) &&
      (name === undefined || (item.kind === 'row' && item.table === name)) &&
      (acknowledged === undefined || item.acknowledged))
  );
}

async function printHeading(io: Io, path: string): Promise<void> {
  try {
    await print(io.stdout, `${fileText(io, path, describeFile(systemDisk, path))}\n`);
  } catch (error) {
    // Its records are shown as far as they go, and then the damage is told.
    if (!isNostosError(error, 'ROLLBACK_FILE_DAMAGED')) throw error;
  }
}

function showVerb(io: Io): Command {
  return verb('show', {
    summary: 'Show the rows in a rollback file.',
    description:
      'Each record with its rows: table, key, old and new values. With --json one row per line. Of a damaged file everything ' +
      `before the damage is shown, and then what is damaged. ${NO_NODE}`,
    examples: [
      ['nostos rollback show', 'the newest file'],
      ['nostos rollback show 7e54 --tenant acme --table orders', 'by the beginning of its id, one table only'],
      ['nostos rollback show ./copy.nrb --acknowledged --json', 'a file anywhere; what clients had been told was kept'],
    ],
  })
    .argument('[file]', 'path, name, or beginning of the id; the newest one where it is left out')
    .option('--tenant <name>', 'only this tenant')
    .option('--table <name>', 'only rows of this table')
    .option('--acknowledged', 'only what somebody had been told was kept')
    .option('--limit <count>', 'at most so many rows', wholeNumber('--limit'))
    .action(async (wanted: string | undefined, options: ShowVerbOptions) => {
      const path = await findFile(io, options, wanted);
      if (!options.json) await printHeading(io, path);
      const limit = options.limit ?? Infinity;
      let [shown, lsn] = [0, 0];
      for await (const item of showFile(systemDisk, path, { signal: io.signal })) {
        if (!isWanted(item, options)) continue;
        if (shown === limit) break;
        shown += 1;
        if (options.json) {
          await print(io.stdout, `${stringifyJson(item)}\n`);
          continue;
        }
        if (item.kind !== 'missing' && item.lsn !== lsn) await print(io.stdout, `\n${recordLine(io, item)}\n`);
        ({ lsn } = item);
        await print(io.stdout, `${itemLine(io, item)}\n`);
      }
    });
}

interface ExportVerbOptions extends VerbOptions {
  readonly format: 'jsonl' | 'sql';
  readonly out?: string;
  readonly overwrite?: true;
}

/** Several lines at a time. */
async function* chunks(lines: AsyncIterable<string>, onLine: () => void): AsyncGenerator<string> {
  let chunk: string[] = [];
  try {
    for await (const line of lines) {
      onLine();
      if (chunk.push(line) < LINES_AT_ONCE) continue;
      yield `${chunk.join('\n')}\n`;
      chunk = [];
    }
  } catch (error) {
    if (chunk.length > 0) yield `${chunk.join('\n')}\n`;
    throw error;
  }
  if (chunk.length > 0) yield `${chunk.join('\n')}\n`;
}

/** What stands before damage is worth having; what an error of ours cut off is not. */
async function writeOut(path: string, overwrite: boolean, text: AsyncIterable<string>): Promise<void> {
  const file = await open(path, overwrite ? 'w' : 'wx').catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code === 'EEXIST')
      throw new NostosError('FILE_EXISTS', `${path} is there already`, { cause });
    throw new NostosError('IO_FAILED', `cannot write ${path}: ${(cause as Error).message}`, { cause });
  });
  try {
    for await (const part of text) await file.writeFile(part);
    await file.sync();
  } catch (error) {
    if (!isNostosError(error, 'ROLLBACK_FILE_DAMAGED')) await rm(path, { force: true });
    throw error;
  } finally {
    await file.close();
  }
}

function exportVerb(io: Io): Command {
  return verb('export', {
    summary: 'Write the rows in a rollback file as JSON lines or SQL.',
    description:
      'The SQL is for reading, and for those who know what it does: it asks nothing of the rows that are there now, which ' +
      `nostos rollback reapply does. ${NO_NODE}`,
    examples: [
      ['nostos rollback export 7e54 --out lost.jsonl', 'a line per row'],
      ['nostos rollback export --format sql | less', 'the newest file as statements'],
    ],
  })
    .argument('[file]', 'path, name, or beginning of the id; the newest one where it is left out')
    .addOption(new Option('--format <format>', 'of the lines').choices(['jsonl', 'sql']).default('jsonl'))
    .option('--out <file>', 'to write; stdout where it is left out')
    .option('--overwrite', 'replace the file where it exists')
    .action(async (wanted: string | undefined, { format, out, ...options }: ExportVerbOptions) => {
      const path = await findFile(io, options, wanted);
      if (out === undefined && options.json)
        throw new ExitError(
          'usage',
          '--json is the answer of --out; the lines themselves are JSON with --format jsonl',
        );
      const lines = exportFile(systemDisk, path, {
        format,
        stringify: (item) => stringifyJson(item),
        signal: io.signal,
      });
      if (out === undefined) {
        for await (const part of chunks(lines, () => {})) await print(io.stdout, part);
        return;
      }
      const target = resolve(io.cwd, out);
      const written = await callWithDisplay(io, async (show) => {
        let done = 0;
        const text = chunks(lines, () => show({ phase: 'exporting', done: (done += 1), unit: 'rows' }));
        await writeOut(target, options.overwrite ?? false, text);
        return done;
      });
      noteHandled(systemDisk, path, { exportedAtMs: systemClock.nowMs() });
      const result = { file: path, out: target, format, lines: written };
      await answer(io, options, result, () => `wrote ${count(written)} lines to ${target}`);
    });
}

interface ReapplyVerbOptions extends VerbOptions {
  readonly onConflict: Policy;
  readonly applyRetried?: true;
  readonly dryRun?: true;
}

function reapplyVerb(io: Io): Command {
  return verb('reapply', {
    summary: 'Turn what a rollback has dropped into new writes.',
    description:
      'Each transaction in the file becomes one new transaction, at most once however often this is run. It is compared with ' +
      'the rows as they are now: --on-conflict says what becomes of one that has changed since. What a client has tried again ' +
      'by its id meanwhile is left out. Schema changes and tenants that were created or dropped are listed, not repeated.\n\n' +
      'Run it where the writes are to go, which is the primary; a file of another node on this machine is given by its path. ' +
      'On a replica only --dry-run works. Exit code 1 where something was left out that nobody has written otherwise.',
    examples: [
      ['nostos rollback reapply 7e54 --dry-run', 'what would be written, and what has changed since'],
      ['nostos rollback reapply 7e54', 'write it; transactions with a conflict are left out'],
      [
        'nostos rollback reapply /srv/a/rollback/term1-to-2-….nrb --dir /srv/b',
        'the file of node a, written to node b',
      ],
      ['nostos rollback reapply 7e54 --on-conflict ours', 'rows in conflict become what the file says'],
    ],
  })
    .argument('<file>', 'path, name, or beginning of the id')
    .addOption(
      new Option(
        '--on-conflict <policy>',
        'skip the transaction; keep theirs and write its other rows; overwrite with ours',
      )
        .choices(POLICIES)
        .default('skip'),
    )
    .option('--apply-retried', 'write also what a client has tried again, which may then be there twice')
    .option('--dry-run', 'compare and report, write nothing')
    .action(async (wanted: string, options: ReapplyVerbOptions) => {
      const path = await findFile(io, options, wanted);
      const input = {
        file: path,
        policy: options.onConflict,
        retried: options.applyRetried ? 'apply' : 'leave-out',
        dryRun: options.dryRun ?? false,
      } as const;
      await withNode(io, options, async (node) => {
        const report = await callWithProgress(io, node, { name: 'rollback.reapply', input });
        await answer(io, options, report, () => reportText(io, report));
        const left = leftToDo(report);
        if (left === 0 && !report.dryRun) noteHandled(systemDisk, path, { reappliedAtMs: systemClock.nowMs() });
        if (left > 0) throw new ExitError('failed', `left out: ${count(left)} of ${count(report.records)} records`);
      });
    });
}

interface DeleteVerbOptions extends VerbOptions {
  readonly force?: true;
  readonly dryRun?: true;
}

function deleteVerb(io: Io): Command {
  return verb('delete', {
    summary: 'Remove a rollback file.',
    description:
      'Nostos removes none by itself. One that was neither exported with --out nor re-applied with nothing left out is kept, ' +
      `since nothing else has these records; so is one whose rollback has not ended. ${NO_NODE}`,
    examples: [
      ['nostos rollback delete 7e54 --dry-run', 'what would be removed, and whether anything speaks against it'],
      ['nostos rollback export 7e54 --out lost.jsonl && nostos rollback delete 7e54', 'once its rows are elsewhere'],
      ['nostos rollback delete 7e54 --force', 'for good, though nobody has looked at it'],
    ],
  })
    .argument('<file>', 'path, name, or beginning of the id')
    .option('--force', 'also one that was neither exported nor re-applied')
    .option('--dry-run', 'say what would be removed, remove nothing')
    .action(async (wanted: string, options: DeleteVerbOptions) => {
      const path = await findFile(io, options, wanted);
      const name = basename(path);
      if (!isFileName(name)) throw new ExitError('usage', `${path} does not have the name of a rollback file`);
      const { journal, problem } = readJournal(dirname(path));
      if (journal === undefined) throw problem;
      const handled = readHandled(systemDisk, path);
      const fileBytes = systemDisk.size(path);
      const kept = keepsFile(name, handled, { journal, force: options.force === true });
      if (kept !== undefined) throw new ExitError('failed', `${path} is kept: ${kept.why}`, kept.advice);
      if (options.dryRun !== true) deleteFile(systemDisk, path);
      const result = { file: path, bytes: fileBytes, ...handled, dryRun: options.dryRun === true };
      const done = options.dryRun === true ? 'would remove' : 'removed';
      await answer(io, options, result, () => `${done} ${path}, ${bytes(fileBytes)}`);
    });
}

export function rollbackVerb(io: Io): Command {
  return new Command('rollback')
    .summary('List, show, export, re-apply and delete what rollbacks have dropped.')
    .description(
      'A node that led its group, and comes back when another one leads, drops the writes that only it had. It keeps them in ' +
        'a file first: docs/rollback-files.md.',
    )
    .addCommand(listVerb(io))
    .addCommand(showVerb(io))
    .addCommand(exportVerb(io))
    .addCommand(reapplyVerb(io))
    .addCommand(deleteVerb(io));
}
