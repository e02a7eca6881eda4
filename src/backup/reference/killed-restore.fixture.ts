/** A process that restores, and kills itself with SIGKILL just before the step of its disk that it was told. */
import { acquireDirectoryLock } from '../../base/directory-lock.ts';
import { systemDisk, type Disk, type DiskFile } from '../../base/disk.ts';
import { RestoreExecutor } from './executor.ts';
import { LocalFsBackend } from './local-fs-backend.ts';
import { planOf } from './snapshot.fixture.ts';
import type { RestoreMode } from './types.ts';

const [root, dir, mode, killAt] = process.argv.slice(2) as [string, string, RestoreMode, string];
const CHANGES = ['rename', 'remove', 'removeDirectory', 'makeDirectory', 'syncDirectory', 'sync', 'write'];
let steps = 0;

function counted<T extends Disk | DiskFile>(target: T): T {
  return new Proxy(target, {
    get(_, name) {
      const method = Reflect.get(target, name, target) as unknown;
      if (typeof method !== 'function') return method;
      return (...args: unknown[]): unknown => {
        if (CHANGES.includes(String(name)) || (name === 'open' && args[1] === 'create')) {
          if (steps === Number(killAt)) process.kill(process.pid, 'SIGKILL');
          steps += 1;
        }
        const result: unknown = Reflect.apply(method, target, args);
        return name === 'open' ? counted(result as DiskFile) : result;
      };
    },
  });
}

const backend = new LocalFsBackend(root);
const lock = (path: string, timeoutMs: number) =>
  acquireDirectoryLock({ dir: path, timeoutMs, holder: { command: 'test', version: '' } });
await new RestoreExecutor(backend, dir, {}, { disk: counted(systemDisk), lock }).execute(await planOf(backend), mode);
process.stdout.write(String(steps));
