/**
 * Puts the parts of a restore together: the directory on the system's disk, providers over the network, and the node that
 * verifies what was fetched. `restore.ts` is its command line.
 */
import { acquireDirectoryLock } from '../base/directory-lock.ts';
import { systemClock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { systemRandom } from '../base/random.ts';
import { nodeFileCodec } from '../node/node-file.ts';
import { VERSION } from '../node/runtime.ts';
import type { RestoreFeed } from '../restore/feed.ts';
import type { Marker } from '../restore/local/marker.ts';
import { ownIdentity } from '../restore/local/outlook.ts';
import type { RestoreDeps } from '../restore/local/restore-directory.ts';
import { ProviderFeed, type ProviderEvent } from '../restore/provider-feed.ts';
import { RestoreClient, requestInfo } from '../restore/stream/client.ts';
import { STREAM_SERVICE_NAME } from '../restore/stream/messages.ts';
import type { Channel } from '../wire/channel.ts';
import { connectToService } from '../wire/connect.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';

export interface Providers {
  /** `host:port` of each. */
  readonly from: readonly string[];
  readonly tls?: TlsIdentity | undefined;
  readonly connections?: number | undefined;
  readonly rateBytesPerSecond?: number | undefined;
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

export async function openProviders(
  dir: string,
  providers: Providers,
  { marker, signal }: { readonly marker: Marker | undefined; readonly signal: AbortSignal },
): Promise<RestoreFeed> {
  const connect =
    (address: string) =>
    (open: AbortSignal): Promise<Channel> =>
      connectToService(address, STREAM_SERVICE_NAME, {
        signal: open,
        ...(providers.tls === undefined ? {} : { tls: providers.tls }),
      });
  const { connections, rateBytesPerSecond, onEvent } = providers;
  const own = ownIdentity(systemDisk, dir, nodeFileCodec);
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
      history: marker?.history,
      lagRecordsMax: DEFAULT_LIMITS.providerLagRecordsMax,
      attemptsMax: DEFAULT_LIMITS.providerAttemptsMax,
      onEvent,
    },
    signal,
  );
}
