/** One side of a restore as a process of its own, which `kill.fixture.ts` ends with SIGKILL. */
import { join } from 'node:path';
import { serializeError } from '../../base/errors.ts';
import { connectToService } from '../../wire/connect.ts';
import { TcpServiceDispatcher } from '../../wire/dispatcher.ts';
import { DirectorySource } from '../directory-source.ts';
import { itemPath } from '../item-name.ts';
import { RestoreClient } from './client.ts';
import { STREAM_SERVICE_NAME } from './messages.ts';
import { RestoreService } from './service.ts';

export type ChildJob =
  | { readonly role: 'source'; readonly dir: string; readonly rateBytesPerSecond: number }
  | { readonly role: 'receiver'; readonly address: string; readonly dir: string; readonly tellAtShare: number };

export type ChildNote =
  | { readonly kind: 'listening'; readonly address: string }
  /** `tellAtShare` of all bytes is there. */
  | { readonly kind: 'reached'; readonly doneBytes: number }
  | { readonly kind: 'done'; readonly bytesOnWire: number }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string };

const tell = (note: ChildNote): void => void process.send?.(note);

async function serve({ dir, rateBytesPerSecond }: Extract<ChildJob, { role: 'source' }>): Promise<void> {
  const dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  dispatcher.register(new RestoreService(new DirectorySource(dir), { rateBytesPerSecond, compression: 'off' }));
  tell({ kind: 'listening', address: await dispatcher.start() });
}

async function receive({ address, dir, tellAtShare }: Extract<ChildJob, { role: 'receiver' }>): Promise<void> {
  try {
    const client = await RestoreClient.open({
      connect: (signal) => connectToService(address, STREAM_SERVICE_NAME, { signal }),
    });
    let told = false;
    const report = await client.fetchAll(
      { pathOf: (name) => join(dir, ...itemPath(name)), baseOf: () => undefined },
      {
        onProgress: ({ bytesDone, bytesTotal }) => {
          if (told || bytesDone < tellAtShare * bytesTotal) return;
          told = true;
          tell({ kind: 'reached', doneBytes: bytesDone });
        },
      },
    );
    await client.close();
    tell({ kind: 'done', bytesOnWire: report.bytesOnWire });
  } catch (error) {
    const { code, message } = serializeError(error);
    tell({ kind: 'failed', code, message });
  }
  process.disconnect?.();
}

process.once('message', (job: ChildJob) => void (job.role === 'source' ? serve(job) : receive(job)));
// Nobody is left to stop it.
process.once('disconnect', () => process.exit());
