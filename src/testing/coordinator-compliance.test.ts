/** The suite itself: each broken rule makes the tests fail that are there for it, and a sound adapter passes all. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { BROKEN_RULES } from './coordinator-broken.fixture.ts';

const script = fileURLToPath(new URL('./coordinator-broken.fixture.ts', import.meta.url));

for (const [rule, tests] of Object.entries(BROKEN_RULES))
  test(`the compliance suite of coordinators notices: ${rule}`, async (t) => {
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    const flags = ['--test-reporter=tap', `--test-name-pattern=${tests}`, '--test-timeout=20000'];
    const child = spawn(process.execPath, [...flags, script], {
      env: { ...env, NOSTOS_BROKEN_RULE: rule },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    await once(child, 'close');
    const count = (line: RegExp): number => output.match(line)?.length ?? 0;
    const [passed, failed] = [count(/^ok (?!.*# SKIP)/gm), count(/^not ok /gm)];
    if (rule === 'none') assert.ok(passed >= 12 && failed === 0, output);
    else assert.ok(passed === 0 && failed === tests.split('|').length, output);
  });
