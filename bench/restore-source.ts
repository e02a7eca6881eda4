/** The serving process of the benchmark `restore`. */
import { DirectorySource } from '../src/restore/directory-source.ts';
import { RestoreService } from '../src/restore/stream/service.ts';
import { TcpServiceDispatcher } from '../src/wire/dispatcher.ts';
import { note, peakResidentBytes } from './child.ts';

/** Who connects to it ends the process. */
export const STOP_SERVICE = 'STOP';

/** Says where it listens; returns the most memory that it had. */
export async function serve({ source }: { readonly source: string }): Promise<number> {
  const stopped = Promise.withResolvers<void>();
  await using dispatcher = new TcpServiceDispatcher('127.0.0.1:0');
  dispatcher.register(new RestoreService(new DirectorySource(source)));
  dispatcher.register({
    serviceName: STOP_SERVICE,
    handle: async () => stopped.resolve(),
  });
  note(await dispatcher.start());
  await stopped.promise;
  return peakResidentBytes();
}

/** Leaves everything that is imported here in the cache of compiled code. */
export const compile = (): void => undefined;
