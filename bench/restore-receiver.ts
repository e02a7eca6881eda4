/** The receiving process of the benchmark `restore`. */
import { closeSync, fsyncSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { itemPath } from '../src/restore/item-name.ts';
import { RestoreClient, type StreamReport } from '../src/restore/stream/client.ts';
import { RECEIVE_BUFFER_BYTES } from '../src/restore/stream/limits.ts';
import { STREAM_SERVICE_NAME } from '../src/restore/stream/messages.ts';
import { connectToService } from '../src/wire/connect.ts';
import { note, peakResidentBytes } from './child.ts';

export interface Fetch {
  readonly port: number;
  readonly target: string;
  /** A directory of files to start from. */
  readonly bases?: string;
  /** Says `half` once half of it is there. */
  readonly noteHalf?: boolean;
}

export interface Fetched {
  readonly report: StreamReport;
  readonly peakBytes: number;
}

export async function fetchOnce({ port, target, bases, noteHalf }: Fetch): Promise<Fetched> {
  const client = await RestoreClient.open({
    connect: (signal) =>
      connectToService(`127.0.0.1:${port}`, STREAM_SERVICE_NAME, { signal, receiveBufferBytes: RECEIVE_BUFFER_BYTES }),
  });
  const report = await client.fetchAll(
    {
      pathOf: (name) => join(target, ...itemPath(name)),
      baseOf: (name) => (bases === undefined ? undefined : join(bases, ...itemPath(name))),
    },
    {
      onProgress: ({ bytesDone, bytesTotal }) => {
        if (noteHalf === true && bytesDone >= bytesTotal / 2) note('half');
      },
    },
  );
  await client.close();
  const directory = openSync(target, 'r');
  fsyncSync(directory);
  closeSync(directory);
  return { report, peakBytes: peakResidentBytes() };
}

/** Leaves everything that is imported here in the cache of compiled code. */
export const compile = (): void => undefined;
