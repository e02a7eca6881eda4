/** A process that restores from a backup, and kills itself before a step that changes something on the disk. */
import { systemDisk, type Disk, type DiskFile } from '../base/disk.ts';
import { restoreBackup, type RestoreBackupOptions } from './backup-restore.ts';
import { restoreDeps } from './restore-run.ts';

export type ChildOptions = Pick<RestoreBackupOptions, 'dir' | 'mode' | 'discard'> & {
  readonly from: string;
  readonly killAt: number;
};

let steps = 0;

function dyingDisk(killAt: number): Disk {
  const step = (): void => {
    if (steps++ === killAt) process.kill(process.pid, 'SIGKILL');
  };
  const file = (opened: DiskFile): DiskFile => ({
    path: opened.path,
    read: (target, offset) => opened.read(target, offset),
    write: (bytes, offset) => (step(), opened.write(bytes, offset)),
    dataSync: () => (step(), opened.dataSync()),
    sync: () => (step(), opened.sync()),
    truncate: (size) => (step(), opened.truncate(size)),
    size: () => opened.size(),
    close: () => opened.close(),
  });
  return {
    ...systemDisk,
    open: (path, mode) => {
      if (mode === 'create') step();
      return file(systemDisk.open(path, mode));
    },
    rename: (from, to) => (step(), systemDisk.rename(from, to)),
    remove: (path) => (step(), systemDisk.remove(path)),
    removeDirectory: (path) => (step(), systemDisk.removeDirectory(path)),
    makeDirectory: (path) => (step(), systemDisk.makeDirectory(path)),
    syncDirectory: (path) => (step(), systemDisk.syncDirectory(path)),
  };
}

const { killAt, ...options } = JSON.parse(process.argv[2]!) as ChildOptions;
await restoreBackup(options, { ...restoreDeps, disk: dyingDisk(killAt) });
process.stdout.write(JSON.stringify({ steps }));
