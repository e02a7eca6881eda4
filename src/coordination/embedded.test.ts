import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { systemDisk } from '../base/disk.ts';
import { isNostosError } from '../base/errors.ts';
import { coordinatorCompliance, groupRecord } from '../testing/coordinator-compliance.ts';
import { EmbeddedCoordinator } from './embedded.ts';

function temporaryDir(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-coordinator-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

coordinatorCompliance({
  name: 'embedded',
  module: new URL('./open-coordinator.ts', import.meta.url).href,
  fresh: (t) => `embedded:${join(temporaryDir(t), 'coordinator')}?poll-ms=5`,
  async image(url) {
    const dir = /^embedded:(.+)\?/.exec(String(url))![1]!;
    const copy = `${dir}.${readdirSync(join(dir, '..')).length}`;
    if (existsSync(dir)) cpSync(dir, copy, { recursive: true });
    return async () => {
      rmSync(dir, { recursive: true });
      if (existsSync(copy)) cpSync(copy, dir, { recursive: true });
    };
  },
});

test('a damaged, foreign or newer record is an error, never a decision', async (t) => {
  const dir = temporaryDir(t);
  const coordinator = new EmbeddedCoordinator({ dir });
  await coordinator.compareAndSet(0, groupRecord());
  const path = join(dir, 'group.1.json');
  const good = readFileSync(path, 'utf8');
  const codes = new Set<string>();
  const cases = [
    '',
    'null',
    '{}\n{}\n',
    '{"format":2}\n',
    good.slice(0, -5),
    good.replace('"term":1', '"term":2'),
    good.replace('"version":1', '"version":2'),
    ...Array.from({ length: good.length }, (_, i) => `${good.slice(0, i)}~${good.slice(i + 1)}`),
  ];
  for (const text of cases) {
    writeFileSync(path, text);
    await assert.rejects(coordinator.read(), (error: unknown) => {
      assert.ok(isNostosError(error), String(error));
      codes.add(error.code);
      return true;
    });
  }
  assert.deepEqual([...codes].sort(), ['COORDINATOR_DAMAGED', 'UNSUPPORTED_FORMAT']);
});

test('old versions and abandoned files go, the newest stay', async (t) => {
  const dir = temporaryDir(t);
  writeFileSync(join(dir, `write.3.${'0'.repeat(32)}.tmp`), 'a writer was killed here');
  const coordinator = new EmbeddedCoordinator({ dir });
  for (let version = 0; version < 100; version++) await coordinator.compareAndSet(version, groupRecord());
  const names = readdirSync(dir);
  assert.equal(names.length, 64);
  assert.ok(names.includes('group.100.json') && names.includes('group.37.json'));
});

test('a writer that stood still past many versions has lost, and leaves nothing behind', async (t) => {
  const dir = temporaryDir(t);
  const coordinator = new EmbeddedCoordinator({ dir });
  for (let version = 0; version < 10; version++) await coordinator.compareAndSet(version, groupRecord());
  let stop = true;
  const late = new EmbeddedCoordinator(
    { dir },
    {
      disk: {
        ...systemDisk,
        link(from, to) {
          // While it is stopped here, version 11 is written by another and is later removed.
          if (stop) {
            stop = false;
            systemDisk.rename(join(dir, 'group.10.json'), join(dir, 'group.12.json'));
            writeFileSync(
              join(dir, 'group.12.json'),
              readFileSync(join(dir, 'group.12.json'), 'utf8').replace('"version":10', '"version":12'),
            );
          }
          systemDisk.link(from, to);
        },
      },
    },
  );
  const result = await late.compareAndSet(10, groupRecord());
  assert.equal(result.ok, false);
  assert.equal(stop, false);
  assert.ok(!readdirSync(dir).includes('group.11.json'));
});
