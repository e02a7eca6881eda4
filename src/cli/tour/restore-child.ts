/**
 * The process that the tour kills while it restores. On stdout it says `~<done> <total>` as bytes are there, and at the end
 * its report as JSON.
 *
 * Arguments: data directory, source, bytes per second (0: no limit).
 */
import { DEFAULT_LIMITS } from '../../base/limits.ts';
import { restoreDirectory } from '../../restore/local/restore-directory.ts';
import { openProviders, restoreDeps } from '../../node/restore-run.ts';

const [dir, from, rate] = process.argv.slice(2) as [string, string, string];

// When the tour itself dies, this process must not go on.
process.stdin
  .resume()
  .once('end', () => process.exit(1))
  .unref?.();

const report = await restoreDirectory(restoreDeps, {
  dir,
  reserveBytes: DEFAULT_LIMITS.restoreReserveBytes,
  openFeed: (marker, signal = new AbortController().signal) =>
    openProviders(
      dir,
      { from: [from], ...(Number(rate) > 0 ? { rateBytesPerSecond: Number(rate) } : {}) },
      { marker, signal },
    ),
  onProgress: ({ unit, done, total }) => {
    if (unit === 'bytes' && total !== undefined) process.stdout.write(`~${done} ${total}\n`);
  },
});
process.stdout.write(`${JSON.stringify(report)}\n`);
process.exit(0);
