/** Real processes, a real directory, kill -9. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, readdir, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { prune } from './prune.ts';
import {
  fileBytes,
  newRepository,
  ORIGIN,
  SEAL,
  sourceOf,
  temporaryDirectory,
  tenantFile,
} from './repository.fixture.ts';
import { openRepository } from './repository.ts';
import { verify } from './verify.ts';

const CHILD = fileURLToPath(new URL('crash-child.fixture.ts', import.meta.url));
/** More than any of the two takes. */
const MOMENTS_MAX = 60;

/** False once it came to its end before the moment. */
async function dies(kind: 'create' | 'prune', dir: string, moment: number): Promise<boolean> {
  const child = spawn(process.execPath, [CHILD, kind, dir, String(moment)], { stdio: ['ignore', 'ignore', 'inherit'] });
  const [code, signal] = (await once(child, 'exit')) as [number | null, string | null];
  assert.ok(code === 0 || signal === 'SIGKILL', `the child ended with ${code ?? signal}`);
  return signal === 'SIGKILL';
}

for (const kind of ['create', 'prune'] as const)
  test(`kill -9 at every third step of ${kind} leaves each snapshot whole, or none; the next prune leaves no orphan`, async (t) => {
    const { repository, dir: origin } = await newRepository(t);
    for (const seed of [1, 2]) {
      await using writer = await repository.createSnapshot(ORIGIN);
      await writer.addFile(tenantFile(1), sourceOf(fileBytes(2_500_000, seed)));
      await writer.addFile(tenantFile(2), sourceOf(fileBytes(9_000)));
      await writer.commit(SEAL);
    }
    const base = await temporaryDirectory(t);
    let deaths = 0;
    for (let moment = 1; moment < MOMENTS_MAX; moment += 3) {
      const dir = join(base, String(moment));
      await cp(origin, dir, { recursive: true });
      if (!(await dies(kind, dir, moment))) break;
      deaths += 1;
      const after = await openRepository(dir, { limits: { backupGraceMs: -1 } });
      const found = await Array.fromAsync(after.snapshots());
      assert.ok(
        kind === 'create' ? found.length >= 2 : found.length >= 1 && found.length <= 2,
        `${found.length} at ${moment}`,
      );
      // What the dead one holds is given up when it is old.
      for (const name of await readdir(join(dir, 'locks'))) await utimes(join(dir, 'locks', name), 0, 0);
      assert.deepEqual((await verify(after)).problems, [], `killed at ${moment}`);
      await prune(after, { keep: { last: 1 } });
      assert.deepEqual(await readdir(join(dir, 'locks')), []);
      const { problems, snapshots } = await verify(after);
      assert.deepEqual([problems, snapshots], [[], 1]);
      assert.equal((await Array.fromAsync(after.deps.backend.list('objects/'))).length, 5, `orphans after ${moment}`);
    }
    assert.ok(deaths >= 5, `${deaths} deaths`);
  });
