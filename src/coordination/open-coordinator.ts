/**
 * A coordinator by its URL, the same on every node of a cluster; README.md has the table. Secrets are not in it, since a
 * URL is shown and logged: they come from files, or where the SDK of the store looks for them. What is misspelt is refused
 * by name. Nothing is asked of the coordinator here: a node opens also while it is away.
 */
import { readFile } from 'node:fs/promises';
import { isAbsolute } from 'node:path';
import { NostosError } from '../base/errors.ts';
import type { Coordination } from './coordination.ts';
import { embeddedCoordination } from './embedded.ts';

/** What each scheme takes behind the question mark. */
export const COORDINATOR_PARAMETERS = {
  embedded: ['poll-ms'],
  etcd: ['user', 'password-file', 'attempt-timeout-ms', 'timeout-ms', 'poll-ms', 'plaintext'],
  etcds: ['ca', 'cert', 'key', 'user', 'password-file', 'attempt-timeout-ms', 'timeout-ms', 'poll-ms'],
  s3: ['endpoint', 'region', 'path-style', 'timeout-ms', 'poll-ms', 'plaintext'],
} as const;

type Scheme = keyof typeof COORDINATOR_PARAMETERS;

/** Where the URL names none. */
const DEFAULT_PREFIX = 'nostos/';
const MS_MAX = 60 * 60 * 1_000;
const ENDPOINTS_MAX = 16;
const PREFIX = /^(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63}\/){1,8}$/;
const ENDPOINT = /^(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}))(?::\d{1,5})$/;
const LOOPBACK = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])$/;

export async function openCoordinator(url: string): Promise<Coordination> {
  const parts = /^([a-z0-9]+):([^?#]*)(?:\?([^#]*))?$/.exec(url);
  const scheme = parts?.[1] ?? '';
  if (parts === null || !Object.hasOwn(COORDINATOR_PARAMETERS, scheme))
    throw refused(url, `it begins with none of ${Object.keys(COORDINATOR_PARAMETERS).join(', ')} and a colon`);
  return OPEN[scheme as Scheme](parts[2] ?? '', new UrlParameters(url, scheme as Scheme, parts[3] ?? ''));
}

type Open = (rest: string, parameters: UrlParameters) => Coordination | Promise<Coordination>;
const OPEN: Readonly<Record<Scheme, Open>> = {
  embedded: openEmbedded,
  etcd: openEtcd,
  etcds: openEtcd,
  s3: openS3,
};

function openEmbedded(rest: string, parameters: UrlParameters): Coordination {
  const path = rest.replace(/^\/\/(?=\/)/, '');
  const dir = decoded(parameters.url, path);
  if (!isAbsolute(dir) || path.startsWith('//'))
    throw refused(parameters.url, 'what follows is not the absolute path of a directory');
  return embeddedCoordination({ dir, ...parameters.milliseconds({ pollMs: 'poll-ms' }) });
}

async function openEtcd(rest: string, parameters: UrlParameters): Promise<Coordination> {
  const { url, scheme } = parameters;
  const { authority, prefix } = hierarchy(url, rest);
  const endpoints = authority.split(',');
  if (endpoints.length > ENDPOINTS_MAX) throw refused(url, `it names more than ${ENDPOINTS_MAX} members`);
  for (const endpoint of endpoints)
    if (!ENDPOINT.test(endpoint) || !URL.canParse(`http://${endpoint}`))
      throw refused(url, `${JSON.stringify(endpoint)} is not host:port, or [IPv6]:port`);
  if (scheme === 'etcd') {
    const open = endpoints.find((endpoint) => !LOOPBACK.test(endpoint.replace(/:\d+$/, '')));
    if (open !== undefined) parameters.wantPlaintext(`${open} is not of this machine`, 'etcds:// speaks TLS');
  }
  const user = parameters.text('user');
  const password = await parameters.file('password-file');
  if ((user === undefined) !== (password === undefined)) throw refused(url, 'user and password-file go together');
  const [ca, cert, key] = await Promise.all([parameters.file('ca'), parameters.file('cert'), parameters.file('key')]);
  if ((cert === undefined) !== (key === undefined)) throw refused(url, 'cert and key go together');
  const { etcdCoordination } = await import('./etcd.ts');
  return etcdCoordination({
    endpoints,
    prefix,
    ...(scheme === 'etcds' && { tls: { ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) } }),
    ...(user !== undefined && password !== undefined && { user, password: password.replace(/\r?\n$/, '') }),
    ...parameters.milliseconds({ attemptTimeoutMs: 'attempt-timeout-ms', timeoutMs: 'timeout-ms', pollMs: 'poll-ms' }),
  });
}

async function openS3(rest: string, parameters: UrlParameters): Promise<Coordination> {
  const { url } = parameters;
  const { authority: bucket, prefix } = hierarchy(url, rest);
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(bucket)) throw refused(url, `${JSON.stringify(bucket)} is no bucket`);
  const endpoint = parameters.text('endpoint');
  if (endpoint !== undefined) {
    const target = URL.canParse(endpoint) ? new URL(endpoint) : undefined;
    if (target === undefined || !/^https?:$/.test(target.protocol) || target.username !== '' || target.password !== '')
      throw refused(url, 'its endpoint is no URL of http or https without user and password');
    if (target.protocol === 'http:' && !LOOPBACK.test(target.hostname))
      parameters.wantPlaintext(`${target.hostname} is not of this machine`, 'https:// speaks TLS');
  }
  const region = parameters.text('region');
  const pathStyle = parameters.oneOf('path-style', ['true', 'false']);
  const [{ S3ObjectStore }, { objectStoreCoordination }] = await Promise.all([
    import('./s3.ts'),
    import('./object-store.ts'),
  ]);
  const store = new S3ObjectStore({
    bucket,
    ...(endpoint !== undefined && { endpoint }),
    ...(region !== undefined && { region }),
    ...(pathStyle !== undefined && { pathStyle: pathStyle === 'true' }),
    ...parameters.milliseconds({ timeoutMs: 'timeout-ms' }),
  });
  return objectStoreCoordination(store, { prefix, ...parameters.milliseconds({ pollMs: 'poll-ms' }) });
}

/** `//authority/prefix`; the prefix gets a slash at its end. */
function hierarchy(url: string, rest: string): { authority: string; prefix: string } {
  const match = /^\/\/([^/]+)(?:\/(.*))?$/.exec(rest);
  if (match === null) throw refused(url, 'it has no // with a host or bucket behind it');
  if (match[1]!.includes('@'))
    throw refused(url, 'it has a user or password in it; a URL is logged, so use user and password-file');
  const path = match[2] || DEFAULT_PREFIX;
  const prefix = path.endsWith('/') ? path : `${path}/`;
  if (!PREFIX.test(prefix))
    throw refused(url, 'its prefix is not made of words of letters, digits, dots, dashes, and slashes');
  return { authority: match[1]!, prefix };
}

class UrlParameters {
  readonly url: string;
  readonly scheme: Scheme;
  readonly #given: URLSearchParams;

  constructor(url: string, scheme: Scheme, query: string) {
    this.url = url;
    this.scheme = scheme;
    this.#given = new URLSearchParams(query);
    const known: readonly string[] = COORDINATOR_PARAMETERS[scheme];
    for (const name of this.#given.keys()) {
      if (!known.includes(name))
        throw refused(url, `${scheme}: has no parameter ${JSON.stringify(name)}, only ${known.join(', ')}`);
      if (this.#given.getAll(name).length > 1) throw refused(url, `${name} is there twice`);
    }
  }

  text(name: string): string | undefined {
    const value = this.#given.get(name) ?? undefined;
    if (value === '') throw refused(this.url, `${name} is empty`);
    return value;
  }

  oneOf<Choice extends string>(name: string, choices: readonly Choice[]): Choice | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    const choice = choices.find((each) => each === value);
    if (choice === undefined) throw refused(this.url, `${name} is not ${choices.join(' or ')}`);
    return choice;
  }

  /** The content of a file that a parameter names. */
  async file(name: string): Promise<string | undefined> {
    const path = this.text(name);
    if (path === undefined) return undefined;
    try {
      return await readFile(path, 'utf8');
    } catch (cause) {
      throw refused(this.url, `${name}: ${path} cannot be read`, cause);
    }
  }

  milliseconds<Name extends string>(names: Readonly<Record<Name, string>>): { [Key in Name]?: number } {
    const found: { [Key in Name]?: number } = {};
    for (const [property, name] of Object.entries<string>(names)) {
      const value = this.text(name);
      if (value === undefined) continue;
      const ms = /^\d{1,7}$/.test(value) ? Number(value) : 0;
      if (ms < 1 || ms > MS_MAX) throw refused(this.url, `${name} is no number of milliseconds from 1 to ${MS_MAX}`);
      found[property as Name] = ms;
    }
    return found;
  }

  wantPlaintext(why: string, remedy: string): void {
    if (this.oneOf('plaintext', ['allow']) === 'allow') return;
    throw refused(
      this.url,
      `${why}, and who can change bytes on the way could appoint the primary; ${remedy}, or plaintext=allow`,
    );
  }
}

function decoded(url: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (cause) {
    throw refused(url, 'its path has a % that stands for nothing', cause);
  }
}

/** As it may be printed: somebody may have put a password before an @, or a key into a parameter. */
export function shownUrl(url: string): string {
  return url
    .replace(/\?.*$/s, '?…')
    .replace(/\/\/.*@/s, '//…@')
    .slice(0, 300);
}

function refused(url: string, reason: string, cause?: unknown): NostosError {
  const shown = shownUrl(url);
  return new NostosError('INVALID_ARGUMENT', `${JSON.stringify(shown)} is no URL of a coordinator: ${reason}`, {
    details: { url: shown, reason },
    ...(cause !== undefined && { cause }),
  });
}
