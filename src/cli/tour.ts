import { mkdir, mkdtemp, rm, stat } from 'node:fs/promises';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Option, type Command } from 'commander';
import { serializeError, isNostosError } from '../base/errors.ts';
import { createToken, hashToken } from '../node/http/tokens.ts';
import { EXIT_CODES, ExitError } from './exit-codes.ts';
import { print, type Io } from './io.ts';
import { duration, style, table } from './render.ts';
import { createSample } from './sample.ts';
import type { Check, TourContext, TourPart } from './tour/part.ts';
import { PARTS } from './tour/parts.ts';
import { answer, plainVerb, type PlainOptions } from './verb.ts';

interface TourOptions extends PlainOptions {
  readonly only?: string;
  readonly keep?: true;
  readonly serve: boolean;
}

interface PartReport {
  readonly part: string;
  readonly ok: boolean;
  readonly checks: readonly Check[];
  readonly elapsedMs: number;
  readonly dir?: string;
}

interface Tour {
  readonly io: Io;
  readonly options: TourOptions;
  /** Temporary; each part has a folder in it. */
  readonly root: string;
  readonly source: TourContext['source'];
}

function chosenParts(only: string | undefined): readonly TourPart[] {
  if (only === undefined) return PARTS;
  const part = PARTS.find(({ name }) => name === only);
  if (part !== undefined) return [part];
  throw new ExitError('usage', `there is no part ${only}`, `Parts: ${PARTS.map(({ name }) => name).join(', ')}`);
}

async function sourceOf(io: Io, root: string, file: string | undefined): Promise<TourContext['source']> {
  if (file === undefined) {
    const sample = join(root, 'library.sqlite');
    createSample(sample);
    return { file: sample, kind: 'sample' };
  }
  const path = resolve(io.cwd, file);
  await stat(path).catch(() => {
    throw new ExitError('notFound', `there is no file ${path}`);
  });
  return { file: path, kind: 'own' };
}

/** A part that throws has failed; the next one still runs. */
async function runPart(tour: Tour, part: TourPart): Promise<PartReport> {
  const { io, options, root, source } = tour;
  const say = async (line: string): Promise<void> => {
    if (!options.json) await print(io.stdout, `  ${line}\n`);
  };
  if (!options.json) await print(io.stdout, `\n${style(io, 'bold', part.name)}: ${part.title}\n`);
  const dir = join(root, part.name);
  await mkdir(dir);
  const startedMs = performance.now();
  try {
    const { checks, dir: shown } = await part.run({ io, dir, source, say, signal: io.signal });
    const elapsedMs = Math.round(performance.now() - startedMs);
    const ok = checks.every((check) => check.ok);
    return { part: part.name, ok, checks, elapsedMs, ...(shown === undefined ? {} : { dir: shown }) };
  } catch (error) {
    io.signal.throwIfAborted();
    // The visitor's own file may be one that cannot be imported: that is an answer, not a failure of the tour.
    if (isNostosError(error, 'IMPORT_REFUSED') || isNostosError(error, 'INVALID_ARGUMENT')) throw error;
    const figure = serializeError(error).message;
    const elapsedMs = Math.round(performance.now() - startedMs);
    return { part: part.name, ok: false, checks: [{ what: 'the part came to its end', ok: false, figure }], elapsedMs };
  }
}

function describe(io: Io, report: PartReport): string {
  return table(io, report.checks, [
    { title: '', value: ({ ok }) => (ok ? style(io, 'green', '✔') : style(io, 'red', '✘')) },
    { title: 'verified', value: ({ what }) => what },
    { title: 'figure', value: ({ figure }) => figure },
  ]);
}

function verdict(io: Io, reports: readonly PartReport[]): string {
  const checks = reports.flatMap((report) => report.checks);
  const good = checks.filter(({ ok }) => ok).length;
  const time = duration(reports.reduce((sum, report) => sum + report.elapsedMs, 0));
  return good === checks.length
    ? style(io, 'green', `All ${good} checks hold, in ${time}.`)
    : style(io, 'red', `${checks.length - good} of ${checks.length} checks failed.`);
}

/** Shows the node of the last part until Ctrl-C. */
async function showStatusPage(io: Io, dir: string): Promise<void> {
  const { openNode } = await import('../node/open-node.ts');
  const { serveHttp } = await import('../node/http/server.ts');
  const token = createToken();
  await using node = await openNode({ dir });
  const server = await serveHttp({
    node,
    port: 0,
    grants: [{ hash: hashToken(token), tenants: ['*'], access: 'read' }],
  });
  const url = `${server.url}/#token=${token}`;
  await print(io.stdout, `\nIts status page: ${style(io, 'cyan', url)}\nCtrl-C ends the tour and removes its files.\n`);
  if (!io.signal.aborted) await once(io.signal, 'abort');
  await server.close();
}

async function runTour(tour: Tour): Promise<void> {
  const { io, options, source, root } = tour;
  const parts = chosenParts(options.only);
  const about = source.kind === 'sample' ? 'the database of a made-up library' : source.file;
  if (!options.json) await print(io.stdout, `Nostos at work on ${about}.\n`);
  const reports: PartReport[] = [];
  for (const part of parts) {
    const report = await runPart(tour, part);
    reports.push(report);
    if (!options.json) await print(io.stdout, `\n${describe(io, report)}\n`);
  }
  const ok = reports.every((report) => report.ok);
  const result = { ok, source: source.kind, parts: reports.map(({ dir: _dir, ...report }) => report) };
  const kept = options.keep ? `\nKept: ${root}` : '';
  await answer(
    io,
    options,
    options.keep ? { ...result, kept: root } : result,
    () => `\n${verdict(io, reports)}${kept}`,
  );
  if (!ok)
    throw new ExitError('failed', 'the tour found something wrong', 'Run it again with --keep to look at its files.');
  const shown = reports.findLast((report) => report.dir !== undefined)?.dir;
  if (options.serve && !options.json && io.stdoutIsTty && io.stdinIsTty && shown !== undefined)
    await showStatusPage(io, shown);
}

export function tourVerb(io: Io): Command {
  return plainVerb('tour', {
    summary: 'See it at work on real data, break it, and see it verified.',
    description:
      'Works in a temporary directory, which is removed at the end, on a sample of its own or on a copy of your database. ' +
      'Each part shows one way in which state comes home, and verifies it. Exit code ' +
      `${EXIT_CODES.ok[0]} only when every check holds. On a terminal it ends by serving the status page.`,
    examples: [
      ['nostos tour', 'with the sample'],
      ['nostos tour my.sqlite', 'with your own database, which is only read'],
      ['nostos tour --only crash --json', 'one part, for a program'],
    ],
  })
    .argument('[file]', 'SQLite database to take instead of the sample')
    .addOption(new Option('--only <part>', 'one part').choices(PARTS.map(({ name }) => name)))
    .option('--keep', 'leave the files')
    .option('--no-serve', 'end without the status page')
    .action(async (file: string | undefined, options: TourOptions) => {
      const root = await mkdtemp(join(tmpdir(), 'nostos-tour-'));
      try {
        await runTour({ io, options, root, source: await sourceOf(io, root, file) });
      } finally {
        if (!options.keep) await rm(root, { recursive: true, force: true });
      }
    });
}
