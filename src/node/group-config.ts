/**
 * What a node has to know of its group. One table makes the flags, the environment variables, the file and their
 * documentation; a flag goes before the environment, that before the file, and the file before the default. A value that
 * is refused is named by where it came from, and not repeated: a URL may have a password in it that should not be there.
 */
import { dirname, resolve } from 'node:path';
import * as v from 'valibot';
import { NostosError, isNostosError } from '../base/errors.ts';
import { plainRecord, readInput, wholeNumber } from '../base/input-schema.ts';
import { checkGroupName, DEFAULT_GROUP, MEMBERS_MAX } from '../coordination/coordinator.ts';
import { COORDINATOR_PARAMETERS, shownUrl } from '../coordination/open-coordinator.ts';
import type { GroupLimits } from '../replication/options.ts';
import { checkGroupLimits, DEFAULT_GROUP_LIMITS } from '../replication/options.ts';
import { parseAddress } from '../wire/address.ts';

export interface GroupConfig {
  readonly coordinator: string;
  readonly group: string;
  /** `host:port` where other nodes connect; port 0: any free one. */
  readonly listen: string;
  /** `host:port` under which they reach it; absent: what `listen` becomes. */
  readonly advertise?: string;
  readonly tlsDir?: string;
  /** What it becomes with the next change of the members; absent: a majority of them stays one. */
  readonly minInSync?: number;
  readonly durability: 'quorum' | 'local';
  readonly limits: GroupLimits;
}

export type GroupConfigField = keyof GroupConfig;

interface Field {
  readonly flag: string;
  readonly env: string;
  /** For people; `default` where there is none is said in it. */
  readonly help: string;
  readonly default?: string;
  /** Takes what stands in the file; text of flags and environment goes through `fromText` first. */
  readonly schema: v.GenericSchema;
  readonly fromText?: (text: string) => unknown;
  /** May be given several times; then each adds to what the others say. */
  readonly repeats?: true;
  readonly isPath?: true;
}

const SCHEMES = Object.keys(COORDINATOR_PARAMETERS);
const LIMIT_NAMES = Object.keys(DEFAULT_GROUP_LIMITS) as readonly (keyof GroupLimits)[];
const text = v.pipe(v.string(), v.minLength(1), v.maxLength(4_096));

/** What another parser takes; its message repeats the value, so ours stands in for it. */
function taken(check: (value: string) => unknown, expected: string): v.GenericSchema {
  const takes = (value: string): boolean => {
    try {
      check(value);
      return true;
    } catch (error) {
      if (isNostosError(error)) return false;
      throw error;
    }
  };
  return v.pipe(text, v.check(takes, `expected ${expected}`));
}

const address = taken(parseAddress, 'host:port, or [IPv6]:port');

export const GROUP_CONFIG_FIELDS: Readonly<Record<GroupConfigField, Field>> = {
  coordinator: {
    flag: '--coordinator <url>',
    env: 'NOSTOS_COORDINATOR',
    help: `coordinator of the group, the same for all its nodes: ${SCHEMES.map((scheme) => `${scheme}:`).join(', ')}`,
    schema: v.pipe(
      text,
      v.check(
        (url) => SCHEMES.includes(url.split(':', 1)[0] ?? ''),
        `expected a URL that begins with ${SCHEMES.join(', ')}`,
      ),
    ),
  },
  group: {
    flag: '--group <name>',
    env: 'NOSTOS_GROUP',
    help: 'name of the group at its coordinator',
    default: DEFAULT_GROUP,
    schema: taken(checkGroupName, '1 to 63 lowercase letters, digits and dashes'),
  },
  listen: {
    flag: '--group-listen <host:port>',
    env: 'NOSTOS_GROUP_LISTEN',
    help: 'the other members of the group connect there; port 0: any free one',
    schema: address,
  },
  advertise: {
    flag: '--advertise <host:port>',
    env: 'NOSTOS_ADVERTISE',
    help: 'where other nodes of the group reach it; without it, at the address of --group-listen',
    schema: taken((value) => {
      if (parseAddress(value).port === 0) throw new NostosError('INVALID_ARGUMENT', 'nobody can be reached at port 0');
    }, 'host:port with a port from 1 on'),
  },
  tlsDir: {
    flag: '--tls-dir <dir>',
    env: 'NOSTOS_TLS_DIR',
    help: 'ca.crt, node.crt and node.key, made by nostos certs node',
    schema: text,
    isPath: true,
  },
  minInSync: {
    flag: '--min-in-sync <count>',
    env: 'NOSTOS_MIN_IN_SYNC',
    help: 'so many members have each committed write, from the next change of members on; without it, a majority',
    schema: v.pipe(wholeNumber(1), v.maxValue(MEMBERS_MAX)),
    fromText: number,
  },
  durability: {
    flag: '--durability <kind>',
    env: 'NOSTOS_DURABILITY',
    help: 'quorum: a write is answered when it cannot be lost; local: when the primary has it on disk',
    default: 'quorum',
    schema: v.picklist(['quorum', 'local']),
  },
  limits: {
    flag: '--group-limit <name=value>',
    env: 'NOSTOS_GROUP_LIMITS',
    help: 'a time or bound of the group, such as leaseMs=10000 (docs/limits.md); may be repeated, or joined by commas',
    schema: plainRecord(v.pipe(v.number(), v.finite(), v.minValue(0)), { entriesMax: LIMIT_NAMES.length }),
    fromText: assignments,
    repeats: true,
  },
};

export const GROUP_CONFIG_FILE = {
  flag: '--config <file>',
  env: 'NOSTOS_CONFIG',
  help: 'JSON file with the settings of the group; flags and environment go before it',
} as const;

const FIELD_NAMES = Object.keys(GROUP_CONFIG_FIELDS) as readonly GroupConfigField[];
const CONFIG_BYTES_MAX = 64 * 1024;

export interface GroupConfigInput {
  /** What was given on the command line, as text, by the name of the field. */
  readonly flags?: Readonly<Partial<Record<GroupConfigField, string | readonly string[]>>>;
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly file?: { readonly path: string; readonly text: string };
  /** What relative paths of flags and environment start from; those of the file start from its directory. */
  readonly cwd?: string;
}

interface Given {
  /** `--group`, `NOSTOS_GROUP`, `group in /etc/nostos.json`: what people have to look at. */
  readonly source: string;
  readonly value: unknown;
}

/** Which group, for who only looks at its record. */
export function loadGroupPlace(input: GroupConfigInput): Pick<GroupConfig, 'coordinator' | 'group'> | undefined {
  const { coordinator, group } = readFields(input);
  if (coordinator === undefined) return undefined;
  return { coordinator: String(coordinator.value), group: group === undefined ? DEFAULT_GROUP : String(group.value) };
}

/** One setting by itself, for who asks for a change of it; undefined where nobody said anything. */
export function loadMinInSync(input: GroupConfigInput): number | undefined {
  return readFields(input).minInSync?.value as number | undefined;
}

/** Undefined where nothing names a coordinator: the node is alone. */
export function loadGroupConfig(input: GroupConfigInput): GroupConfig | undefined {
  const { coordinator, listen, advertise, limits, ...rest } = readFields(input);
  if (coordinator === undefined) {
    const needing = advertise ?? rest.minInSync ?? limits;
    if (needing !== undefined) throw refusal(needing.source, 'is of a group, and no --coordinator is given');
    return undefined;
  }
  if (listen === undefined)
    throw refusal('--group-listen', 'is missing: the other members of the group have to reach this node');
  if (advertise === undefined && /^(?:0\.0\.0\.0|\[::\]):/.test(String(listen.value)))
    throw refusal(listen.source, 'is every address of this machine: say with --advertise which one the others use');
  const values = Object.entries({ coordinator, listen, advertise, ...rest })
    .filter(([, given]) => given !== undefined)
    .map(([name, given]) => [name, given?.value]);
  return {
    group: DEFAULT_GROUP,
    durability: 'quorum',
    ...(Object.fromEntries(values) as Pick<GroupConfig, 'coordinator' | 'listen'>),
    limits: readLimits(limits),
  };
}

function readFields(input: GroupConfigInput): Readonly<Record<GroupConfigField, Given | undefined>> {
  const file = input.file === undefined ? {} : parseFile(input.file);
  const read = FIELD_NAMES.map((name) => [name, readField(name, input, file)]);
  return Object.fromEntries(read) as Readonly<Record<GroupConfigField, Given | undefined>>;
}

function readField(name: GroupConfigField, input: GroupConfigInput, file: Record<string, unknown>): Given | undefined {
  const { flags = {}, env = {}, cwd = '.' } = input;
  const field = GROUP_CONFIG_FIELDS[name];
  const given: Given[] = [];
  const add = (source: string, value: unknown, base: string): void => {
    const found = check(field, source, value);
    given.push({ source, value: field.isPath === true ? resolve(base, String(found)) : found });
  };
  const parse = field.fromText ?? ((value: string): unknown => value);
  if (file[name] !== undefined) add(`${name} in ${input.file!.path}`, file[name], dirname(input.file!.path));
  const variable = env[field.env];
  if (variable !== undefined && variable !== '') add(field.env, parse(variable), cwd);
  const flag = flags[name];
  for (const value of flag === undefined ? [] : [flag].flat()) add(field.flag.split(' ', 1)[0]!, parse(value), cwd);
  const last = given.at(-1);
  if (field.repeats !== true || last === undefined) return last;
  return {
    source: given.map(({ source }) => source).join(', '),
    value: Object.assign({}, ...given.map((one) => one.value)),
  };
}

function check({ schema }: Field, source: string, value: unknown): unknown {
  const found = readInput(schema, value);
  if (found.ok) return found.value;
  throw refusal(source, found.problem);
}

function readLimits(given: Given | undefined): GroupLimits {
  if (given === undefined) return DEFAULT_GROUP_LIMITS;
  const values = given.value as Readonly<Record<string, number>>;
  const unknown = Object.keys(values).find((name) => !(LIMIT_NAMES as readonly string[]).includes(name));
  if (unknown !== undefined)
    throw refusal(
      given.source,
      `there is no limit ${unknown.slice(0, 100)} of groups; there are ${LIMIT_NAMES.join(', ')}`,
    );
  const uneven = LIMIT_NAMES.find((name) => name !== 'clockDriftMax' && !Number.isSafeInteger(values[name] ?? 0));
  if (uneven !== undefined) throw refusal(given.source, `${uneven} is a whole number`);
  try {
    return checkGroupLimits({ ...DEFAULT_GROUP_LIMITS, ...values });
  } catch (cause) {
    if (!isNostosError(cause)) throw cause;
    throw refusal(given.source, cause.message);
  }
}

function parseFile({ path, text: content }: NonNullable<GroupConfigInput['file']>): Record<string, unknown> {
  if (content.length > CONFIG_BYTES_MAX) throw refusal(path, `has more than ${CONFIG_BYTES_MAX} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch {
    // What the parser says repeats a part of the file.
    throw refusal(path, 'is not JSON');
  }
  const read = readInput(plainRecord(v.unknown()), value);
  if (!read.ok) throw refusal(path, read.problem);
  const unknown = Object.keys(read.value).find((name) => !(FIELD_NAMES as readonly string[]).includes(name));
  if (unknown !== undefined)
    throw refusal(path, `has no setting ${JSON.stringify(unknown).slice(0, 100)}; there are ${FIELD_NAMES.join(', ')}`);
  return read.value;
}

function number(value: string): unknown {
  return /^\d{1,15}(?:\.\d{1,15})?$/.test(value) ? Number(value) : value;
}

/** `leaseMs=10000,clockDriftMax=0.02`; what is none becomes text, which the schema refuses. */
function assignments(value: string): unknown {
  const parts = value.split(',').map((part) => /^([A-Za-z]{1,64})=(.+)$/.exec(part.trim()));
  if (parts.some((part) => part === null)) return value;
  return Object.fromEntries(parts.map((part) => [part![1], number(part![2]!)]));
}

function refusal(source: string, problem: string): NostosError {
  const said = /^(?:is|has) /.test(problem) ? ` ${problem}` : `: ${problem}`;
  return new NostosError('INVALID_ARGUMENT', `${source}${said}`, { details: { source, problem } });
}

/** As it may be shown and logged. */
export function shownGroupConfig(config: GroupConfig): Readonly<Record<string, unknown>> {
  return { ...config, coordinator: shownUrl(config.coordinator) };
}

/** For docs/cli.md: the settings by flag, variable and name in the file. */
export function groupConfigTable(): string {
  const rows = FIELD_NAMES.map((name) => {
    const { flag, env, help, default: value } = GROUP_CONFIG_FIELDS[name];
    return `| \`${flag.split(' ', 1)[0]}\` | \`${env}\` | \`${name}\` | ${value ?? ''} | ${help} |`;
  });
  return ['| flag | environment | in the file | default | what it is |', '|---|---|---|---|---|', ...rows].join('\n');
}
