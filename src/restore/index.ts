/** Published as `nostos/restore`: the reference's network restore, client and server. */
export { NetworkRestore, finishRestore } from './reference/network-restore.ts';
export type { NetworkRestoreOptions } from './reference/network-restore.ts';
export { NetworkRestoreServer } from './reference/server.ts';
export type { NetworkRestoreServerOptions } from './reference/server.ts';
export { RESTORE_LIMITS, RESTORE_MAGIC, RESTORE_SERVICE_NAME, RestoreState } from './reference/types.ts';
export type {
  NameRule,
  NetworkRestoreConfig,
  RestoredFile,
  RestoreEvent,
  RestoreProgress,
  RestoreReport,
  Trailer,
} from './reference/types.ts';
