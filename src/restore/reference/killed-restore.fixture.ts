/** A process that restores, and kills itself with SIGKILL just before the step of its disk that it was told. */
import { systemClock } from '../../base/clock.ts';
import type { Disk, DiskFile } from '../../base/disk.ts';
import { systemDisk } from '../../base/disk.ts';
import { acquireDirectoryLock } from '../../base/directory-lock.ts';
import { NetworkRestore } from './network-restore.ts';
import { configFor } from './peers.fixture.ts';

const [port, dir, killAt] = process.argv.slice(2);
const CHANGES = ['rename', 'remove', 'removeDirectory', 'makeDirectory', 'syncDirectory', 'sync', 'truncate'];
const WRITE_STEP_BYTES = 16_384;
let steps = 0;

function step(): void {
  if (steps === Number(killAt)) process.kill(process.pid, 'SIGKILL');
  steps += 1;
}

/** The bytes of a socket arrive in any pieces, so writes are counted by where they reach, the same in every run. */
function stepsOfWrite(bytes: Uint8Array, position: number): number {
  const reached = (at: number): number => Math.floor(at / WRITE_STEP_BYTES);
  return (position === 0 ? 1 : 0) + reached(position + bytes.length) - reached(position);
}

function counted<T extends Disk | DiskFile>(target: T): T {
  return new Proxy(target, {
    get(_, name) {
      const method = Reflect.get(target, name, target) as unknown;
      if (typeof method !== 'function') return method;
      return (...args: unknown[]): unknown => {
        if (CHANGES.includes(String(name)) || (name === 'open' && args[1] === 'create')) step();
        if (name === 'write') for (let left = stepsOfWrite(...(args as [Uint8Array, number])); left > 0; left--) step();
        const result: unknown = Reflect.apply(method, target, args);
        return name === 'open' ? counted(result as DiskFile) : result;
      };
    },
  });
}

const deps = {
  disk: counted(systemDisk),
  clock: systemClock,
  lock: (path: string, timeoutMs: number) =>
    acquireDirectoryLock({ dir: path, timeoutMs, holder: { command: 'test', version: '' } }),
};
await new NetworkRestore(configFor(Number(port)), {}, deps).withLocalDir(dir!).execute();
process.stdout.write(String(steps));
