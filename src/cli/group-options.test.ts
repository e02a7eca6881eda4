import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable, Writable } from 'node:stream';
import { test } from 'node:test';
import { Command } from 'commander';
import { isNostosError } from '../base/errors.ts';
import type { GroupConfig } from '../node/group-config.ts';
import { ExitError } from './exit-codes.ts';
import { readGroupConfig, withGroupOptions } from './group-options.ts';
import type { Io } from './io.ts';

async function read(args: readonly string[], env: Io['env'], cwd = '/'): Promise<GroupConfig | undefined> {
  const stdout = new Writable();
  const signal = new AbortController().signal;
  const stream = { stdin: Readable.from([]), stdout, stderr: stdout, stdinIsTty: false, stdoutIsTty: false };
  const io: Io = { ...stream, stderrIsTty: false, columns: 80, color: false, cwd, env, signal };
  // As `serve`, which has it already for nodes that are alone.
  const command = new Command('serve').exitOverride().option('--tls-dir <dir>', 'of its own');
  withGroupOptions(command).action(() => {});
  await command.parseAsync(args, { from: 'user' });
  return readGroupConfig(io, command);
}

test('group options: flags, environment and file come together, also by options that a verb had before', async (t) => {
  const cwd = mkdtempSync(join(tmpdir(), 'nostos-config-'));
  t.after(() => rmSync(cwd, { recursive: true }));
  writeFileSync(join(cwd, 'g.json'), JSON.stringify({ coordinator: 'embedded:/c', group: 'file', listen: 'file:1' }));
  const env = {
    NOSTOS_TLS_DIR: '/tls',
    NOSTOS_CONFIG: 'g.json',
    NOSTOS_GROUP: 'variable',
    NOSTOS_GROUP_LISTEN: 'variable:1',
  };
  const config = await read(
    ['--group-listen', 'flag:1', '--group-limit', 'leaseMs=9000', '--group-limit', 'ackTimeoutMs=7'],
    env,
    cwd,
  );
  assert.ok(config !== undefined);
  const { limits, ...rest } = config;
  assert.deepEqual(rest, {
    coordinator: 'embedded:/c',
    group: 'variable',
    listen: 'flag:1',
    durability: 'quorum',
    tlsDir: '/tls',
  });
  assert.deepEqual([limits.leaseMs, limits.ackTimeoutMs], [9_000, 7]);
  const typed = await read(['--group', 'flag', '--tls-dir', 'tls'], env, cwd);
  assert.deepEqual([typed?.group, typed?.tlsDir], ['flag', join(cwd, 'tls')]);
});

test('group options: a node alone has no group, and what is wrong is named by where it stands', async () => {
  assert.equal(await read(['--tls-dir', 'h'], {}), undefined);
  await assert.rejects(
    read(['--group', 'X', '--coordinator', 'embedded:/c'], {}),
    /^NostosError: --group: expected 1 to 63/,
  );
  await assert.rejects(read([], { NOSTOS_GROUP_LISTEN: 'x' }), /^NostosError: NOSTOS_GROUP_LISTEN: expected host:port/);
  await assert.rejects(read(['--config', '/absent.json'], {}), (error: unknown) => error instanceof ExitError);
  await assert.rejects(read([], { NOSTOS_MIN_IN_SYNC: '2' }), (error: unknown) =>
    isNostosError(error, 'INVALID_ARGUMENT'),
  );
});
