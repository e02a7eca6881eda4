/**
 * Puts the parts of a restore together: the directory on the system's disk, providers over the network, and the node that
 * verifies what was fetched. `restore.ts` is its command line.
 */
import { toClusterId } from '../base/brands.ts';
import { acquireDirectoryLock } from '../base/directory-lock.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { randomHex128, systemRandom } from '../base/random.ts';
import { nodeFileCodec } from '../node/node-file.ts';
import { VERSION } from '../node/runtime.ts';
import type { RestoreFeed } from '../restore/feed.ts';
import type { Marker } from '../restore/local/marker.ts';
import { ownIdentity } from '../restore/local/outlook.ts';
import type { RestoreDeps } from '../restore/local/restore-directory.ts';
import { ProviderFeed, type ProviderEvent } from '../restore/provider-feed.ts';
import { openReferenceFeed } from '../restore/reference-feed.ts';
import { RESTORE_SERVICE_NAME } from '../restore/reference/types.ts';
import { RestoreClient, requestInfo } from '../restore/stream/client.ts';
import { STREAM_SERVICE_NAME } from '../restore/stream/messages.ts';
import { RECEIVE_BUFFER_BYTES } from '../restore/stream/limits.ts';
import type { Channel } from '../wire/channel.ts';
import { connectToService } from '../wire/connect.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';

export interface Providers {
  /** `host:port` of each. */
  readonly from: readonly string[];
  readonly tls?: TlsIdentity | undefined;
  readonly connections?: number | undefined;
  readonly rateBytesPerSecond?: number | undefined;
  /** The directory's own history does not bind. */
  readonly replace?: boolean | undefined;
  readonly onEvent?: ((event: ProviderEvent) => void) | undefined;
}

export const restoreDeps: RestoreDeps = {
  disk: systemDisk,
  clock: systemClock,
  random: systemRandom,
  identity: nodeFileCodec,
  lock: (dir, signal) =>
    acquireDirectoryLock(
      { dir, timeoutMs: 0, holder: { command: process.argv.slice(1).join(' '), version: VERSION } },
      signal === undefined ? {} : { signal },
    ),
  verify: async (dir, options) => (await import('../node/staged-copy.ts')).verifyStaged(dir, options),
};

interface Opening {
  readonly marker: Marker | undefined;
  readonly signal: AbortSignal;
}

/** The best provider; where all that answer have only the reference's service, the first of those. */
export async function openProviders(dir: string, providers: Providers, opening: Opening): Promise<RestoreFeed> {
  const strangers: string[] = [];
  const onEvent = (event: ProviderEvent): void => {
    // A dispatcher closes without a word where it does not know a service.
    if (event.kind === 'dropped' && isNostosError(event.dropped.error, 'CHANNEL_CLOSED'))
      strangers.push(event.dropped.member.address);
    providers.onEvent?.(event);
  };
  try {
    return await openStream(dir, { ...providers, onEvent }, opening);
  } catch (error) {
    opening.signal.throwIfAborted();
    for (const address of strangers) {
      const feed = await openReference(dir, address, { providers, ...opening });
      if (feed !== undefined) return feed;
    }
    throw error;
  }
}

const connectTo =
  ({ tls }: Providers, address: string, service: string, options: { readonly receiveBufferBytes?: number } = {}) =>
  (signal: AbortSignal): Promise<Channel> =>
    connectToService(address, service, { ...options, signal, ...(tls === undefined ? {} : { tls }) });

function openReference(
  dir: string,
  address: string,
  { providers, marker, signal }: Opening & { readonly providers: Providers },
): Promise<RestoreFeed | undefined> {
  const own = ownIdentity(systemDisk, dir, nodeFileCodec);
  return openReferenceFeed(
    {
      disk: systemDisk,
      connect: (to, open) => connectTo(providers, to, RESTORE_SERVICE_NAME)(open),
      monotonicMs: () => systemClock.monotonicMs(),
    },
    { address, cluster: marker?.history.cluster ?? own?.cluster ?? toClusterId(randomHex128(systemRandom)) },
    signal,
  );
}

function openStream(dir: string, providers: Providers, { marker, signal }: Opening): Promise<RestoreFeed> {
  const { connections, rateBytesPerSecond, replace, onEvent } = providers;
  const own = ownIdentity(systemDisk, dir, nodeFileCodec);
  const connect = (address: string): ((open: AbortSignal) => Promise<Channel>) =>
    connectTo(providers, address, STREAM_SERVICE_NAME, { receiveBufferBytes: RECEIVE_BUFFER_BYTES });
  return ProviderFeed.open(
    {
      ask: ({ address }, ask) => requestInfo({ connect: connect(address) }, ask),
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
      members: providers.from.map((address) => ({ address })),
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
