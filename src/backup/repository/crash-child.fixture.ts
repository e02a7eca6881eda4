/** Makes or prunes a snapshot in a directory and kills itself, right before or right after the n-th request. */
import type { ObjectBackend } from '../backend/backend.ts';
import { LocalBackend } from '../backend/local.ts';
import { prune } from './prune.ts';
import { fileBytes, ORIGIN, SEAL, sourceOf, tenantFile } from './repository.fixture.ts';
import { openRepository } from './repository.ts';

const [kind, dir = '', moment] = process.argv.slice(2);
let left = Number(moment);

/** Counts before and after each request that changes something. */
function step(): void {
  left -= 1;
  if (left === 0) process.kill(process.pid, 'SIGKILL');
}

const local = await LocalBackend.open(dir);
const backend = new Proxy(local, {
  get(target, name: keyof ObjectBackend) {
    const value: unknown = target[name];
    if (typeof value !== 'function') return value;
    const call = value.bind(target) as (...args: unknown[]) => unknown;
    if (name !== 'put' && name !== 'delete') return call;
    return async (...args: unknown[]) => {
      step();
      const answer = await call(...args);
      step();
      return answer;
    };
  },
});
const repository = await openRepository(backend, { limits: { backupGraceMs: -1, backupConcurrency: 1 } });
if (kind === 'prune') await prune(repository, { keep: { last: 1 } });
else {
  await using writer = await repository.createSnapshot(ORIGIN);
  await writer.addFile(tenantFile(1), sourceOf(fileBytes(2_500_000, 99)));
  await writer.addFile(tenantFile(2), sourceOf(fileBytes(9_000, 98)));
  await writer.commit(SEAL);
}
process.stdout.write('done\n');
