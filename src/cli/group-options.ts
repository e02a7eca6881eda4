/** The settings of a group on the command line: `node/group-config.ts` has them, this makes options of them. */
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { Option, type Command } from 'commander';
import type { Coordination } from '../coordination/coordination.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import type { GroupConfig, GroupConfigField, GroupConfigInput } from '../node/group-config.ts';
import {
  GROUP_CONFIG_FIELDS,
  GROUP_CONFIG_FILE,
  loadGroupConfig,
  loadGroupPlace,
  loadMinInSync,
} from '../node/group-config.ts';
import { ExitError } from './exit-codes.ts';
import type { Io } from './io.ts';

const FIELD_NAMES = Object.keys(GROUP_CONFIG_FIELDS) as readonly GroupConfigField[];

/** Adds those of `names` that the command does not have yet, and the file that may hold them. */
export function withGroupOptions(command: Command, names: readonly GroupConfigField[] = FIELD_NAMES): Command {
  for (const name of names) {
    const { flag, env, help, default: value, repeats } = GROUP_CONFIG_FIELDS[name];
    const option = new Option(flag, value === undefined ? help : `${help} (default: ${value})`).env(env);
    if (repeats === true)
      option.argParser((text: string, before: readonly string[] | undefined) => [...(before ?? []), text]);
    if (command.options.every(({ long }) => long !== option.long)) command.addOption(option);
  }
  return command.addOption(new Option(GROUP_CONFIG_FILE.flag, GROUP_CONFIG_FILE.help).env(GROUP_CONFIG_FILE.env));
}

/** Only what was typed: what commander takes from the environment is told apart, and read by its own name. */
function typed(command: Command, name: string): unknown {
  return command.getOptionValueSource(name) === 'cli' ? command.getOptionValue(name) : undefined;
}

function optionName(field: GroupConfigField): string {
  return new Option(GROUP_CONFIG_FIELDS[field].flag).attributeName();
}

/** Undefined where no coordinator is named. */
export async function readGroupConfig(io: Io, command: Command): Promise<GroupConfig | undefined> {
  return loadGroupConfig(await inputOf(io, command));
}

export async function readMinInSync(io: Io, command: Command): Promise<number | undefined> {
  return loadMinInSync(await inputOf(io, command));
}

/** Opens the coordinator of the group that the command is about, for as long as `use` runs. */
export async function withGroupRecord<T>(
  io: Io,
  command: Command,
  use: (group: { readonly name: string; readonly coordination: Coordination }) => Promise<T>,
): Promise<T> {
  const place = loadGroupPlace(await inputOf(io, command));
  if (place === undefined)
    throw new ExitError('usage', 'it is not said which coordinator', 'Give the one of the group: --coordinator <url>');
  await using coordination = await openCoordinator(place.coordinator);
  return await use({ name: place.group, coordination });
}

async function inputOf(io: Io, command: Command): Promise<GroupConfigInput> {
  const path = (typed(command, 'config') as string | undefined) ?? io.env[GROUP_CONFIG_FILE.env];
  const flags = Object.fromEntries(
    FIELD_NAMES.map((name) => [name, typed(command, optionName(name))]).filter(([, value]) => value !== undefined),
  ) as GroupConfigInput['flags'] & object;
  const input = { flags, env: io.env, cwd: io.cwd };
  if (path === undefined || path === '') return input;
  const file = resolve(io.cwd, path);
  return { ...input, file: { path: file, text: await readText(file) } };
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new ExitError('usage', `${path} cannot be read: ${(error as NodeJS.ErrnoException).code ?? 'unknown'}`);
  }
}
