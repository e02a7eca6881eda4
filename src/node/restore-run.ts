/**
 * Puts the parts of a restore together: the directory on the system's disk, providers over the network, and the node that
 * verifies what was fetched. `restore-node.ts` is what others call.
 */
import { dirname } from 'node:path';
import { toClusterId, type ClusterId } from '../base/brands.ts';
import { acquireDirectoryLock } from '../base/directory-lock.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { NostosError, isNostosError, type ErrorCode } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { assertNoRecovery } from './group-recovery-journal.ts';
import { nodeFileCodec } from './node-file.ts';
import { VERSION } from './runtime.ts';
import type { RestoreFeed } from '../restore/feed.ts';
import type { Marker } from '../restore/local/marker.ts';
import { ownIdentity } from '../restore/local/outlook.ts';
import {
  restoreDirectory,
  type RestoreDeps,
  type RestoreOptions,
  type RestoreReport,
} from '../restore/local/restore-directory.ts';
import { ProviderFeed, type ProviderEvent } from '../restore/provider-feed.ts';
import { REFERENCE_PREFIX, openReferenceFeed } from '../restore/reference-feed.ts';
import { RESTORE_SERVICE_NAME } from '../restore/reference/types.ts';
import { RestoreClient, requestInfo } from '../restore/stream/client.ts';
import { STREAM_SERVICE_NAME } from '../restore/stream/messages.ts';
import { RECEIVE_BUFFER_BYTES } from '../restore/stream/limits.ts';
import type { Channel } from '../wire/channel.ts';
import { connectToService } from '../wire/connect.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';

export interface Providers {
  /** `host:port` of each; or `reference:host:port` of one that has only the service RESTORE of the reference, alone. */
  readonly from: readonly string[];
  readonly tls?: TlsIdentity | undefined;
  readonly connections?: number | undefined;
  readonly rateBytesPerSecond?: number | undefined;
  /** The directory's own history does not bind. */
  readonly replace?: boolean | undefined;
  readonly onEvent?: ((event: RestoreRunEvent) => void) | undefined;
}

/** A log that came without saying whose it is. `minted`: the directory had no cluster id, so it gets a new one. */
export interface ReferenceUsed {
  readonly address: string;
  readonly service: typeof RESTORE_SERVICE_NAME;
  readonly cluster: ClusterId;
  readonly minted: boolean;
}

/** Who brought the end of the copy. */
export interface ProviderUsed {
  readonly address: string;
  readonly role: string | null;
  /** W that it had when it was chosen, and the best W of all that could have served in this run. */
  readonly watermark: number;
  readonly bestWatermark: number;
}

export type RestoreRunEvent = ProviderEvent | { readonly kind: 'reference'; readonly used: ReferenceUsed };

export const restoreDeps: RestoreDeps = {
  disk: systemDisk,
  clock: systemClock,
  random: systemRandom,
  identity: nodeFileCodec,
  lock: async (dir, signal) => {
    const lock = await acquireDirectoryLock(
      { dir, timeoutMs: 0, holder: { command: process.argv.slice(1).join(' '), version: VERSION } },
      signal === undefined ? {} : { signal },
    );
    try {
      assertNoRecovery(systemDisk, dir); // its group may have nobody else to go on with
      return lock;
    } catch (error) {
      lock.release();
      throw error;
    }
  },
  verify: async (dir, options) =>
    (await import('./staged-copy.ts')).verifyStaged(dir, { ...options, former: dirname(dir) }),
};

interface Opening {
  readonly marker: Marker | undefined;
  readonly signal: AbortSignal;
}

/** What verifying a staged copy says where the copy is at fault, not the disk. */
const NOT_WHOLE: readonly ErrorCode[] = ['VERIFY_FAILED', 'LOG_DAMAGED', 'TENANT_DAMAGED'];

export interface RunReport extends RestoreReport {
  /** Absent where an earlier run had fetched all. */
  readonly provider?: ProviderUsed | ReferenceUsed;
}

/**
 * Restores from the members. Where what one of them sent does not check out, the next one goes on with it; who was dropped
 * is not asked again in this run, so there are at most as many rounds as members.
 */
export async function restoreFromProviders(
  providersOf: (marker: Marker | undefined) => Promise<Providers>,
  options: Omit<RestoreOptions, 'openFeed'>,
  deps = restoreDeps,
): Promise<RunReport> {
  const failed = new Set<string>();
  let earlier: NostosError | undefined;
  for (;;) {
    let provider: ProviderUsed | ReferenceUsed | undefined;
    let providers: Providers | undefined;
    const onEvent = (event: RestoreRunEvent): void => {
      if (event.kind === 'dropped') failed.add(event.dropped.member.address);
      provider = usedBy(event, provider) ?? provider;
      providers?.onEvent?.(event);
    };
    try {
      const report = await restoreDirectory(deps, {
        ...options,
        openFeed: async (marker, signal = new AbortController().signal) => {
          providers = await providersOf(marker);
          const from = providers.from.filter((address) => !failed.has(address));
          return openProviders(options.dir, { ...providers, from, onEvent }, { marker, signal });
        },
      });
      return { ...report, ...(provider === undefined ? {} : { provider }) };
    } catch (error) {
      if (!isNostosError(error) || !NOT_WHOLE.includes(error.code) || provider === undefined)
        throw afterwards(error, earlier);
      const { address } = provider;
      onEvent({ kind: 'dropped', dropped: { member: { address }, why: error.message, error } });
      if (providers?.from.every((one) => failed.has(one)) ?? true) throw error;
      earlier ??= error;
    }
  }
}

/** Why the last one failed is half of it where an earlier one sent a damaged copy. */
function afterwards(error: unknown, earlier: NostosError | undefined): unknown {
  if (earlier === undefined || !isNostosError(error)) return error;
  const { code, message, details } = error;
  return new NostosError(code, `${message}; before that: ${earlier.message}`, { details, cause: error });
}

function usedBy(
  event: RestoreRunEvent,
  before: ProviderUsed | ReferenceUsed | undefined,
): ProviderUsed | ReferenceUsed | undefined {
  if (event.kind === 'reference') return event.used;
  if (event.kind !== 'chosen') return undefined;
  const { member, info, bestWatermark } = event.candidate;
  const best = before !== undefined && 'bestWatermark' in before ? before.bestWatermark : 0;
  const { role, watermark } = info;
  return { address: member.address, role, watermark, bestWatermark: Math.max(best, bestWatermark) };
}

/** The best provider; the service of the reference only where it is asked for by name. */
export async function openProviders(dir: string, providers: Providers, opening: Opening): Promise<RestoreFeed> {
  const reference = providers.from.find((source) => source.startsWith(REFERENCE_PREFIX));
  if (reference === undefined) return openStream(dir, providers, opening);
  if (providers.from.length > 1)
    throw new NostosError('INVALID_ARGUMENT', `${reference} goes with no other source; name it alone`);
  return openReference(dir, reference.slice(REFERENCE_PREFIX.length), { providers, ...opening });
}

const connectTo =
  ({ tls }: Providers, address: string, service: string, options: { readonly receiveBufferBytes?: number } = {}) =>
  (signal: AbortSignal): Promise<Channel> =>
    connectToService(address, service, { ...options, signal, ...(tls === undefined ? {} : { tls }) });

async function openReference(
  dir: string,
  address: string,
  { providers, marker, signal }: Opening & { readonly providers: Providers },
): Promise<RestoreFeed> {
  if (marker?.phase === 'fetching' && !marker.sources.some((source) => source.startsWith(REFERENCE_PREFIX)))
    throw new NostosError(
      'RESTORE_UNFINISHED',
      `an unfinished restore from ${marker.sources.join(', ')} lies here, which fetches a copy and no log alone; ` +
        'go on with its own source, or give it up with --abandon',
      { details: { run: marker.run, sources: marker.sources } },
    );
  const known = marker?.history.cluster ?? ownIdentity(systemDisk, dir, nodeFileCodec)?.cluster;
  const cluster = known ?? toClusterId(randomHex128(systemRandom));
  const feed = await openReferenceFeed(
    {
      disk: systemDisk,
      connect: (to, open) => connectTo(providers, to, RESTORE_SERVICE_NAME)(open),
      monotonicMs: () => systemClock.monotonicMs(),
    },
    { address, cluster },
    signal,
  );
  const used = { address, service: RESTORE_SERVICE_NAME, cluster, minted: known === undefined } as const;
  providers.onEvent?.({ kind: 'reference', used });
  return feed;
}

/** A dispatcher closes without a word where it does not know a service, and so does whoever dies. */
function silent(address: string, error: unknown): never {
  if (!isNostosError(error, 'CHANNEL_CLOSED')) throw error;
  throw new NostosError(
    'CHANNEL_CLOSED',
    `${address} closed the connection without an answer. If it serves copies (nostos serve --listen) run this again; ` +
      `if it has only the service RESTORE of the reference, say --from ${REFERENCE_PREFIX}${address}`,
    { details: { address }, cause: error },
  );
}

function openStream(dir: string, providers: Providers, { marker, signal }: Opening): Promise<RestoreFeed> {
  const { connections, rateBytesPerSecond, replace, onEvent } = providers;
  const own = ownIdentity(systemDisk, dir, nodeFileCodec);
  const connect = (address: string): ((open: AbortSignal) => Promise<Channel>) =>
    connectTo(providers, address, STREAM_SERVICE_NAME, { receiveBufferBytes: RECEIVE_BUFFER_BYTES });
  return ProviderFeed.open(
    {
      ask: ({ address }, ask) =>
        requestInfo({ connect: connect(address) }, ask).catch((error: unknown) => silent(address, error)),
      open: ({ address }, open) =>
        RestoreClient.open(
          {
            connect: connect(address),
            ...(connections === undefined ? {} : { connections }),
            ...(rateBytesPerSecond === undefined ? {} : { rateBytesPerSecond }),
          },
          open,
        ),
    },
    {
      members: [...new Set(providers.from)].map((address) => ({ address })),
      self: own,
      history: marker?.history ?? (replace === true ? undefined : own),
      replaceable: marker === undefined,
      lagRecordsMax: DEFAULT_LIMITS.providerLagRecordsMax,
      attemptsMax: DEFAULT_LIMITS.providerAttemptsMax,
      sessionsMax: DEFAULT_LIMITS.providerSessionsMax,
      onEvent,
    },
    signal,
  );
}
