/** A whole restore as one call: what `nostos restore` does. */
import { resolve } from 'node:path';
import { systemClock } from '../base/clock.ts';
import { NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import type { LocalProgress } from '../restore/local/restore-directory.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';
import type { RestoreRunEvent, RunReport } from './restore-run.ts';

export interface RestoreNodeOptions {
  /** The data directory; nobody may have it open. What it holds is set aside, and its equal pages are not sent again. */
  readonly dir: string;
  /**
   * `host:port` of nodes of one cluster: the best one is copied, and the next one goes on where it fails. Not needed where
   * a restore was cut off: then it goes on from those that it had.
   */
  readonly from?: readonly string[];
  /** Of this node, as `nostos certs` makes them. */
  readonly tls?: TlsIdentity;
  /** Take the state of another cluster or generation than that of the directory. Default false. */
  readonly replace?: boolean;
  /** Remove the former state at the end instead of keeping it in `set-aside.<n>/`. Default false. */
  readonly discard?: boolean;
  /** Files in flight at a time. */
  readonly connections?: number;
  readonly rateBytesPerSecond?: number;
  /** What was fetched is kept; the next call goes on with it. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: LocalProgress) => void;
  /** Which source was chosen, dropped or connected to again. */
  readonly onEvent?: (event: RestoreRunEvent) => void;
}

/**
 * Copies the state of another node into `dir`, verifies it, and puts it in place. Until then the former state is untouched;
 * whatever ends the process meanwhile, the same call goes on. The directory then is a copy: it is read, and starts no term.
 *
 * @example
 * await restoreNode({ dir: './data', from: ['10.0.0.2:4041'] })
 */
export async function restoreNode(options: RestoreNodeOptions): Promise<RunReport> {
  const { replace = false, discard = false, tls, from, connections, rateBytesPerSecond, onEvent } = options;
  const dir = resolve(options.dir);
  // Who only opens nodes has no use for the network.
  const [{ restoreFromProviders }, { ownNode }] = await Promise.all([
    import('./restore-run.ts'),
    import('../wire/tls-identity.ts'),
  ]);
  return restoreFromProviders(
    async (marker) => {
      const sources = from ?? marker?.sources;
      if (sources === undefined)
        throw new NostosError('INVALID_ARGUMENT', `restoreNode needs from: where ${dir} is to be restored from`);
      return { from: sources, tls, connections, rateBytesPerSecond, replace, onEvent };
    },
    {
      dir,
      // Others let a node in by the id in its certificate, so a new directory takes that one.
      node: tls === undefined ? undefined : ownNode(tls, systemClock.nowMs()),
      replace,
      discard,
      reserveBytes: DEFAULT_LIMITS.restoreReserveBytes,
      ...(options.signal === undefined ? {} : { signal: options.signal }),
      ...(options.onProgress === undefined ? {} : { onProgress: options.onProgress }),
    },
  );
}
