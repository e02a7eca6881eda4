import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const FIXTURE = fileURLToPath(new URL('stream-tail.fixture.ts', import.meta.url));

async function stream(megabytes: number): Promise<{ read: number; fileBytes: number; peakMiB: number }> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-tail-'));
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [FIXTURE, dir, String(megabytes)]);
    return JSON.parse(stdout) as Awaited<ReturnType<typeof stream>>;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

test('a tail of 300 MiB is written, verified and read in the memory of one of 100 MiB', async (t) => {
  const small = await stream(100);
  const large = await stream(300);
  assert.equal(large.read, 4_800);
  assert.ok(large.fileBytes > 300 * 1024 * 1024);
  t.diagnostic(`100 MiB: peak ${small.peakMiB.toFixed(0)} MiB; 300 MiB: ${large.peakMiB.toFixed(0)} MiB`);
  // What the collector has not got to yet varies; a tail that is kept would be 200 MiB more.
  assert.ok(large.peakMiB < small.peakMiB + 80, `${small.peakMiB} and ${large.peakMiB} MiB`);
});
