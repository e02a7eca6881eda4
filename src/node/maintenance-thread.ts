/**
 * The maintenance thread: checkpoints, scrubs and copies of tenant files. One that only checkpoints does not load the rest,
 * which takes 4 MiB.
 */
import type { Lsn } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { checkpointFile, letGo, type CheckpointRequest } from '../store/checkpoint.ts';
import type { CopyWork } from '../store/export-file.ts';
import type { ForgottenRowsRequest } from '../store/forgotten-rows.ts';
import type { InspectRequest, ScrubRequest } from '../store/maintenance.ts';
import { serveThread } from './thread-server.ts';

serveThread({
  checkpoint: (request: CheckpointRequest) => checkpointFile(request),
  letGo: ({ path }: { path: string }) => letGo(path),
  scrub: async (request: ScrubRequest, progress) => (await import('../store/scrub.ts')).scrubFile(request, progress),
  inspect: async (request: InspectRequest, progress) =>
    (await import('../store/import-source.ts')).inspectSource(request, progress),
  verifyLog: async ({ dir, inUseFrom }: { dir: string; inUseFrom: Lsn }, onProgress) =>
    (await import('../log/verify.ts')).verifyLog({ disk: systemDisk, dir, inUseFrom }, { onProgress }),
  findForgotten: async (request: ForgottenRowsRequest) =>
    (await import('../store/forgotten-rows.ts')).findForgottenRows(request),
  exportPlain: async (request: CopyWork, progress) =>
    (await import('../store/export-file.ts')).exportPlain(request, progress),
});
