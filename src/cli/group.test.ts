import assert from 'node:assert/strict';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import type { StoreId } from '../base/brands.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { processIo } from './io.ts';
import { nostos, temporaryDirectory, type Ended } from './nostos-process.fixture.ts';
import { runCli } from './program.ts';

test('group init, status and rejoin --plan, with the coordinator of a file, and what each refuses', async (t) => {
  const cwd = await temporaryDirectory(t);
  const config = ['--config', 'group.json'];
  await writeFile(
    join(cwd, 'group.json'),
    JSON.stringify({ coordinator: `embedded:${cwd}/coordinator`, group: 'shop' }),
  );
  const run = (...args: string[]): Promise<Ended> => nostos(cwd, args);
  const ok = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await run(...args);
    assert.equal(code, EXIT_CODES.ok[0], `nostos ${args.join(' ')}: ${stderr}`);
    return stdout;
  };
  const refused = async (exit: keyof typeof EXIT_CODES, message: RegExp, ...args: string[]): Promise<void> => {
    const { code, stdout, stderr } = await run(...args);
    assert.deepEqual([code, stdout], [EXIT_CODES[exit][0], ''], stderr);
    assert.match(stderr, message);
  };
  await ok('tenant', 'create', 'acme', '--dir', 'a');

  await refused('notFound', /no group shop[^]*→ nostos group init/, 'group', 'status', ...config);
  await refused('usage', /no data directory/, 'group', 'init', '--dir', 'absent', ...config);
  await refused('usage', /which coordinator/, 'group', 'init', '--dir', 'a');
  await refused('usage', /^error: --group: expected 1 to 63/, 'group', 'init', '--dir', 'a', '--group', 'A', ...config);
  await refused('usage', /rejoins when it is started/, 'rejoin', '--dir', 'a', ...config);

  assert.match(await ok('rejoin', '--plan', '--dir', 'a', ...config), /coordinator +it has no record/);
  assert.match(await ok('group', 'init', '--dir', 'a', ...config), /in sync +1 of 1[^]*replica +yes +-/);
  await refused('failed', /GROUP_EXISTS/, 'group', 'init', '--dir', 'a', ...config);
  const plan = await ok('rejoin', '--plan', '--dir', 'a', ...config);
  assert.match(plan, /does +stand \(no-primary\)/);
  await refused('retry', /no node runs on/, 'group', 'handover', '--dir', 'a', ...config);
  await refused('retry', /no node runs on/, 'group', 'add', 'c'.repeat(32), '--dir', 'a');
  await refused('notFound', /told the coordinator/, 'group', 'add', '127.0.0.1:1', '--dir', 'a', ...config);

  const status = JSON.parse(await ok('group', 'status', '--json', ...config)) as { members: { address: null }[] };
  assert.deepEqual([status.members.length, status.members[0]?.address], [1, null]);
  const other = await ok('rejoin', '--plan', '--dir', 'a', '--group', 'other', ...config, '--json');
  assert.equal((JSON.parse(other) as { decision: { action: string } }).decision.action, 'stop');
});

test('group recover: by a report too, and an exit code that says whether somebody can lead', async (t) => {
  const cwd = await temporaryDirectory(t);
  const place = ['--coordinator', `embedded:${cwd}/coordinator`];
  const run = (...args: string[]): Promise<Ended> => nostos(cwd, [...args, ...place]);
  await nostos(cwd, ['tenant', 'create', 'acme', '--dir', 'a']);
  await run('group', 'init', '--dir', 'a');
  const whole = await run('group', 'recover', '--dir', 'a');
  assert.match(whole.stdout, /decision +not-needed/);
  await writeFile(join(cwd, 'a.json'), (await run('rejoin', '--plan', '--dir', 'a', '--json')).stdout);
  await rm(join(cwd, 'coordinator'), { recursive: true });
  await mkdir(join(cwd, 'coordinator'));

  const twice = await run('group', 'recover', '--dir', 'a', '--report', 'a.json');
  assert.equal(twice.code, EXIT_CODES.failed[0]);
  assert.match(twice.stdout, /contradiction[^]*is there twice/);
  const recovered = await run('group', 'recover', '--dir', 'a', '--json');
  assert.equal(recovered.code, EXIT_CODES.ok[0], recovered.stderr);
  assert.equal((JSON.parse(recovered.stdout) as { done: boolean }).done, true);
  assert.match((await run('rejoin', '--plan', '--dir', 'a')).stdout, /does +stand/);
  await writeFile(join(cwd, 'a.json'), '{"directory": {}}');
  const unread = await run('group', 'recover', '--dir', 'a', '--report', 'a.json');
  assert.deepEqual([unread.code, unread.stdout], [EXIT_CODES.usage[0], '']);
  assert.match(unread.stderr, /a\.json is no report of a store: node: it is missing/);
});

/** On a terminal, at which somebody types this. */
async function onTerminal(cwd: string, typed: string, args: readonly string[]): Promise<Ended> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const [out, err] = [text(stdout), text(stderr)];
  const streams = { stdin: Readable.from([`${typed}\n`]), stdout, stderr, stdinIsTty: true, stdoutIsTty: false };
  const code = await runCli(args, { ...processIo(new AbortController().signal), ...streams, color: false, cwd });
  stdout.end();
  stderr.end();
  return { code, stdout: await out, stderr: await err };
}

test('group recover --accept-loss: what may be lost is shown, asked for on a terminal, and done once', async (t) => {
  const cwd = await temporaryDirectory(t);
  const place = ['--coordinator', `embedded:${cwd}/coordinator`];
  const recover = ['group', 'recover', '--dir', 'a', ...place];
  const run = (...args: string[]): Promise<Ended> => nostos(cwd, [...args, ...place]);
  await nostos(cwd, ['tenant', 'create', 'acme', '--dir', 'a']);
  await run('group', 'init', '--dir', 'a');
  {
    // The only store that is in sync is gone.
    await using coordination = await openCoordinator(`embedded:${cwd}/coordinator`);
    const group = coordination.group();
    const { version, record } = (await group.read())!;
    const lost = 'c'.repeat(32) as StoreId;
    const members = [...record.members, lost];
    await group.compareAndSet(version, { ...record, members, inSync: [lost], nonce: '1'.repeat(32) });
  }
  const refused = await nostos(cwd, recover);
  assert.equal(refused.code, EXIT_CODES.failed[0]);
  assert.match(refused.stdout, /too-few[^]*may be lost[^]*only on c{32}[^]*--accept-loss/);
  const looked = await nostos(cwd, [...recover, '--accept-loss', '--dry-run', '--json']);
  const { begins, done } = JSON.parse(looked.stdout) as { begins: { loss: { onlyOn: string[] } }; done: boolean };
  assert.deepEqual([looked.code, done, begins.loss.onlyOn], [EXIT_CODES.ok[0], false, ['c'.repeat(32)]]);

  const no = await onTerminal(cwd, 'yes', [...recover, '--accept-loss']);
  assert.equal(no.code, EXIT_CODES.usage[0]);
  assert.match(no.stderr, /may be lost[^]*Type "accept loss"[^]*nothing was changed/);
  assert.match((await run('group', 'status')).stdout, /record +version 2/);
  const yes = await onTerminal(cwd, 'accept loss', [...recover, '--accept-loss']);
  assert.equal(yes.code, EXIT_CODES.ok[0], yes.stderr);
  assert.match(yes.stdout, /goes on with[^]*generation +[0-9a-f]{32}, from record[^]*record +replaced: start the node/);
  assert.match((await run('group', 'status')).stdout, /record +version 3[^]*in sync +1 of 2; each write is on 1/);
  assert.match((await run('rejoin', '--plan', '--dir', 'a')).stdout, /does +stand/);
  const again = await nostos(cwd, [...recover, '--accept-loss', '--json']);
  assert.equal((JSON.parse(again.stdout) as { decision: { kind: string } }).decision.kind, 'not-needed');
  const nothing = await nostos(cwd, [...recover, '--abandon']);
  assert.match(nothing.stderr, /no unfinished recovery/);
});
