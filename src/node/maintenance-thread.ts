/** The maintenance thread: checkpoints, scrubs and copies of tenant files. */
import type { Lsn } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { verifyLog } from '../log/verify.ts';
import { checkpointFile, letGo, type CheckpointRequest } from '../store/checkpoint.ts';
import { exportPlain, type CopyWork } from '../store/export-file.ts';
import { inspectSource } from '../store/import-source.ts';
import type { InspectRequest, ScrubRequest } from '../store/maintenance.ts';
import { scrubFile } from '../store/scrub.ts';
import { serveThread } from './thread-server.ts';

serveThread({
  checkpoint: (request: CheckpointRequest) => checkpointFile(request),
  letGo: ({ path }: { path: string }) => letGo(path),
  scrub: (request: ScrubRequest, progress) => scrubFile(request, progress),
  inspect: (request: InspectRequest, progress) => inspectSource(request, progress),
  verifyLog: ({ dir, inUseFrom }: { dir: string; inUseFrom: Lsn }, onProgress) =>
    verifyLog({ disk: systemDisk, dir, inUseFrom }, { onProgress }),
  exportPlain: (request: CopyWork, progress) => exportPlain(request, progress),
});
