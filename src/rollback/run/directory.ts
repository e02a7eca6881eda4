/** `rollback/` of a data directory: rollback files, the journal and the outbox of one node, whose lock its owner holds. */
import { dirname, join } from 'node:path';
import type { Disk } from '../../base/disk.ts';
import { FileJournal, type JournalStore } from './journal.ts';
import { FileOutbox, type Outbox } from './outbox.ts';

export interface RollbackDirectory {
  readonly dir: string;
  readonly journal: JournalStore;
  readonly outbox: Outbox;
}

/** Made durably where it is not there. */
export function openRollbackDirectory(disk: Disk, dir: string): RollbackDirectory {
  const outbox = join(dir, 'outbox');
  if (!disk.exists(outbox)) {
    disk.makeDirectory(outbox);
    disk.syncDirectory(dir);
    disk.syncDirectory(dirname(dir));
  }
  return { dir, journal: new FileJournal(disk, dir), outbox: new FileOutbox(disk, outbox) };
}
