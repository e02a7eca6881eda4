/** What every verb has in common: where its node is, how it answers, and what its help shows. */
import { resolve } from 'node:path';
import { Command, Option } from 'commander';
import { stringifyJson } from '../node/json-values.ts';
import type { CallOptions } from '../node/admin-socket.ts';
import type { OperationInput, OperationName, OperationResult } from '../node/operations.ts';
import { RATE_BYTES_PER_SECOND_MIN } from '../restore/stream/limits.ts';
import { ExitError } from './exit-codes.ts';
import { print, type Io } from './io.ts';
import { accessNode, type NodeAccess } from './node-access.ts';
import { callWithDisplay } from './progress.ts';

export interface PlainOptions {
  readonly json?: true;
}

export interface VerbOptions extends PlainOptions {
  readonly dir: string;
}

export interface TenantOptions extends VerbOptions {
  readonly tenant: string;
}

export interface VerbHelp {
  readonly summary: string;
  /** What one must know to use it, in a few sentences. */
  readonly description?: string;
  /** Command line and what it does. */
  readonly examples: readonly (readonly [string, string])[];
}

const DEFAULT_DIR = './nostos-data';

function examplesText(examples: VerbHelp['examples']): string {
  const lines = examples.map(([line, what]) => `  $ ${line}\n      ${what}`);
  return `\nExamples:\n${lines.join('\n')}`;
}

/** A verb that has no node of its own choosing. */
export function plainVerb(name: string, help: VerbHelp): Command {
  return new Command(name)
    .summary(help.summary)
    .description(help.description === undefined ? help.summary : `${help.summary}\n\n${help.description}`)
    .option('--json', 'answer with JSON')
    .addHelpText('after', examplesText(help.examples));
}

export function verb(name: string, help: VerbHelp): Command {
  return plainVerb(name, help).addOption(
    new Option('--dir <path>', 'data directory of the node').env('NOSTOS_DIR').default(DEFAULT_DIR),
  );
}

export function tenantOption(): Option {
  return new Option('--tenant <name>', 'tenant to work on').env('NOSTOS_TENANT').makeOptionMandatory();
}

export function wholeNumber(name: string): (text: string) => number {
  return (text) => {
    if (!/^\d{1,15}$/.test(text))
      throw new ExitError('usage', `${name} takes a whole number, got ${JSON.stringify(text)}`);
    return Number(text);
  };
}

/** Suffixes are powers of 1,024, per second. */
export function byteRate(name: string): (text: string) => number {
  return (text) => {
    const match = /^(\d{1,9})([KMG]?)$/i.exec(text);
    const rate = Number(match?.[1] ?? 0) * 1024 ** ' KMG'.indexOf(match?.[2]?.toUpperCase() || ' ');
    if (rate >= RATE_BYTES_PER_SECOND_MIN) return rate;
    throw new ExitError(
      'usage',
      `${name} takes bytes per second, such as 500K or 20M, ${RATE_BYTES_PER_SECOND_MIN / 1024}K at least, got ${JSON.stringify(text)}`,
    );
  };
}

export async function withNode<T>(
  io: Io,
  options: VerbOptions & { readonly create?: boolean },
  fn: (node: NodeAccess) => Promise<T>,
): Promise<T> {
  const { create = false } = options;
  await using node = await accessNode({ dir: resolve(io.cwd, options.dir), signal: io.signal, create });
  return await fn(node);
}

/** One operation, with its progress on stderr. */
export async function callWithProgress<Name extends OperationName>(
  io: Io,
  node: NodeAccess,
  call: { readonly name: Name; readonly input: OperationInput<Name> } & Pick<CallOptions, 'onItem'>,
): Promise<OperationResult<Name>> {
  return callWithDisplay(io, (onProgress) => node.call(call.name, call.input, { onProgress, onItem: call.onItem }));
}

/** The answer of a verb: one JSON document with `--json`, else what `human` says. */
export async function answer(io: Io, options: PlainOptions, result: unknown, human: () => string): Promise<void> {
  await print(io.stdout, `${options.json ? stringifyJson(result, 2) : human()}\n`);
}
