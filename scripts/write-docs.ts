/**
 * `npm run docs`: writes the pages that follow from tables in the code: docs/errors.md, docs/limits.md and docs/cli.md.
 * A test compares them with the code, so a page that is behind fails the gate.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { ERROR_CODES } from '../src/base/errors.ts';
import { EXIT_CODES } from '../src/cli/exit-codes.ts';
import type { Io } from '../src/cli/io.ts';
import { allCommands, buildProgram } from '../src/cli/program.ts';
import { DEFAULT_LIMITS } from '../src/base/limits.ts';
import { GROUP_CONFIG_FILE, groupConfigTable } from '../src/node/group-config.ts';

const NOTICE = '<!-- Written by `npm run docs` from the code; edit that. -->';

function pathOf(relative: string): string {
  return fileURLToPath(new URL(`../${relative}`, import.meta.url));
}

function errorsPage(): string {
  const rows = Object.entries(ERROR_CODES).map(([code, [retry, meaning]]) => `| \`${code}\` | ${retry} | ${meaning} |`);
  return `# Errors

${NOTICE}

Everything that Nostos throws is a \`NostosError\` with \`code\`, \`retry\`, \`message\` and \`details\`. Codes are never
renamed or reused. Cancellation is no error of Nostos: it rejects with the reason of the caller's signal.

\`retry\` says what the caller may do: \`never\`: the same call fails again; \`safe\`: nothing happened, the same call may
be repeated; \`with-id\`: it may have happened, so repeat it only as \`write(fn, { id })\`, which then answers with the
first result.

| code | retry | meaning |
|---|---|---|
${rows.join('\n')}
`;
}

function limitsPage(): string {
  const source = readFileSync(pathOf('src/base/limits.ts'), 'utf8');
  const rows = Object.entries(DEFAULT_LIMITS).map(([name, value]) => {
    const comment = new RegExp(String.raw`/\*\*\s*((?:(?!\*/)[\s\S])*?)\s*\*/\s*${name}:`).exec(source)?.[1] ?? '';
    return `| \`${name}\` | ${value.toLocaleString('en-US')} | ${comment.replaceAll(/\s*\n\s*\*\s*/g, ' ')} |`;
  });
  return `# Limits

${NOTICE}

Every limit has a name, whose last word is its unit, and a default; \`openNode({ dir, limits: { … } })\` changes them.

| limit | default | what it bounds |
|---|--:|---|
${rows.join('\n')}
`;
}

const silent: Io = {
  stdin: Readable.from([]),
  stdout: new Writable(),
  stderr: new Writable(),
  stdinIsTty: false,
  stdoutIsTty: false,
  stderrIsTty: false,
  columns: 100,
  color: false,
  cwd: '/',
  env: {},
  signal: new AbortController().signal,
};

async function helpPages(): Promise<string[]> {
  let text = '';
  const program = await buildProgram(silent);
  const verbs = allCommands(program).filter((command) => command.commands.length === 0);
  return verbs.map((command) => {
    text = '';
    command.configureOutput({ writeOut: (part) => (text += part), getOutHelpWidth: () => 100 }).outputHelp();
    const name = command.parent === program ? command.name() : `${command.parent!.name()} ${command.name()}`;
    return `## nostos ${name}\n\n\`\`\`\n${text.trim()}\n\`\`\``;
  });
}

async function cliPage(): Promise<string> {
  const exits = Object.values(EXIT_CODES).map(([code, meaning]) => `| ${code} | ${meaning} |`);
  return `# The command line

${NOTICE}

A verb finds the node that runs on \`--dir\` (or \`NOSTOS_DIR\`) through its \`admin.sock\` and works through it; where none
runs, it opens the directory itself. Answers go to stdout; progress and errors go to stderr.

With \`--json\` the answer is one JSON document, and of \`log\` one per line. An error is \`{"error": {code, message, retry,
details, next}}\` on stderr. Values that JSON lacks are tagged: \`{"$int": "9223372036854775807"}\` where an integer does not
fit a number, \`{"$bytes": "<base64>"}\`, \`{"$real": "Infinity"}\`; an object whose only key starts with \`$\` stands in
\`{"$object": …}\`.

| exit code | meaning |
|--:|---|
${exits.join('\n')}

### Settings of a group

A flag goes before its environment variable, that before the JSON file that \`${GROUP_CONFIG_FILE.flag.split(' ', 1)[0]}\` or \`${GROUP_CONFIG_FILE.env}\`
names, and the file before the default. Relative paths in the file start from its directory.

${groupConfigTable()}

${(await helpPages()).join('\n\n')}
`;
}

/** Path from the root of the repository, and what must be in it. */
export async function generatedPages(): Promise<ReadonlyMap<string, string>> {
  return new Map([
    ['docs/errors.md', errorsPage()],
    ['docs/limits.md', limitsPage()],
    ['docs/cli.md', await cliPage()],
  ]);
}

if (import.meta.main) for (const [path, text] of await generatedPages()) writeFileSync(pathOf(path), text);
