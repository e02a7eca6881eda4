/** The maintenance thread: checkpoints, scrubs and copies of tenant files. */
import { systemDisk } from '../base/disk.ts';
import { verifyLog } from '../log/verify.ts';
import { checkpointFile, type CheckpointMode } from '../store/checkpoint.ts';
import { exportPlain } from '../store/export-file.ts';
import type { CopyRequest, ScrubRequest } from '../store/maintenance.ts';
import { quickCheck, scrubFile } from '../store/scrub.ts';
import { serveThread } from './thread-server.ts';

serveThread({
  checkpoint: ({ path, mode }: { path: string; mode: CheckpointMode }) => checkpointFile(path, mode),
  scrub: (request: ScrubRequest, progress) => scrubFile(request, progress),
  quickCheck: ({ path }: { path: string }) => quickCheck(path),
  verifyLog: ({ dir }: { dir: string }, onProgress) => verifyLog({ disk: systemDisk, dir }, { onProgress }),
  exportPlain: (request: CopyRequest, progress) => exportPlain(request, progress),
});
